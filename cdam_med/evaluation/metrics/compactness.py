"""Compactness: how much of a map is close to zero.

The published share under 5 % of the maximum rewards a single spike: one very large score makes
all others small. So Gini's index and the entropy stand beside it, which look at all scores. None
of them knows whether a map is right. Pixel maps and patch maps have unlike numbers of scores and
are compared after pooling (`cdam_med.evaluation.metrics.map_pooling`).

All are NaN for a map that is zero everywhere, which would otherwise be the most compact of all,
or holds a value that isn't finite.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cdam_med.evaluation.metrics.map_pooling import as_rows


def small_share(
    maps: Float[Tensor, "image rows columns"],
    *,
    rule: Literal["absolute maximum", "signed maximum"] = "absolute maximum",
    threshold: float = 0.05,
) -> Float[np.ndarray, " image"]:
    """Return the share of scores that are small beside the largest; the higher, the more compact.

    Parameters
    ----------
    maps : Tensor
        Map of the explained target of each image.
    rule : {"absolute maximum", "signed maximum"}
        ``|s| <= threshold max |s|``, as in the CDAM authors' later code, or ``|s| < threshold
        max s``, as in the first paper (arXiv 2312.02364v1, section 4.3), where the share is 0
        if no score is positive.
    threshold : float
        Share of the maximum.

    Returns
    -------
    ndarray
        From 0 to 1; NaN as the module says.
    """
    rows = _usable(as_rows(maps))
    sizes = np.abs(rows)
    if rule == "signed maximum":
        small = sizes < threshold * rows.max(1, keepdims=True)
    else:
        small = sizes <= threshold * sizes.max(1, keepdims=True)
    return np.where(np.isnan(rows[:, 0]), np.nan, small.mean(1))


def gini(maps: Float[Tensor, "image rows columns"]) -> Float[np.ndarray, " image"]:
    """Return Gini's index of the sizes of scores; the higher, the more compact.

    Hurley and Rickard, "Comparing measures of sparsity", IEEE Transactions on Information Theory
    55, 2009.

    Parameters
    ----------
    maps : Tensor
        Map of the explained target of each image.

    Returns
    -------
    ndarray
        0 where all scores have one size, ``1 - 1 / n`` where one of ``n`` has it all; NaN as the
        module says.
    """
    shares = np.sort(_shares(maps), axis=1)
    count = shares.shape[1]
    index: np.ndarray = (shares * (2 * np.arange(1, count + 1) - count - 1)).sum(1) / count
    return index


def entropy(maps: Float[Tensor, "image rows columns"]) -> Float[np.ndarray, " image"]:
    """Return the normalised entropy of the sizes of scores; the lower, the more compact.

    ``-sum p ln p / ln n`` of the shares ``p`` that ``n`` scores have in the sum of their sizes.

    Parameters
    ----------
    maps : Tensor
        Map of the explained target of each image.

    Returns
    -------
    ndarray
        0 where one score has it all, 1 where all have one size; NaN as the module says, and for
        maps of a single score.
    """
    shares = _shares(maps)
    if shares.shape[1] == 1:
        return np.full(len(shares), np.nan)
    # p ln p is 0 at 0
    logs = np.log(np.where(shares == 0, 1.0, shares))
    found: np.ndarray = -(shares * logs).sum(1) / np.log(shares.shape[1])
    return found.clip(0, 1)


def _shares(maps: Float[Tensor, "image rows columns"]) -> Float[np.ndarray, "image cell"]:
    sizes = np.abs(_usable(as_rows(maps)))
    sizes = sizes / sizes.max(1, keepdims=True)  # so that the sum of very large sizes is finite
    shares: np.ndarray = sizes / sizes.sum(1, keepdims=True)
    return shares


def _usable(rows: Float[np.ndarray, "image cell"]) -> Float[np.ndarray, "image cell"]:
    """Return rows with NaN throughout those that have no compactness."""
    return np.where((rows != 0).any(1, keepdims=True), rows, np.nan)
