"""Maps made of attention matrices: of the last block, or of all, multiplied back to the input.

They follow the rows of the tokens that outputs are read from: the class token's; the mean of both
where two tokens are read (distilled models); the mean of all that a model averages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cdam_med.attribution.class_token import ClassTokenModel
from cdam_med.attribution.last_block import gradients
from cdam_med.attribution.method import Attribution
from cdam_med.attribution.methods.attention_recording import recording_attention
from cdam_med.attribution.numerics import wide, without_autocast
from cdam_med.attribution.subject import MethodBase, Subject
from cdam_med.errors import ModelError


@dataclass(frozen=True)
class AttentionMap(MethodBase):
    """Softmax attention from the class token in the last block, mean over heads.

    arXiv 2312.02364 eq. 1, after Caron et al. 2021 (DINO). Patches are not scaled up to a sum of
    one. The map is the same for every target.
    """

    name = "attention_map"
    title = "Attention map"
    meaning = (
        "How much attention the model pays to a patch in its last block, the same for every "
        "output. It has no sign: it doesn't say whether the patch raises or lowers an output."
    )
    reference = "Caron et al., ICCV 2021"
    is_signed = False
    cost = "one forward pass"

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return attention maps."""
        followed = _rows_followed(subject.model, self.name)
        last = slice(-1, None)
        with recording_attention(subject.model, wanted_by=self.name, blocks=last) as matrices:
            outputs = subject.outputs()
        # the last one, where a block stands at several depths
        rows = wide(matrices[-1][:, :, followed])
        tokens = rows.mean((1, 2))[:, None].repeat(1, len(subject.columns), 1)
        return subject.attribution(self, tokens, outputs, "attention matrices")


@dataclass(frozen=True)
class AttentionRollout(MethodBase):
    """Product over blocks of ``(A + I) / 2``, with `A` the mean over heads; the class token's row.

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, section 3: the
    identity stands for the residual path. The map is the same for every target.
    `images_at_once` bounds memory, as all blocks' matrices are held.
    """

    images_at_once: int = 4

    name = "attention_rollout"
    title = "Attention rollout"
    meaning = (
        "How much attention reaches a patch through all blocks, the same for every output. It "
        "has no sign: it doesn't say whether the patch raises or lowers an output."
    )
    reference = "Abnar and Zuidema, ACL 2020"
    is_signed = False
    cost = "one forward pass"

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return rollouts."""
        followed = _rows_followed(subject.model, self.name)
        rows, outputs = [], []
        for images in torch.split(subject.images, self.images_at_once):
            with recording_attention(subject.model, wanted_by=self.name) as matrices:
                outputs.append(subject.outputs(images))
            with without_autocast(images):
                product = _row_of_product([wide(A).mean(1) for A in matrices], followed)
            rows.append(product / 2 ** len(matrices))
        tokens = torch.cat(rows)[:, None].repeat(1, len(subject.columns), 1)
        return subject.attribution(self, tokens, torch.cat(outputs), "attention matrices")


@dataclass(frozen=True)
class RelevancePropagation(MethodBase):
    """``R <- I``, then ``R += Abar R`` in every block; the class token's row of `R`.

    ``Abar`` is the mean over heads of ``max(0, A * df/dA)``, all blocks are used, and the gradient
    is that of the whole model. Chefer, Gur and Wolf, "Generic Attention-model Explainability for
    Interpreting Bi-Modal and Encoder-Decoder Transformers", ICCV 2021, eq. 5 and 6. What fell on
    the class token holds the identity that `R` began with. `images_at_once` bounds memory, as all
    blocks' matrices and their gradients are held.
    """

    images_at_once: int = 4

    name = "relevance_propagation"
    title = "Relevance propagation"
    meaning = (
        "Attention to a patch through all blocks, weighted by how it raises the output. What "
        "lowers the output is left out, so no score is below zero."
    )
    reference = "Chefer et al., ICCV 2021"
    is_signed = False
    cost = "one forward pass, and one backward pass for each target"

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return relevance maps."""
        followed = _rows_followed(subject.model, self.name)
        tokens, outputs = [], []
        for images in torch.split(subject.images, self.images_at_once):
            with (
                recording_attention(subject.model, wanted_by=self.name) as matrices,
                torch.enable_grad(),
            ):
                found = subject.outputs(images)
            rows = [
                _relevance(matrices, each, followed)
                for each in gradients(subject.model, found, matrices)
            ]
            tokens.append(torch.stack(rows, dim=1))
            outputs.append(found.detach())
        return subject.attribution(self, torch.cat(tokens), torch.cat(outputs), "autograd")


@torch.no_grad()
def _relevance(
    matrices: Sequence[Float[Tensor, "batch head query key"]],
    slopes: Sequence[Float[Tensor, "batch head query key"]],
    followed: slice,
) -> Float[Tensor, "batch token"]:
    with without_autocast(matrices[0]):
        squares = [
            (wide(A) * wide(slope)).clamp(min=0).mean(1)
            for A, slope in zip(matrices, slopes, strict=True)
        ]
        return _row_of_product(squares, followed)


def _row_of_product(
    squares: Sequence[Float[Tensor, "batch query key"]], followed: slice
) -> Float[Tensor, "batch token"]:
    """Return the mean of some rows of ``(I + B_L) ... (I + B_1)``.

    Those rows are carried from the last to the first, so no two square matrices are multiplied.
    """
    first = squares[0]
    rows = torch.eye(first.shape[-1], dtype=first.dtype, device=first.device)[None, followed]
    for B in reversed(squares):
        rows = rows + rows @ B
    return rows.mean(1)


def _rows_followed(model: ClassTokenModel, wanted_by: str) -> slice:
    """Return the rows of the last block's attention whose mean leads to the output."""
    if model.pooling is not None and not model.pooling.is_mean:
        raise ModelError(
            f"{wanted_by} follows attention back from the tokens that are read, and "
            f"{model.name} pools them by {model.pooling.name!r}, in which they don't "
            "weigh alike: choose a method that uses gradients, such as legrad or cdam."
        )
    return model.rows_read
