"""CDAM computed slowly, twice over, to check the package's own.

`by_full_backward` does what the paper describes: hooks on the last block's norm1 and one backward
pass through the whole model for each image and target. `by_finite_differences` uses no gradient
at all: the score of a token is how fast the output grows as that token is scaled.
"""

import copy

import torch
from torch import Tensor, nn


def by_full_backward(model: nn.Module, images: Tensor, norm: nn.Module | None = None) -> Tensor:
    """Return scores (batch, target, token) of every token, prefix tokens too.

    `norm` is the module whose output is attributed; the last block's norm1 unless given.
    """
    norm_name = _name_of(model, norm or model.blocks[-1].norm1)
    model = copy.deepcopy(model).eval()
    norm = model.get_submodule(norm_name)
    kept: dict[str, Tensor] = {}
    norm.register_forward_hook(lambda _, __, output: kept.update(T=output.detach()[0]))
    norm.register_full_backward_hook(lambda _, __, gradients: kept.update(gradient=gradients[0][0]))
    scores = []
    for image in images:
        pixels = image[None].clone().requires_grad_()
        count = model(pixels).shape[1]
        for target in range(count):
            model.zero_grad()
            model(pixels)[0, target].backward()
            pairs = zip(kept["T"], kept["gradient"], strict=True)
            scores.append([torch.dot(token, gradient) for token, gradient in pairs])
    return torch.tensor(scores, dtype=images.dtype).reshape(len(images), count, -1)


def by_finite_differences(model: nn.Module, images: Tensor, *, step: float = 1e-5) -> Tensor:
    """Return scores (batch, target, token) from outputs alone, by central differences.

    sum_j T[i, j] df/dT[i, j] is the derivative of f as token i of T is multiplied by 1 + step.
    """
    model = copy.deepcopy(model).eval()
    scaled = {"token": 0, "by": 1.0}

    def scale(_: nn.Module, __: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, scaled["token"]] *= scaled["by"]
        return output

    with torch.no_grad():
        tokens = model.forward_features(images).shape[1]
        model.blocks[-1].norm1.register_forward_hook(scale)
        scores = []
        for token in range(tokens):
            scaled.update(token=token, by=1 + step)
            above = model(images)
            scaled.update(by=1 - step)
            scores.append((above - model(images)) / (2 * step))
    return torch.stack(scores, dim=-1)


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)
