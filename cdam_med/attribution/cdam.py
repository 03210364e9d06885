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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, einsum, nn

from cdam_med.attribution.last_block import (
    evaluating,
    has_known_form,
    scores_by_autograd,
    tokens_before_last_block,
)
from cdam_med.models.class_token import ClassTokenModel, class_token_model

TARGETS_AT_ONCE = 64  # bounds memory when a model has a thousand outputs


@dataclass(frozen=True, eq=False)
class CdamScores:
    """CDAM of a batch of images.

    Parameters
    ----------
    scores : Tensor
        Signed score of each patch, in units of the output.
    prefix_scores : Tensor
        What fell on the tokens before the patches: the class token first, then registers or
        the distillation token.
    outputs : Tensor
        Raw outputs of the model for the same targets.
    targets : tuple of str or int
        Name of each target, or its column where the model has no names.
    path : {"closed form", "autograd"}
        How the scores were computed; both are exact.
    """

    scores: Float[Tensor, "batch target rows columns"]
    prefix_scores: Float[Tensor, "batch target prefix"]
    outputs: Float[Tensor, "batch target"]
    targets: tuple[str | int, ...]
    path: Literal["closed form", "autograd"]


@torch.inference_mode(False)
@torch.no_grad()
def cdam_scores(
    model: object, images: Tensor, targets: str | int | Sequence[str | int] | None = None
) -> CdamScores:
    """Return CDAM for any or all targets of a batch of images.

    The model is left as it was: no hooks, no gradients, same mode. Dropout is off meanwhile.

    Parameters
    ----------
    model : VisionTransformer or object with `class_token_model`
        A timm ViT that reads its outputs from the class token, or a model that describes itself,
        see `class_token_model`.
    images : Tensor
        ``(batch, channel, height, width)`` as the model takes them; moved to the model's device
        and cast to the type of its weights.
    targets : str, int, sequence of them, or None
        Names or columns of outputs; ``None`` for all.

    Raises
    ------
    ModelError
        If the model doesn't read its outputs from a class token behind a pre-norm block.
    TargetError
        If the model has no such target.
    InputError
        If the images aren't what the model takes.
    """
    described = class_token_model(model)
    with evaluating(model if isinstance(model, nn.Module) else described.vit):
        columns = described.target_columns(targets)
        prepared = described.check_images(images)
        path: Literal["closed form", "autograd"]
        if has_known_form(described):
            path = "closed form"
            X = tokens_before_last_block(described, prepared)
            parts = [
                closed_form(described, X, columns[start : start + TARGETS_AT_ONCE])
                for start in range(0, len(columns), TARGETS_AT_ONCE)
            ]
            S, outputs = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        else:
            path = "autograd"
            S, outputs = scores_by_autograd(described, prepared, columns)
    prefix = described.vit.num_prefix_tokens
    return CdamScores(
        scores=torch.unflatten(S[:, :, prefix:], -1, described.grid_size(prepared)),
        prefix_scores=S[:, :, :prefix],
        outputs=outputs,
        targets=tuple(described.target_names[c] if described.target_names else c for c in columns),
        path=path,
    )


def closed_form(
    model: ClassTokenModel, X: Float[Tensor, "batch token dim"], columns: Sequence[int]
) -> tuple[Float[Tensor, "batch target token"], Float[Tensor, "batch target"]]:
    """Return CDAM of every token, and the outputs, by the equation at the head of this file.

    Letters in `einsum`: b image, h head, r token that is read (the class token), d dimension of
    a head, e dimension of a token, c target, i token.

    Parameters
    ----------
    model : ClassTokenModel
        In evaluation mode; its last block has the known form.
    X : Tensor
        Tokens that enter the last block.
    columns : sequence of int
        Columns of the output.
    """
    block: Any = model.vit.blocks[-1]
    read, qkv, heads = model.readout_tokens, block.attn.qkv, block.attn.num_heads
    wide = torch.promote_types(X.dtype, torch.float32)  # half precision is too coarse for sums
    T = block.norm1(X).to(wide)
    W_q, W_k, W_v = torch.unflatten(qkv.weight.to(wide), 0, (3, heads, -1))
    bias = torch.zeros_like(qkv.weight[:, 0]) if qkv.bias is None else qkv.bias
    b_q, _, b_v = torch.unflatten(bias.to(wide), 0, (3, heads, 1, -1))

    q_free = einsum("bre,hde->bhrd", T[:, :read], W_q)
    scaled = torch.stack((q_free + b_q, q_free)) * W_q.shape[1] ** -0.5
    logits, logits_free = einsum("sbhre,bie->sbhri", einsum("sbhrd,hde->sbhre", scaled, W_k), T)
    A = logits.softmax(-1)
    z = einsum("bhre,hde->bhrd", einsum("bhri,bie->bhre", A, T), W_v) + b_v

    outputs, u = _outputs_and_gradients(model, z, X[:, :read], columns)
    vu = einsum("bchre,bie->bchri", einsum("bchrd,hde->bchre", u, W_v), T)
    A, logits, logits_free = (each.unsqueeze(1) for each in (A, logits, logits_free))
    centred = vu - (A * vu).sum(-1, keepdim=True)  # (v_i - z) . u
    S = (A * (vu + logits * centred)).sum((2, 3))
    S[:, :, :read] += (A * logits_free * centred).sum((2, 4))
    return S, outputs


def _outputs_and_gradients(
    model: ClassTokenModel,
    z: Float[Tensor, "batch head read head_dim"],
    X: Float[Tensor, "batch read dim"],
    columns: Sequence[int],
) -> tuple[Float[Tensor, "batch target"], Float[Tensor, "batch target head read head_dim"]]:
    """Return outputs and their gradients in `z`, through all that follows attention.

    The tokens that are read are repeated for each target, so that one backward pass gives every
    target its own gradient.
    """
    block: Any = model.vit.blocks[-1]
    count = len(columns)
    repeated = z.repeat_interleave(count, dim=0).requires_grad_()
    residual = X.repeat_interleave(count, dim=0)
    with torch.enable_grad():
        attended = block.attn.proj(repeated.transpose(1, 2).flatten(2).to(X.dtype))
        x = residual + block.ls1(attended)
        x = x + block.ls2(block.mlp(block.norm2(x)))
        outputs = torch.unflatten(model.read(x)[:, list(columns)], 0, (-1, count))
        own = outputs.diagonal(dim1=1, dim2=2)
        (u,) = torch.autograd.grad(own.sum(), repeated)
    return own.detach(), torch.unflatten(u, 0, (-1, count))
