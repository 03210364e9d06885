r"""Partial layer-wise relevance propagation: from one output down to the last attention matrix.

Relevance 1 enters at the output and is handed down through the head, the final norm and the last
block. Every rule divides what arrives at a unit among the units it was computed from:

- linear layer ``y_i = sum_j w_ij x_j + b_i``, the alpha = 1, beta = 0 rule: to input `j` the share
  ``(w_ij x_j)^+ / sum_k (w_ik x_k)^+``; the bias gets nothing;
- residual addition and product ``z = A v``: each part in proportion to what it added, so a part
  with the other sign gets negative relevance; a product gives half to each factor;
- layer norm, GELU, layer scale, gates, norms of heads: passed on unchanged, element by element.

All but one conserve the sum. The alpha = 1 rule drops what arrives at a unit to which no input
contributed positively. Half of what reaches `z` ends in the values, which aren't shown.

The public code of Chefer et al. has these rules in two variants that are left out: in one, each
addition is rescaled by the sums of its two parts; in the other, shares of negative inputs are
divided by a sum of their own, so that relevance isn't conserved.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.mlp import Mlp
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import linear

from cdam_med.attribution.class_token import ClassTokenModel
from cdam_med.attribution.hooks import after_calls, before_calls
from cdam_med.attribution.last_block import gradients
from cdam_med.attribution.method import Attribution
from cdam_med.attribution.methods.attention_recording import recording_attention
from cdam_med.attribution.methods.block_runs import BlockRun, whole_pass
from cdam_med.attribution.numerics import tolerance, wide, without_autocast
from cdam_med.attribution.subject import MethodBase, Subject
from cdam_med.errors import ModelError

_SMALL = 1e-9  # keeps a sum of contributions that cancel from dividing by zero


@dataclass(frozen=True)
class PartialLrp(MethodBase):
    """Relevance of the last block's attention from the class token: ``max(0, R)``, mean over heads.

    Voita et al., "Analyzing Multi-Head Self-Attention", ACL 2019, with the rules that Chefer et
    al. (CVPR 2021) compare with: see this module's head. The head of the model is taken as the
    linear layer that its gradient is at this image; that is exact for a linear head. The sum over
    the tokens where outputs are read from two of them (distilled models).
    The rules read the weights of the last block, so an adapter beside them or a hook is refused.
    Sums that nearly cancel make it ill-conditioned: in half precision the map is another one.
    """

    name = "partial_lrp"
    title = "Partial LRP"
    meaning = (
        "Share of the output that is traced back to attention to a patch in the last block. "
        "What lowers the output is left out, so no score is below zero."
    )
    reference = "Voita et al., ACL 2019"
    is_signed = False
    cost = "one forward pass, and next to nothing for each target"

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return partial LRP maps."""
        own = whole_pass(subject, subject.images)
        last = own.blocks[-1]
        _check_rules(subject.model, last.block)
        values = _values(subject.model, last)
        with without_autocast(values["block"]):
            features, weights, outputs = _head(subject, values["block"])
            positive = (features[:, None] * weights).clamp(min=0)
            R = _divide(torch.ones_like(positive), positive.sum(-1, keepdim=True)) * positive
            R = torch.unflatten(R, -1, (subject.model.readout_tokens, -1))
            relevance = _relevance_of_attention(last.block, values, R)
        own.check(outputs, self.name)
        tokens = relevance.clamp(min=0).mean(2).sum(2)
        return subject.attribution(self, tokens, outputs, "relevance rules")


def _check_rules(model: ClassTokenModel, block: Any) -> None:
    """Refuse a pooling, and a block that holds a layer without a rule."""
    if model.pooling is not None:
        raise ModelError(
            f"partial_lrp has no rule for pooling by {model.pooling.name!r}, which "
            f"{model.name} does: choose a model that reads its class token, or another "
            "method, such as relevance_propagation."
        )
    if not isinstance(block, Block | EvaBlock) or type(block.mlp) is not Mlp:
        mlp = type(getattr(block, "mlp", None)).__name__
        raise ModelError(
            f"partial_lrp has no rules for {type(block).__name__} with {mlp}: choose a ViT whose "
            "last block is attention and a plain MLP, or another method, such as "
            "relevance_propagation."
        )


def _values(model: ClassTokenModel, last: BlockRun) -> dict[str, Tensor]:
    """Run the last block again and return what its layers took and gave, of tokens that are read.

    `residual`, `attended` and `block` are the tokens before, between and after the two branches;
    `heads` is what attention gave, `projected` what its last linear layer took, `normed` and
    `hidden` what those of the MLP took. `matrix` is the attention matrix whole, and `heads` is
    in a graph that begins there.
    """
    block: Any = last.block
    taken, given = dict[nn.Module, Tensor](), dict[nn.Module, Tensor]()

    def take(module: nn.Module, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        taken[module] = args[0]

    layers = [block.attn.proj, block.mlp.fc1, block.mlp.fc2]
    last_only = slice(-1, None)
    with (
        recording_attention(model, wanted_by=PartialLrp.name, blocks=last_only) as matrices,
        before_calls(block, [block.norm2, block.attn.norm, *layers], take, first=True),
        after_calls(block, [block.attn, block.mlp, *layers], given.__setitem__),
        torch.enable_grad(),
    ):
        left = last.repeat()
        values = {
            "residual": last.tokens,
            "attended": taken[block.norm2],
            "heads": taken[block.attn.norm],
            "projected": taken[block.attn.proj],
            "normed": taken[block.mlp.fc1],
            "hidden": taken[block.mlp.fc2],
            "block": left,
        }
        read = {name: wide(each[:, : model.readout_tokens]) for name, each in values.items()}
    _check_layers(model, block, taken, given)
    return read | {"matrix": matrices[-1]}


@torch.no_grad()
def _check_layers(
    model: ClassTokenModel,
    block: Any,
    taken: dict[nn.Module, Tensor],
    given: dict[nn.Module, Tensor],
) -> None:
    """Refuse layers that gave other than their weights make of what they took."""

    def is_its_weight(layer: Any) -> bool:
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if not isinstance(weight, Tensor):  # a quantised layer has a function there
            return False
        made = linear(taken[layer], weight, bias)
        size = linear(taken[layer].abs(), weight.abs()).max()
        return bool((given[layer] - made).abs().max() <= tolerance(made) * size)

    names = ("attn.proj", "mlp.fc1", "mlp.fc2")
    changed = [name for name in names if not is_its_weight(block.get_submodule(name))]
    for branch, layer in ((block.attn, block.attn.proj), (block.mlp, block.mlp.fc2)):
        if not torch.equal(given[branch], given[layer]):
            changed.append(type(branch).__name__)
    if changed:
        raise ModelError(
            "partial_lrp has rules for plain layers, and in the last block of "
            f"{model.name} an adapter, a hook or a forward of its own changes what "
            f"{changed[0]} does: merge the adapter into the weights, or choose another method, "
            "such as relevance_propagation."
        )


@torch.enable_grad()
def _head(
    subject: Subject, left: Float[Tensor, "batch read dim"]
) -> tuple[
    Float[Tensor, "batch feature"],
    Float[Tensor, "batch target feature"],
    Float[Tensor, "batch target"],
]:
    """Return what the readout takes, the gradients of the outputs in it, and the outputs."""
    normed = subject.model.adapter.norm(left.detach().to(subject.model.weight.dtype)).flatten(1)
    features = normed.detach().requires_grad_()
    outputs = subject.model.outputs_of(features)[:, list(subject.columns)]
    weights = [found for (found,) in gradients(subject.model, outputs, [features])]
    return (
        features.detach().to(left.dtype),
        torch.stack(weights, dim=1).to(left.dtype),
        outputs.detach(),
    )


def _relevance_of_attention(
    block: Any, values: dict[str, Tensor], R: Float[Tensor, "batch target read dim"]
) -> Float[Tensor, "batch target head read token"]:
    """Hand relevance of the tokens that leave the last block down to its attention matrix."""
    mlp, attn = block.mlp, block.attn
    with torch.no_grad():
        part = {name: each.detach()[:, None] for name, each in values.items()}
        to_mlp = R * _divide(part["block"] - part["attended"], part["block"])
        R = R - to_mlp
        R = R + _through_linear(
            _through_linear(to_mlp, part["hidden"], mlp.fc2), part["normed"], mlp.fc1
        )
        R = R * _divide(part["attended"] - part["residual"], part["attended"])
        R = _through_linear(R, part["projected"], attn.proj)
        shares = _divide(R, part["heads"])
    heads, matrix = values["heads"], values["matrix"]
    read = heads.shape[1]
    relevances = []
    for share in shares.unbind(1):
        # sum_d v_id share_d is the gradient of sum_d z_d share_d in A_i
        (gradient,) = torch.autograd.grad(heads, matrix, share, retain_graph=True)
        relevances.append((wide(matrix.detach()) * wide(gradient))[:, :, :read] / 2)
    return torch.stack(relevances, dim=1)


def _through_linear(
    R: Float[Tensor, "batch target read out"],
    x: Float[Tensor, "batch 1 read in"],
    layer: nn.Linear,
) -> Float[Tensor, "batch target read in"]:
    """Apply the alpha = 1 rule to a linear layer: only positive ``w_ij x_j`` take a share."""
    W = layer.weight.detach().to(R.dtype)
    x_plus, x_minus = x.clamp(min=0), x.clamp(max=0)
    W_plus, W_minus = W.clamp(min=0), W.clamp(max=0)
    shares = _divide(R, x_plus @ W_plus.T + x_minus @ W_minus.T)
    return x_plus * (shares @ W_plus) + x_minus * (shares @ W_minus)


def _divide(R: Tensor, by: Tensor) -> Tensor:
    """Divide, kept away from zero; where nothing contributed at all, nothing is handed down."""
    moved = by + _SMALL * by.sign()
    return torch.where(by == 0, torch.zeros_like(moved), R / moved)
