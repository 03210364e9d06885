r"""Attention rollout: attention of all blocks multiplied, so that it leads back to the input."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cdam_med.attribution.estimator import Attribution
from cdam_med.attribution.methods.attention_recording import (
    recording_attention,
    rows_followed,
)
from cdam_med.attribution.numerics import wide, without_autocast
from cdam_med.attribution.subject import Method, Subject


@dataclass(frozen=True)
class AttentionRollout(Method):
    """Product over blocks of ``(A + I) / 2``, with `A` the mean over heads; the class token's row.

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, section 3: the
    identity stands for the residual path. The map is the same for every target. Where outputs
    are read from two tokens (distilled models), the mean of both rows; where the model averages
    its patches, the mean of their rows, in which the identity gives every patch the same.

    Parameters
    ----------
    images_at_once : int
        How many images share a pass; bounds memory, as all blocks' matrices are held.
    """

    images_at_once: int = 4

    name: ClassVar[str] = "attention_rollout"
    title: ClassVar[str] = "Attention rollout"
    meaning: ClassVar[str] = (
        "How much attention reaches a patch through all blocks, the same for every output. It "
        "has no sign: it doesn't say whether the patch raises or lowers an output."
    )
    reference: ClassVar[str] = "Abnar and Zuidema, ACL 2020"
    is_signed: ClassVar[bool] = False
    cost: ClassVar[str] = "one forward pass"

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return rollouts."""
        followed = rows_followed(subject.model, wanted_by=self.name)
        rows, outputs = [], []
        for start in range(0, len(subject.images), self.images_at_once):
            images = subject.images[start : start + self.images_at_once]
            with recording_attention(subject.model, wanted_by=self.name) as matrices:
                outputs.append(subject.model.outputs(images)[:, list(subject.columns)])
            rows.append(_rolled_out(matrices, followed))
        tokens = torch.cat(rows)[:, None].repeat(1, len(subject.columns), 1)
        return subject.attribution(self, tokens, torch.cat(outputs), "attention matrices")


def _rolled_out(
    matrices: Sequence[Float[Tensor, "batch head query key"]], followed: slice
) -> Float[Tensor, "batch token"]:
    """Return the mean of some rows of the product, computed from the last block up."""
    first = matrices[0]
    rows = wide(torch.eye(first.shape[-1], dtype=first.dtype, device=first.device))[None, followed]
    with without_autocast(first):
        for matrix in reversed(matrices):
            rows = (rows @ wide(matrix).mean(1) + rows) / 2
    return rows.mean(1)
