"""What holds for every backbone, computed by hooks on the unmodified model, token by token."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Tensor], Tensor]


def cdam(model: nn.Module, images: Tensor, norms: Sequence[str], forward: Forward) -> Tensor:
    """Scores (batch, target, token): one backward pass through everything for each number.

    The sum over all `norms`, names of modules, of their outputs times the gradients there.
    """
    model = copy.deepcopy(model).eval()
    kept: dict[str, list[Tensor]] = {"T": [], "gradient": []}
    for name in norms:
        norm = model.get_submodule(name)
        norm.register_forward_hook(lambda _, __, output: kept["T"].append(output.detach()[0]))
        norm.register_full_backward_hook(
            lambda _, __, gradients: kept["gradient"].insert(0, gradients[0][0])
        )
    maps = []
    for image in images:
        pixels = image[None].clone().requires_grad_()
        targets = forward(model, pixels).shape[1]
        scores = []
        for target in range(targets):
            kept["T"].clear()
            kept["gradient"].clear()
            model.zero_grad()
            forward(model, pixels)[0, target].backward()
            pairs = zip(kept["T"], kept["gradient"], strict=True)
            by_branch = [
                torch.stack([torch.dot(t, g) for t, g in zip(T, gradient, strict=True)])
                for T, gradient in pairs
            ]
            scores.append(sum(by_branch))
        maps.append(torch.stack(scores))
    return torch.stack(maps)


def fall_to_nothing(model: nn.Module, images: Tensor, norm: str, forward: Forward) -> Tensor:
    """f(T) - f(0) with the residual stream held fixed, (batch, target)."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        whole = forward(model, images)
        model.get_submodule(norm).register_forward_hook(lambda _, __, T: torch.zeros_like(T))
        return whole - forward(model, images)


def token_ablation(
    model: nn.Module, images: Tensor, first_block: str, prefix: int, forward: Forward
) -> Tensor:
    """f(all) - f(all but token i) as (batch, target, patch), tokens deleted by a hook."""
    model = copy.deepcopy(model).eval()
    state: dict[str, int | None] = {"gone": None, "count": 0}

    def remove(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens, *others = arguments
        state["count"] = tokens.shape[1]
        if state["gone"] is not None:
            left = [t for t in range(tokens.shape[1]) if t != state["gone"]]
            tokens = torch.stack([tokens[:, t] for t in left], dim=1)
        return (tokens, *others)

    model.get_submodule(first_block).register_forward_pre_hook(remove)
    with torch.no_grad():
        whole = forward(model, images)
        falls = []
        for token in range(prefix, state["count"]):
            state["gone"] = token
            falls.append(whole - forward(model, images))
    return torch.stack(falls, dim=2)


def token_ablation_by_masking(model: nn.Module, images: Tensor) -> Tensor:
    """The same for timm's EVA, whose rotary positions have one entry a patch.

    No token looks at the one that is taken away, and the head is given the others.
    """
    model = copy.deepcopy(model).eval()
    mask: dict[str, Tensor | None] = {"attn_mask": None}

    def hide(_: nn.Module, arguments: tuple, keywords: dict) -> tuple[tuple, dict]:
        return arguments, {**keywords, **mask}

    for block in model.blocks:
        block.register_forward_pre_hook(hide, with_kwargs=True)
    with torch.no_grad():
        whole = model(images)
        count = model.forward_features(images).shape[1]
        falls = []
        for token in range(model.num_prefix_tokens, count):
            mask["attn_mask"] = torch.zeros(count, count, dtype=images.dtype)
            mask["attn_mask"][:, token] = -torch.inf
            tokens = model.forward_features(images)
            left = torch.cat((tokens[:, :token], tokens[:, token + 1 :]), dim=1)
            falls.append(whole - model.forward_head(left))
    return torch.stack(falls, dim=2)
