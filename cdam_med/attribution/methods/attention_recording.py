r"""Attention matrices of an unmodified ViT, with their place in the graph of its outputs.

timm computes attention by a fused function that never holds ``softmax(q k^T / sqrt(d))``. While
the context is open it takes its own other way, which does, and hooks before `attn_drop` note the
matrices. Nothing is re-implemented, so q/k norms, rotary positions, gates and
registers are in them as the model has them. Everything is put back when the context closes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers.attention import AttentionRope
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import Attention, ParallelScalingBlock
from torch import Tensor, nn

from cdam_med.attribution.class_token import ClassTokenModel
from cdam_med.attribution.hooks import Arguments, before_calls, set_aside
from cdam_med.attribution.monai_vit import MONAI_ATTENTION
from cdam_med.attribution.vit import is_named
from cdam_med.errors import ModelError

_ONE_MATRIX_A_HEAD = (Attention, AttentionRope, EvaAttention, BeitAttention, ParallelScalingBlock)


@contextmanager
def recording_attention(
    model: ClassTokenModel, *, wanted_by: str, blocks: slice = slice(None)
) -> Iterator[list[Tensor]]:
    """Record attention matrices ``(batch, head, query, key)`` of some blocks, in order.

    Where gradients are enabled they are in the graph, also if all weights are frozen. A block with
    no attention, several, or one that isn't a single softmax a head is refused.
    """
    attentions = [_attention_of(block, wanted_by) for block in model.adapter.blocks[blocks]]
    drops = [
        each.drop_weights if is_named(each, MONAI_ATTENTION) else each.attn_drop
        for each in attentions
    ]
    matrices: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        (matrix,) = args
        if torch.is_grad_enabled() and not matrix.requires_grad:
            matrix = matrix.detach().requires_grad_()
        matrices.append(matrix)
        return (matrix,), kwargs

    with (
        # A checkpointed block would run again in the backward pass, and be recorded twice.
        set_aside(model.module.modules(), "grad_checkpointing", False),
        set_aside(attentions, "fused_attn", False),
        set_aside(attentions, "use_flash_attention", False),
        before_calls(model.module, drops, note),
    ):
        yield matrices


def _attention_of(block: nn.Module, wanted_by: str) -> Any:
    found = [
        part
        for part in block.modules()
        if type(part) in _ONE_MATRIX_A_HEAD or is_named(part, MONAI_ATTENTION)
    ]
    if len(found) == 1:
        return found[0]
    classes = {
        type(part).__name__
        for part in block.modules()
        if hasattr(part, "fused_attn") or "attention" in type(part).__name__.lower()
    }
    raise ModelError(
        f"{wanted_by} needs one attention matrix a head and block, and {type(block).__name__} "
        f"({', '.join(sorted(classes)) or 'no attention'}) doesn't give that: choose a ViT with "
        "plain attention, or a method that reads no attention, such as cdam."
    )
