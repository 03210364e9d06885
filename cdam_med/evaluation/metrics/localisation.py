"""Localisation: how well a map lies on the object that the readers outlined.

All measures take one map an image and how much of each of its cells lies in the object: cells are
pixels (0 or 1) or patches (a share). The same map at the two resolutions has the same share of
positive relevance and, for maps made on patches, the same pointing game; AUROC and Dice need a yes
or no for each cell, which `object_cells` gives. Where the object is empty there is no value (NaN).
A nodule in the middle of its crop proves little: a prior on the centre finds it too.
"""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from cdam_med.evaluation.metrics.division import divided
from cdam_med.evaluation.metrics.map_pooling import as_rows

HALF = 0.5
"""Share of a patch from which it counts as part of the object."""

Maps: TypeAlias = Float[Tensor, "image rows columns"]
Cells: TypeAlias = Bool[Tensor, "image rows columns"]
Values: TypeAlias = Float[np.ndarray, " image"]


def object_cells(coverage: Maps) -> Cells:
    """Tell which cells are part of the object.

    Those that it covers by half or more; of an object that covers no cell by half (a nodule of
    5 mm on patches of 4 mm), those that it covers most.

    Parameters
    ----------
    coverage : Tensor
        Share of each cell that lies in the object; a mask pooled by
        `cdam_med.evaluation.metrics.map_pooling.PatchGrid`.
    """
    most = coverage.amax((1, 2), keepdim=True)
    return (coverage >= torch.clamp(most, max=HALF)) & (most > 0)


def pointing_game(maps: Maps, coverage: Maps) -> Values:
    """Return whether the highest score lies in the object; cells that tie share the point.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop", IJCV 2018, without their
    tolerance of 15 pixels.

    Parameters
    ----------
    maps, coverage : Tensor
        Scores, and the share of each cell in the object.
    """
    scores, share = as_rows(maps), as_rows(coverage)
    highest = scores == scores.max(axis=1, keepdims=True)
    usable = _is_there(share) & highest.any(axis=1)  # NaN is equal to nothing
    hit = (share * highest).sum(axis=1)
    return divided(hit, highest.sum(axis=1), where=usable)


def positive_share(maps: Maps, coverage: Maps) -> Values:
    """Return the share of the positive relevance that lies in the object.

    A map that is the same everywhere has the object's share of the image. NaN also where a map
    has no positive score.

    Parameters
    ----------
    maps, coverage : Tensor
        Scores, and the share of each cell in the object.
    """
    positive, share = np.maximum(as_rows(maps), 0), as_rows(coverage)
    total = positive.sum(axis=1)
    usable = _is_there(share) & (total > 0)
    inside = (positive * share).sum(axis=1)
    return divided(inside, total, where=usable)


def auroc(maps: Maps, inside: Cells) -> Values:
    """Return how often a cell of the object scores higher than one beside it, ties counting half.

    Parameters
    ----------
    maps : Tensor
        Scores.
    inside : Tensor
        Cells of the object; NaN where there are none, or no others.
    """
    return np.array([_auroc(m, i) for m, i in _pairs(maps, inside)])


def best_dice(maps: Maps, inside: Cells) -> Values:
    """Return the Dice overlap of the object with the cells above a threshold, the best of all.

    Parameters
    ----------
    maps : Tensor
        Scores; equal ones are above or below a threshold together.
    inside : Tensor
        Cells of the object; NaN where there are none.
    """
    return np.array([_best_dice(m, i) for m, i in _pairs(maps, inside)])


def _is_there(share: Float[np.ndarray, "image cell"]) -> Bool[np.ndarray, " image"]:
    return np.asarray(share.max(axis=1) > 0)


def _pairs(
    maps: Maps, inside: Cells
) -> Iterator[tuple[Float[np.ndarray, " cell"], Bool[np.ndarray, " cell"]]]:
    """Return scores and cells of each image, none of the object where a score isn't finite."""
    scores, cells = as_rows(maps), inside.cpu().flatten(1).numpy()
    return zip(scores, cells & np.isfinite(scores), strict=True)


def _auroc(scores: Float[np.ndarray, " cell"], inside: Bool[np.ndarray, " cell"]) -> float:
    n_inside, n_outside = int(inside.sum()), int((~inside).sum())
    if n_inside == 0 or n_outside == 0:
        return float("nan")
    right_pairs = rankdata(scores)[inside].sum() - n_inside * (n_inside + 1) / 2
    return float(right_pairs / (n_inside * n_outside))


def _best_dice(scores: Float[np.ndarray, " cell"], inside: Bool[np.ndarray, " cell"]) -> float:
    if not inside.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(inside[order])
    taken = np.arange(1, len(scores) + 1)
    # a threshold lies only where the next score is lower
    ends = np.append(np.diff(scores[order]) != 0, True)
    return float((2 * hits / (taken + inside.sum()))[ends].max())
