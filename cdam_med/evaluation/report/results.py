"""What came of judging estimators: the long table, and its summary with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cdam_med.attribution.estimator import Estimator, Resolution
from cdam_med.evaluation.examples import Examples
from cdam_med.evaluation.intervals import (
    BootstrapInterval,
    PairedDifference,
    mean_intervals,
    paired_difference,
    paired_differences,
)
from cdam_med.evaluation.metrics.class_sensitivity import TargetCorrelations

REFERENCE = "cdam"
"""What other estimators are compared with."""


LEAST_GROUPS = 6
"""Groups from which an interval may say that two estimators differ: the differences of five have
all one sign by chance in one case of sixteen."""


class Row(NamedTuple):
    """One value of one image.

    Parameters
    ----------
    estimator, metric : str
        Names.
    resolution : {"patch", "pixel"}
        Of the maps that were measured.
    image, group, label : str
        Of the image.
    value : float
        NaN where the image has none.
    """

    estimator: str
    metric: str
    resolution: Resolution
    image: str
    group: str
    label: str
    value: float


class LeftOut(NamedTuple):
    """What couldn't be done, and why.

    Parameters
    ----------
    estimator : str
        Name of the estimator.
    measure : str
        Name of the measure; ``""`` where the estimator made no maps at all.
    reason : str
        One sentence or two.
    """

    estimator: str
    measure: str
    reason: str


class PooledCorrelation(NamedTuple):
    """Correlation of two estimators over the patches of all images in one pool.

    Parameters
    ----------
    one, other : str
        Names of the estimators.
    interval : BootstrapInterval
        The correlation.
    """

    one: str
    other: str
    interval: BootstrapInterval


@dataclass(frozen=True, eq=False)
class Curves:
    """Mean raw output over the images while more and more is replaced.

    Parameters
    ----------
    shares : ndarray
        Share that is replaced.
    most_first, most_first_low, most_first_high : ndarray
        Mean output and the ends of its interval, the most important parts first.
    least_first, least_first_low, least_first_high : ndarray
        The same, the least important parts first.
    """

    shares: Float[np.ndarray, " step"]
    most_first: Float[np.ndarray, " step"]
    most_first_low: Float[np.ndarray, " step"]
    most_first_high: Float[np.ndarray, " step"]
    least_first: Float[np.ndarray, " step"]
    least_first_low: Float[np.ndarray, " step"]
    least_first_high: Float[np.ndarray, " step"]


@dataclass(frozen=True, eq=False)
class ShownMaps:
    """Maps of a few images, to be looked at.

    Parameters
    ----------
    examples : Examples
        The images.
    targets : tuple of str or int
        What each was explained for.
    maps : mapping of str to Tensor
        By estimator, at its own resolution.
    """

    examples: Examples
    targets: tuple[str | int, ...]
    maps: Mapping[str, Float[Tensor, "image _rows _columns"]]


@dataclass(frozen=True)
class SummaryRow:
    """A metric of an estimator.

    Parameters
    ----------
    estimator, metric : str
        Names.
    resolution : {"patch", "pixel"}
        Of the maps that were measured.
    label : str
        Class of the images it is of; ``""`` for all.
    interval : BootstrapInterval
        Mean over images.
    difference : PairedDifference or None
        Mean difference from the reference on the same images; None for the reference itself, or
        where the reference has no such metric.
    """

    estimator: str
    metric: str
    resolution: Resolution
    label: str
    interval: BootstrapInterval
    difference: PairedDifference | None

    @property
    def differs(self) -> bool:
        """Whether its difference from the reference has an interval that doesn't hold 0."""
        difference = self.difference
        return (
            difference is not None
            and difference.groups >= LEAST_GROUPS
            and (difference.low > 0 or difference.high < 0)
        )


class Difference(NamedTuple):
    """How far two estimators differ in a metric, on the same images.

    Parameters
    ----------
    one, other : str
        Names of the estimators.
    metric : str
        Name of the metric.
    resolution : {"patch", "pixel"}
        Of the maps that were measured.
    difference : PairedDifference
        Mean of the first minus the second.
    """

    one: str
    other: str
    metric: str
    resolution: Resolution
    difference: PairedDifference


@dataclass(frozen=True, eq=False)
class Results:
    """All that was measured.

    Parameters
    ----------
    estimators : tuple of Estimator
        Those that made maps, in order.
    rows : tuple of Row
        The long table.
    left_out : tuple of LeftOut
        What couldn't be done.
    curves : mapping of str to Curves
        Mean perturbation curves by estimator, where they were asked for.
    matrices : mapping of str to TargetCorrelations
        Correlations between targets by estimator, where they were asked for.
    pooled : tuple of PooledCorrelation
        Of every two estimators.
    shown : ShownMaps
        Maps of the first images.
    seed : int
        Of everything random.
    """

    estimators: tuple[Estimator, ...]
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    curves: Mapping[str, Curves]
    matrices: Mapping[str, TargetCorrelations]
    pooled: tuple[PooledCorrelation, ...]
    shown: ShownMaps
    seed: int

    def summary(self, *, reference: str = REFERENCE) -> tuple[SummaryRow, ...]:
        """Return means with intervals, over all images and label by label.

        Parameters
        ----------
        reference : str
            Name of the estimator that others are compared with; without effect where it wasn't
            judged.
        """
        found: list[SummaryRow] = []
        for (metric, resolution), rows in self._by_metric().items():
            labels = sorted({row.label for row in rows if row.label})
            for label in ("", *labels) if len(labels) > 1 else ("",):
                kept = [row for row in rows if label in ("", row.label)]
                found += self._summarised(metric, resolution, label, kept, reference)
        return tuple(found)

    def differences(self) -> tuple[Difference, ...]:
        """Return the mean difference of every two estimators in each metric, over all images."""
        found: list[Difference] = []
        for (metric, resolution), rows in self._by_metric().items():
            names, groups, values = _columns(rows)
            pairs = paired_differences(values, groups, seed=self.seed)
            found += [
                Difference(*both, metric, resolution, difference)
                for both, difference in zip(combinations(names, 2), pairs, strict=True)
            ]
        return tuple(found)

    def _by_metric(self) -> dict[tuple[str, Resolution], list[Row]]:
        by_metric: dict[tuple[str, Resolution], list[Row]] = {}
        for row in self.rows:
            by_metric.setdefault((row.metric, row.resolution), []).append(row)
        return by_metric

    def _summarised(
        self,
        metric: str,
        resolution: Resolution,
        label: str,
        rows: Sequence[Row],
        reference: str,
    ) -> list[SummaryRow]:
        names, groups, values = _columns(rows)
        intervals = mean_intervals(values, groups, seed=self.seed)
        base = values[:, names.index(reference)] if reference in names else None
        return [
            SummaryRow(
                estimator=name,
                metric=metric,
                resolution=resolution,
                label=label,
                interval=interval,
                difference=None
                if base is None or name == reference
                else paired_difference(column, base, groups, seed=self.seed),
            )
            for name, interval, column in zip(names, intervals, values.T, strict=True)
        ]


def _columns(
    rows: Sequence[Row],
) -> tuple[list[str], tuple[str, ...], Float[np.ndarray, "image estimator"]]:
    """Return estimators, groups of images, and a metric's values, NaN where there is no row."""
    names = list(dict.fromkeys(row.estimator for row in rows))
    groups = {row.image: row.group for row in rows}
    position = {image: number for number, image in enumerate(groups)}
    values = np.full((len(groups), len(names)), np.nan)
    for row in rows:
        place = position[row.image], names.index(row.estimator)
        if not np.isnan(values[place]):
            raise ValueError(f"{row.image} has two values of {row.metric} by {row.estimator}")
        values[place] = row.value
    return names, tuple(groups.values()), values
