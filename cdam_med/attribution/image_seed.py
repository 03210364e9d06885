"""Random numbers of an image's own: the same alone and in any batch, others for another image.

A seed of the whole batch would give an image other numbers in another batch; the same numbers for
every image would leave the same pattern in all their maps, slice upon slice of a volume.
"""

from hashlib import sha256

import torch
from jaxtyping import Float
from torch import Tensor


def image_seed(image: Float[Tensor, "channel *size"], seed: int) -> int:
    """Return 128 bits from the values of one image and the seed.

    The first half of the SHA-256 of the values as float64, little-endian, followed by the seed in
    decimal digits.

    Parameters
    ----------
    image : Tensor
        One image as the ViT takes it.
    seed : int
        The caller's seed.
    """
    values = image.detach().cpu().double().contiguous().numpy().astype("<f8", copy=False)
    digest = sha256(values.tobytes() + str(seed).encode()).digest()
    return int.from_bytes(digest[:16], "little")


def image_generator(
    image: Float[Tensor, "channel *size"], seed: int, *, device: torch.device | str
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
    """
    return torch.Generator(device).manual_seed(image_seed(image, seed) % 2**64)
