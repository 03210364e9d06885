"""Correctness by perturbation curves: the most, or the least important parts are replaced first.

If a map is right, the output falls early when the parts with the highest scores go first (MIF,
most important first), and late when those with the lowest go first (LIF). The area between the
two curves is the figure; the higher, the more faithful. The procedure follows the public code of
the CDAM authors (40 steps, blur of radius 14), but for three things. Parts are the map's own: a
patch map replaces whole patches, not the tied pixels of patches in arbitrary order. Ties are
broken at random, in the same order for both curves, so that they make no difference of their own.
And the curves are integrated over the share that is really replaced.

An unsigned map has nothing to say of what speaks against a class. Ranked by sign, a signed map
may let the output rise in LIF by taking away counter-evidence first, so that the comparison
favours signed methods by construction. Two other rankings are on an equal footing: by absolute
value, and with negative scores taken as 0. All three are the same for maps without negative
scores, so that one run serves for them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from cdam_med.attribution.method import Resolution
from cdam_med.evaluation.experiment import Explanations, Groups, MetricValues
from cdam_med.evaluation.maps import Maps, Values, as_rows
from cdam_med.evaluation.metrics.perturbation import (
    Perturbable,
    Replacement,
    blurred,
    perturbing_examples,
    replacements,
)

Ranking: TypeAlias = Literal["signed", "absolute", "positive"]
"""By the score, by its absolute value, or by the score with negative ones taken as 0."""

Parts: TypeAlias = Int64[np.ndarray, " part"]

_VARIANTS: tuple[tuple[str, Ranking, str], ...] = (
    ("", "signed", "blur"),
    ("_absolute", "absolute", "blur"),
    ("_positive", "positive", "blur"),
    ("_constant", "signed", "constant"),
    ("_constant_absolute", "absolute", "constant"),
    ("_mean", "signed", "mean"),
    ("_mean_absolute", "absolute", "mean"),
)

STEPS = 20
"""Steps of the perturbation curves: half of the published 40, for half of the time."""


@dataclass(frozen=True, eq=False)
class PerturbationCurves:
    """Raw output while more and more of the image is replaced, from a share of 0 to 1.

    From the highest score down (MIF), or from the lowest up (LIF); NaN for an image whose map
    holds a value that isn't finite.
    """

    shares: Float[np.ndarray, " step"]
    most_first: Float[np.ndarray, "image step"]
    least_first: Float[np.ndarray, "image step"]

    @property
    def area(self) -> Values:
        """Area of LIF minus MIF by the trapezoidal rule: the mean difference in raw output."""
        area: np.ndarray = np.trapezoid(self.least_first - self.most_first, self.shares, axis=1)
        return area

    @property
    def change_area(self) -> Values:
        """Area of how far the output has moved, either way, in MIF minus that in LIF.

        What the absolute ranking promises: large scores of either sign move the output, while in
        `area` their effects cancel.
        """
        whole = self.least_first[:, :1]
        moved = np.abs(self.most_first - whole) - np.abs(self.least_first - whole)
        area: np.ndarray = np.trapezoid(moved, self.shares, axis=1)
        return area


def perturbation_curves(
    perturbable: Perturbable,
    maps: Maps,
    *,
    ranking: Ranking = "signed",
    replacement: Replacement = blurred,
    steps: int = 40,
    seed: int = 0,
) -> PerturbationCurves:
    """Return MIF and LIF curves of each image.

    Step `k` replaces the whole number of parts at or below ``k / steps`` of them; there are at most
    as many steps as parts. The seed is of the order of tied parts.
    """
    scores = as_rows(maps)
    if ranking != "signed":
        scores = np.abs(scores) if ranking == "absolute" else scores.clip(min=0)
    parts = scores.shape[1]
    steps = min(steps, parts)
    counts = np.arange(steps + 1) * parts // steps
    cells = perturbable.grid.cells(perturbable.grid.resolution(maps))
    substitutes = replacement(perturbable.images)
    curves = np.full((2, len(scores), steps + 1), np.nan)
    for index, row in enumerate(scores):
        if np.isnan(row).any():
            continue
        shuffled = perturbable.generator(index, seed).permutation(parts)
        orders = [shuffled[np.argsort(sign * row[shuffled], kind="stable")] for sign in (-1, 1)]
        # both ends, which the curves share, and the steps of each
        ends = torch.tensor([False, True])[:, None, None].expand(2, *cells.shape)
        hidden = torch.cat((ends, *(_first(order, counts[1:-1], cells) for order in orders)))
        outputs = perturbable.outputs(index, hidden, substitutes)
        curves[:, index, 0], curves[:, index, -1] = outputs[:2]
        curves[:, index, 1:-1] = outputs[2:].reshape(2, -1)
    return PerturbationCurves(counts / parts, *curves)


def _first(
    order: Parts, counts: Int64[np.ndarray, " step"], cells: Int64[Tensor, "height width"]
) -> Bool[Tensor, "step height width"]:
    """Return the pixels of the first so many parts."""
    place = torch.empty(len(order), dtype=torch.int64)
    place[torch.from_numpy(order)] = torch.arange(len(order))
    return place[cells] < torch.from_numpy(counts)[:, None, None]


def curves_of(
    explanations: Explanations, resolution: Resolution, ranking: Ranking, replacement: str
) -> PerturbationCurves:
    """Return a method's curves, made once: rankings of an unsigned map are all the same."""
    maps = dict(explanations.at_resolutions())[resolution]
    made = explanations.once(_made_curves)
    key = (resolution, "signed" if bool((maps >= 0).all()) else ranking, replacement)
    if key not in made:
        experiment = explanations.experiment
        with perturbing_examples(experiment) as opened:
            made[key] = perturbation_curves(
                opened,
                maps,
                ranking=ranking,
                replacement=experiment.once(replacements)[replacement],
                steps=STEPS,
                seed=experiment.seed,
            )
    return made[key]


def _made_curves(_: Explanations) -> dict[tuple[str, str, str], PerturbationCurves]:
    return {}


def _areas(
    explanations: Explanations, ranking: Ranking, replacement: str
) -> Iterator[MetricValues]:
    for resolution, _ in explanations.at_resolutions():
        curves = curves_of(explanations, resolution, ranking, replacement)
        # large scores of either sign: their effects cancel in the area
        values = curves.change_area if ranking == "absolute" else curves.area
        variant = f"{ranking}, {replacement}"
        yield MetricValues(values, resolution, explanations.examples, variant)


GROUPS: Groups = {
    f"mif_lif{ending}": {
        "mif_lif_change" if ranking == "absolute" else "mif_lif": partial(
            _areas, ranking=ranking, replacement=replacement
        )
    }
    for ending, ranking, replacement in _VARIANTS
}
