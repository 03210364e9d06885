"""A plain vision transformer, computed from the weights of one of timm's, image by image.

No module of the model is called: every layer is written out from its weights, one head at a time,
so that attention matrices are simply there. Pre-norm blocks, with or without q/k norm, biases,
layer scale, registers and a distillation token; the mean of the patches instead of the class token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Trace:
    """What was seen on the way; one entry a block."""

    entered: list[Tensor]  # tokens (token, dim)
    matrices: list[list[Tensor]]  # one (query, key) a head
    left: list[Tensor]
    outputs: Tensor


def layer_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """Layer norm over the last axis, from its weights."""
    if isinstance(norm, nn.Identity):
        return x
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """A linear layer, from its weights."""
    product = x @ layer.weight.T
    return product if layer.bias is None else product + layer.bias


def gelu(x: Tensor) -> Tensor:
    """The exact GELU."""
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def scale(x: Tensor, layer: nn.Module) -> Tensor:
    """Layer scale, or nothing."""
    return x if isinstance(layer, nn.Identity) else x * layer.gamma


def embed(model: nn.Module, image: Tensor) -> Tensor:
    """Tokens before the first block: patches cut out one by one, then positions."""
    projection = model.patch_embed.proj
    side = projection.weight.shape[-1]
    patches = []
    for top in range(0, image.shape[1], side):
        for left in range(0, image.shape[2], side):
            patch = image[:, top : top + side, left : left + side]
            patches.append((projection.weight * patch).sum((1, 2, 3)))
    tokens = torch.stack(patches)
    if projection.bias is not None:
        tokens = tokens + projection.bias
    before = [model.cls_token[0]]
    if getattr(model, "dist_token", None) is not None:
        before.append(model.dist_token[0])
    if getattr(model, "reg_token", None) is not None:
        before.append(model.reg_token[0])
    if model.no_embed_class:
        tokens = torch.cat([*before, tokens + model.pos_embed[0]])
    else:
        tokens = torch.cat([*before, tokens]) + model.pos_embed[0]
    return layer_norm(tokens, model.norm_pre)


def attention_matrices(block: nn.Module, tokens: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Attention matrix and values of each head, for normalised tokens."""
    attn = block.attn
    width = attn.qkv.weight.shape[0] // 3
    d = width // attn.num_heads
    together = linear(tokens, attn.qkv)
    matrices, values = [], []
    for head in range(attn.num_heads):
        q, k, v = (together[:, part * width + head * d :][:, :d] for part in range(3))
        q, k = layer_norm(q, attn.q_norm), layer_norm(k, attn.k_norm)
        logits = q @ k.T / d**0.5
        weights = torch.exp(logits - logits.max(dim=1, keepdim=True).values)
        matrices.append(weights / weights.sum(dim=1, keepdim=True))
        values.append(v)
    return matrices, values


def after_attention(block: nn.Module, tokens: Tensor, heads: list[Tensor]) -> Tensor:
    """What leaves a block, given what its heads gave."""
    x = tokens + scale(linear(torch.cat(heads, dim=1), block.attn.proj), block.ls1)
    hidden = gelu(linear(layer_norm(x, block.norm2), block.mlp.fc1))
    return x + scale(linear(hidden, block.mlp.fc2), block.ls2)


def run_block(block: nn.Module, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What leaves a block, and its attention matrices."""
    matrices, values = attention_matrices(block, layer_norm(tokens, block.norm1))
    heads = [A @ v for A, v in zip(matrices, values, strict=True)]
    return after_attention(block, tokens, heads), matrices


def readout(model: nn.Module, tokens: Tensor) -> Tensor:
    """Outputs, from the tokens that leave a block."""
    normed = layer_norm(tokens, model.norm)
    if getattr(model, "dist_token", None) is not None:
        return (linear(normed[0], model.head) + linear(normed[1], model.head_dist)) / 2
    if model.global_pool == "avg":
        mean = normed[model.num_prefix_tokens :].mean(0)
        return linear(layer_norm(mean, model.fc_norm), model.head)
    return linear(normed[0], model.head)


def run_tokens(model: nn.Module, tokens: Tensor) -> Trace:
    """All blocks and the head, from the tokens before the first block."""
    trace = Trace([], [], [], tokens)
    for block in model.blocks:
        trace.entered.append(tokens)
        tokens, matrices = run_block(block, tokens)
        trace.matrices.append(matrices)
        trace.left.append(tokens)
    trace.outputs = readout(model, tokens)
    return trace


def run(model: nn.Module, image: Tensor) -> Trace:
    """The whole model for one image (channel, height, width)."""
    return run_tokens(model, embed(model, image))
