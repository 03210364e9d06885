"""The paper's patch embedding for stacks of slices: the whole depth lies in one patch.

A 3-D kernel of ``(depth, height, width)`` takes `depth` neighbouring slices of one channel to the
same grid of tokens that the 2-D model has (arXiv 2312.02364, its CT experiments, ViT-B/16 with
kernels of (depth, 16, 16)). Slices lie where a colour image has its channels, ``(batch, depth,
height, width)``, so that the model is a timm ViT like any other, with maps of rows and columns.
"""

import copy
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import torch
from jaxtyping import Float
from timm.layers.patch_embed import PatchEmbed
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cdam_med.errors import ModelError

Inflation: TypeAlias = Literal["inflation", "centering"]
"""How a 2-D kernel becomes a 3-D one: the same in all slices over depth, or the middle one only."""

_Vit = TypeVar("_Vit", bound=VisionTransformer | Eva | Beit)


class SlicesConv3d(nn.Conv3d):
    """A 3-D convolution of slices ``(batch, depth, height, width)`` that uses up their depth."""

    def forward(
        self, slices: Float[Tensor, "batch depth height width"]
    ) -> Float[Tensor, "batch dim rows columns"]:
        """Return what the kernel gives for each patch of as many slices as it is deep."""
        volume: Tensor = super().forward(slices[:, None])
        return volume[:, :, 0]


class PatchEmbed3d(PatchEmbed):
    """timm's patch embedding with a kernel through all slices, of one channel.

    ``VisionTransformer(embed_layer=PatchEmbed3d, in_chans=depth)`` makes a model that begins with
    random weights; `inflate_patch_embed` makes one from a trained 2-D model.

    Parameters
    ----------
    img_size, patch_size : int or tuple of int
        Height and width of a slice, and of a patch.
    in_chans : int
        How many slices, all of them in each patch.
    embed_dim : int
        Numbers in a token.
    bias : bool
        Whether the convolution has a bias.
    **options
        Further options of timm's `PatchEmbed`.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] | None = 224,
        patch_size: int | tuple[int, int] = 16,
        *,
        in_chans: int = 1,
        embed_dim: int = 768,
        bias: bool = True,
        **options: Any,
    ) -> None:
        pair: Any = patch_size  # timm declares an integer and takes both
        super().__init__(img_size, pair, in_chans, embed_dim, bias=bias, **options)
        kernel = (in_chans, *self.patch_size)
        flat = self.proj.weight
        self.proj: Any = SlicesConv3d(
            1, embed_dim, kernel, kernel, bias=bias, device=flat.device, dtype=flat.dtype
        )

    @property
    def depth(self) -> int:
        """How many slices a stack has."""
        return int(self.proj.kernel_size[0])


@torch.no_grad()
def inflate_patch_embed(vit: _Vit, depth: int, how: Inflation = "inflation") -> _Vit:
    """Return a copy of a 2-D model that takes stacks of slices.

    The kernel's colours are summed, so that a grey slice gives what the 2-D model gives for it
    repeated in all colours (with one mean and standard deviation for all of them). Then it is
    spread over the slices: ``"inflation"`` gives each slice the kernel divided by `depth`, so that
    equal slices give what one of them gives; ``"centering"`` gives it to the middle slice, and
    zeros to the others.

    Parameters
    ----------
    vit : VisionTransformer, Eva or Beit
        A timm model with timm's own patch embedding; not changed.
    depth : int
        How many slices a stack has.
    how : {"inflation", "centering"}
        How the kernel is spread over them.

    Returns
    -------
    VisionTransformer, Eva or Beit
        Of the same class; takes ``(batch, depth, height, width)``.

    Raises
    ------
    ModelError
        If the patches aren't embedded by one 2-D convolution, or the depth has no meaning.
    """
    flat: Any = vit.patch_embed
    if type(flat) is not PatchEmbed or type(flat.proj) is not nn.Conv2d:
        raise ModelError(
            f"{type(vit).__name__} embeds its patches by {type(flat).__name__}, and only timm's "
            "PatchEmbed, one 2-D convolution, can be inflated: choose a plain ViT."
        )
    if how not in get_args(Inflation):
        raise ModelError(f"There is no inflation {how!r}: choose 'inflation' or 'centering'.")
    if depth < 1 or (how == "centering" and depth % 2 == 0):
        needed = "odd, so that there is a middle slice" if how == "centering" else "at least 1"
        raise ModelError(f"The depth must be {needed}, not {depth}: give another number of slices.")
    inflated = copy.deepcopy(vit)
    inflated.patch_embed = _deepened(flat, depth, how)
    inflated.patch_embed.norm = copy.deepcopy(flat.norm)
    return inflated


def _deepened(flat: Any, depth: int, how: Inflation) -> PatchEmbed3d:
    """Return a 3-D patch embedding with the settings of a 2-D one and its kernel, spread."""
    deep = PatchEmbed3d(
        flat.img_size,
        flat.patch_size,
        in_chans=depth,
        embed_dim=flat.proj.out_channels,
        bias=flat.proj.bias is not None,
        output_fmt=None if flat.flatten else flat.output_fmt,
        strict_img_size=flat.strict_img_size,
        dynamic_img_pad=flat.dynamic_img_pad,
    ).to(flat.proj.weight)
    grey = flat.proj.weight.sum(1)
    if how == "inflation":
        deep.proj.weight.copy_(grey[:, None, None] / depth)
    else:
        deep.proj.weight.zero_()
        deep.proj.weight[:, 0, depth // 2] = grey
    if flat.proj.bias is not None:
        deep.proj.bias.copy_(flat.proj.bias)
    for part, of_flat in zip(deep.proj.parameters(), flat.proj.parameters(), strict=True):
        part.requires_grad_(of_flat.requires_grad)
    return deep.train(flat.training)
