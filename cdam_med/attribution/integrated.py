r"""Integrated CDAM: CDAM integrated on the path from no tokens to the image's tokens.

With `T` the normalised tokens of the last block and the residual stream held fixed, the score is
the integrated gradient (Sundararajan 2017) in `T`, from the baseline zero:

    S[i, c] = sum_j T[i, j] * integral from 0 to 1 of d f_c / d T[i, j] at (alpha T)  d alpha

so the scores of all tokens, prefix tokens too, add up to ``f_c(T) - f_c(0)``. The integral is
taken by the midpoint rule. This is the default; the two forms that have been published under this
name do not have that property (`cdam_med.attribution.averaged`).

On this path queries, keys and values without their biases are linear in alpha: ``alpha q'``,
``alpha k'`` and ``alpha v'``. With ``l1 = q' . k' / sqrt(d)`` and ``l2 = bias . k' / sqrt(d)``,
both computed once, the logits at alpha are ``l = alpha^2 l1 + alpha l2`` (a key bias shifts all
of them alike), and with ``A`` their softmax and ``m = sum_i A_i v'_i . u`` the integrand is

    sum_h A_i * ( v'_i . u  +  l_i * (v'_i . u - m) )
    and for the class token, through its query,  sum_h sum_i A_i * alpha^2 l1_i * (v'_i . u - m)

which is the closed form of `cdam_med.attribution.cdam` divided by alpha. A step is a softmax, the
gradient `u` through what follows attention for one token, and sums over ``v'``: no step projects a
token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, einsum

from cdam_med.attribution.cdam import (
    Path,
    at_once,
    attention_weights,
    closed_form,
    outputs_and_gradients,
    tokens_for_closed_form,
)
from cdam_med.attribution.class_token import ClassTokenModel
from cdam_med.attribution.last_block import norms_before_attention
from cdam_med.attribution.last_block_runs import LastBlockRuns
from cdam_med.attribution.method import Attribution
from cdam_med.attribution.numerics import wide, without_autocast
from cdam_med.attribution.subject import MethodBase, Subject

GRADIENTS_AT_ONCE = 256
"""Images times steps times targets that go through the MLP side by side: bounds memory."""


@dataclass(frozen=True)
class IntegratedCdam(MethodBase):
    """Integrated CDAM with scores that add up, over some steps of the path: the default."""

    steps: int = 50

    name: ClassVar[str] = "integrated_cdam"
    title: ClassVar[str] = "Integrated CDAM"
    meaning: ClassVar[str] = (
        "Share of a patch in what the last block's attention adds to the output: above zero "
        "it raises it, below zero it lowers it. It isn't how the output changes when the "
        "patch is removed."
    )
    reference: ClassVar[str] = "integrated gradients (Sundararajan 2017) in the tokens of CDAM"
    cost: ClassVar[str] = "little more than one forward pass for all targets, with fifty steps"

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return Integrated CDAM of a batch of images; nothing in it is random."""
        return subject.attribution(self, *_integrated(subject, self.steps))


def _integrated(
    subject: Subject, steps: int
) -> tuple[Float[Tensor, "batch target token"], Float[Tensor, "batch target"], Path]:
    model, columns = subject.model, subject.columns
    if (X := tokens_for_closed_form(subject)) is None:
        return *_by_autograd(subject, steps), "autograd"
    parts = []
    with without_autocast(X):
        for each in at_once(columns):
            images = max(1, GRADIENTS_AT_ONCE // (len(each) * steps))
            S = torch.cat(
                [_by_closed_form(model, some, each, steps) for some in torch.split(X, images)]
            )
            parts.append((S, closed_form(model, X, each)[1]))
    S, outputs = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return S, outputs, "closed form"


def _midpoints(steps: int, like: Tensor) -> Float[Tensor, " step"]:
    return (torch.arange(steps, dtype=like.dtype, device=like.device) + 0.5) / steps


def _by_closed_form(
    model: ClassTokenModel,
    X: Float[Tensor, "batch token dim"],
    columns: Sequence[int],
    steps: int,
) -> Float[Tensor, "batch target token"]:
    """Return the scores by the equations at the head of this file.

    Letters in `einsum` as in `cdam_med.attribution.cdam`, and a step (alpha). Their order keeps
    each product of matrices in one piece of memory.
    """
    read = model.readout_tokens
    weights = attention_weights(model)
    W_q, W_k, W_v, b_q, b_v = weights.W_q, weights.W_k, weights.W_v, weights.b_q, weights.b_v
    (norm,) = norms_before_attention(model)
    T = wide(norm(X))
    q = einsum("bre,hde->bhrd", T[:, :read], W_q)
    queries = torch.stack((q, b_q.expand_as(q)), dim=1) * W_q.shape[1] ** -0.5
    to_logits = einsum("bshrd,hde->bshre", queries, W_k)
    l1, l2 = einsum("bshre,bie->bshri", to_logits, T).unsqueeze(3).unbind(1)
    v = einsum("bie,hde->bhid", T, W_v).contiguous()

    S = T.new_zeros(len(T), len(columns), T.shape[1])
    portion = max(1, GRADIENTS_AT_ONCE // (len(columns) * len(T)))
    for some in torch.split(_midpoints(steps, T), portion):
        alpha = some[:, None, None]
        logits_free = alpha**2 * l1
        logits = logits_free + alpha * l2
        A = logits.softmax(-1)
        mean_v = einsum("bhari,bhid->bhard", A, v)
        z = (alpha * mean_v + b_v[:, None]).transpose(1, 2).flatten(0, 1)
        passing = X[:, :read].repeat_interleave(len(some), dim=0)
        _, u = outputs_and_gradients(model, z, passing, columns)
        u = torch.unflatten(u, 0, (-1, len(some))).movedim(3, 1)  # b h a c r d
        m = einsum("bhard,bhacrd->bhacr", mean_v, u)

        vu = einsum("bhacrd,bhid->bhacri", u, v)
        S += vu.mul_((A * (1 + logits)).unsqueeze(3)).sum((1, 2, 4))
        S -= einsum("bhari,bhacr->bci", A * logits, m)
        free = A * logits_free
        own = einsum("bhard,bhacrd->bcr", einsum("bhari,bhid->bhard", free, v), u)
        S[:, :, :read] += own - einsum("bhar,bhacr->bcr", free.sum(-1), m)
    return S / steps


def _by_autograd(subject: Subject, steps: int) -> tuple[Tensor, Tensor]:
    runs = LastBlockRuns(subject)
    total = torch.zeros_like(runs.scores)
    for alpha in _midpoints(steps, total).tolist():
        # what comes back is multiplied by alpha T, where T is wanted
        total += runs.scores_of(change=partial(torch.mul, alpha)) / alpha
    return total / steps, runs.outputs
