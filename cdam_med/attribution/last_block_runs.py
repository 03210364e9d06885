"""The last block run again and again with other tokens, where the closed form doesn't hold."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.attribution.hooks import Arguments, before_calls
from cdam_med.attribution.last_block import (
    Change,
    cut_at_norm,
    of_each_norm,
    scores_by_autograd,
)
from cdam_med.attribution.subject import Subject
from cdam_med.attribution.verification import are_same, check_own_outputs
from cdam_med.attribution.vit import errors_named


class LastBlockRuns:
    """CDAM by autograd for changed tokens: from the last block on, or by whole passes.

    The last block is called again with what the model called it with, and its tokens are read. Does
    that not give the model's own outputs, each run is a whole pass of the model.

    Parameters
    ----------
    subject : Subject
        What is explained.

    Attributes
    ----------
    tokens : Tensor
        What entered the last block.
    scores : Tensor
        CDAM of the unchanged tokens.
    outputs : Tensor
        Outputs of the targets, for unchanged tokens.
    """

    tokens: Float[Tensor, "batch token dim"]
    scores: Float[Tensor, "batch target token"]
    outputs: Float[Tensor, "batch target"]

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._calls: list[Arguments] = []
        model, block = subject.model, subject.model.adapter.blocks[-1]
        with before_calls(model.module, [block], self._note), cut_at_norm(model) as leaves:
            whole = model.outputs(subject.images)
        self.tokens = self._calls[-1][0][0]
        Ts = of_each_norm(model, leaves)
        self.scores = scores_by_autograd(model, whole, Ts, subject.columns)
        self.outputs = whole.detach()[:, list(subject.columns)]
        check_own_outputs(subject.verifier, model, subject.images, whole, self.scores)
        self._is_short = model.readout is not None and self._gives(whole)

    def scores_of(
        self, *, change_input: Change | None = None, change: Change | None = None
    ) -> Float[Tensor, "batch target token"]:
        """Return CDAM of changed tokens, at the entry of the block or behind its norm."""
        model = self._subject.model
        at_call = 1 if self._is_short else len(self._calls)
        with cut_at_norm(model, change_input=change_input, change=change, at_call=at_call) as cut:
            if self._is_short:
                outputs = self._from_last_block()
            else:
                outputs = model.outputs(self._subject.images)
        return scores_by_autograd(model, outputs, of_each_norm(model, cut), self._subject.columns)

    def _note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.append((args, kwargs))

    def _gives(self, own: Tensor) -> bool:
        size = own.detach().abs().max() + self.scores.abs().sum(-1).max()
        with torch.no_grad():
            return are_same(self._subject.images, self._from_last_block(), own, size)

    def _from_last_block(self) -> Float[Tensor, "batch output"]:
        model, (args, kwargs) = self._subject.model, self._calls[-1]
        with errors_named(model.name):
            left = model.adapter.blocks[-1](*args, **kwargs)
            return model.read(left)
