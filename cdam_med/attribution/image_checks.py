"""Which images a vision transformer can be given, and what is said of those it can't."""

import torch
from torch import Tensor

from cdam_med.attribution.vit import Patches
from cdam_med.errors import CdamError, ModelError


def check_batch(patches: Patches, images: object) -> Tensor:
    """Return a batch of images as a tensor of torch's own class.

    Libraries have classes of tensors, such as MONAI's MetaTensor, which carry what scores aren't
    to inherit.

    Parameters
    ----------
    patches : Patches
        How the model cuts images.
    images : object
        What somebody wants explained.

    Raises
    ------
    CdamError
        If they aren't a batch of floating-point images of the right number of axes.
    """
    axes = len(patches.sides)
    wanted = "height, width" if axes == 2 else "and three sides of a volume"
    expected = f"images must be a floating-point tensor (batch, channel, {wanted})"
    if not isinstance(images, Tensor):
        raise CdamError(
            f"{expected}, not {type(images).__name__}: convert an array with torch.as_tensor(...), "
            "and a list of images with torch.stack(...)."
        )
    if images.ndim != 2 + axes or not images.is_floating_point():
        raise CdamError(
            f"{expected}, not {tuple(images.shape)} {images.dtype}: add the missing axes and "
            "convert with .float()."
        )
    if len(images) == 0:
        raise CdamError("images is an empty batch: give at least one image.")
    if images.is_meta:
        raise CdamError(
            "images are on the meta device, where tensors have no values: make them anew on "
            "another, such as 'cpu'."
        )
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
    CdamError
        If a value isn't finite, before or after.
    """
    # a sum over finite values can overflow, one over others can't be finite, and costs less
    total = cast.sum(dtype=torch.promote_types(cast.dtype, torch.float32))
    if torch.isfinite(total) or torch.isfinite(cast).all():
        return
    if not torch.isfinite(images).all():
        raise CdamError("images holds NaN or infinite values: replace them first.")
    raise CdamError(
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


def check_size(name: str, patches: Patches, prepared: Tensor) -> None:
    """Refuse images that a patch embedding can't take.

    Parameters
    ----------
    name : str
        Name of the model, for the message.
    patches : Patches
        How the model cuts images.
    prepared : Tensor
        Images as the ViT takes them.

    Raises
    ------
    CdamError
        If size or channels are wrong; those that are right are named.
    """
    size, channels = tuple(prepared.shape[2:]), prepared.shape[1]
    if len(size) != len(patches.sides) or not patches.fits(size) or channels != patches.channels:
        raise CdamError(
            f"{name} takes images {patches.expected} with {patches.channels} "
            f"{patches.channel_name}, not {' x '.join(map(str, size))} with {channels}: resize or "
            "convert them."
        )
