"""Estimators at pixel resolution and occlusion, one pass at a time, from their definitions."""

import copy

import torch
from torch import Tensor, nn


def gradients(model: nn.Module, image: Tensor) -> Tensor:
    """Return df/dx of every output, (target, channel, height, width)."""
    pixels = image.detach().clone()[None].requires_grad_()
    outputs = model(pixels)[0]
    return torch.stack(
        [torch.autograd.grad(output, pixels, retain_graph=True)[0][0] for output in outputs]
    )


def input_x_gradient(model: nn.Module, images: Tensor) -> Tensor:
    """x * df/dx, mean over colours."""
    model = copy.deepcopy(model).eval()
    return torch.stack([(image * gradients(model, image)).mean(1) for image in images])


def integrated_gradients(model: nn.Module, images: Tensor, steps: int) -> Tensor:
    """x times the mean of df/dx at k x / steps, k = 1 to steps, mean over colours."""
    model = copy.deepcopy(model).eval()
    maps = []
    for image in images:
        total = 0
        for k in range(1, steps + 1):
            total = total + gradients(model, image * k / steps)
        maps.append((image * total / steps).mean(1))
    return torch.stack(maps)


def smoothgrad(model: nn.Module, images: Tensor, noises: Tensor, noise: float) -> Tensor:
    """Mean of df/dx at x + noise * range * e over an image's given normal e, mean over colours."""
    model = copy.deepcopy(model).eval()
    maps = []
    for image, its_own in zip(images, noises, strict=True):
        sigma = noise * (image.max() - image.min())
        total = 0
        for e in its_own:
            total = total + gradients(model, image + sigma * e)
        maps.append((total / len(its_own)).mean(1))
    return torch.stack(maps)


def occlusion(model: nn.Module, images: Tensor, side: int, fill: float | None) -> Tensor:
    """f(image) - f(image with a square filled), (batch, target, rows, columns)."""
    model = copy.deepcopy(model).eval()
    maps = []
    with torch.no_grad():
        for image in images:
            whole = model(image[None])[0]
            rows = []
            for top in range(0, image.shape[1], side):
                row = []
                for left in range(0, image.shape[2], side):
                    covered = image.clone()
                    for channel, pixels in enumerate(image):
                        value = pixels.mean() if fill is None else fill
                        covered[channel, top : top + side, left : left + side] = value
                    row.append(whole - model(covered[None])[0])
                rows.append(torch.stack(row, dim=-1))
            maps.append(torch.stack(rows, dim=-2))
    return torch.stack(maps)
