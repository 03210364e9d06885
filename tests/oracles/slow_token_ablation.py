"""Token ablation as it is defined: one whole forward pass for each token that is taken away."""

import copy

import torch
from torch import Tensor, nn


def token_ablation(model: nn.Module, images: Tensor) -> Tensor:
    """Return f(all) - f(all but token i) as (batch, target, patch), tokens deleted by a hook."""
    model = copy.deepcopy(model).eval()
    gone = {"token": None}

    def remove(_: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        tokens = arguments[0]
        if gone["token"] is None:
            return (tokens,)
        return (torch.cat([tokens[:, : gone["token"]], tokens[:, gone["token"] + 1 :]], dim=1),)

    model.blocks[0].register_forward_pre_hook(remove)
    maps = []
    with torch.no_grad():
        for image in images:
            gone["token"] = None
            whole = model(image[None])[0]
            falls = []
            count = model.forward_features(image[None]).shape[1]
            for token in range(model.num_prefix_tokens, count):
                gone["token"] = token
                falls.append(whole - model(image[None])[0])
            maps.append(torch.stack(falls, dim=1))
    return torch.stack(maps)


def token_ablation_by_masking(model: nn.Module, images: Tensor) -> Tensor:
    """Return the same for any model whose attention takes a mask: no token looks at token i."""
    model = copy.deepcopy(model).eval()
    mask = {"mask": None}

    def hide(_: nn.Module, arguments: tuple, keywords: dict) -> tuple[tuple, dict]:
        return arguments, {**keywords, "attn_mask": mask["mask"]}

    for block in model.blocks:
        block.register_forward_pre_hook(hide, with_kwargs=True)
    with torch.no_grad():
        mask["mask"] = None
        whole = model(images)
        count = model.forward_features(images).shape[1]
        falls = []
        for token in range(model.num_prefix_tokens, count):
            mask["mask"] = torch.zeros(count, count, dtype=images.dtype)
            mask["mask"][:, token] = -torch.inf
            falls.append(whole - model(images))
    return torch.stack(falls, dim=2)
