"""Correlation of the scores of one image, many images at once; never over images."""

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

SMALLEST_SPREAD = 1e-9
"""Numbers whose range is below this share of their largest size are taken as all the same.

Sums of equal scores differ by rounding, which would correlate with anything.
"""


def pearson(
    one: Float[np.ndarray, "row sample"], other: Float[np.ndarray, "row sample"]
) -> Float[np.ndarray, " row"]:
    """Return Pearson's correlation of each row of two arrays.

    Parameters
    ----------
    one, other : ndarray
        A row for each image.

    Returns
    -------
    ndarray
        From -1 to 1; NaN where either row is constant or holds a value that isn't finite.
    """
    found: np.ndarray = (unit_rows(one) * unit_rows(other)).sum(-1)
    return found.clip(-1, 1)


def spearman(
    one: Float[np.ndarray, "row sample"], other: Float[np.ndarray, "row sample"]
) -> Float[np.ndarray, " row"]:
    """Return Spearman's correlation of each row of two arrays; tied values share their mean rank.

    Parameters
    ----------
    one, other : ndarray
        A row for each image.

    Returns
    -------
    ndarray
        From -1 to 1; NaN where either row is constant or holds a value that isn't finite.
    """
    return pearson(_ranks(one), _ranks(other))


def unit_rows(values: Float[np.ndarray, "*row sample"]) -> Float[np.ndarray, "*row sample"]:
    """Return rows of mean 0 and length 1: the product of two is their correlation.

    Parameters
    ----------
    values : ndarray
        Rows along the last axis.

    Returns
    -------
    ndarray
        In float64; NaN throughout rows that are constant or hold a value that isn't finite.
    """
    wide = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(wide).all(-1, keepdims=True)
    wide = np.where(finite, wide, 0.0)
    largest = np.abs(wide).max(-1, keepdims=True)
    varies = finite & (np.ptp(wide, axis=-1, keepdims=True) > SMALLEST_SPREAD * largest)
    # scaled first, so that the squares of very small scores don't vanish
    scaled = wide / np.where(varies, largest, 1.0)
    centred = scaled - scaled.mean(-1, keepdims=True)
    length = np.sqrt((centred**2).sum(-1, keepdims=True))
    unit: np.ndarray = np.where(varies, centred / np.where(varies, length, 1.0), np.nan)
    return unit


def _ranks(values: Float[np.ndarray, "row sample"]) -> Float[np.ndarray, "row sample"]:
    ranks: np.ndarray = rankdata(values, axis=-1)
    return np.where(np.isfinite(values).all(-1, keepdims=True), ranks, np.nan)
