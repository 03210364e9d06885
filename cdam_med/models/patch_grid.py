"""The patches that an image is cut into: how many, and which images can be."""

from typing import Any

from torch import Tensor, nn

from cdam_med.models.monai_vit import MonaiPatches
from cdam_med.models.patch_embed_3d import PatchEmbed3d
from data_prep.errors import InputError


def patch_axes(embed: Any) -> int:
    """Return how many axes of an image a patch embedding cuts: two or three.

    Parameters
    ----------
    embed : PatchEmbed, HybridEmbed or MonaiPatches
        timm's patch embedding, or what stands for MONAI's.
    """
    return len(embed.feat_ratio(as_scalar=False))


def patch_grid(embed: Any, prepared: Tensor) -> tuple[int, ...]:
    """Return how many patches there are along each axis.

    Parameters
    ----------
    embed : PatchEmbed, HybridEmbed or MonaiPatches
        timm's patch embedding, or what stands for MONAI's.
    prepared : Tensor
        Images as the ViT takes them.
    """
    return tuple(int(count) for count in embed.dynamic_feat_size(tuple(prepared.shape[2:])))


def check_size(name: str, embed: Any, prepared: Tensor) -> None:
    """Refuse images that a patch embedding can't take.

    Parameters
    ----------
    name : str
        Name of the model, for the message.
    embed : PatchEmbed, HybridEmbed or MonaiPatches
        timm's patch embedding, or what stands for MONAI's.
    prepared : Tensor
        Images as the ViT takes them.

    Raises
    ------
    InputError
        If size or channels are wrong; those that are right are named.
    """
    size = tuple(prepared.shape[2:])
    expected, fits = _expected(embed, size)
    channels, kind = _channels(embed)
    if not fits or prepared.shape[1] != channels:
        raise InputError(
            f"{name} takes images {expected} with {channels} {kind}, not "
            f"{' x '.join(map(str, size))} with {prepared.shape[1]}: resize or convert them."
        )


def _expected(embed: Any, size: tuple[int, ...]) -> tuple[str, bool]:
    """Return which sizes are right, in words, and whether this one is."""
    sides = embed.feat_ratio(as_scalar=False)
    if isinstance(embed, MonaiPatches):
        patches = " x ".join(map(str, sides))
        return f"of {embed.num_patches} whole patches of {patches} pixels", embed.fits(size)
    if embed.strict_img_size and embed.img_size is not None:
        return "of {} x {} pixels".format(*embed.img_size), size == tuple(embed.img_size)
    if embed.dynamic_img_pad:
        return "of any size", True
    whole = all(length % side == 0 for length, side in zip(size, sides, strict=True))
    return f"of a height that {sides[0]} divides and a width that {sides[1]} divides,", whole


def _channels(embed: Any) -> tuple[int, str]:
    """Return how many channels an image must have, and what they are."""
    if isinstance(embed, MonaiPatches):
        return embed.channels, "channel(s)"
    if isinstance(embed, PatchEmbed3d):
        return embed.depth, "slice(s) in place of channels"
    first = next(part for part in embed.modules() if isinstance(part, nn.Conv2d))
    return first.in_channels, "channel(s)"
