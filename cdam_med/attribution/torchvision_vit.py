"""torchvision's vision transformers, ``vit_b_16`` and its kin."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.attribution.vit import Patches, Projections, VitAdapter, is_named

_VIT = "torchvision.models.vision_transformer.VisionTransformer"
_BLOCK = "torchvision.models.vision_transformer.EncoderBlock"


class TorchvisionAdapter(VitAdapter):
    """A ViT of torchvision. See `VitAdapter`."""

    module: Any  # the library's, which isn't imported
    n_prefix = 1

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """See `VitAdapter`."""
        return is_named(module, _VIT)

    @property
    def name(self) -> str:
        """Its class, and whose it is: timm has one of the same name."""
        return f"torchvision's {type(self.module).__name__}"

    @property
    def embed_dim(self) -> int:
        """See `VitAdapter`."""
        return int(self.module.hidden_dim)

    @property
    def patches(self) -> Patches:
        """See `VitAdapter`."""
        stem = next(p for p in self.module.conv_proj.modules() if isinstance(p, nn.Conv2d))
        side, edge = int(self.module.patch_size), int(self.module.image_size)
        return Patches((side, side), stem.in_channels, image_size=(edge, edge))

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """See `VitAdapter`."""
        return tuple(self.module.encoder.layers)

    @property
    def norm(self) -> nn.Module:
        """See `VitAdapter`."""
        norm: nn.Module = self.module.encoder.ln
        return norm

    @property
    def readout(self) -> Callable[[Tensor], Tensor]:
        """See `VitAdapter`."""
        heads: nn.Module = self.module.heads
        return heads

    def norms_before_attention(self, block: Any) -> tuple[nn.Module, ...]:
        """See `VitAdapter`."""
        return (block.ln_1,) if is_named(block, _BLOCK) else ()

    def forward_features(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch token dim"]:
        """Do what its `forward` does before the head; it has no function for that."""
        patches = self.module._process_input(images)
        class_token = self.module.class_token.expand(len(images), -1, -1)
        tokens: Tensor = self.module.encoder(torch.cat((class_token, patches), dim=1))
        return tokens

    def projections(self) -> Projections | None:
        """Return those of torch's own attention, whose queries, keys and values are one layer."""
        attention = getattr(self.blocks[-1], "self_attention", None)
        if type(attention) is not nn.MultiheadAttention or attention.in_proj_weight is None:
            return None
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        W_q, W_k, W_v = torch.unflatten(weight, 0, (3, attention.num_heads, -1))
        bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
        b_q, _, b_v = torch.unflatten(bias, 0, (3, attention.num_heads, 1, -1))
        return Projections(W_q, W_k, W_v, b_q, b_v)

    def after_attention(
        self,
        z: Float[Tensor, "batch head read head_dim"],
        residual: Float[Tensor, "batch read dim"],
    ) -> Float[Tensor, "batch read dim"]:
        """See `VitAdapter`."""
        block: Any = self.blocks[-1]
        x = residual + block.self_attention.out_proj(z.transpose(1, 2).flatten(2))
        left: Tensor = x + block.mlp(block.ln_2(x))
        return left
