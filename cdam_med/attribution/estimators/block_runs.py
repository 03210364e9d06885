"""What each block of a ViT is called with, to run one of them again, changed."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.models.class_token import ClassTokenModel


@dataclass(frozen=True, eq=False)
class BlockRun:
    """A block and what the ViT called it with.

    Parameters
    ----------
    block : Module
        The block itself.
    arguments : tuple
        Positional arguments, the tokens first.
    others : mapping of str to object
        Further keyword arguments, such as rotary positions.
    """

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


@torch.no_grad()
def block_runs(
    model: ClassTokenModel, prepared: Float[Tensor, "batch channel *size"]
) -> tuple[BlockRun, ...]:
    """Run a model once, without a graph, and return what its blocks were called with.

    Parameters
    ----------
    model : ClassTokenModel
        In evaluation mode.
    prepared : Tensor
        Images as the ViT takes them.
    """
    runs: list[BlockRun] = []

    def note(block: nn.Module, args: tuple[Any, ...], others: dict[str, Any]) -> None:
        runs.append(BlockRun(block, args, others))

    with ExitStack() as undo:
        for block in model.vit.blocks.children():
            hook = block.register_forward_pre_hook(note, with_kwargs=True)
            undo.callback(hook.remove)
        model.vit.forward_features(prepared)
    return tuple(runs)
