"""Partial LRP, one number at a time, from the plain transformer of `slow_vit`.

Every rule hands each unit's relevance to the units it was computed from, in loops over single
units. `partial_lrp` also returns the sum of relevance at each stage, to see what is conserved.
"""

import torch
from slow_vit import attention_matrices, gelu, layer_norm, linear, run, scale
from torch import Tensor, nn


def alpha_one(x: Tensor, weight: Tensor, R: Tensor) -> tuple[Tensor, float]:
    """Relevance of a linear layer's inputs, and what was dropped where none was positive."""
    inputs, handed, dropped = x.tolist(), [0.0] * len(x), 0.0
    for row, relevance in zip(weight.tolist(), R.tolist(), strict=True):
        contributions = [w * value for w, value in zip(row, inputs, strict=True)]
        positive = sum(c for c in contributions if c > 0)
        if positive == 0:
            dropped += relevance
            continue
        for j, contribution in enumerate(contributions):
            if contribution > 0:
                handed[j] += relevance * contribution / positive
    return torch.tensor(handed, dtype=x.dtype), dropped


def addition(one: Tensor, other: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of the two summands, in proportion to them, element by element."""
    first, second = torch.zeros_like(R), torch.zeros_like(R)
    for j in range(len(R)):
        total = one[j] + other[j]
        first[j], second[j] = R[j] * one[j] / total, R[j] * other[j] / total
    return first, second


def product(A: Tensor, v: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """Half of the relevance of z = A v for A (token) and half for v (token, dim)."""
    of_A, of_v = torch.zeros_like(A), torch.zeros_like(v)
    weights, rows = A.tolist(), v.tolist()
    for d, relevance in enumerate(R.tolist()):
        parts = [weight * row[d] for weight, row in zip(weights, rows, strict=True)]
        for i, part in enumerate(parts):
            of_A[i] += relevance * part / sum(parts) / 2
            of_v[i, d] += relevance * part / sum(parts) / 2
    return of_A, of_v


def partial_lrp(model: nn.Module, image: Tensor, target: int) -> tuple[Tensor, dict[str, float]]:
    """Return the map of one image (token,), and sums of relevance on its way down."""
    block = model.blocks[-1]
    trace = run(model, image)
    entered, left = trace.entered[-1][0].detach(), trace.left[-1][0].detach()
    matrices, values = attention_matrices(block, layer_norm(trace.entered[-1], block.norm1))
    z = torch.cat([A[0] @ v for A, v in zip(matrices, values, strict=True)]).detach()
    attended = scale(linear(z, block.attn.proj), block.ls1).detach()
    middle = entered + attended
    normed = layer_norm(middle, block.norm2).detach()
    hidden = gelu(linear(normed, block.mlp.fc1)).detach()
    sums = {}

    one = torch.ones(1, dtype=image.dtype)
    R, lost = alpha_one(layer_norm(left, model.norm).detach(), model.head.weight[[target]], one)
    sums["dropped"] = lost
    sums["block"] = float(R.sum())
    R_middle, R_mlp = addition(middle, left - middle, R)
    R_hidden, lost = alpha_one(hidden, block.mlp.fc2.weight, R_mlp)
    sums["dropped"] += lost
    R_normed, lost = alpha_one(normed, block.mlp.fc1.weight, R_hidden)
    sums["dropped"] += lost
    R_residual, R_attended = addition(entered, attended, R_middle + R_normed)
    R_z, lost = alpha_one(z, block.attn.proj.weight, R_attended)
    sums["dropped"] += lost
    sums["residual"] = float(R_residual.sum())

    heads = []
    sums["attention"] = sums["values"] = 0.0
    for head, (A, v) in enumerate(zip(matrices, values, strict=True)):
        width = v.shape[1]
        of_A, of_v = product(A[0].detach(), v.detach(), R_z[head * width :][:width])
        sums["attention"] += float(of_A.sum())
        sums["values"] += float(of_v.sum())
        heads.append([max(float(r), 0.0) for r in of_A])
    tokens = [sum(head[i] for head in heads) / len(heads) for i in range(len(heads[0]))]
    return torch.tensor(tokens, dtype=image.dtype), sums
