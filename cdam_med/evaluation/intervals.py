"""How sure a figure is: percentile bootstrap over groups, such as patients.

Groups are drawn with replacement, all images of a drawn group at once, since nodules of a patient
are alike. A figure is one of the images, not of the groups: a patient with three nodules counts
three times. An image whose value is NaN (the metric says why) is left out of the figure and of
the draws it would be in; a draw in which no image has a value is passed over. Draws depend on the
groups and the seed alone, so that every method is evaluated on the same.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. `scipy.stats.bootstrap`
draws images, not groups.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

DRAWS = 2000
CONFIDENCE = 0.95
"""How many times groups are drawn, and the share of the draws within an interval."""

ROUNDING = 1e-9
"""Two values that differ by no more than this share of the larger one are taken for the same."""

WEIGHTS_AT_ONCE = 2**22
"""Numbers of times that groups are drawn, held in memory at once."""


@dataclass(frozen=True)
class BootstrapInterval:
    """A figure with its interval.

    Parameters
    ----------
    value : float
        The figure on the images as they are; NaN where no image has a value.
    low, high : float
        Ends of the interval that holds `CONFIDENCE` of the draws; NaN where fewer than two
        groups have a value, since one alone doesn't say how groups differ.
    images, groups : int
        How many have a value.
    """

    value: float
    low: float
    high: float
    images: int
    groups: int


@dataclass(frozen=True)
class PairedDifference(BootstrapInterval):
    """Mean of one method minus another over the images that both have values of.

    `other_side` is the share of the draws in which the difference is 0 or of the other sign: half
    of a two-sided bootstrap p-value. 1 where the difference is 0; NaN where there is no interval.
    """

    other_side: float


def mean_intervals(
    values: Float[np.ndarray, "image figure"],
    groups: Sequence[str],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> tuple[BootstrapInterval, ...]:
    """Return the means of several figures over the same draws, such as the steps of a curve."""
    means, drawn = _means(values, groups, seed, draws)
    return tuple(
        BootstrapInterval(float(mean), *_ends(those, ~np.isnan(column), groups))
        for mean, those, column in zip(means, drawn.T, values.T, strict=True)
    )


def paired_differences(
    values: Float[np.ndarray, "image method"],
    groups: Sequence[str],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> tuple[PairedDifference, ...]:
    """Return how far every two methods differ in the mean of a metric.

    The first minus the second column, the first minus the third, and so on, in the order of
    `itertools.combinations`.
    """
    _check(values, groups)  # infinite minus infinite would be NaN
    first, second = np.triu_indices(values.shape[1], k=1)
    one, other = (values[:, columns].astype(np.float64) for columns in (first, second))
    # what is the same but for rounding would differ in every draw
    same = np.abs(one - other) <= ROUNDING * np.maximum(np.abs(one), np.abs(other))
    differences = np.where(same, 0.0, one - other)
    means, drawn = _means(differences, groups, seed, draws)
    found = []
    for mean, those, column in zip(means, drawn.T, differences.T, strict=True):
        ends = _ends(those, ~np.isnan(column), groups)
        is_other = those[~np.isnan(those)] * np.sign(mean) <= 0
        other_side = np.nan if np.isnan(ends[0]) else float(np.mean(is_other))
        found.append(PairedDifference(float(mean), *ends, other_side))
    return tuple(found)


def interval_of_sums(
    terms: Float[np.ndarray, "image term"],
    figure: Callable[[np.ndarray], np.ndarray],
    groups: Sequence[str],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> BootstrapInterval:
    """Return a figure that is computed from sums over images, such as a pooled correlation.

    Parameters
    ----------
    terms : ndarray
        What is summed; an image with a NaN among its terms is left out.
    figure : callable
        Sums ``(draw, term)`` -> figure ``(draw,)``, NaN where it has none.
    groups : sequence of str
        Group of each image.
    seed, draws : int
        Seed of the draws, and their number.
    """
    _check(terms, groups)
    present = ~np.isnan(terms).any(1)
    kept = np.where(present[:, None], terms, 0.0)
    value = figure(kept.sum(0)[None])[0] if present.any() else np.nan
    drawn = figure(_drawn_sums(kept, groups, seed, draws))
    return BootstrapInterval(float(value), *_ends(drawn, present, groups))


def interval_of_weights(
    figure: Callable[[np.ndarray], np.ndarray],
    groups: Sequence[str],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> BootstrapInterval:
    """Return a figure that counts each image as often as its group is drawn, such as an AUC.

    `figure` takes weights ``(draw, image)`` and gives ``(draw,)``, NaN where it has none.
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    drawn = [figure(times[:, group_of]) for times in _times(len(names), seed, draws)]
    once = np.ones((1, len(groups)))
    return BootstrapInterval(
        float(figure(once)[0]), *_ends(np.concatenate(drawn), once[0] > 0, groups)
    )


def _means(
    values: Float[np.ndarray, "image figure"], groups: Sequence[str], seed: int, draws: int
) -> tuple[Float[np.ndarray, " figure"], Float[np.ndarray, "draw figure"]]:
    """Return means over the images that have values, as they are and in each draw."""
    _check(values, groups)
    present = ~np.isnan(values)
    terms = np.concatenate((np.where(present, values, 0.0), present), axis=1, dtype=np.float64)

    def means(sums: Float[np.ndarray, "draw term"]) -> Float[np.ndarray, "draw figure"]:
        total, count = np.split(sums, 2, axis=1)
        found = np.full_like(total, np.nan)
        np.divide(total, count, out=found, where=count > 0)
        return found

    return means(terms.sum(0)[None])[0], means(_drawn_sums(terms, groups, seed, draws))


def _drawn_sums(
    terms: Float[np.ndarray, "image term"], groups: Sequence[str], seed: int, draws: int
) -> Float[np.ndarray, "draw term"]:
    """Return the sums over the images of as many groups as there are, drawn with replacement."""
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    of_group = np.zeros((len(names), terms.shape[1]))
    np.add.at(of_group, group_of, terms)
    return np.concatenate([times @ of_group for times in _times(len(names), seed, draws)])


def _times(count: int, seed: int, draws: int) -> Iterator[Float[np.ndarray, "some_draws group"]]:
    """Yield how many times each of so many groups is drawn, a part of the draws at a time."""
    random = np.random.default_rng(seed)
    at_once = max(1, WEIGHTS_AT_ONCE // max(1, count))
    for start in range(0, draws, at_once):
        rows = min(at_once, draws - start)
        picked = random.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        times = np.bincount(picked.ravel(), minlength=rows * count).reshape(rows, count)
        yield times.astype(np.float64)


def _ends(
    drawn: Float[np.ndarray, " draw"], present: Bool[np.ndarray, " image"], groups: Sequence[str]
) -> tuple[float, float, int, int]:
    """Return the interval's ends, and how many images and groups have a value."""
    groups_present = len(np.unique(np.asarray(groups)[present]))
    low = high = np.nan
    drawn = drawn[~np.isnan(drawn)]
    if groups_present > 1 and len(drawn):
        low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high), int(present.sum()), groups_present


def _check(values: np.ndarray, groups: Sequence[str]) -> None:
    if len(groups) != len(values):
        raise ValueError(f"{len(groups)} groups for {len(values)} images")
    if np.isinf(values).any():
        raise ValueError("values must be finite, or NaN where there is none")
