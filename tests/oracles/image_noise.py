"""The documented stream of noise: that of one image, whatever batch it is in."""

import hashlib
import struct

import torch
from torch import Tensor


def image_noise(image: Tensor, seed: int, shape: tuple[int, ...], count: int) -> list[Tensor]:
    """Return so many draws of a generator seeded by SHA-256 of the image's float64 and the seed.

    Values are little-endian, and a zero has no sign.
    """
    values = [value or 0.0 for value in image.double().flatten().tolist()]
    content = struct.pack(f"<{len(values)}d", *values) + f"{seed}".encode()
    first = bytes.fromhex(hashlib.sha256(content).hexdigest())[:8]
    number = sum(byte << (8 * place) for place, byte in enumerate(first))
    generator = torch.Generator().manual_seed(number)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]
