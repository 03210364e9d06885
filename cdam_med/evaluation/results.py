"""What came of an evaluation: the long table, and its summary with intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from cdam_med.attribution.method import Method, Resolution
from cdam_med.evaluation.examples import Examples
from cdam_med.evaluation.intervals import (
    BootstrapInterval,
    PairedDifference,
    interval_of_sums,
    mean_intervals,
    paired_differences,
)
from cdam_med.evaluation.maps import SMALLEST_SPREAD, Maps, as_rows

REFERENCE = "cdam"
"""What other methods are compared with."""

LEAST_GROUPS = 6
"""Groups from which an interval may say that two methods differ: the differences of five have
all one sign by chance in one case of sixteen."""

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]


class Row(NamedTuple):
    """One value of one image: a line of the long table; NaN where the image has none."""

    method: str
    metric: str
    resolution: Resolution
    image: str
    group: str
    label: str
    value: float


class LeftOut(NamedTuple):
    """What couldn't be done, and why; no metric where the method made no maps at all."""

    method: str
    metric: str
    reason: str


@dataclass(frozen=True)
class SummaryRow:
    """A metric of a method: its mean over images, of one label or of all (``""``).

    `difference` is the mean difference from the reference on the same images; None for the
    reference itself, or where the reference has no such metric.
    """

    method: str
    metric: str
    resolution: Resolution
    label: str
    interval: BootstrapInterval
    difference: PairedDifference | None

    @property
    def differs(self) -> bool:
        """Whether its difference from the reference has an interval that doesn't hold 0."""
        found = self.difference
        if found is None or found.groups < LEAST_GROUPS:
            return False
        return found.low > 0 or found.high < 0


class Difference(NamedTuple):
    """How far two methods differ in a metric, on the same images: the first minus the second."""

    one: str
    other: str
    metric: str
    resolution: Resolution
    difference: PairedDifference


@dataclass(frozen=True, eq=False)
class Results:
    """All that was found.

    Parameters
    ----------
    methods : tuple of Method
        Those that made maps, in order.
    rows : tuple of Row
        The long table.
    left_out : tuple of LeftOut
        What couldn't be done.
    maps : mapping of str to Tensor
        Maps of all images at the patch grid, by method.
    groups : tuple of str
        Group of each image.
    examples : Examples
        A few images that are shown, with the target that each was explained for.
    shown : mapping of str to Tensor
        Maps of these images by method, at its own resolution.
    curves : mapping of str to mapping of str to ndarray
        Mean perturbation curves by method, where they were asked for: ``shares``, and
        ``most_first`` and ``least_first`` with ``_low`` and ``_high``.
    matrices : mapping of str to mapping of str to ndarray
        Correlations between the maps of every two targets by method, where they were asked for:
        ``mean``, ``low`` and ``high`` over so many ``images``.
    output_names : tuple of str or int
        Targets, in the order of rows and columns of the matrices.
    seed : int
        Of everything random.
    """

    methods: tuple[Method, ...]
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    maps: Mapping[str, Maps]
    groups: tuple[str, ...]
    examples: Examples
    shown: Mapping[str, Float[Tensor, "shown _rows _columns"]]
    curves: Mapping[str, Arrays]
    matrices: Mapping[str, Arrays]
    output_names: tuple[str | int, ...]
    seed: int

    @classmethod
    def joined(cls, parts: Sequence["Results"]) -> "Results":
        """Return results of several methods from those of one each."""
        joined: dict[str, Any] = {}
        for name in ("methods", "rows", "left_out"):
            joined[name] = tuple(chain.from_iterable(getattr(each, name) for each in parts))
        for name in ("maps", "shown", "curves", "matrices"):
            found = (getattr(each, name).items() for each in parts)
            joined[name] = dict(chain.from_iterable(found))
        return replace(parts[0], **joined)

    def summary(self, *, reference: str = REFERENCE) -> tuple[SummaryRow, ...]:
        """Return means with intervals, over all images and label by label.

        `reference` is the method that others are compared with, if it is among them.
        """
        found: list[SummaryRow] = []
        for (metric, resolution), rows in self._by_metric().items():
            labels = sorted({row.label for row in rows if row.label})
            for label in ("", *labels) if len(labels) > 1 else ("",):
                names, groups, values = _columns(row for row in rows if label in ("", row.label))
                intervals = mean_intervals(values, groups, seed=self.seed)
                for column, (name, interval) in enumerate(zip(names, intervals, strict=True)):
                    difference = None
                    if reference in names and name != reference:
                        pair = values[:, [column, names.index(reference)]]
                        (difference,) = paired_differences(pair, groups, seed=self.seed)
                    words = name, metric, resolution, label
                    found.append(SummaryRow(*words, interval, difference))
        return tuple(found)

    def differences(self) -> tuple[Difference, ...]:
        """Return the mean difference of every two methods in each metric, over all images."""
        found: list[Difference] = []
        for (metric, resolution), rows in self._by_metric().items():
            names, groups, values = _columns(iter(rows))
            pairs = paired_differences(values, groups, seed=self.seed)
            found += [
                Difference(*both, metric, resolution, difference)
                for both, difference in zip(combinations(names, 2), pairs, strict=True)
            ]
        return tuple(found)

    def pooled_correlations(self) -> dict[tuple[str, str], BootstrapInterval]:
        """Return the correlation of every two methods as in the first paper's table."""
        return {
            (one, other): pooled_pearson(
                self.maps[one], self.maps[other], self.groups, seed=self.seed
            )
            for one, other in combinations(self.maps, 2)
        }

    def _by_metric(self) -> dict[tuple[str, Resolution], list[Row]]:
        by_metric: dict[tuple[str, Resolution], list[Row]] = {}
        for row in self.rows:
            by_metric.setdefault((row.metric, row.resolution), []).append(row)
        return by_metric


def _columns(
    found: Iterator[Row],
) -> tuple[list[str], tuple[str, ...], Float[np.ndarray, "image method"]]:
    """Return methods, groups of images, and a metric's values, NaN where there is no row."""
    rows = list(found)
    names = list(dict.fromkeys(row.method for row in rows))
    groups = {row.image: row.group for row in rows}
    position = {image: number for number, image in enumerate(groups)}
    values = np.full((len(groups), len(names)), np.nan)
    for row in rows:
        place = position[row.image], names.index(row.method)
        if not np.isnan(values[place]):
            raise ValueError(f"{row.image} has two values of {row.metric} by {row.method}")
        values[place] = row.value
    return names, tuple(groups.values()), values


def with_intervals(
    values: Float[np.ndarray, "image figure"], groups: Sequence[str], *, seed: int
) -> dict[str, Shaped[np.ndarray, " figure"]]:
    """Return means over images as ``mean``, with ``low``, ``high`` and the number of ``images``."""
    found = mean_intervals(values, groups, seed=seed)
    ends = {"mean": "value", "low": "low", "high": "high", "images": "images"}
    return {key: np.array([getattr(each, end) for each in found]) for key, end in ends.items()}


def pooled_pearson(
    maps: Maps,
    others: Float[Tensor, "other_image other_rows other_columns"],
    groups: Sequence[str],
    *,
    seed: int = 0,
) -> BootstrapInterval:
    """Return the correlation over the patches of all images in one pool, as in the first paper.

    It mixes differences within and between images: for comparison with the published table only.
    An image with a value that isn't finite is left out; NaN where the pool of either is constant.
    """
    one, other = _standardised(as_rows(maps)), _standardised(as_rows(others))
    terms = np.stack(
        [np.ones_like(one), one, other, one * one, other * other, one * other], axis=-1
    ).sum(1)
    return interval_of_sums(terms, _correlation_of_sums, groups, seed=seed)


def _standardised(rows: Float[np.ndarray, "image cell"]) -> Float[np.ndarray, "image cell"]:
    """Return rows moved and scaled as a whole, so that sums of squares lose no digits."""
    finite = rows[~np.isnan(rows[:, 0])]
    if not finite.size:
        return rows
    centred = rows - finite.mean()
    spread = np.nanmax(np.abs(centred))
    if spread <= SMALLEST_SPREAD * np.abs(finite).max():
        return np.zeros_like(centred)
    standardised: np.ndarray = centred / spread
    return standardised


def _correlation_of_sums(sums: Float[np.ndarray, "draw 6"]) -> Float[np.ndarray, " draw"]:
    n, a, b, aa, bb, ab = sums.T
    spread = (n * aa - a * a) * (n * bb - b * b)
    found = np.full(len(sums), np.nan)
    varies = spread > 0
    found[varies] = (n * ab - a * b)[varies] / np.sqrt(spread[varies])
    return found.clip(-1, 1)
