"""Sanity: a map must depend on what the model has learnt and on the image, and on little else.

Maps are compared by Spearman's rank correlation (`cdam_med.evaluation.metrics.correlation`),
signed and by absolute value, at the patch grid.
"""

import copy
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor, nn

from cdam_med.attribution.class_token import class_token_model
from cdam_med.errors import ModelError
from cdam_med.evaluation.metrics.correlation import unit_rows
from cdam_med.evaluation.metrics.division import divided
from cdam_med.evaluation.metrics.map_pooling import as_rows
from data_prep.errors import InputError

HEAD, EMBEDDING = "head", "embedding"
"""First and last stage of the randomisation; those between are ``"block 12"`` to ``"block 1"``."""

_BEHIND = ("norm", "fc_norm", "attn_pool", "head", "head_dist", "classification_head")
"""Parts of a ViT behind its last block, by timm's names and MONAI's."""


def randomised(
    model: nn.Module, *, stages: Collection[str] | None = None, seed: int = 0
) -> Iterator[tuple[str, nn.Module]]:
    """Yield copies of a model whose weights are randomised from the head down, stage by stage.

    Cascading randomisation of Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018.
    Each stage adds to those before: first everything behind the last block, then the blocks from
    the last to the first, then the embedding of patches and positions with class and register
    tokens. A tensor is replaced by normal numbers of its own mean and deviation, so that
    activations keep their size and only what was learnt is lost.

    Parameters
    ----------
    model : Module
        A model that can be explained; it isn't changed.
    stages : collection of str, optional
        The stages to yield, see `randomisation_stages`; all unless given. The others are
        randomised too.
    seed : int
        Of the weights.

    Yields
    ------
    str
        What was randomised last.
    Module
        The copy, which the next stage goes on with.

    Raises
    ------
    ModelError
        If the model isn't a module that holds its ViT.
    InputError
        If there is no such stage.
    """
    parts = _stages(model)
    if unknown := sorted(set(stages or ()) - set(parts)):
        raise InputError(f"There is no stage {unknown[0]!r}: choose from {', '.join(parts)}.")
    altered = copy.deepcopy(model)
    parameters = dict(altered.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    for stage, names in parts.items():
        for name in names:
            _randomise(parameters[name], generator)
        if stages is None or stage in stages:
            yield stage, altered


def randomisation_stages(model: nn.Module) -> tuple[str, ...]:
    """Return the stages of `randomised` in their order.

    Parameters
    ----------
    model : Module
        A model that can be explained.

    Raises
    ------
    ModelError
        If the model isn't a module that holds its ViT.
    """
    return tuple(_stages(model))


def correlation_with_others(
    maps: Float[Tensor, "image rows columns"], groups: Sequence[str]
) -> Float[np.ndarray, " image"]:
    """Return the mean rank correlation of each map with those of other images.

    Input-independence: a map that doesn't look at the image has 1. Images that are cropped alike
    have maps alike for a good reason (nodules in the middle), so the figure is to be read beside
    that of the controls, and on shifted images: an estimator of whose maps one predicts another
    as well as two centre priors predict each other doesn't look at the image.

    Parameters
    ----------
    maps : Tensor
        One map an image.
    groups : sequence of str
        Group of each image; only images of other groups are compared.

    Returns
    -------
    ndarray
        NaN where a map is constant or holds a value that isn't finite, or there are no others.
    """
    scores = as_rows(maps)
    ranks = rankdata(scores, axis=1)
    unit = unit_rows(np.where(np.isfinite(scores), ranks, np.nan))
    names = np.asarray(groups)
    correlation = np.where(names[:, None] != names, unit @ unit.T, np.nan)
    usable = np.isfinite(correlation)
    total = np.where(usable, correlation, 0.0).sum(axis=1)
    count = usable.sum(axis=1)
    return divided(total, count, where=count > 0)


def shares_in_pairs(values: Float[np.ndarray, " image"]) -> Float[np.ndarray, " image"]:
    """Return what each image brings to a mean over pairs, from each image's mean over its pairs.

    A bootstrap of means over pairs as they are holds the other image of each pair fixed, and its
    interval is half as wide as it should be. An image is in its own mean and in those of all
    others, so that it moves the mean over pairs by twice its distance from it: the first term of
    Hoeffding, "A class of statistics with asymptotically normal distribution", Annals of
    Mathematical Statistics 19, 1948.

    Parameters
    ----------
    values : ndarray
        Mean of each image's pairs, from `correlation_with_others`.

    Returns
    -------
    ndarray
        Of the same mean, and twice as far from it; NaN where an image has no value.
    """
    present = values[~np.isnan(values)]
    return 2 * values - present.mean() if present.size else values


def _stages(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the parameters of each stage."""
    described = class_token_model(model)
    found = [name for name, module in model.named_modules() if module is described.vit]
    if not found:
        raise ModelError(
            f"{type(model).__name__} doesn't hold its ViT as a part, so that no copy of it can be "
            "randomised: give the module itself."
        )
    prefix, blocks = f"{found[0]}." if found[0] else "", described.adapter.blocks
    number = {p: n for n, block in enumerate(blocks, start=1) for p in block.parameters()}
    names: dict[str, list[str]] = {HEAD: []}
    names |= {f"block {n}": [] for n in range(len(blocks), 0, -1)} | {EMBEDDING: []}
    behind = tuple(f"{prefix}{part}." for part in _BEHIND)
    for name, parameter in model.named_parameters():
        if parameter in number:
            names[f"block {number[parameter]}"].append(name)
        elif not name.startswith(prefix) or name.startswith(behind):
            names[HEAD].append(name)
        else:
            names[EMBEDDING].append(name)
    return names


@torch.no_grad()
def _randomise(parameter: Tensor, generator: torch.Generator) -> None:
    values = parameter.detach().float().cpu()
    spread = values.std(correction=0)
    drawn = torch.randn(values.shape, generator=generator) * spread + values.mean()
    parameter.copy_(drawn)
