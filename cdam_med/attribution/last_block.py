"""The last block: how to reach it, whether its form is known, and CDAM by autograd through it.

The closed form of `cdam_med.attribution.cdam` holds for a block of the known form. Any other
block with a norm before its attention (q/k norm, gated or rotary attention, relative positions,
parallel branches) goes the general way, which costs one backward pass through that block for each
target. So does a model that pools: there every token that leaves the last block reaches the
output, and each token of `T` acts through the attention of all of them. The definition is the
same: `T` is what the norm before attention gives, prefix tokens too, the residual stream is held
fixed, and ``S[i, c] = sum_j T[i, j] * d f_c / d T[i, j]``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from timm.layers.drop import DropPath
from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from timm.layers.norm import RmsNorm
from timm.models.beit import Block as BeitBlock
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import (
    Attention,  # defined here or in timm.layers, as timm's versions go
    Block,
    LayerScale,
    VisionTransformer,
)
from torch import Tensor, nn

from cdam_med.errors import ModelError
from cdam_med.models.class_names import MONAI_BLOCK, class_named
from cdam_med.models.class_token import ClassTokenModel, model_name
from cdam_med.models.held_modules import modules_in
from cdam_med.models.refusals import remedy_of_wrapper

BlockCall: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with: positional arguments, the tokens first, and keyword arguments."""


@contextmanager
def evaluating(*things: object) -> Iterator[None]:
    """Put every part of modules in evaluation mode, and each back as it was, also on error.

    Parameters
    ----------
    *things : object
        A model, what it is described by, and targets: modules, and whatever holds or calls them,
        where `cdam_med.models.held_modules.modules_in` finds them.
    """
    modules = modules_in(things)
    training = [part for module in modules for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def has_known_form(model: ClassTokenModel) -> bool:
    """Say whether the closed form holds for the last block.

    It does for pre-norm self-attention made of one linear layer for queries, keys and values and
    one for the output, followed by layers that treat each token alone, where outputs are read
    from the class token. The closed form doesn't call the block or its attention, so where
    somebody has changed what those do when called it isn't used either.
    """
    block: Any = model.vit.blocks[-1]
    if not isinstance(model.vit, VisionTransformer) or type(block) is not Block:
        return False
    if model.pooling is not None:
        return False
    attn: Any = block.attn
    acting = {
        name for name, part in attn.named_children() if type(part) not in (nn.Identity, nn.Dropout)
    }
    bypassed = [part for name, part in attn.named_children() if name != "proj"]
    bypassed += [model.vit.blocks, block, attn, block.drop_path1, block.drop_path2]
    return (
        type(attn) is Attention
        and attn.scale == attn.head_dim**-0.5
        and acting == {"qkv", "proj"}
        and type(attn.qkv) is nn.Linear
        and isinstance(block.norm2, nn.LayerNorm | RmsNorm)
        and type(block.mlp) in (Mlp, GluMlp, SwiGLU)
        and all(type(part) in (LayerScale, nn.Identity) for part in (block.ls1, block.ls2))
        and all(
            type(part) in (DropPath, nn.Identity) for part in (block.drop_path1, block.drop_path2)
        )
        and not any(is_changed(part) for part in bypassed)
    )


def is_changed(module: nn.Module) -> bool:
    """Say whether somebody has changed what a module does when called, its weights apart.

    Parameters
    ----------
    module : Module
        Any part of a model.
    """
    hooked = bool(module._forward_hooks or module._forward_pre_hooks)
    return hooked or "forward" in vars(module)


@torch.no_grad()
def tokens_before_last_block(
    model: ClassTokenModel, prepared: Float[Tensor, "batch channel height width"]
) -> Float[Tensor, "batch token dim"]:
    """Run all blocks but the last, as timm's `forward_features` does."""
    vit: Any = model.vit
    tokens: Tensor = vit.patch_embed(prepared)
    tokens = vit._pos_embed(tokens)
    tokens = vit.norm_pre(vit.patch_drop(tokens))
    for block in list(vit.blocks)[:-1]:
        tokens = block(tokens)
    return tokens.to(prepared.dtype)  # autocast may have left another type


def scores_by_autograd(
    model: ClassTokenModel,
    prepared: Float[Tensor, "batch channel *size"],
    columns: Sequence[int],
) -> tuple[Float[Tensor, "batch target token"], Float[Tensor, "batch target"]]:
    """Return CDAM of every token by autograd through the last block, and the outputs.

    ``S[i, c] = sum_j T[i, j] * d f_c / d T[i, j]`` (arXiv 2312.02364 eq. 2), where `T` is what
    the norm before attention gives in the last block and the residual stream is held fixed.
    Where a block has several attention branches, each with a norm of its own, their sum.

    Parameters
    ----------
    model : ClassTokenModel
        In evaluation mode.
    prepared : Tensor
        Images as the ViT takes them.
    columns : sequence of int
        Columns of the output.

    Raises
    ------
    ModelError
        If the last block has no norm before its attention, or the readout no gradient.
    """
    return scores_of_call(model, inputs_of_last_block(model, prepared), columns)


def scores_of_call(
    model: ClassTokenModel,
    call: BlockCall,
    columns: Sequence[int],
    change: Callable[[Tensor], Tensor] = lambda T: T,
) -> tuple[Float[Tensor, "batch target token"], Float[Tensor, "batch target"]]:
    """Return what `scores_by_autograd` does for one call of the last block.

    Parameters
    ----------
    model : ClassTokenModel
        In evaluation mode.
    call : tuple
        What the block is called with, see `inputs_of_last_block`.
    columns : sequence of int
        Columns of the output.
    change : callable
        Turns `T` into the tokens that take its place, for which the scores are.

    Raises
    ------
    ModelError
        If the last block has no norm before its attention.
    """
    block = model.vit.blocks[-1]
    args, kwargs = call
    with (
        torch.enable_grad(),
        _outputs_as_leaves(_norms_before_attention(model, block), change) as leaves,
    ):
        outputs = model.read(block(*args, **kwargs))[:, list(columns)]
        scores = []
        for output in outputs.unbind(1):
            # Images don't mix, so the gradient of the batch's sum holds each image's own.
            gradients = torch.autograd.grad(output.sum(), leaves, retain_graph=True)
            products = [
                (wide(T.detach()) * wide(gradient)).sum(-1)
                for T, gradient in zip(leaves, gradients, strict=True)
            ]
            scores.append(torch.stack(products).sum(0))
    return torch.stack(scores, dim=1), outputs.detach()


def _norms_before_attention(model: ClassTokenModel, block: Any) -> tuple[nn.Module, ...]:
    """Return the norms whose output is `T`; several where attention branches run in parallel."""
    if has_norm_before_attention(block):
        return (block.norm1,)
    if hasattr(block, "in_norm"):  # timm's (Diff)ParallelScalingBlock
        return (block.in_norm,)
    if hasattr(block, "attns"):  # timm's ParallelThingsBlock
        return tuple(branch.norm for branch in block.attns)
    if (remedy := remedy_of_wrapper(block)) is not None:
        raise ModelError(
            f"{model_name(model.vit)} ends in a block within {type(block).__name__}, through which "
            f"the norm before attention isn't found: {remedy}."
        )
    raise ModelError(
        f"{model_name(model.vit)} ends in a {type(block).__name__}, which has no norm before "
        "its attention, and CDAM is defined on that norm's output: choose a pre-norm ViT."
    )


def has_norm_before_attention(block: nn.Module) -> bool:
    """Say whether a block is known to normalise tokens by `norm1` and give them to its attention.

    Parameters
    ----------
    block : Module
        A block of timm's ViT, EVA or BEiT, or of MONAI's ViT.
    """
    return (
        isinstance(block, Block | EvaBlock | BeitBlock)
        or class_named(block, MONAI_BLOCK) is not None
    )


@torch.no_grad()
def inputs_of_last_block(
    model: ClassTokenModel, prepared: Float[Tensor, "batch channel *size"]
) -> BlockCall:
    """Run the ViT without a graph and return what its last block was called with.

    Parameters
    ----------
    model : ClassTokenModel
        In evaluation mode.
    prepared : Tensor
        Images as the ViT takes them.

    Returns
    -------
    tuple
        Positional arguments, the tokens first, and keyword arguments.
    """
    calls: list[BlockCall] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    handle = model.vit.blocks[-1].register_forward_pre_hook(note, with_kwargs=True)
    try:
        model.vit.forward_features(prepared)
    finally:
        handle.remove()
    return calls[0]


@contextmanager
def _outputs_as_leaves(
    norms: Sequence[nn.Module], change: Callable[[Tensor], Tensor]
) -> Iterator[list[Tensor]]:
    """Cut the graph behind norms while the context is open; the list fills with their outputs."""
    leaves: list[Tensor] = []

    def cut(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        leaves.append(change(output.detach()).detach().requires_grad_())
        return leaves[-1]

    handles = [norm.register_forward_hook(cut) for norm in norms]
    try:
        yield leaves
    finally:
        for handle in handles:
            handle.remove()


def without_autocast(like: Float[Tensor, "..."]) -> AbstractContextManager[None]:
    """Return a context in which nothing is rounded to half precision behind our back.

    Blocks run faster under autocast and lose little; sums over tokens lose much.

    Parameters
    ----------
    like : Tensor
        Anything on the model's device.
    """
    context: AbstractContextManager[None] = torch.autocast(like.device.type, enabled=False)
    return context


def wide(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return half-precision values as float32, in which sums of many products still hold."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
