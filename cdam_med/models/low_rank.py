"""Small files for large ViTs: block matrices of low rank, chosen by what the model is shown.

A model that has only ever to look at lung nodules uses few directions of its activations. Each
weight matrix ``W`` of the blocks is replaced by the matrix of rank ``r`` that changes its outputs
least over given images: with ``C = mean(x x^T) = L L^T`` of its inputs ``x``, that is the
truncated singular value decomposition of ``W L``, times ``L^-1``. Two thin factors are stored in
place of the matrix; in memory the model is timm's own, with whole matrices.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cdam_med.attribution.hooks import before_calls

RIDGE = 1e-6
"""Least eigenvalue of ``C``, relative to their mean: directions that were never seen."""

_LEFT, _RIGHT = (f".parametrizations.weight.original{side}" for side in (0, 1))
"""What torch puts behind the name of a layer for the factors of its matrix."""

MOMENT_BATCH = 32
"""Images that go through the model at a time."""


class LowRank(nn.Module):
    """Parametrization of a matrix as the product of two factors of some rank."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(
        self, left: Float[Tensor, "rows rank"], right: Float[Tensor, "rank columns"]
    ) -> Float[Tensor, "rows columns"]:
        """Return the matrix."""
        return left @ right

    def right_inverse(
        self, weight: Float[Tensor, "rows columns"]
    ) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank columns"]]:
        """Return factors of the nearest matrix of this rank; exact if it has no higher rank."""
        U, S, V = torch.linalg.svd(weight.float(), full_matrices=False)
        root = S[: self.rank].sqrt()
        left, right = U[:, : self.rank] * root, root[:, None] * V[: self.rank]
        return left.to(weight.dtype), right.to(weight.dtype)


@contextmanager
def factored(vit: VisionTransformer, rank: int) -> Iterator[None]:
    """Hold the block matrices as trainable factors; on leaving they are whole matrices again.

    Matrices of a higher rank are replaced by the nearest ones of this rank: `reduce_rank` first.
    """
    layers = _block_matrices(vit)
    with ExitStack() as stack:
        for layer in layers:
            parametrize.register_parametrization(layer, "weight", LowRank(rank))
            stack.callback(parametrize.remove_parametrizations, layer, "weight")
        yield


def multiplied(stored: Mapping[str, Tensor], rank: int | None) -> dict[str, Tensor]:
    """Return weights as the model has them in memory: each pair of stored factors as a matrix.

    They are named as by `factored`. A `ValueError` says if matrices are stored whole where factors
    of a rank are expected, or the other way round.
    """
    has_factors = any(name.endswith(_LEFT) for name in stored)
    if has_factors != (rank is not None):
        found = "factors" if has_factors else "whole"
        raise ValueError(f"matrices are stored as {found}, and backbone.rank is {rank}")
    whole = {}
    for name, weight in stored.items():
        if not name.endswith((_LEFT, _RIGHT)):
            whole[name] = weight
        elif name.endswith(_LEFT) and (pair := name.removesuffix(_LEFT) + _RIGHT) in stored:
            whole[name.removesuffix(_LEFT) + ".weight"] = weight.float() @ stored[pair].float()
    return whole


@torch.no_grad()
def reduce_rank(
    vit: VisionTransformer, images: Float[Tensor, "batch channel height width"], rank: int
) -> None:
    """Replace the block matrices by those of lower rank that fit the images best.

    Images are some hundreds of what the ViT is to be used for, as it takes them.
    """
    second_moments = _input_second_moments(vit, images)
    for layer, C in zip(_block_matrices(vit), second_moments, strict=True):
        eigenvalues, Q = torch.linalg.eigh(C)
        root = eigenvalues.clamp(min=RIDGE * C.diagonal().mean()).sqrt()
        L = Q * root  # C = L L^T
        U, S, V = torch.linalg.svd(layer.weight.cpu().double() @ L, full_matrices=False)
        reduced = (U[:, :rank] * S[:rank]) @ V[:rank]
        layer.weight.copy_(((reduced / root) @ Q.T).to(layer.weight.dtype))


def _input_second_moments(
    vit: VisionTransformer, images: Tensor
) -> list[Float[Tensor, "columns columns"]]:
    """Return ``x x^T`` of the inputs of each block matrix, in float64 on the CPU.

    It is the mean over a batch, added up over the batches: its scale changes no decomposition.
    """
    moments: dict[nn.Module, Tensor] = {
        layer: torch.zeros(layer.in_features, layer.in_features, dtype=torch.float64)
        for layer in _block_matrices(vit)
    }

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], _: dict[str, Any]) -> None:
        x = inputs[0].flatten(0, -2).float()
        moments[layer] += ((x.T @ x) / len(x)).cpu()

    with before_calls(vit, moments, add):
        for batch in torch.split(images, MOMENT_BATCH):
            vit.forward_features(batch)
    return list(moments.values())


def _block_matrices(vit: VisionTransformer) -> list[nn.Linear]:
    return [layer for layer in vit.blocks.modules() if isinstance(layer, nn.Linear)]
