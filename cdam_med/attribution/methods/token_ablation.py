r"""Token ablation: how far an output falls when one patch token is taken away.

Tokens are removed after the position embedding and before the first block, so that the others
stay what they are and where they are: no token is masked, moved or replaced.

What doesn't depend on the token that is removed is computed once: the embedding, and queries,
keys and values of the first block, which are made of each token alone. In the last block nothing
is computed but what the class token takes: with query `q`, ``q . k_i = T_i . (W_k^T q)`` and
``sum_i A_i v_i = W_v sum_i A_i T_i + b_v``, so no keys or values are projected.

In BEiT the bias of relative positions is a square of all tokens by all tokens. There a token is not
taken away but hidden, by minus infinity in its column: no other token can look at it, their softmax
is over the rest, and it is left out of what is read, so that the outputs are the same.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.models.beit import Beit
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, einsum
from torch.nn import functional

from cdam_med.attribution.cdam import attention_weights
from cdam_med.attribution.class_token import ClassTokenModel
from cdam_med.attribution.last_block import norms_before_attention
from cdam_med.attribution.method import Attribution
from cdam_med.attribution.methods.block_runs import BlockRun, whole_pass
from cdam_med.attribution.numerics import wide
from cdam_med.attribution.subject import MethodBase, Subject
from cdam_med.attribution.vit import errors_named
from cdam_med.errors import ModelError


@dataclass(frozen=True)
class TokenAblation(MethodBase):
    """``f(all tokens) - f(all but token i)`` for every patch token.

    Brocki, Binda and Chung, arXiv 2312.02364 eq. 5 (token ablation map). All targets come from
    the same passes. `tokens_at_once`, how many removals share a pass, bounds memory.
    """

    tokens_at_once: int = 16

    name = "token_ablation"
    title = "Token ablation"
    meaning = (
        "How far the output falls (above zero) or rises (below zero) when the model isn't "
        "given the patch."
    )
    reference = "Brocki, Binda, Chung 2023, arXiv 2312.02364, eq. 5"
    cost = "a little less than one forward pass for each patch, for all targets"

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return token ablation maps."""
        maps, outputs = zip(
            *(self._map(subject, image[None]) for image in subject.images), strict=True
        )
        scores = subject.on_grid(torch.stack(maps), subject.model.grid_size(subject.images))
        return subject.attribution_of_maps(self, scores, torch.stack(outputs), "perturbation")

    def _map(
        self, subject: Subject, image: Float[Tensor, "1 channel *size"]
    ) -> tuple[Float[Tensor, "target patch"], Float[Tensor, "target"]]:
        """Return the map of one image, and the outputs with all tokens, by the same way."""
        columns = list(subject.columns)
        with errors_named(subject.model.name):
            passes, outputs = self._passes(subject, image)
            every = torch.arange(passes.tokens.shape[0], device=passes.tokens.device)
            patches, without = every[subject.model.adapter.n_prefix :], []
            for removed in torch.split(patches, self.tokens_at_once):
                kept = every[:-1].repeat(len(removed), 1)
                kept += kept >= removed[:, None]
                without.append(passes.outputs(kept)[:, columns])
        return wide(outputs)[:, None] - wide(torch.cat(without)).T, outputs

    def _passes(
        self, subject: Subject, image: Float[Tensor, "1 channel *size"]
    ) -> "tuple[_Passes, Float[Tensor, ' target']]":
        """Return the cheapest way that gives the model's own outputs from all tokens, and these."""
        own = whole_pass(subject, image)
        for kind in _kinds(subject.model):
            passes = kind(subject.model, own.blocks)
            every = torch.arange(passes.tokens.shape[0], device=passes.tokens.device)
            outputs = passes.outputs(every[None])[:, list(subject.columns)]
            if own.is_given_by(outputs):
                break
        own.check(outputs, self.name)
        return passes, outputs[0]


class _Passes(ABC):
    """A way to the outputs of one image from some of its tokens."""

    def __init__(self, model: ClassTokenModel, runs: tuple[BlockRun, ...]) -> None:
        self.model, self.runs = model, runs
        self.tokens = runs[0].tokens[0]

    @abstractmethod
    def outputs(self, kept: Int[Tensor, "removal token"]) -> Float[Tensor, "removal output"]:
        """Return the outputs for the tokens that are kept in each removal."""


class _WholePasses(_Passes):
    """Every block is called."""

    def outputs(self, kept: Int[Tensor, "removal token"]) -> Float[Tensor, "removal output"]:
        left = self.tokens[kept]
        prefix = self.model.adapter.n_prefix
        patches = kept[:, prefix:] - prefix
        for run in self.runs:
            others = dict(run.others)
            if others.keys() - {"rope", "attn_mask", "is_causal"}:
                raise ModelError(
                    f"token_ablation can't take tokens away from {self.model.name}, whose "
                    f"blocks also take {', '.join(others)}: choose a ViT with absolute or "
                    "rotary positions, or another method, such as occlusion."
                )
            if (rope := others.get("rope")) is not None:
                # (..., token, angle) -> (removal, head or 1, token, angle)
                others["rope"] = rope[..., patches, :].movedim(-3, 0)
                if rope.ndim == 2:
                    others["rope"] = others["rope"][:, None]
            left = run.block(left, **others)
        return self.model.read(left)


class _HidingPasses(_Passes):
    """Tokens that aren't kept are hidden, for BEiT."""

    def outputs(self, kept: Int[Tensor, "removal token"]) -> Float[Tensor, "removal output"]:
        left = self.tokens.expand(len(kept), -1, -1)
        hidden = left.new_full((len(kept), 1, 1, left.shape[1]), -torch.inf)
        hidden.scatter_(-1, kept[:, None, None], 0)
        for run in self.runs:
            bias = run.others["shared_rel_pos_bias"]
            left = run.block(left, shared_rel_pos_bias=hidden if bias is None else hidden + bias)
        return self.model.read(left.gather(1, kept[..., None].expand(-1, -1, left.shape[-1])))


class _SharedPasses(_Passes):
    """What doesn't depend on the tokens that are kept is computed once."""

    def __init__(self, model: ClassTokenModel, runs: tuple[BlockRun, ...]) -> None:
        super().__init__(model, runs)
        first: Any = runs[0].block
        qkv = first.attn.qkv(first.norm1(self.tokens))
        q, k, v = torch.unflatten(qkv, -1, (3, first.attn.num_heads, -1)).unbind(1)
        self.qkv = torch.stack((first.attn.q_norm(q), first.attn.k_norm(k), v), dim=1)

    def outputs(self, kept: Int[Tensor, "removal token"]) -> Float[Tensor, "removal output"]:
        q, k, v = self.qkv[kept].permute(2, 0, 3, 1, 4).unbind(0)
        heads = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        first: Any = self.model.adapter.blocks[0]
        left = self.tokens[kept] + first.ls1(first.attn.proj(first.attn.norm(heads)))
        left = left + first.ls2(first.mlp(first.norm2(left)))
        for block in self.model.adapter.blocks[1:-1]:
            left = block(left)
        return self.model.read(_last_block(self.model, left))


def _kinds(model: ClassTokenModel) -> tuple[type[_Passes], ...]:
    """Return the ways that are possible, the cheapest first."""
    if isinstance(model.vit, Beit):
        return (_HidingPasses,)
    blocks: Any = model.adapter.blocks
    can_share = (
        model.pooling is None
        and model.readout is not None
        and model.adapter.projections() is not None
        and len(blocks) > 1
        and type(blocks[0]) is Block
        and type(blocks[0].attn) is Attention
    )
    return (_SharedPasses, _WholePasses) if can_share else (_WholePasses,)


def _last_block(
    model: ClassTokenModel, X: Float[Tensor, "batch token dim"]
) -> Float[Tensor, "batch read dim"]:
    """Return what leaves the last block for the tokens that are read, and nothing else.

    Letters in `einsum`: b removal, h head, r token that is read (the class token), d dimension of
    a head, e dimension of a token, i token.
    """
    read, weights = model.readout_tokens, attention_weights(model)
    (norm,) = norms_before_attention(model)
    T = wide(norm(X))
    q = einsum("bre,hde->bhrd", T[:, :read], weights.W_q) + weights.b_q
    q = q * weights.W_q.shape[1] ** -0.5
    logits = einsum("bhre,bie->bhri", einsum("bhrd,hde->bhre", q, weights.W_k), T)
    mixed = einsum("bhri,bie->bhre", logits.softmax(-1), T)
    z = einsum("bhre,hde->bhrd", mixed, weights.W_v) + weights.b_v
    return model.adapter.after_attention(z.to(X.dtype), X[:, :read])
