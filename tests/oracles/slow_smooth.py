"""Smooth CDAM computed slowly: for each image, noise and target a full forward and backward pass.

The noise of every image is given, so that the same numbers can be put into the package's own.
Plain hooks on an unmodified timm model; `place` is "input" for the tokens that enter the last
block, "normed" for what its norm1 gives.
"""

import copy

import torch
from torch import Tensor, nn


def mean_over_versions(
    model: nn.Module,
    images: Tensor,
    versions: list[list[tuple[float, Tensor]]],
    share: float,
    place: str,
) -> Tensor:
    """Return scores (batch, target, token): the mean over an image's versions (scale, noise).

    The noise is multiplied by `share` of the range of the image's tokens at `place`.
    """
    model = copy.deepcopy(model).eval()
    block = model.blocks[-1]
    now: dict[str, object] = {}

    def changed(tokens: Tensor) -> Tensor:
        scale, noise = now["version"]
        spread = share * (tokens.max() - tokens.min())
        return (scale * tokens + spread * noise).detach()

    def before(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (changed(arguments[0]), *arguments[1:]) if place == "input" else arguments

    def behind(_: nn.Module, __: object, output: Tensor) -> Tensor:
        output = changed(output) if place == "normed" else output.detach()
        now["T"] = output.requires_grad_()
        return now["T"]

    block.register_forward_pre_hook(before)
    block.norm1.register_forward_hook(behind)
    maps = []
    for image, its_own in zip(images, versions, strict=True):
        total = 0
        for version in its_own:
            now["version"] = version
            logits = model(image[None])[0]
            rows = []
            for logit in logits:
                T = now["T"]
                (gradient,) = torch.autograd.grad(logit, T, retain_graph=True)
                rows.append((T.detach() * gradient)[0].sum(dim=1))
            total = total + torch.stack(rows)
        maps.append(total / len(its_own))
    return torch.stack(maps)
