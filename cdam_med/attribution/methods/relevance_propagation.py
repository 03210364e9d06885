r"""Relevance propagation after Chefer, Gur and Wolf: attention weighted by its gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cdam_med.attribution.estimator import Attribution
from cdam_med.attribution.last_block import gradients
from cdam_med.attribution.methods.attention_recording import (
    recording_attention,
    rows_followed,
)
from cdam_med.attribution.numerics import wide, without_autocast
from cdam_med.attribution.subject import Method, Subject


@dataclass(frozen=True)
class RelevancePropagation(Method):
    """``R <- I``, then ``R += Abar R`` in every block; the class token's row of `R`.

    ``Abar`` is the mean over heads of ``max(0, A * df/dA)``, all blocks are used, and the gradient
    is that of the whole model. Chefer, Gur and Wolf, "Generic Attention-model Explainability for
    Interpreting Bi-Modal and Encoder-Decoder Transformers", ICCV 2021, eq. 5 and 6. What fell on
    the class token holds the identity that `R` began with. Where outputs are read from two tokens
    (distilled models), the mean of both rows; where the model averages its patches, the mean of
    their rows, in which the identity gives every patch the same.

    Parameters
    ----------
    images_at_once : int
        How many images share a pass; bounds memory, as all blocks' matrices and their gradients
        are held.
    """

    images_at_once: int = 4

    name: ClassVar[str] = "relevance_propagation"
    title: ClassVar[str] = "Relevance propagation"
    meaning: ClassVar[str] = (
        "Attention to a patch through all blocks, weighted by how it raises the output. What "
        "lowers the output is left out, so no score is below zero."
    )
    reference: ClassVar[str] = "Chefer et al., ICCV 2021"
    is_signed: ClassVar[bool] = False
    cost: ClassVar[str] = "one forward pass, and one backward pass for each target"

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return relevance maps."""
        parts = [
            self._of_part(subject, subject.images[start : start + self.images_at_once])
            for start in range(0, len(subject.images), self.images_at_once)
        ]
        tokens, outputs = zip(*parts, strict=True)
        return subject.attribution(self, torch.cat(tokens), torch.cat(outputs), "autograd")

    def _of_part(
        self, subject: Subject, images: Float[Tensor, "batch channel *size"]
    ) -> tuple[Float[Tensor, "batch target token"], Float[Tensor, "batch target"]]:
        """Return relevance of every token, and the outputs, of some of the images."""
        followed = rows_followed(subject.model, wanted_by=self.name)
        with (
            recording_attention(subject.model, wanted_by=self.name) as matrices,
            torch.enable_grad(),
        ):
            outputs = subject.model.outputs(images)[:, list(subject.columns)]
            rows = [
                _relevance(matrices, found, followed)
                for found in gradients(subject.model, outputs, matrices)
            ]
        return torch.stack(rows, dim=1), outputs.detach()


@torch.no_grad()
def _relevance(
    matrices: Sequence[Float[Tensor, "batch head query key"]],
    found: Sequence[Float[Tensor, "batch head query key"]],
    followed: slice,
) -> Float[Tensor, "batch token"]:
    """Return the mean of some rows of ``(I + Abar_L) ... (I + Abar_1)``.

    Those rows are carried from the last block to the first, so no two square matrices are
    multiplied.
    """
    first = matrices[0]
    rows = wide(torch.eye(first.shape[-1], dtype=first.dtype, device=first.device))[None, followed]
    with without_autocast(first):
        for A, gradient in zip(reversed(matrices), reversed(found), strict=True):
            rows = rows + rows @ (wide(A) * wide(gradient)).clamp(min=0).mean(1)
    return rows.mean(1)
