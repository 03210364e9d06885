"""The last block within the model's own pass: the tokens there, and CDAM by autograd.

The general way holds for every block with a norm before its attention and for every readout: the
model's own whole pass is run, without a graph until the last call of that norm. What the norm
gives, `T`, then begins the graph, so that whatever anybody has put behind it is in the map. The
residual stream is held fixed, and ``S[i, c] = sum_j T[i, j] * d f_c / d T[i, j]`` (arXiv
2312.02364 eq. 2). It costs one backward pass through the last block for each target. The closed
form of `cdam_med.attribution.cdam` costs less, and is used where it gives the same, see
`cdam_med.attribution.verification`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.attribution.class_token import ClassTokenModel
from cdam_med.attribution.hooks import Arguments, after_calls, before_calls, set_aside
from cdam_med.attribution.numerics import tolerance, wide
from cdam_med.attribution.vit import errors_named
from cdam_med.errors import ModelError

Change: TypeAlias = Callable[[Tensor], Tensor]
"""Tokens -> the tokens that take their place."""


class _ReachedError(BaseException):
    """Ends a pass where all that is wanted of it is known; no model is to catch it."""


def norms_before_attention(model: ClassTokenModel) -> tuple[nn.Module, ...]:
    """Return the modules of the last block whose output is `T`; refuse a block that has none.

    Several where branches of attention run side by side, each with a norm of its own; scores are
    then the sum of theirs.
    """
    block = model.adapter.blocks[-1]
    if norms := model.adapter.norms_before_attention(block):
        return norms
    raise ModelError(
        f"{model.name} ends in a {type(block).__name__}, which has no norm before its attention, "
        "and CDAM is defined on that norm's output: choose a pre-norm ViT."
    )


@torch.no_grad()
def tokens_before_last_block(
    model: ClassTokenModel, prepared: Float[Tensor, "batch channel *size"]
) -> Float[Tensor, "batch token dim"]:
    """Run the model without a graph up to its last block, and return what enters there."""
    tokens: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], __: dict[str, Any]) -> None:
        tokens.append(args[0])
        raise _ReachedError

    with before_calls(model.module, [model.adapter.blocks[-1]], stop):
        try:
            model.outputs(prepared)
        except _ReachedError:
            return tokens[0].to(prepared.dtype)  # autocast may have left another type
    raise ModelError(
        f"{model.name} doesn't call its last block when it is run, so that it can't be explained: "
        "see that its blocks are called as modules."
    )


@contextmanager
def cut_at_norm(
    model: ClassTokenModel,
    *,
    change_input: Change | None = None,
    change: Change | None = None,
    at_call: int = 1,
) -> Iterator[dict[nn.Module, Tensor]]:
    """Let the graph of a pass begin at `T`, in the last call of each norm before attention.

    In call `at_call` of the last block, counted from 1, `change_input` gives what takes the place
    of the tokens that enter it, and `change` what takes that of `T`. Yields `T` by norm, filled by
    a pass within; a norm that is called several times, as in a block that stands at several
    depths, has its last one.
    """
    norms, block = norms_before_attention(model), model.adapter.blocks[-1]
    leaves: dict[nn.Module, Tensor] = {}
    calls = 0

    def without_graph(_: nn.Module, __: tuple[Any, ...], ___: dict[str, Any]) -> None:
        torch.set_grad_enabled(False)

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        nonlocal calls
        calls += 1
        if change_input is None or calls != at_call:
            return None
        return (change_input(args[0]), *args[1:]), kwargs

    def cut(norm: nn.Module, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        T = output.detach()
        if change is not None and calls == at_call:
            T = change(T)
        leaves[norm] = T.detach().requires_grad_()
        return leaves[norm]

    root = model.module
    with (
        torch.enable_grad(),  # also behind a part that its owner runs under no_grad
        set_aside(root.modules(), "grad_checkpointing", False),  # else hooks would run again
        before_calls(root, [model.adapter.blocks[0]], without_graph),
        before_calls(root, [block], enter),
        after_calls(root, norms, cut),
    ):
        yield leaves
    if calls > model.adapter.blocks.count(block):
        raise ModelError(
            f"{model.name} runs its last block {calls} times in one pass, and only the last of "
            "them would be in the map: explain the ViT inside, or give one view of an image at a "
            "time."
        )


def own_pass(
    model: ClassTokenModel, prepared: Float[Tensor, "batch channel *size"]
) -> tuple[Float[Tensor, "batch output"], tuple[Float[Tensor, "batch token dim"], ...]]:
    """Run the model's own whole pass; return its outputs, and `T`, at which their graph begins."""
    with cut_at_norm(model) as leaves:
        outputs = model.outputs(prepared)
    Ts = of_each_norm(model, leaves)
    if any(len(T) != len(prepared) for T in Ts):
        raise ModelError(
            f"{model.name} has tokens of {len(Ts[0])} images in its last block for a batch of "
            f"{len(prepared)}: explain the ViT inside, or give it one view of an image at a time."
        )
    return outputs, Ts


def of_each_norm(
    model: ClassTokenModel, leaves: dict[nn.Module, Tensor]
) -> tuple[Float[Tensor, "batch token dim"], ...]:
    """Return `T` of each norm before attention; refuse a norm that wasn't called."""
    norms = norms_before_attention(model)
    if any(norm not in leaves for norm in norms):
        raise ModelError(
            f"The last block of {model.name} doesn't call its norm before attention, and CDAM is "
            "defined on that norm's output: let the block call it as a module, or choose an "
            "method that needs no norm, such as occlusion."
        )
    return tuple(leaves[norm] for norm in norms)


def gradients(
    model: ClassTokenModel,
    outputs: Float[Tensor, "batch output"],
    leaves: Sequence[Float[Tensor, "batch ..."]],
    columns: Sequence[int] | None = None,
) -> Iterator[tuple[Float[Tensor, "batch ..."], ...]]:
    """Yield the gradients of one output after the other, all unless columns are given.

    Each image has its own. Leaves are where the graph of the outputs begins; a model through which
    no gradient gets there is refused.
    """
    if not outputs.requires_grad:
        model.refuse_without_gradient()
    for column in range(outputs.shape[1]) if columns is None else columns:
        with torch.enable_grad(), errors_named(model.name):
            # Images don't mix, so the gradient of the batch's sum holds each image's own.
            total = outputs[:, column].sum()
            found = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
        if any(gradient is None for gradient in found):
            model.refuse_without_gradient()
        yield found


def scores_by_autograd(
    model: ClassTokenModel,
    outputs: Float[Tensor, "batch output"],
    leaves: Sequence[Float[Tensor, "batch token dim"]],
    columns: Sequence[int],
) -> Float[Tensor, "batch target token"]:
    """Return ``S[i, c] = sum_j T[i, j] * d f_c / d T[i, j]`` of every token, summed over norms.

    Outputs are all of them, in a graph that begins at `leaves`, the `T` of each norm.
    """
    Ts = [wide(T.detach()) for T in leaves]
    # made at once: small results between freed gradients would keep their memory from being reused
    S = Ts[0].new_zeros(len(outputs), len(columns), Ts[0].shape[1])
    for column, found in enumerate(gradients(model, outputs, leaves, columns)):
        for T, gradient in zip(Ts, found, strict=True):
            S[:, column] += (T * wide(gradient)).sum(-1)
    return S


def closed_form_agrees(
    model: ClassTokenModel,
    image: Float[Tensor, "1 channel *size"],
    columns: Sequence[int],
    S: Float[Tensor, "1 target token"],
    outputs: Float[Tensor, "1 target"],
) -> bool:
    """Say whether scores and outputs are those of the model's own pass and a backward pass.

    One direction of the outputs is compared, in which every target has another weight: a sum of
    scores, for one backward pass. Sizes are those of the terms that scores are sums of.
    """
    own, leaves = own_pass(model, image)
    with torch.enable_grad():
        own = wide(own[:, list(columns)])
        weights = torch.cos(torch.arange(len(columns), device=own.device) + 1.0).to(own.dtype)
        total = own @ weights[:, None]
    (found,) = gradients(model, total, leaves)
    each = [wide(T.detach()) * wide(g) for T, g in zip(leaves, found, strict=True)]
    terms = torch.stack(each).sum(0)
    if terms.shape[1] != S.shape[2]:
        return False
    share, sizes = tolerance(image), terms.abs().sum(-1)
    of_scores = torch.einsum("bct,c->bt", S, weights) - terms.sum(-1)
    of_outputs = wide(outputs) - own.detach()
    size_of_outputs = own.detach().abs().max() + sizes.sum()
    return bool(
        of_scores.abs().max() <= share * sizes.max()
        and of_outputs.abs().max() <= share * size_of_outputs
    )
