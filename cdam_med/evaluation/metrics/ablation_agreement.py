"""Correctness by token ablation: does a map rank patches as taking them away one by one does.

Brocki, Binda and Chung, arXiv 2312.02364 section 4.3 and figure 6, correlate the scores of a
thousand images in one pool. That mixes what is asked, which patches of an image matter, with how
large the scores of an image are as a whole, though maps are not comparable in size between images.
So correlations are taken image by image here; the pooled one is kept, under its own name, for the
paper's first table.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cdam_med.evaluation.intervals import BootstrapInterval, interval_of_sums
from cdam_med.evaluation.metrics.correlation import SMALLEST_SPREAD, pearson, spearman
from cdam_med.evaluation.metrics.map_pooling import as_rows
from data_prep.errors import InputError


def agreement(
    maps: Float[Tensor, "image rows columns"],
    ablation: Float[Tensor, "other_image other_rows other_columns"],
    *,
    kind: Literal["pearson", "spearman"] = "pearson",
) -> Float[np.ndarray, " image"]:
    """Return the correlation of two maps of each image, at the patch grid.

    Parameters
    ----------
    maps : Tensor
        Maps of an estimator; pixel maps pooled (`cdam_med.evaluation.metrics.map_pooling`).
    ablation : Tensor
        `token_ablation` maps of the same images and targets.
    kind : {"pearson", "spearman"}
        Correlation of scores, or of their ranks.

    Returns
    -------
    ndarray
        NaN where either map is constant or holds a value that isn't finite.

    Raises
    ------
    InputError
        If the maps aren't of the same form.
    """
    _check(maps, ablation)
    correlation = pearson if kind == "pearson" else spearman
    return correlation(as_rows(maps), as_rows(ablation))


def pooled_pearson(
    maps: Float[Tensor, "image rows columns"],
    others: Float[Tensor, "other_image other_rows other_columns"],
    groups: Sequence[str],
    *,
    seed: int = 0,
) -> BootstrapInterval:
    """Return the correlation over the patches of all images in one pool, as in the first paper.

    It mixes differences within and between images: for comparison with the published table only.

    Parameters
    ----------
    maps, others : Tensor
        Maps of two estimators of the same images and targets, at the patch grid. An image with a
        value that isn't finite is left out.
    groups : sequence of str
        Group of each image, for the interval.
    seed : int
        Of the bootstrap.

    Returns
    -------
    BootstrapInterval
        NaN where the pool of either is constant.

    Raises
    ------
    InputError
        If the maps aren't of the same form.
    """
    _check(maps, others)
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


def _check(maps: Tensor, others: Tensor) -> None:
    if maps.shape != others.shape:
        raise InputError(
            f"Maps of {tuple(maps.shape)} can't be compared with maps of {tuple(others.shape)}: "
            "pool pixel maps to the patch grid, and give both of the same images."
        )
