"""Sanity: a map must depend on what the model has learnt and on the image, and on little else.

Maps are compared by Spearman's rank correlation, signed and by absolute value, at the patch grid.
"""

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cdam_med.attribution.class_token import class_token_model
from cdam_med.errors import ModelError
from cdam_med.evaluation.examples import Examples
from cdam_med.evaluation.experiment import Explanations, Groups, MetricValues
from cdam_med.evaluation.maps import Maps, Values, agreement, as_rows, divided, ranks, unit_rows
from cdam_med.evaluation.metrics.localisation import shifted_maps
from data_prep.errors import InputError

HEAD, EMBEDDING = "head", "embedding"
"""First and last stage of the randomisation; those between are ``"block 12"`` to ``"block 1"``."""

SANITY_IMAGES = 20
"""So many images, evenly spread over them all, are explained anew for each randomised stage."""

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
    activations keep their size and only what was learnt is lost. Only `stages` are yielded; the
    others are randomised too.
    """
    altered = copy.deepcopy(model)
    parameters = dict(altered.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    for stage, names in randomisation_stages(model).items():
        for name in names:
            _randomise(parameters[name], generator)
        if stages is None or stage in stages:
            yield stage, altered


def randomisation_stages(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the parameters of each stage, in their order.

    Raises
    ------
    ModelError
        If the model isn't a module that holds its ViT.
    """
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
    parameter.copy_(torch.randn(values.shape, generator=generator) * spread + values.mean())


class Randomised(NamedTuple):
    """Some examples, their maps, and those by randomised models, by stage."""

    examples: Examples
    before: Maps
    after: dict[str, Maps]


def _randomised_maps(explanations: Explanations) -> Randomised:
    """Return maps of a model whose weights are randomised.

    Five stages of the cascade: the head, with it the last block, the second half of the blocks,
    all blocks, and everything. A random network makes something of edges and brightness, and that
    is like the original by chance, in either direction, and in the same one for all images; so
    each image has a network of its own: the mean is to be near 0, and an interval over images is
    one over networks too.
    """
    experiment = explanations.experiment
    if not isinstance(experiment.model, nn.Module):
        raise InputError("The model is no torch module, so that no copy of it can be randomised.")
    last = len(experiment.examples) - 1
    chosen = np.linspace(0, last, min(SANITY_IMAGES, last + 1)).round().astype(int).tolist()
    examples = experiment.examples.select(chosen)
    before = explanations.patches[chosen]
    head, *blocks, embedding = randomisation_stages(experiment.model)
    shown = (head, blocks[0], blocks[(len(blocks) - 1) // 2], blocks[-1], embedding)
    after = {stage: torch.empty_like(before) for stage in shown}
    for row, index in enumerate(chosen):
        image, target = examples.images[row : row + 1], (experiment.targets[index],)
        seed = experiment.seed * SANITY_IMAGES + row  # other networks for each seed
        for stage, altered in randomised(experiment.model, stages=after.keys(), seed=seed):
            made = explanations.of_other_images(image, target, model=altered)
            after[stage][row] = experiment.grid.pooled(made)[0]
    return Randomised(examples, before, after)


def _randomised_signed(explanations: Explanations) -> Iterator[MetricValues]:
    examples, before, after = explanations.once(_randomised_maps)
    for stage, maps in after.items():
        values = agreement(before, maps, kind="spearman")
        yield MetricValues(values, "patch", examples, stage)


def _randomised_absolute(explanations: Explanations) -> Iterator[MetricValues]:
    examples, before, after = explanations.once(_randomised_maps)
    for stage, maps in after.items():
        values = agreement(before.abs(), maps.abs(), kind="spearman")
        yield MetricValues(values, "patch", examples, stage)


def correlation_with_others(maps: Maps, groups: Sequence[str]) -> Values:
    """Return the mean rank correlation of each map with those of images of other groups.

    Input-independence: a map that doesn't look at the image has 1. Images that are cropped alike
    have maps alike for a good reason (nodules in the middle), so the figure is to be read beside
    that of the controls, and on shifted images: a method of whose maps one predicts another
    as well as two centre priors predict each other doesn't look at the image.
    """
    unit = unit_rows(ranks(as_rows(maps)))
    names = np.asarray(groups)
    correlation = np.where(names[:, None] != names, unit @ unit.T, np.nan)
    count = np.isfinite(correlation).sum(axis=1)
    return divided(np.nansum(correlation, axis=1), count, where=count > 0)


def shares_in_pairs(values: Values) -> Values:
    """Return what each image brings to a mean over pairs, from each image's mean over its pairs.

    A bootstrap of means over pairs as they are holds the other image of each pair fixed, and its
    interval is half as wide as it should be. An image is in its own mean and in those of all
    others, so that it moves the mean over pairs by twice its distance from it: the first term of
    Hoeffding, "A class of statistics with asymptotically normal distribution", Annals of
    Mathematical Statistics 19, 1948.
    """
    present = values[~np.isnan(values)]
    return 2 * values - present.mean() if present.size else values


def _other_images(explanations: Explanations) -> Iterator[MetricValues]:
    """Yield rank correlations of no label, since the images of a pair may have two."""
    experiment = explanations.experiment
    kinds = [("", explanations.patches, experiment.examples)]
    if experiment.shifted is not None:
        moved = experiment.grid.pooled(explanations.once(shifted_maps))
        kinds.append(("shifted", moved, experiment.shifted))
    for variant, maps, examples in kinds:
        values = shares_in_pairs(correlation_with_others(maps, examples.groups))
        unlabelled = replace(examples, labels=("",) * len(examples))
        yield MetricValues(values, "patch", unlabelled, variant)


def _same_when_flipped(explanations: Explanations) -> Iterator[MetricValues]:
    experiment = explanations.experiment
    images = experiment.examples.images.flip(-1)
    mirrored = explanations.of_other_images(images, experiment.targets)
    flipped = experiment.grid.pooled(mirrored).flip(-1)
    values = agreement(explanations.patches, flipped, kind="spearman")
    yield MetricValues(values, "patch", experiment.examples)


def _same_in_neighbour(explanations: Explanations) -> Iterator[MetricValues]:
    experiment = explanations.experiment
    near = experiment.neighbours
    if near is None:
        return
    own = explanations.patches[[experiment.examples.ids.index(name) for name in near.ids]]
    maps = explanations.of_other_images(near.images, experiment.targets_of(near))
    values = agreement(own, experiment.grid.pooled(maps), kind="spearman")
    yield MetricValues(values, "patch", near)


def _same_with_seed(explanations: Explanations) -> Iterator[MetricValues]:
    """Yield values of a random method: one whose map of the first image changes with the seed."""
    experiment = explanations.experiment
    images, targets, seed = experiment.examples.images, experiment.targets, experiment.seed
    one, other = (  # alone: a batch rounds otherwise
        explanations.of_other_images(images[:1], targets[:1], seed=each)
        for each in (seed, seed + 1)
    )
    if torch.equal(one, other):
        return
    again = explanations.of_other_images(images, targets, seed=seed + 1)
    values = agreement(explanations.patches, experiment.grid.pooled(again), kind="spearman")
    yield MetricValues(values, "patch", experiment.examples)


GROUPS: Groups = {
    "randomisation": {
        "randomised_signed": _randomised_signed,
        "randomised_absolute": _randomised_absolute,
    },
    "input_independence": {"other_images": _other_images},
    "consistency": {
        "same_when_flipped": _same_when_flipped,
        "same_in_neighbour": _same_in_neighbour,
        "same_with_seed": _same_with_seed,
    },
}
