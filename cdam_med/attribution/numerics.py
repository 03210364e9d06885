"""Precision: what is summed in which type, and when two results are the same."""

from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor

TF32_EPSILON = 2.0**-10
"""Of the type that GPUs may round float32 to before they multiply."""


def without_autocast(like: Float[Tensor, "..."]) -> AbstractContextManager[None]:
    """Return a context in which nothing is rounded to half precision behind our back.

    Blocks run faster under autocast and lose little; sums over tokens lose much.

    Parameters
    ----------
    like : Tensor
        Anything on the model's device.
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

    Parameters
    ----------
    like : Tensor
        Images as the model takes them.
    """
    epsilon = torch.finfo(like.dtype).eps
    if torch.is_autocast_enabled(like.device.type):
        epsilon = max(epsilon, torch.finfo(torch.get_autocast_dtype(like.device.type)).eps)
    if like.is_cuda and like.dtype == torch.float32:
        rounds = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
        epsilon = max(epsilon, TF32_EPSILON) if rounds else epsilon
    return float(epsilon**0.5)
