"""Correctness by taking parts away: does their importance say how far the output falls.

Ancona, Ceolini, Oztireli and Gross, "Towards better understanding of gradient-based attribution
methods for deep neural networks", ICLR 2018, section 5 (Sensitivity-n): random subsets of ``n``
features are taken away, and Pearson's correlation of the sum of their scores and the fall of the
output is taken over the subsets of one image. Features are patches here, since that is what a ViT
sees. Boxes in the place of scattered pixels are from the public code of the CDAM authors: 100 boxes
at random places in the image, blur of radius 14. Token ablation takes patches away one by one.

What is taken away, and what the model says without it, doesn't depend on a map. It is made once,
and every method is compared with the same.

Brocki, Binda and Chung, arXiv 2312.02364 section 4.3 and figure 6, correlate the scores of a
thousand images in one pool. That mixes what is asked, which patches of an image matter, with how
large the scores of an image are as a whole, though maps are not comparable in size between images.
So correlations are taken image by image here; the pooled one is in `cdam_med.evaluation.results`,
for the paper's first table.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from cdam_med.attribution.methods.token_ablation import TokenAblation
from cdam_med.evaluation.experiment import Experiment, Explanations, Groups, MetricValues, explain
from cdam_med.evaluation.maps import Maps, PatchGrid, Values, agreement, as_rows, pearson
from cdam_med.evaluation.metrics.perturbation import (
    Perturbable,
    Replacement,
    blurred,
    perturbing_examples,
)

BOX_SHARES = {"eighth": 1 / 8, "quarter": 1 / 4}
"""Sides of the boxes of box sensitivity, as shares of the image's shorter side."""

SUBSET_SHARES = {"5 %": 0.05, "20 %": 0.2, "50 %": 0.5}
"""Sizes of the subsets of Sensitivity-n, as shares of the patches."""

PartScores = Float[np.ndarray, "image part"]


@dataclass(frozen=True, eq=False)
class Drops:
    """Raw output of the whole image minus that without each of some parts.

    Parts are boxes, by their first row and column, or subsets of the patches, row by row of the
    grid. `importance` gives the sum of the scores of each part of maps.
    """

    drops: PartScores
    parts: Int64[np.ndarray, "image part 2"] | Bool[np.ndarray, "image part patch"]
    importance: Callable[[Maps], PartScores]

    def correlation(self, maps: Maps) -> Values:
        """Return Pearson's correlation of importance and drop over the parts of each image."""
        return pearson(self.importance(maps), self.drops)


def box_drops(
    perturbable: Perturbable,
    *,
    side: int,
    boxes: int = 100,
    replacement: Replacement = blurred,
    seed: int = 0,
) -> Drops:
    """Take boxes away, one at a time; each place within the image is as likely as any other."""
    height, width = perturbable.grid.image_size
    substitutes = replacement(perturbable.images)
    corners = np.empty((len(perturbable), boxes, 2), dtype=np.int64)
    drops = np.empty((len(perturbable), boxes))
    row, column = torch.arange(height), torch.arange(width)
    for index in range(len(perturbable)):
        random = perturbable.generator(index, seed)
        corners[index] = random.integers((height - side + 1, width - side + 1), size=(boxes, 2))
        top, left = torch.from_numpy(corners[index]).T[:, :, None]
        inside = ((row >= top) & (row < top + side))[:, :, None]
        inside = inside & ((column >= left) & (column < left + side))[:, None]
        drops[index] = _falls(perturbable, index, inside, substitutes)
    return Drops(drops, corners, partial(_in_boxes, perturbable.grid, corners, side))


def _in_boxes(
    grid: PatchGrid, corners: Int64[np.ndarray, "image part 2"], side: int, maps: Maps
) -> PartScores:
    """Return the sum of scores inside each box, where pixels of a patch have its score."""
    scores = as_rows(grid.spread(maps)).reshape(-1, *grid.image_size)
    sums = np.pad(scores.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    image = np.arange(len(scores))[:, None]
    top, left = corners[..., 0], corners[..., 1]
    bottom, right = top + side, left + side
    to_right = sums[image, bottom, right] - sums[image, top, right]
    inside: np.ndarray = to_right - sums[image, bottom, left] + sums[image, top, left]
    return inside


def subset_drops(
    perturbable: Perturbable,
    *,
    n: int,
    subsets: int = 100,
    replacement: Replacement = blurred,
    seed: int = 0,
) -> Drops:
    """Take subsets of `n` patches away, one at a time, each drawn without replacement."""
    grid = perturbable.grid
    patches = grid.size[0] * grid.size[1]
    cells = grid.cells("patch")
    substitutes = replacement(perturbable.images)
    chosen = np.empty((len(perturbable), subsets, patches), dtype=bool)
    drops = np.empty((len(perturbable), subsets))
    for index in range(len(perturbable)):
        random = perturbable.generator(index, seed)
        order = random.permuted(np.tile(np.arange(patches), (subsets, 1)), axis=1)
        chosen[index] = order < n
        hidden = torch.from_numpy(chosen[index])[:, cells]
        drops[index] = _falls(perturbable, index, hidden, substitutes)
    return Drops(drops, chosen, partial(_in_subsets, grid, chosen))


def _in_subsets(
    grid: PatchGrid, subsets: Bool[np.ndarray, "image part patch"], maps: Maps
) -> PartScores:
    """Return the sum of the scores of each subset, pixel maps pooled."""
    sums: np.ndarray = (subsets @ as_rows(grid.pooled(maps))[:, :, None])[..., 0]
    return sums


def _falls(
    perturbable: Perturbable,
    index: int,
    hidden: Bool[Tensor, "part height width"],
    substitutes: Float[Tensor, "image channel height width"],
) -> Float[np.ndarray, " part"]:
    """Return how far the output of an image falls without each of some parts."""
    none = torch.zeros_like(hidden[:1])
    outputs = perturbable.outputs(index, torch.cat((none, hidden)), substitutes)
    falls: np.ndarray = outputs[0] - outputs[1:]
    return falls


def _boxes(experiment: Experiment) -> dict[str, Drops]:
    short = min(experiment.grid.image_size)
    with perturbing_examples(experiment) as opened:
        return {
            name: box_drops(opened, side=max(1, round(share * short)), seed=experiment.seed)
            for name, share in BOX_SHARES.items()
        }


def _subsets(experiment: Experiment) -> dict[str, Drops]:
    patches = experiment.grid.size[0] * experiment.grid.size[1]
    with perturbing_examples(experiment) as opened:
        return {
            name: subset_drops(opened, n=max(1, round(share * patches)), seed=experiment.seed)
            for name, share in SUBSET_SHARES.items()
        }


def _ablation(experiment: Experiment) -> Maps:
    images, targets = experiment.examples.images, experiment.targets
    return explain(TokenAblation(), experiment.model, images, targets, seed=experiment.seed)[0]


def _box_sensitivity(explanations: Explanations) -> Iterator[MetricValues]:
    experiment = explanations.experiment
    for name, drops in experiment.once(_boxes).items():
        for resolution, maps in explanations.at_resolutions():
            yield MetricValues(drops.correlation(maps), resolution, experiment.examples, name)


def _sensitivity_n(explanations: Explanations) -> Iterator[MetricValues]:
    experiment = explanations.experiment
    for name, drops in experiment.once(_subsets).items():
        values = drops.correlation(explanations.patches)
        yield MetricValues(values, "patch", experiment.examples, name)


def _with_ablation(
    explanations: Explanations, kind: Literal["pearson", "spearman"]
) -> Iterator[MetricValues]:
    experiment = explanations.experiment
    values = agreement(explanations.patches, experiment.once(_ablation), kind=kind)
    yield MetricValues(values, "patch", experiment.examples)


GROUPS: Groups = {
    "box_sensitivity": {"box_sensitivity": _box_sensitivity},
    "sensitivity_n": {"sensitivity_n": _sensitivity_n},
    "ablation_agreement": {
        "ablation_pearson": partial(_with_ablation, kind="pearson"),
        "ablation_spearman": partial(_with_ablation, kind="spearman"),
    },
}
