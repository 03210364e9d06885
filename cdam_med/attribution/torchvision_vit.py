"""torchvision's vision transformers, ``vit_b_16`` and its kin."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.attribution.vit import Part, Patches, Projections, VitAdapter, is_named


class TorchvisionAdapter(VitAdapter):
    """A ViT of torchvision. See `VitAdapter`."""

    kinds = ("torchvision.VisionTransformer",)
    n_prefix = 1

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.name = f"torchvision's {self.name}"  # timm has one of the same name
        self.embed_dim = int(self.module.hidden_dim)
        self.blocks = tuple(self.module.encoder.layers)
        self.norm = self.module.encoder.ln
        self.readout = self.module.heads

    @property
    def patches(self) -> Patches:
        """See `VitAdapter`."""
        stem = next(p for p in self.module.conv_proj.modules() if isinstance(p, nn.Conv2d))
        side, edge = int(self.module.patch_size), int(self.module.image_size)
        return Patches((side, side), stem.in_channels, image_size=(edge, edge))

    def norms_before_attention(self, block: Any) -> tuple[nn.Module, ...]:
        """See `VitAdapter`."""
        return (block.ln_1,) if is_named(block, "torchvision.EncoderBlock") else ()

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
        return Projections.of_layer(
            attention.in_proj_weight, attention.in_proj_bias, attention.num_heads
        )

    def parts_after_attention(self) -> tuple[Part, Part, Part, Part, Part]:
        """See `VitAdapter`."""
        block: Any = self.blocks[-1]
        return block.self_attention.out_proj, nn.Identity(), block.ln_2, block.mlp, nn.Identity()
