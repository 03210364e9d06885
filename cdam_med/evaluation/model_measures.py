"""Measures that make further maps: of other targets, other images, other weights, other seeds."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from cdam_med.evaluation.judged import Judged
from cdam_med.evaluation.map_making import explain_each
from cdam_med.evaluation.measured import Measured, measured
from cdam_med.evaluation.metrics.ablation_agreement import agreement
from cdam_med.evaluation.metrics.class_sensitivity import (
    Contrast,
    contrast_columns,
    pair_correlation,
)
from cdam_med.evaluation.metrics.division import divided
from cdam_med.evaluation.metrics.grid_pointing import positive_share_in_quadrants
from cdam_med.evaluation.metrics.sanity import (
    correlation_with_others,
    randomisation_stages,
    randomised,
    shares_in_pairs,
)
from cdam_med.targets import MALIGNANCY
from data_prep.errors import InputError

SANITY_IMAGES = 20
"""So many images, evenly spread over them all, are explained anew for each randomised stage."""

CONTRASTS: tuple[Contrast, ...] = ("top and bottom", "top and second")


def class_sensitivity(judged: Judged) -> Iterator[Measured]:
    """Yield how alike the maps of different targets of an image are.

    Of outputs with names, which are different quantities, all pairs; of classes the highest
    against the lowest and the second.
    """
    trial = judged.trial
    if trial.has_names:
        names = trial.output_names
        if len(names) < 2:
            raise InputError("The model has one output, and nothing to tell it apart from.")
        matrices = judged.target_correlations
        first, second = np.triu_indices(len(names), k=1)
        pairs = matrices[:, first, second]
        count = np.isfinite(pairs).sum(axis=1)
        mean = divided(np.nansum(pairs, axis=1), count, where=count > 0)
        yield measured("target_correlation", "patch", mean, trial.examples)
        if {MALIGNANCY.name, "diameter"} <= set(names):
            one, other = names.index(MALIGNANCY.name), names.index("diameter")
            values = matrices[:, one, other]
            yield measured(
                "target_correlation/malignancy, diameter", "patch", values, trial.examples
            )
        return
    # of two classes the lowest is the second
    for contrast in CONTRASTS if len(trial.output_names) > 2 else CONTRASTS[:1]:
        columns = contrast_columns(trial.outputs, contrast)
        maps = [
            judged.patches_of(trial.examples.images, [trial.output_names[c] for c in column])
            for column in columns.T.tolist()
        ]
        metric = f"class_correlation/{contrast}"
        yield measured(metric, "patch", pair_correlation(*maps), trial.examples)


def grid_pointing(judged: Judged) -> Iterator[Measured]:
    """Yield shares of positive relevance in the right quadrants of mosaics."""
    trial, tasks = judged.trial, judged.trial.pointing_tasks
    made = explain_each(judged.estimator, trial.model, tasks.images, tasks.targets, seed=trial.seed)
    ids = tuple(
        f"{name}, {target}" for name, target in zip(tasks.mosaic_ids, tasks.targets, strict=True)
    )
    for resolution, maps in judged.at_resolutions(made.maps):
        yield Measured(
            metric="grid_pointing",
            resolution=resolution,
            values=positive_share_in_quadrants(trial.grid.spread(maps), tasks.right),
            ids=ids,
            groups=tasks.mosaic_ids,
            labels=("",) * len(ids),
        )


def randomisation(judged: Judged) -> Iterator[Measured]:
    """Yield rank correlations with the maps of a model whose weights are randomised.

    Five stages of the cascade: the head, with it the last block, the second half of the blocks,
    all blocks, and everything. A random network makes something of edges and brightness, and that
    is like the original by chance, in either direction, and in the same one for all images; so
    each image has a network of its own: the mean is to be near 0, and an interval over images is
    one over networks too.
    """
    trial = judged.trial
    if not isinstance(trial.model, nn.Module):
        raise InputError("The model is no torch module, so that no copy of it can be randomised.")
    last = len(trial.examples) - 1
    chosen = np.linspace(0, last, min(SANITY_IMAGES, last + 1)).round().astype(int).tolist()
    examples = trial.examples.select(chosen)
    before = judged.patches[chosen]
    stages = randomisation_stages(trial.model)
    blocks = stages[1:-1]
    shown = (stages[0], blocks[0], blocks[(len(blocks) - 1) // 2], blocks[-1], stages[-1])
    after = {stage: torch.empty_like(before) for stage in dict.fromkeys(shown)}
    for row, index in enumerate(chosen):
        image, target = examples.images[row : row + 1], (trial.targets[index],)
        seed = trial.seed * SANITY_IMAGES + row  # other networks for each seed of the trial
        for stage, altered in randomised(trial.model, stages=after.keys(), seed=seed):
            after[stage][row] = judged.patches_of(image, target, model=altered)[0]
    for stage, maps in after.items():
        signed = agreement(before, maps, kind="spearman")
        yield measured(f"randomised_signed/{stage}", "patch", signed, examples)
        sizes = agreement(before.abs(), maps.abs(), kind="spearman")
        yield measured(f"randomised_absolute/{stage}", "patch", sizes, examples)


def input_independence(judged: Judged) -> Iterator[Measured]:
    """Yield rank correlations with the maps of other images, centred and shifted.

    Of no label, since the images of a pair may have two.
    """
    trial = judged.trial
    kinds = [("other_images", judged.patches, trial.examples)]
    if trial.shifted is not None:
        maps = trial.grid.pooled(judged.shifted)
        kinds.append(("other_images/shifted", maps, trial.shifted))
    for metric, maps, examples in kinds:
        values = shares_in_pairs(correlation_with_others(maps, examples.groups))
        labels = ("",) * len(examples)
        yield Measured(metric, "patch", values, examples.ids, examples.groups, labels)


def consistency(judged: Judged) -> Iterator[Measured]:
    """Yield rank correlations with maps that should be alike: flipped, next slice, other seed.

    Another seed is tried on the first image; where its map is the same, bit by bit, the estimator
    isn't random and there is no such metric.
    """
    trial = judged.trial
    images, targets = trial.examples.images, trial.targets
    flipped = judged.patches_of(images.flip(-1), targets).flip(-1)
    values = agreement(judged.patches, flipped, kind="spearman")
    yield measured("same_when_flipped", "patch", values, trial.examples)
    if trial.neighbours is not None:
        near = trial.neighbours
        position = {name: index for index, name in enumerate(trial.examples.ids)}
        own = judged.patches[[position[name] for name in near.ids]]
        maps = judged.patches_of(near.images, trial.targets_of(near))
        values = agreement(own, maps, kind="spearman")
        yield measured("same_in_neighbour", "patch", values, near)
    one, other = (
        judged.patches_of(images[:1], targets[:1], seed=seed)  # alone: a batch rounds otherwise
        for seed in (trial.seed, trial.seed + 1)
    )
    if not torch.equal(one, other):
        again = judged.patches_of(images, targets, seed=trial.seed + 1)
        values = agreement(judged.patches, again, kind="spearman")
        yield measured("same_with_seed", "patch", values, trial.examples)
