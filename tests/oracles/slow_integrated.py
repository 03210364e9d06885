"""Integrated CDAM computed slowly, with full passes through an unmodified timm model.

The tokens that the last block's norm1 gives are multiplied by alpha by a hook, while the residual
stream goes on as it was. `by_riemann_sum` is the integrated gradient by the midpoint rule, one
backward pass for each step and target; `by_simpson` integrates numerically, without any gradient,
the rate at which the output grows as one token grows while the others stay on the path.
`difference_of_outputs` is what all scores must add up to.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


def by_riemann_sum(model: nn.Module, images: Tensor, steps: int) -> Tensor:
    """Return scores (batch, target, token)."""
    model = copy.deepcopy(model).eval()
    kept: dict[str, Tensor] = {}
    alpha = 0.0

    def shrink(_: nn.Module, __: object, output: Tensor) -> Tensor:
        kept["T"] = output.detach()
        kept["point"] = (alpha * kept["T"]).requires_grad_()
        return kept["point"]

    model.blocks[-1].norm1.register_forward_hook(shrink)
    maps = []
    for image in images:
        total = 0
        for step in range(1, steps + 1):
            alpha = (step - 0.5) / steps
            rows = [
                torch.autograd.grad(logit, kept["point"], retain_graph=True)[0][0]
                for logit in model(image[None])[0]
            ]
            total = total + torch.stack(rows) / steps
        maps.append(torch.einsum("te,cte->ct", kept["T"][0], total))
    return torch.stack(maps)


def by_simpson(model: nn.Module, images: Tensor, *, parts: int, step: float = 1e-5) -> Tensor:
    """Return scores (batch, target, token) from outputs alone: Simpson's rule, differences."""
    model = copy.deepcopy(model).eval()
    factors = torch.ones(1, 1, 1, dtype=images.dtype)
    model.blocks[-1].norm1.register_forward_hook(lambda _, __, output: output * factors)
    scores = []
    with torch.no_grad():
        tokens = model.forward_features(images).shape[1]
        for token in range(tokens):
            total = 0
            for part in range(parts + 1):
                at = part / parts
                weight = 1 if part in (0, parts) else 4 if part % 2 else 2
                factors = torch.full((1, tokens, 1), at, dtype=images.dtype)
                factors[0, token] += step
                above = model(images)
                factors[0, token] -= 2 * step
                total = total + weight * (above - model(images)) / (2 * step)
            scores.append(total / (3 * parts))
    return torch.stack(scores, dim=-1)


def difference_of_outputs(
    model: nn.Module, images: Tensor, outputs: Callable[[Tensor], Tensor] = lambda logits: logits
) -> Tensor:
    """Return f(T) - f(0) for each image and output, the residual stream as it was."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        whole = outputs(model(images))
        model.blocks[-1].norm1.register_forward_hook(lambda _, __, output: 0 * output)
        return whole - outputs(model(images))
