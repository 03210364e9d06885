r"""Class-discriminative attention maps (CDAM), for all targets from one forward pass.

``T`` is the output of `norm1` in the last block and ``f_c`` a raw output of the model. CDAM is
``S[i, c] = sum_j T[i, j] * d f_c / d T[i, j]`` (arXiv 2312.02364 eq. 2): positive where a token
speaks for the target, negative where it speaks against it, and never rescaled.

Only the class token's row of the last block reaches the output, so the gradient has a closed
form. In each head, let ``A`` be the attention from the class token (query ``q``), ``k'`` and
``v'`` keys and values without their bias, ``z`` the head's output for the class token and ``u_c``
the gradient of ``f_c`` in ``z``. For every token but the class token

    S[i, c] = sum_h A_i * ( v'_i . u_c  +  l_i * (v_i - z) . u_c )      l_i = q . k'_i / sqrt(d)

and the class token has one more term, through its query ``q' + bias``:

    sum_h sum_i A_i * (q' . k'_i / sqrt(d)) * (v_i - z) . u_c

A key bias shifts all of ``l`` alike, which softmax ignores, and a value bias cancels in
``v_i - z``. Keys and values are linear in ``T``, so their weights can be applied to ``q`` and
``u_c`` instead: ``q . k'_i = T_i . (W_k^T q)`` and ``v'_i . u_c = T_i . (W_v^T u_c)``. Nothing at
all is projected for the patches. ``u_c`` is the one thing that depends on the target, and needs
a gradient through projection, MLP, final norm and head for a single token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, einsum

from cdam_med.attribution.class_token import ClassTokenModel
from cdam_med.attribution.combinations import Targets
from cdam_med.attribution.last_block import (
    closed_form_agrees,
    norms_before_attention,
    own_pass,
    scores_by_autograd,
    tokens_before_last_block,
)
from cdam_med.attribution.method import Attribution
from cdam_med.attribution.numerics import wide, without_autocast
from cdam_med.attribution.subject import MethodBase, Subject, explaining
from cdam_med.attribution.verification import check_own_outputs
from cdam_med.attribution.vit import Projections, errors_named
from cdam_med.errors import ModelError

TARGETS_AT_ONCE = 64  # bounds memory when a model has a thousand outputs

Path: TypeAlias = Literal["closed form", "autograd"]
"""How scores are computed; both are exact."""


CdamScores: TypeAlias = Attribution
"""What `cdam_scores` gives; maps have the three axes of a ViT with 3-D patches."""


@dataclass(frozen=True)
class Cdam(MethodBase):
    """Class-discriminative attention maps (arXiv 2312.02364 eq. 2), as a method.

    With `verify` it is seen, once for each state of a model, that outputs and scores are its own,
    see `cdam_med.attribution.verification`.
    """

    verify: bool = True

    name: ClassVar[str] = "cdam"
    title: ClassVar[str] = "CDAM"
    meaning: ClassVar[str] = (
        "First-order score of what the model's last block takes from a patch: above zero it "
        "pushes the output up, below zero down. It isn't how the output changes when the "
        "patch is removed."
    )
    reference: ClassVar[str] = "Brocki, Binda, Chung 2023, arXiv 2312.02364, eq. 2"
    cost: ClassVar[str] = "one forward pass for all targets"

    @property
    def verifies(self) -> bool:
        """See `MethodBase`."""
        return self.verify

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return CDAM of a batch of images; nothing in it is random."""
        return subject.attribution(self, *scores_of_subject(subject))


def cdam_scores(
    model: object, images: Tensor, targets: Targets = None, *, verify: bool = True
) -> CdamScores:
    """Return CDAM for any or all targets of a batch of images.

    The model is left as it was: no hooks, no gradients, same mode. Dropout is off meanwhile.

    Parameters
    ----------
    model : Module or object with `class_token_model`
        A timm or MONAI ViT, or a model that describes itself, see `class_token_model`.
    images : Tensor
        ``(batch, channel, height, width)`` as the model takes them; moved to the model's device
        and cast to the type of its weights.
    targets : target, sequence of targets, or None
        Names or columns of outputs, combinations of them, concepts; ``None`` for every output.
    verify : bool
        Whether to see, once for each state of the model, that outputs and scores are its own, see
        `cdam_med.attribution.verification`. The first call costs one or two passes of one image
        more for it.

    Raises
    ------
    ModelError
        If it isn't known how outputs are read from tokens, the last block isn't pre-norm, or what
        is computed isn't what the model gives by itself.
    TargetError
        If the model has no such target.
    CdamError
        If the images aren't what the model takes.
    """
    with explaining(model, images, targets, in_depth=True, verify=verify) as subject:
        found = scores_of_subject(subject)
        return subject.attribution(Cdam(verify), *found, in_depth=True)


def scores_of_subject(
    subject: Subject,
) -> tuple[Float[Tensor, "batch target token"], Float[Tensor, "batch target"], Path]:
    """Return CDAM of every token, the outputs, and how they were computed."""
    if (X := tokens_for_closed_form(subject)) is not None:
        with without_autocast(X):
            return *closed_form_of_all(subject.model, X, subject.columns), "closed form"
    whole, leaves = own_pass(subject.model, subject.images)
    S = scores_by_autograd(subject.model, whole, leaves, subject.columns)
    check_own_outputs(subject.verifier, subject.model, subject.images, whole, S)
    return S, whole.detach()[:, list(subject.columns)], "autograd"


def tokens_for_closed_form(subject: Subject) -> Float[Tensor, "batch token dim"] | None:
    """Return the tokens that enter the last block, or None where the closed form doesn't hold."""
    model, verifier = subject.model, subject.verifier
    if model.pooling is not None or model.readout is None or model.adapter.projections() is None:
        return None
    # images that are mixed can only be seen in a batch
    question = "closed form of " + ("an image" if len(subject.images) == 1 else "a batch")
    if verifier is not None and verifier.known(question) is False:
        return None
    X = tokens_before_last_block(model, subject.images)

    def compare() -> bool:
        with without_autocast(X):
            found = closed_form_of_all(model, X[:1], subject.columns)
        return closed_form_agrees(model, subject.images[:1], subject.columns, *found)

    return X if verifier is None or verifier.answer(question, compare) else None


def closed_form_of_all(
    model: ClassTokenModel, X: Float[Tensor, "batch token dim"], columns: Sequence[int]
) -> tuple[Float[Tensor, "batch target token"], Float[Tensor, "batch target"]]:
    """Return what `closed_form` does, portion by portion of the columns."""
    parts = [closed_form(model, X, each) for each in at_once(columns)]
    S, outputs = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return S, outputs


def at_once(columns: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield columns in portions whose gradients fit in memory side by side."""
    for start in range(0, len(columns), TARGETS_AT_ONCE):
        yield columns[start : start + TARGETS_AT_ONCE]


def closed_form(
    model: ClassTokenModel, X: Float[Tensor, "batch token dim"], columns: Sequence[int]
) -> tuple[Float[Tensor, "batch target token"], Float[Tensor, "batch target"]]:
    """Return CDAM of every token, and the outputs, from the tokens that enter the last block."""
    (norm,) = norms_before_attention(model)
    T = wide(norm(X))
    return closed_form_of_tokens(model, T, X[:, : model.readout_tokens], columns)


def closed_form_of_tokens(
    model: ClassTokenModel,
    T: Float[Tensor, "batch token dim"],
    residual: Float[Tensor, "batch read dim"],
    columns: Sequence[int],
) -> tuple[Float[Tensor, "batch target token"], Float[Tensor, "batch target"]]:
    """Return CDAM of every token, and the outputs, by the equation at the head of this file.

    `T` are normalised tokens, at least in float32; `residual` is what passes by attention for the
    tokens that are read, in the type of the weights. Letters in `einsum`: b image, h head, r token
    that is read (the class token), d dimension of a head, e dimension of a token, c target, i
    token, s with and without the query's bias.
    """
    read = model.readout_tokens
    weights = attention_weights(model)
    W_q, W_k, W_v, b_q, b_v = weights.W_q, weights.W_k, weights.W_v, weights.b_q, weights.b_v
    q_free = einsum("bre,hde->bhrd", T[:, :read], W_q)
    scaled = torch.stack((q_free + b_q, q_free), dim=1) * W_q.shape[1] ** -0.5
    to_logits = einsum("bshrd,hde->bshre", scaled, W_k)
    logits, logits_free = einsum("bshre,bie->bshri", to_logits, T).unbind(1)
    A = logits.softmax(-1)
    z_free = einsum("bhre,hde->bhrd", einsum("bhri,bie->bhre", A, T), W_v)

    outputs, u = outputs_and_gradients(model, z_free + b_v, residual, columns)
    vu = einsum("bchre,bie->bchri", einsum("bchrd,hde->bchre", u, W_v), T)
    mean_vu = einsum("bhrd,bchrd->bchr", z_free, u)
    own = A * logits_free  # weights of v_i - z, for the class token's own query
    S_read = einsum("bhri,bchri->bcr", own, vu)
    S_read -= einsum("bhr,bchr->bcr", own.sum(-1), mean_vu)
    S = vu.mul_((A * (1 + logits)).unsqueeze(1)).sum((2, 3))
    S -= einsum("bhri,bchr->bci", A * logits, mean_vu)
    S[:, :, :read] += S_read
    return S, outputs


def attention_weights(model: ClassTokenModel) -> Projections:
    """Return the linear maps of the last attention, at least in float32."""
    found = model.adapter.projections()
    if found is None:
        raise ModelError(
            f"The last attention of {model.name} is more than linear maps and softmax."
        )
    return Projections(
        *(wide(each) for each in (found.W_q, found.W_k, found.W_v, found.b_q, found.b_v))
    )


def outputs_and_gradients(
    model: ClassTokenModel,
    z: Float[Tensor, "batch head read head_dim"],
    X: Float[Tensor, "batch read dim"],
    columns: Sequence[int],
) -> tuple[Float[Tensor, "batch target"], Float[Tensor, "batch target head read head_dim"]]:
    """Return outputs and their gradients in `z`, through all that follows attention.

    `z` is what each head gives for the tokens that are read, `X` are these at the entry of the
    block. They are repeated for each target, so that one backward pass gives every target its own
    gradient.
    """
    count = len(columns)
    repeated = z.repeat_interleave(count, dim=0).requires_grad_()
    residual = X.repeat_interleave(count, dim=0)
    with torch.enable_grad(), errors_named(model.name):
        left = model.adapter.after_attention(repeated.to(X.dtype), residual)
        outputs = torch.unflatten(model.read(left)[:, list(columns)], 0, (-1, count))
        own = outputs.diagonal(dim1=1, dim2=2)
        (u,) = torch.autograd.grad(own.sum(), repeated)
    return own.detach(), torch.unflatten(u, 0, (-1, count))
