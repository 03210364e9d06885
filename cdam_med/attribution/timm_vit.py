"""timm's vision transformers: `VisionTransformer`, `Eva`, `Beit` and their kin."""

from typing import Any

from jaxtyping import Float
from timm.models.vision_transformer import (
    Attention,  # defined here or in timm.layers, as timm's versions go
    Block,
)
from torch import Tensor, nn

from cdam_med.attribution.patch_embed_3d import PatchEmbed3d
from cdam_med.attribution.vit import Part, Patches, Pooling, Projections, VitAdapter, is_named
from cdam_med.errors import ModelError


class TimmAdapter(VitAdapter):
    """One of timm's vision transformers. See `VitAdapter`."""

    kinds = (
        "timm.VisionTransformer",
        "timm.Eva",
        "timm.Beit",
        "timm.VisionTransformerRelPos",
        "timm.NaFlexVit",
    )

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        vit = self.module
        config = getattr(vit, "pretrained_cfg", None) or {}
        if architecture := config.get("architecture"):
            self.name = f"{architecture} ({self.name})"
        self.n_prefix, self.embed_dim = int(vit.num_prefix_tokens), int(vit.embed_dim)
        self.blocks, self.norm = tuple(vit.blocks), vit.norm
        if is_named(vit, "timm.VisionTransformerDistilled"):
            self.readout, self.readout_tokens = self._distilled_readout, 2
        else:
            self.readout, self.pooling = self._readout, _pooling_of(vit)

    @property
    def patches(self) -> Patches:
        """Read off the patch embedding, or the one within whatever was put around it."""
        vit = self.module
        around = vit.embeds if is_named(vit, "timm.NaFlexVit") else vit.patch_embed
        embed: Any = next((each for each in around.modules() if hasattr(each, "feat_ratio")), None)
        if embed is None:
            raise ModelError(
                f"{self.name} embeds its patches by {type(around).__name__}, without timm's patch "
                "embedding, so that its patches are unknown: hold timm's own in it as a part."
            )
        channel_name = "channel(s)"
        if isinstance(embed, PatchEmbed3d):
            channels, channel_name = embed.depth, "slice(s) in place of channels"
        else:
            layer = next((each for each in embed.modules() if isinstance(each, nn.Conv2d)), None)
            channels = vit.in_chans if layer is None else layer.in_channels
        is_fixed = getattr(embed, "strict_img_size", False) and embed.img_size is not None
        return Patches(
            sides=tuple(embed.feat_ratio(as_scalar=False)),
            channels=channels,
            image_size=tuple(embed.img_size) if is_fixed else None,
            is_padded=embed.dynamic_img_pad,
            channel_name=channel_name,
        )

    def _readout(self, feature: Float[Tensor, "batch dim"]) -> Any:
        """Return what timm's `forward_head` does behind the pooling."""
        return self.module.head(self.module.head_drop(self.module.fc_norm(feature)))

    def _distilled_readout(self, tokens: Float[Tensor, "batch two_dim"]) -> Any:
        """Average the heads of both tokens, as timm does when evaluating."""
        class_token, distilled = (self.module.head_drop(each) for each in tokens.chunk(2, dim=-1))
        return (self.module.head(class_token) + self.module.head_dist(distilled)) / 2

    def norms_before_attention(self, block: Any) -> tuple[nn.Module, ...]:
        """See `VitAdapter`."""
        if is_named(block, "timm.Block", "timm.EvaBlock", "timm.RelPosBlock"):
            return (block.norm1,)
        if hasattr(block, "in_norm"):  # timm's (Diff)ParallelScalingBlock
            return (block.in_norm,)
        return tuple(branch.norm for branch in getattr(block, "attns", ()))  # ParallelThingsBlock

    def forward_features(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch token dim"]:
        """See `VitAdapter`."""
        tokens: Tensor = self.module.forward_features(images)
        return tokens

    def projections(self) -> Projections | None:
        """Return those of pre-norm attention with one linear layer for queries, keys and values."""
        block: Any = self.blocks[-1]
        if type(block) is not Block or type(block.attn) is not Attention:
            return None
        attn, idle = block.attn, (nn.Identity, nn.Dropout)
        acting = {name for name, part in attn.named_children() if type(part) not in idle}
        is_plain = acting == {"qkv", "proj"} and type(attn.qkv) is nn.Linear
        if not is_plain or attn.scale != attn.head_dim**-0.5:
            return None
        return Projections.of_layer(attn.qkv.weight, attn.qkv.bias, attn.num_heads)

    def parts_after_attention(self) -> tuple[Part, Part, Part, Part, Part]:
        """See `VitAdapter`."""
        block: Any = self.blocks[-1]
        return block.attn.proj, block.ls1, block.norm2, block.mlp, block.ls2


def _pooling_of(vit: Any) -> Pooling | None:
    """Return the pooling that timm's `forward_head` begins with; None if there is none."""
    prefix = int(vit.num_prefix_tokens)
    if is_named(vit, "timm.Beit", "timm.VisionTransformerRelPos"):
        if vit.global_pool != "avg":
            return None
        return Pooling("avg", lambda tokens: tokens[:, prefix:].mean(1), prefix, is_mean=True)
    attends = getattr(vit, "attn_pool", None) is not None
    if not attends and vit.global_pool in ("token", ""):
        return None
    # Eva attends to all tokens; others leave the prefix out unless told
    takes_all = getattr(vit, "pool_include_prefix", False)
    if attends and is_named(vit, "timm.Eva"):
        takes_all = True
    return Pooling(
        vit.global_pool,
        vit._pool if is_named(vit, "timm.NaFlexVit") else vit.pool,
        first=0 if takes_all else prefix,
        is_mean=vit.global_pool == "avg" and not attends,
    )
