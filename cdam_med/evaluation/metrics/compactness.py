"""Compactness: how much of a map is close to zero. And what a map costs.

The published share under 5 % of the maximum rewards a single spike: one very large score makes
all others small. So Gini's index and the entropy stand beside it, which look at all scores. None
of them knows whether a map is right.

All are NaN for a map that is zero everywhere, which would otherwise be the most compact of all,
or holds a value that isn't finite.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float

from cdam_med.evaluation.experiment import Explanations, Groups, MetricValues
from cdam_med.evaluation.maps import Maps, Values, as_rows

Rule = Literal["absolute maximum", "signed maximum"]


def small_share(maps: Maps, *, rule: Rule = "absolute maximum", threshold: float = 0.05) -> Values:
    """Return the share of scores that are small beside the largest; the higher, the more compact.

    ``|s| <= threshold max |s|``, as in the CDAM authors' later code, or ``|s| < threshold max s``,
    as in the first paper (arXiv 2312.02364v1, section 4.3), where the share is 0 if no score is
    positive.
    """
    rows = _usable(as_rows(maps))
    sizes = np.abs(rows)
    if rule == "signed maximum":
        small = sizes < threshold * rows.max(1, keepdims=True)
    else:
        small = sizes <= threshold * sizes.max(1, keepdims=True)
    return np.where(np.isnan(rows[:, 0]), np.nan, small.mean(1))


def gini(maps: Maps) -> Values:
    """Return Gini's index of the sizes of scores, from 0 to ``1 - 1 / n`` for ``n`` scores.

    Hurley and Rickard, "Comparing measures of sparsity", IEEE Transactions on Information Theory
    55, 2009.
    """
    shares = np.sort(_shares(maps), axis=1)
    count = shares.shape[1]
    index: np.ndarray = (shares * (2 * np.arange(1, count + 1) - count - 1)).sum(1) / count
    return index


def entropy(maps: Maps) -> Values:
    """Return the normalised entropy of the sizes of scores; the lower, the more compact.

    ``-sum p ln p / ln n`` of the shares ``p`` that ``n`` scores have in the sum of their sizes; NaN
    for maps of a single score.
    """
    shares = _shares(maps)
    if shares.shape[1] == 1:
        return np.full(len(shares), np.nan)
    # p ln p is 0 at 0
    logs = np.log(np.where(shares == 0, 1.0, shares))
    found: np.ndarray = -(shares * logs).sum(1) / np.log(shares.shape[1])
    return found.clip(0, 1)


def _shares(maps: Maps) -> Float[np.ndarray, "image cell"]:
    sizes = np.abs(_usable(as_rows(maps)))
    sizes = sizes / sizes.max(1, keepdims=True)  # so that the sum of very large sizes is finite
    shares: np.ndarray = sizes / sizes.sum(1, keepdims=True)
    return shares


def _usable(rows: Float[np.ndarray, "image cell"]) -> Float[np.ndarray, "image cell"]:
    """Return rows with NaN throughout those that have no compactness."""
    return np.where((rows != 0).any(1, keepdims=True), rows, np.nan)


def _compactness(
    explanations: Explanations, figure: Callable[[Maps], Values]
) -> Iterator[MetricValues]:
    for resolution, maps in explanations.at_resolutions():
        yield MetricValues(figure(maps), resolution, explanations.examples)


def _seconds(explanations: Explanations) -> Iterator[MetricValues]:
    resolution = explanations.method.resolution
    yield MetricValues(explanations.seconds, resolution, explanations.examples)


GROUPS: Groups = {
    "cost": {"seconds": _seconds},
    "compactness": {
        "small_share": partial(_compactness, figure=small_share),
        "small_share_v1": partial(_compactness, figure=partial(small_share, rule="signed maximum")),
        "gini": partial(_compactness, figure=gini),
        "entropy": partial(_compactness, figure=entropy),
    },
}
