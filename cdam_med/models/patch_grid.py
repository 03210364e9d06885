"""The patches that an image is cut into: how many, and which images can be."""

from typing import Any

import torch
from torch import Tensor, nn

from cdam_med.errors import ModelError
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


def check_batch(embed: Any, images: object) -> Tensor:
    """Return a batch of images as a tensor of torch's own class.

    Libraries have classes of tensors, such as MONAI's MetaTensor, which carry what scores aren't
    to inherit.

    Parameters
    ----------
    embed : PatchEmbed, HybridEmbed or MonaiPatches
        timm's patch embedding, or what stands for MONAI's.
    images : object
        What somebody wants explained.

    Raises
    ------
    InputError
        If they aren't a batch of floating-point images of the right number of axes.
    """
    axes = patch_axes(embed)
    wanted = "height, width" if axes == 2 else "and three sides of a volume"
    expected = f"images must be a floating-point tensor (batch, channel, {wanted})"
    if not isinstance(images, Tensor):
        raise InputError(
            f"{expected}, not {type(images).__name__}: convert an array with torch.as_tensor(...), "
            "and a list of images with torch.stack(...)."
        )
    if images.ndim != 2 + axes or not images.is_floating_point():
        raise InputError(
            f"{expected}, not {tuple(images.shape)} {images.dtype}: add the missing axes and "
            "convert with .float()."
        )
    if len(images) == 0:
        raise InputError("images is an empty batch: give at least one image.")
    return images.as_subclass(Tensor)


def check_finite(name: str, images: Tensor, cast: Tensor) -> None:
    """Refuse images with values that no score can be made of.

    Parameters
    ----------
    name : str
        Name of the model, for the message.
    images : Tensor
        Images as given.
    cast : Tensor
        The same in the type of the model's weights.

    Raises
    ------
    InputError
        If a value isn't finite, before or after.
    """
    # a sum over finite values can overflow, one over others can't be finite, and costs less
    total = cast.sum(dtype=torch.promote_types(cast.dtype, torch.float32))
    if torch.isfinite(total) or torch.isfinite(cast).all():
        return
    if not torch.isfinite(images).all():
        raise InputError("images holds NaN or infinite values: replace them first.")
    raise InputError(
        f"images holds values up to {images.abs().max().item():.3g}, which {cast.dtype}, the type "
        f"of the weights of {name}, has no numbers for: scale them, or use weights of a wider type."
    )


def check_prepared(name: str, prepared: object, count: int) -> Tensor:
    """Return what `prepare` made of images, as a tensor of torch's own class.

    Parameters
    ----------
    name : str
        Name of the model, for the message.
    prepared : object
        What it gave.
    count : int
        How many images it was given.

    Raises
    ------
    ModelError
        If that isn't as many images.
    """
    if not isinstance(prepared, Tensor) or prepared.shape[:1] != (count,):
        found = tuple(prepared.shape) if isinstance(prepared, Tensor) else type(prepared).__name__
        raise ModelError(
            f"The prepare of {name} must turn {count} image(s) into a tensor of as many, not "
            f"{found}: treat each image alone."
        )
    return prepared.as_subclass(Tensor)


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
