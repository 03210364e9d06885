"""Maps that are made of attention matrices, from the plain transformer of `slow_vit`.

Each gives (batch, target or 1, token), prefix tokens first, with whole matrices multiplied out.
"""

import torch
from slow_vit import after_attention, attention_matrices, layer_norm, readout, run, run_block
from torch import Tensor, nn


def readout_tokens(model: nn.Module, count: int) -> range:
    """Which of so many tokens the outputs are read from, with equal weight."""
    if model.global_pool == "avg":
        return range(model.num_prefix_tokens, count)
    return range(2 if getattr(model, "dist_token", None) is not None else 1)


def attention_map(model: nn.Module, images: Tensor) -> Tensor:
    """Class token's row of the last block, head by head."""
    maps = []
    for image in images:
        heads = run(model, image).matrices[-1]
        rows = [A[row] for A in heads for row in readout_tokens(model, len(A))]
        maps.append(sum(rows) / len(rows))
    return torch.stack(maps).detach()[:, None]


def rollout(model: nn.Module, images: Tensor) -> Tensor:
    """Whole matrices (mean A + I) / 2, each row scaled to one, multiplied from the first block."""
    maps = []
    for image in images:
        joint = None
        for heads in run(model, image).matrices:
            mixed = sum(heads) / len(heads) + torch.eye(len(heads[0]), dtype=image.dtype)
            mixed = mixed / mixed.sum(1, keepdim=True)
            joint = mixed if joint is None else mixed @ joint
        maps.append(joint[list(readout_tokens(model, len(joint)))].mean(0))
    return torch.stack(maps).detach()[:, None]


def relevance_propagation(model: nn.Module, images: Tensor) -> Tensor:
    """R = I, then R += mean_heads(max(0, A * df/dA)) R in every block, whole matrices."""
    maps = []
    for image in images:
        trace = run(model, image)
        for output in trace.outputs:
            R = torch.eye(len(trace.left[0]), dtype=image.dtype)
            for heads in trace.matrices:
                gradients = torch.autograd.grad(output, heads, retain_graph=True)
                products = [
                    torch.clamp(A * gradient, min=0)
                    for A, gradient in zip(heads, gradients, strict=True)
                ]
                R = R + (sum(products) / len(products)) @ R
            maps.append(R[list(readout_tokens(model, len(R)))].mean(0))
    return torch.stack(maps).detach().unflatten(0, (len(images), -1))


def legrad(model: nn.Module, images: Tensor) -> Tensor:
    """Mean over blocks of ReLU(d s_l / d A_l), where s_l reads the tokens that leave block l."""
    maps = []
    for image in images:
        trace = run(model, image)
        for target in range(len(trace.outputs)):
            total = torch.zeros(len(trace.left[0]), dtype=image.dtype)
            for block, entered in zip(model.blocks, trace.entered, strict=True):
                left, heads = run_block(block, entered)
                gradients = torch.autograd.grad(readout(model, left)[target], heads)
                for gradient in gradients:
                    for row in gradient:
                        total += torch.clamp(row, min=0) / (len(heads) * len(row))
            maps.append(total / len(model.blocks))
    return torch.stack(maps).detach().unflatten(0, (len(images), -1))


def grad_cam(model: nn.Module, images: Tensor) -> Tensor:
    """ReLU(sum_j w_j T_ij), w the mean gradient over patches; (batch, target, patch)."""
    prefix = model.num_prefix_tokens
    maps = []
    for image in images:
        block, entered = model.blocks[-1], run(model, image).entered[-1].detach()
        T = layer_norm(entered, block.norm1).detach().requires_grad_()
        outputs = readout(model, _block_with(block, entered, T))
        for output in outputs:
            (gradient,) = torch.autograd.grad(output, T, retain_graph=True)
            channels = range(T.shape[1])
            weights = [gradient[prefix:, j].sum() / len(T[prefix:]) for j in channels]
            maps.append(
                torch.stack([torch.relu(sum(weights[j] * t[j] for j in channels)) for t in T])
            )
    return torch.stack(maps).detach()[:, prefix:].unflatten(0, (len(images), -1))


def _block_with(block: nn.Module, entered: Tensor, T: Tensor) -> Tensor:
    matrices, values = attention_matrices(block, T)
    return after_attention(block, entered, [A @ v for A, v in zip(matrices, values, strict=True)])
