"""Concept CDAM computed slowly: head off, one image at a time, one backward pass each."""

import copy
import math

import torch
from torch import Tensor, nn


def latent(model: nn.Module, image: Tensor) -> Tensor:
    """Return what a timm model gives for one image when its head does nothing."""
    model = copy.deepcopy(model).eval()
    model.head = nn.Identity()
    with torch.no_grad():
        return model(image[None])[0]


def by_full_backward(model: nn.Module, images: Tensor, concept: Tensor, similarity: str) -> Tensor:
    """Return scores (batch, token) of the similarity to a concept vector."""
    model = copy.deepcopy(model).eval()
    model.head = nn.Identity()
    kept: dict[str, Tensor] = {}

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        output.retain_grad()
        kept["T"] = output

    model.blocks[-1].norm1.register_forward_hook(keep)
    maps = []
    for image in images:
        token = model(image[None])[0]
        pairs = list(zip(token, concept, strict=True))
        product = sum(a * b for a, b in pairs)
        if similarity == "dot":
            value = product
        elif similarity == "cosine":
            lengths = [math.sqrt(float((concept**2).sum())), torch.sqrt(sum(a * a for a in token))]
            value = product / lengths[0] / lengths[1]
        else:
            value = -torch.sqrt(sum((a - b) ** 2 for a, b in pairs))
        value.backward()
        maps.append((kept["T"] * kept["T"].grad)[0].sum(1).detach())
    return torch.stack(maps)
