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
favours signed estimators by construction. Two other rankings are on an equal footing: by absolute
value, and with negative scores taken as 0. All three are the same for maps without negative
scores, so that one run serves for them. Compare maps of unlike resolution after pooling
(`cdam_med.evaluation.metrics.map_pooling`): small parts can be picked more finely than large ones.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cdam_med.attribution.estimator import Resolution
from cdam_med.attribution.methods.settings import check_count
from cdam_med.evaluation.metrics.map_pooling import as_rows
from cdam_med.evaluation.metrics.perturbation import Perturbable
from cdam_med.evaluation.metrics.replacement import PUBLISHED_BLUR, Replacement

Ranking: TypeAlias = Literal["signed", "absolute", "positive"]
"""By the score, by its absolute value, or by the score with negative ones taken as 0."""


@dataclass(frozen=True, eq=False)
class PerturbationCurves:
    """Raw output while more and more of the image is replaced.

    Parameters
    ----------
    shares : ndarray
        Share of the map's parts that is replaced at each step, from 0 to 1.
    most_first, least_first : ndarray
        Raw output of the explained target, replacing from the highest score down (MIF) or from
        the lowest up (LIF); NaN for an image whose map holds a value that isn't finite.
    ranking : {"signed", "absolute", "positive"}
        What scores were ranked by.
    resolution : {"patch", "pixel"}
        What the parts are.
    replacement : str
        Name of what took the place of parts.
    """

    shares: Float[np.ndarray, " step"]
    most_first: Float[np.ndarray, "image step"]
    least_first: Float[np.ndarray, "image step"]
    ranking: Ranking
    resolution: Resolution
    replacement: str

    @property
    def area(self) -> Float[np.ndarray, " image"]:
        """Area of LIF minus MIF by the trapezoidal rule: the mean difference in raw output."""
        area: np.ndarray = np.trapezoid(self.least_first - self.most_first, self.shares, axis=1)
        return area

    @property
    def change_area(self) -> Float[np.ndarray, " image"]:
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
    maps: Float[Tensor, "image rows columns"],
    *,
    ranking: Ranking = "signed",
    replacement: Replacement = PUBLISHED_BLUR,
    steps: int = 40,
    seed: int = 0,
) -> PerturbationCurves:
    """Return MIF and LIF curves of each image.

    Parameters
    ----------
    perturbable : Perturbable
        The opened model and the images; see `cdam_med.evaluation.metrics.perturbation.perturbing`.
    maps : Tensor
        Map of the explained target of each image, at patches or at pixels.
    ranking : {"signed", "absolute", "positive"}
        What scores are ranked by.
    replacement : Replacement
        What takes the place of parts.
    steps : int
        Number of steps from nothing to everything, at most the number of parts. Step `k`
        replaces the whole number of parts at or below ``k / steps`` of them.
    seed : int
        Of the order of tied parts.

    Raises
    ------
    MethodError
        If there are no steps.
    InputError
        If the maps fit the images neither at patches nor at pixels.
    """
    check_count("perturbation_curves", "steps", steps)
    resolution = perturbable.grid.check(maps, len(perturbable))
    scores = _ranked_scores(as_rows(maps), ranking)
    parts = scores.shape[1]
    steps = min(steps, parts)
    counts = np.arange(steps + 1) * parts // steps
    cells = perturbable.grid.cells(resolution)
    substitutes = replacement(perturbable.images)
    curves = np.full((2, len(scores), steps + 1), np.nan)
    for index, row in enumerate(scores):
        if np.isnan(row).any():
            continue
        orders = _orders(row, perturbable.generator(index, seed))
        outputs = perturbable.outputs(index, _hidden_steps(orders, counts, cells), substitutes)
        curves[:, index, 0], curves[:, index, -1] = outputs[:2]
        curves[:, index, 1:-1] = outputs[2:].reshape(2, -1)
    return PerturbationCurves(
        shares=counts / parts,
        most_first=curves[0],
        least_first=curves[1],
        ranking=ranking,
        resolution=resolution,
        replacement=replacement.name,
    )


def _ranked_scores(
    scores: Float[np.ndarray, "image part"], ranking: Ranking
) -> Float[np.ndarray, "image part"]:
    if ranking == "signed":
        return scores
    ranked: np.ndarray = np.abs(scores) if ranking == "absolute" else scores.clip(min=0)
    return ranked


def _orders(
    scores: Float[np.ndarray, " part"], random: np.random.Generator
) -> tuple[Int64[np.ndarray, " part"], Int64[np.ndarray, " part"]]:
    """Return parts from the highest score down and from the lowest up."""
    shuffled = random.permutation(len(scores))
    most, least = (shuffled[np.argsort(sign * scores[shuffled], kind="stable")] for sign in (-1, 1))
    return most, least


def _hidden_steps(
    orders: tuple[Int64[np.ndarray, " part"], Int64[np.ndarray, " part"]],
    counts: Int64[np.ndarray, " step"],
    cells: Int64[Tensor, "height width"],
) -> Tensor:
    """Return the hidden pixels of both ends, which the curves share, and of each curve's steps."""
    ends = torch.tensor([False, True])[:, None, None].expand(2, *cells.shape)
    return torch.cat((ends, *(_hidden(order, counts[1:-1], cells) for order in orders)))


def _hidden(
    order: Int64[np.ndarray, " part"],
    counts: Int64[np.ndarray, " step"],
    cells: Int64[Tensor, "height width"],
) -> Tensor:
    """Return the pixels of the first so many parts, (step, height, width)."""
    place = torch.empty(len(order), dtype=torch.int64)
    place[torch.from_numpy(order)] = torch.arange(len(order))
    return place[cells] < torch.from_numpy(counts)[:, None, None]
