"""What each block of a ViT is called with, to run one of them again, changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.attribution.hooks import after_calls, before_calls
from cdam_med.attribution.subject import Subject
from cdam_med.attribution.verification import are_same, differing_outputs, size_of_outputs
from cdam_med.attribution.vit import errors_named


@dataclass(frozen=True, eq=False)
class BlockRun:
    """A block and what the ViT called it with, the tokens first."""

    block: nn.Module
    arguments: tuple[Any, ...]
    others: Mapping[str, Any]

    @property
    def tokens(self) -> Float[Tensor, "batch token dim"]:
        """Tokens that entered the block."""
        entered: Tensor = self.arguments[0]
        return entered

    def repeat(self) -> Float[Tensor, "batch token dim"]:
        """Run the block once more and return the tokens that leave it."""
        left: Tensor = self.block(*self.arguments, **self.others)
        return left


@dataclass(frozen=True, eq=False)
class WholePass:
    """The model's own pass of a batch: its blocks in order, outputs, and what they are read of."""

    subject: Subject
    blocks: tuple[BlockRun, ...]
    outputs: Float[Tensor, "batch target"]
    features: Float[Tensor, "batch feature"]

    def is_given_by(self, found: Float[Tensor, "batch target"]) -> bool:
        """Say whether outputs that were put together from parts are the model's own."""
        size = size_of_outputs(self.subject.model, self.features)
        return are_same(self.subject.images, found, self.outputs, size)

    def check(self, found: Float[Tensor, "batch target"], wanted_by: str) -> None:
        """Refuse a model that isn't the sum of its parts."""
        if not self.is_given_by(found):
            raise differing_outputs(
                self.subject.model,
                found,
                self.outputs,
                f"the first by blocks, final norm and readout alone, as {wanted_by} runs them, the "
                "second by the model's own pass. Take out what acts between these parts, such as "
                "hooks, or choose a method that runs the whole model, such as cdam.",
            )


@torch.no_grad()
def whole_pass(subject: Subject, images: Float[Tensor, "batch channel *size"]) -> WholePass:
    """Run a model once, without a graph, and return what its blocks were called with."""
    model, runs, final = subject.model, list[BlockRun](), list[Tensor]()

    def note(block: nn.Module, args: tuple[Any, ...], others: dict[str, Any]) -> None:
        runs.append(BlockRun(block, args, others))

    def keep(_: nn.Module, tokens: Tensor) -> None:
        final.append(tokens)

    with (
        before_calls(model.module, model.adapter.blocks, note),
        after_calls(model.module, [model.adapter.norm], keep),
    ):
        outputs = subject.outputs(images)
    with errors_named(model.name):
        return WholePass(subject, tuple(runs), outputs, model.pooled(final[-1]))
