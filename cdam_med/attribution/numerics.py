"""Precision: what is summed in which type, what counts as equal; and an image's random numbers."""

import operator
from contextlib import AbstractContextManager
from hashlib import sha256

import torch
from jaxtyping import Float
from torch import Tensor

from cdam_med.errors import MethodError

TF32_EPSILON = 2.0**-10
"""Of the type that GPUs may round float32 to before they multiply."""


def without_autocast(like: Float[Tensor, "..."]) -> AbstractContextManager[None]:
    """Return a context in which nothing on this device is rounded to half precision.

    Blocks run faster under autocast and lose little; sums over tokens lose much.
    """
    context: AbstractContextManager[None] = torch.autocast(like.device.type, enabled=False)
    return context


def wide(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return half-precision values as float32, in which sums of many products still hold."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def tolerance(like: Float[Tensor, "..."]) -> float:
    """Return by what share of their size two ways to compute the same may differ: half the digits.

    That is the square root of the epsilon of the coarsest type in use: 1.5e-8 in float64, 3.5e-4
    in float32, 3.1e-2 in float16 and where a GPU rounds float32 to TF32, 8.8e-2 in bfloat16.
    """
    epsilon = torch.finfo(like.dtype).eps
    if torch.is_autocast_enabled(like.device.type):
        epsilon = max(epsilon, torch.finfo(torch.get_autocast_dtype(like.device.type)).eps)
    if like.is_cuda and like.dtype == torch.float32:
        rounds = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
        epsilon = max(epsilon, TF32_EPSILON) if rounds else epsilon
    return float(epsilon**0.5)


def image_seed(image: Float[Tensor, "channel *size"], seed: object) -> int:
    """Return 128 bits from the values of one image and the seed.

    The first half of the SHA-256 of the values as float64, little-endian, followed by the seed in
    decimal digits, read as a little-endian number. A zero's sign doesn't count. So an image has the
    same numbers alone and in any batch, and others than any other image; values count to their last
    digit, so that rounding to another precision gives other numbers.
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
    """Return torch's generator, seeded with the lower 64 bits of `image_seed`."""
    return torch.Generator(device).manual_seed(image_seed(image, seed) % 2**64)
