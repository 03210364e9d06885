"""Random numbers of an image's own: the same alone and in any batch, others for another image.

A seed of the whole batch would give an image other numbers in another batch; the same numbers for
every image would leave the same pattern in all their maps, slice upon slice of a volume. Values
count to their last digit: an image that differs by rounding alone, as in another precision, has
other numbers.
"""

import operator
from hashlib import sha256

import torch
from jaxtyping import Float
from torch import Tensor

from cdam_med.errors import MethodError


def image_seed(image: Float[Tensor, "channel *size"], seed: object) -> int:
    """Return 128 bits from the values of one image and the seed.

    The first half of the SHA-256 of the values as float64, little-endian, followed by the seed in
    decimal digits, read as a little-endian number. A zero's sign doesn't count.

    Parameters
    ----------
    image : Tensor
        One image as the ViT takes it.
    seed : int
        The caller's seed: any whole number, of whatever type, may be negative.

    Raises
    ------
    MethodError
        If the seed isn't a whole number.
    """
    try:
        number = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise MethodError(
            f"The seed must be a whole number, not {seed!r}: give an integer, such as 0."
        ) from None
    values = (image.detach().cpu().double().contiguous().numpy() + 0.0).astype("<f8", copy=False)
    digest = sha256(values.tobytes() + str(number).encode()).digest()
    return int.from_bytes(digest[:16], "little")


def image_generator(
    image: Float[Tensor, "channel *size"], seed: object, *, device: torch.device | str
) -> torch.Generator:
    """Return torch's generator, seeded with the lower 64 bits of `image_seed`.

    Parameters
    ----------
    image : Tensor
        One image as the ViT takes it.
    seed : int
        The caller's seed.
    device : device or str
        Where numbers are drawn; another device draws others.

    Raises
    ------
    MethodError
        If the seed isn't a whole number.
    """
    return torch.Generator(device).manual_seed(image_seed(image, seed) % 2**64)
