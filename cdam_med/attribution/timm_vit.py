"""timm's vision transformers: `VisionTransformer`, `Eva` and `Beit`, and their children."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from timm.models.beit import Beit
from timm.models.beit import Block as BeitBlock
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaBlock
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import (
    Attention,  # defined here or in timm.layers, as timm's versions go
    Block,
    VisionTransformer,
)
from timm.models.vision_transformer_relpos import RelPosBlock, VisionTransformerRelPos
from torch import Tensor, nn

from cdam_med.attribution.patch_embed_3d import PatchEmbed3d
from cdam_med.attribution.pooling import Pooling, pooling_of
from cdam_med.attribution.vit import Patches, Projections, VitAdapter
from cdam_med.errors import ModelError

TimmVit: TypeAlias = VisionTransformer | Eva | Beit | VisionTransformerRelPos | NaFlexVit


class TimmAdapter(VitAdapter):
    """One of timm's vision transformers. See `VitAdapter`."""

    module: Any  # timm's, which declares its parts loosely

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """See `VitAdapter`."""
        return isinstance(module, TimmVit)

    @property
    def name(self) -> str:
        """The architecture by timm's name, where there is one, and the class."""
        kind = type(self.module).__name__
        architecture = (getattr(self.module, "pretrained_cfg", None) or {}).get("architecture")
        return f"{architecture} ({kind})" if architecture else kind

    @property
    def n_prefix(self) -> int:
        """See `VitAdapter`."""
        return int(self.module.num_prefix_tokens)

    @property
    def embed_dim(self) -> int:
        """See `VitAdapter`."""
        return int(self.module.embed_dim)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """See `VitAdapter`."""
        return tuple(self.module.blocks)

    @property
    def norm(self) -> nn.Module:
        """See `VitAdapter`."""
        norm: nn.Module = self.module.norm
        return norm

    @property
    def patches(self) -> Patches:
        """Read off the patch embedding, or the one within whatever was put around it."""
        vit = self.module
        around = vit.embeds if isinstance(vit, NaFlexVit) else vit.patch_embed
        parts = around.modules()
        embed: Any = next((part for part in parts if hasattr(part, "feat_ratio")), None)
        if embed is None:
            raise ModelError(
                f"{self.name} embeds its patches by {type(around).__name__}, in "
                "which timm's patch embedding isn't found, so that its patches are unknown: hold "
                "timm's own in it as a part."
            )
        if isinstance(embed, PatchEmbed3d):
            channels, channel_name = embed.depth, "slice(s) in place of channels"
        else:
            first = next((p for p in embed.modules() if isinstance(p, nn.Conv2d)), None)
            channels = self.module.in_chans if first is None else first.in_channels
            channel_name = "channel(s)"
        is_fixed = getattr(embed, "strict_img_size", False) and embed.img_size is not None
        return Patches(
            sides=tuple(embed.feat_ratio(as_scalar=False)),
            channels=channels,
            image_size=tuple(embed.img_size) if is_fixed else None,
            is_padded=embed.dynamic_img_pad,
            channel_name=channel_name,
        )

    @property
    def readout_tokens(self) -> int:
        """Two of a distilled DeiT, the class token and the distillation token."""
        return 2 if isinstance(self.module, VisionTransformerDistilled) else 1

    @property
    def pooling(self) -> Pooling | None:
        """See `VitAdapter`."""
        if isinstance(self.module, VisionTransformerDistilled):
            return None
        return pooling_of(self.module)

    @property
    def readout(self) -> Callable[[Tensor], Any]:
        """What timm's `forward_head` does behind the pooling."""
        if isinstance(self.module, VisionTransformerDistilled):
            return self._distilled_readout
        return self._readout

    def _readout(self, feature: Float[Tensor, "batch dim"]) -> Any:
        vit = self.module
        return vit.head(vit.head_drop(vit.fc_norm(feature)))

    def _distilled_readout(self, tokens: Float[Tensor, "batch two_dim"]) -> Any:
        """Average the heads of both tokens, as timm does when evaluating."""
        vit = self.module
        class_token, dist_token = tokens.chunk(2, dim=-1)
        outputs: Tensor = vit.head(vit.head_drop(class_token))
        outputs_dist: Tensor = vit.head_dist(vit.head_drop(dist_token))
        return (outputs + outputs_dist) / 2

    def norms_before_attention(self, block: Any) -> tuple[nn.Module, ...]:
        """See `VitAdapter`."""
        if isinstance(block, Block | EvaBlock | BeitBlock | RelPosBlock):
            return (block.norm1,)
        if hasattr(block, "in_norm"):  # timm's (Diff)ParallelScalingBlock
            return (block.in_norm,)
        if hasattr(block, "attns"):  # timm's ParallelThingsBlock
            return tuple(branch.norm for branch in block.attns)
        return ()

    def forward_features(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch token dim"]:
        """See `VitAdapter`."""
        tokens: Tensor = self.module.forward_features(images)
        return tokens

    def projections(self) -> Projections | None:
        """Return those of pre-norm attention with one linear layer for queries, keys and values."""
        block = self.module.blocks[-1]
        if type(block) is not Block or type(block.attn) is not Attention:
            return None
        attn, idle = block.attn, (nn.Identity, nn.Dropout)
        acting = {name for name, part in attn.named_children() if type(part) not in idle}
        if (
            acting != {"qkv", "proj"}
            or type(attn.qkv) is not nn.Linear
            or attn.scale != attn.head_dim**-0.5
        ):
            return None
        W_q, W_k, W_v = torch.unflatten(attn.qkv.weight, 0, (3, attn.num_heads, -1))
        bias = torch.zeros_like(attn.qkv.weight[:, 0]) if attn.qkv.bias is None else attn.qkv.bias
        b_q, _, b_v = torch.unflatten(bias, 0, (3, attn.num_heads, 1, -1))
        return Projections(W_q, W_k, W_v, b_q, b_v)

    def after_attention(
        self,
        z: Float[Tensor, "batch head read head_dim"],
        residual: Float[Tensor, "batch read dim"],
    ) -> Float[Tensor, "batch read dim"]:
        """See `VitAdapter`."""
        block = self.module.blocks[-1]
        attended = block.attn.proj(z.transpose(1, 2).flatten(2))
        x = residual + block.ls1(attended)
        left: Tensor = x + block.ls2(block.mlp(block.norm2(x)))
        return left
