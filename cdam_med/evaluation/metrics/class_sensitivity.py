"""Class sensitivity: how unlike the maps of different targets of one image are.

A map that is the same whatever is asked explains no class. The lower the correlation of two
targets' maps, the better they are told apart; it is 1 by design for maps that know no target,
such as an attention map. How the CDAM paper defines its figure is not known; the highest against
the lowest output is the definition of Rebuffi, Fong, Ji and Vedaldi, "There and back again:
revisiting backpropagation saliency methods", CVPR 2020. Two outputs that are alike in fact should
have like maps, so that a low figure for the highest and the second is no merit as such.

Grid pointing game: of four images in one, a map should light up on those of its own class. Böhle,
Fritz, Schiele, "Convolutional Dynamic Alignment Networks for Interpretable Classifications", CVPR
2021: the place of each class is known, without anybody's outlines, so a map that isn't
class-discriminative can't do better than the share of the image. Each image is shrunk to half its
sides, so that the mosaic has the size that any model takes (no position embedding is resampled);
objects are half as large as the model is used to.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from cdam_med.evaluation.examples import Examples
from cdam_med.evaluation.experiment import (
    Experiment,
    Explanations,
    Groups,
    MetricValues,
    explain_targets,
)
from cdam_med.evaluation.maps import agreement, as_rows, divided, unit_rows
from cdam_med.targets import MALIGNANCY
from data_prep.errors import InputError

Images = Float[Tensor, "image channel height width"]
Contrast = Literal["top and bottom", "top and second"]
"""Highest and lowest, or highest and second highest raw output of each image."""

QUADRANTS = 4
"""Images of a mosaic, in the order top left, top right, bottom left, bottom right."""

MALIGNANT, BENIGN = "malignant", "benign"
"""Labels of nodules, of which the first is what a model's malignancy stands for."""


def contrast_columns(
    outputs: Float[Tensor, "image output"], contrast: Contrast
) -> Int64[np.ndarray, "image 2"]:
    """Return which two outputs of each image are to be explained; the highest comes first.

    Of equal outputs the first counts as higher.
    """
    if outputs.shape[1] < 2:
        raise InputError("The model has one output, and nothing to tell it apart from.")
    order = np.argsort(-as_rows(outputs), axis=1, kind="stable")
    return order[:, [0, -1 if contrast == "top and bottom" else 1]]


def correlations_of_targets(
    scores: Float[Tensor, "image target rows columns"],
) -> Float[np.ndarray, "image target target"]:
    """Return Pearson's correlation between the maps of every two targets of each image."""
    rows = unit_rows(as_rows(scores.flatten(0, 1))).reshape(*scores.shape[:2], -1)
    return np.array([np.clip(each @ each.T, -1, 1) for each in rows])


def target_correlations(explanations: Explanations) -> Float[np.ndarray, "image target target"]:
    """Return the correlations between a method's maps of all outputs, at the patch grid."""
    return correlations_of_targets(
        explain_targets(explanations, explanations.experiment.output_names)
    )


def _target_correlation(explanations: Explanations) -> Iterator[MetricValues]:
    """Yield correlations of outputs with names, which are different quantities: of all pairs."""
    experiment = explanations.experiment
    names = experiment.output_names
    if not experiment.has_names:
        return
    if len(names) < 2:
        raise InputError("The model has one output, and nothing to tell it apart from.")
    matrices = explanations.once(target_correlations)
    first, second = np.triu_indices(len(names), k=1)
    pairs = matrices[:, first, second]
    count = np.isfinite(pairs).sum(axis=1)
    mean = divided(np.nansum(pairs, axis=1), count, where=count > 0)
    yield MetricValues(mean, "patch", experiment.examples)
    if {MALIGNANCY.name, "diameter"} <= set(names):
        values = matrices[:, names.index(MALIGNANCY.name), names.index("diameter")]
        yield MetricValues(values, "patch", experiment.examples, "malignancy, diameter")


def _class_correlation(explanations: Explanations) -> Iterator[MetricValues]:
    """Yield correlations of classes: the highest against the lowest and the second."""
    experiment = explanations.experiment
    names, examples = experiment.output_names, experiment.examples
    if experiment.has_names:
        return
    contrasts: list[Contrast] = ["top and bottom"]
    if len(names) > 2:  # of two classes the lowest is the second
        contrasts.append("top and second")
    for contrast in contrasts:
        maps = [
            explanations.of_other_images(examples.images, [names[c] for c in column])
            for column in contrast_columns(experiment.outputs, contrast).T.tolist()
        ]
        one, other = (experiment.grid.pooled(each) for each in maps)
        yield MetricValues(agreement(one, other), "patch", examples, contrast)


def mosaics(
    images: Images, kinds: Sequence[Hashable], *, seed: int = 0
) -> tuple[Float[Tensor, "mosaic channel height width"], Int64[np.ndarray, "mosaic quadrant"]]:
    """Put images of different kinds into mosaics, and say which images each is made of.

    Of two kinds each mosaic has two images each; of four and more, four different ones. As many
    as there are images for, arranged at random; no image is in two.

    Raises
    ------
    InputError
        If there are three kinds or one, or too few images for a mosaic.
    """
    random = np.random.default_rng(seed)
    members_of: dict[Hashable, list[int]] = {}
    for index in random.permutation(len(kinds)):
        members_of.setdefault(kinds[index], []).append(int(index))
    if len(members_of) == 2:
        one, other = members_of.values()
        pairs = min(len(one), len(other)) // 2
        drawn = [[*one[2 * n : 2 * n + 2], *other[2 * n : 2 * n + 2]] for n in range(pairs)]
    else:
        drawn = _four_different(list(members_of.values()))
    if not drawn:
        counts = ", ".join(f"{kind} {len(m)}" for kind, m in list(members_of.items())[:QUADRANTS])
        raise InputError(
            f"No mosaic can be made of images of {len(members_of)} kinds ({counts}): it takes two "
            "images each of two kinds, or one each of four."
        )
    members = np.array([random.permutation(four) for four in drawn], dtype=np.int64)
    made = images.new_empty((len(members), *images.shape[1:]))
    for quadrant, (rows, columns) in enumerate(_places(images)):
        quarter = made[:, :, rows, columns]
        part = images[members[:, quadrant]]
        size = quarter.shape[-2:]
        quarter.copy_(functional.interpolate(part, size=size, mode="bilinear", antialias=True))
    return made, members


def _four_different(members: list[list[int]]) -> list[list[int]]:
    """Draw one image each from the four kinds that have most left, until there aren't four."""
    left = [list(images) for images in members]
    drawn = []
    while len(fullest := [images for images in left if images]) >= QUADRANTS:
        fullest.sort(key=len, reverse=True)
        drawn.append([images.pop() for images in fullest[:QUADRANTS]])
    return drawn


def positive_share_in_quadrants(
    maps: Float[Tensor, "mosaic height width"], right: Bool[np.ndarray, "mosaic quadrant"]
) -> Float[np.ndarray, " mosaic"]:
    """Return the share of the positive relevance in the right quadrants; NaN where none is."""
    positive = maps.detach().cpu().double().clamp(min=0)
    quarters = [positive[:, rows, columns].sum((1, 2)) for rows, columns in _places(maps)]
    in_quadrants = torch.stack(quarters, dim=1).numpy()
    total = in_quadrants.sum(axis=1)
    return divided((in_quadrants * right).sum(axis=1), total, where=total > 0)


def _places(images: Tensor) -> list[tuple[slice, slice]]:
    """Return rows and columns of the quadrants."""
    top, left = images.shape[-2] // 2, images.shape[-1] // 2
    return [
        (rows, columns)
        for rows in (slice(None, top), slice(top, None))
        for columns in (slice(None, left), slice(left, None))
    ]


def _pointing_tasks(
    experiment: Experiment,
) -> tuple[Examples, tuple[str | int, ...], Bool[np.ndarray, "task quadrant"]]:
    """Return mosaics, one for each map to be made, its target, and the quadrants that show it.

    Where all images have malignancy as target, mosaics are of malignant and benign nodules, each
    explained once; else of images with two or four targets, each explained for all of them.
    """
    images, targets = experiment.examples.images, experiment.targets
    labels = np.array(experiment.examples.labels)
    if set(targets) == {MALIGNANCY.name}:
        usable = np.flatnonzero(np.isin(labels, (MALIGNANT, BENIGN)))
        made, members = mosaics(images[usable], labels[usable].tolist(), seed=experiment.seed)
        right = labels[usable][members] == MALIGNANT
        tasks = [(number, targets[0], right[number]) for number in range(len(made))]
    else:
        made, members = mosaics(images, targets, seed=experiment.seed)
        tasks = [
            (number, target, np.array([targets[member] == target for member in four]))
            for number, four in enumerate(members.tolist())
            for target in dict.fromkeys(targets[member] for member in four)
        ]
    numbers, asked, rights = zip(*tasks, strict=True)
    names = tuple(f"mosaic {number + 1}" for number in numbers)
    shown = Examples(
        ids=tuple(f"{name}, {target}" for name, target in zip(names, asked, strict=True)),
        groups=names,
        images=made[list(numbers)],
        targets=asked,
        labels=("",) * len(names),
        masks=None,
    )
    return shown, asked, np.array(rights)


def _grid_pointing(explanations: Explanations) -> Iterator[MetricValues]:
    experiment = explanations.experiment
    shown, targets, right = experiment.once(_pointing_tasks)
    made = explanations.of_other_images(shown.images, targets)
    for resolution, maps in explanations.at_resolutions(made):
        values = positive_share_in_quadrants(experiment.grid.spread(maps), right)
        yield MetricValues(values, resolution, shown)


GROUPS: Groups = {
    "class_sensitivity": {
        "target_correlation": _target_correlation,
        "class_correlation": _class_correlation,
    },
    "grid_pointing": {"grid_pointing": _grid_pointing},
}
