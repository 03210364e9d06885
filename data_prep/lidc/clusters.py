"""Which readers' outlines show the same nodule: pylidc's rule, without its cost."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

MAX_READERS = 4
"""Readers of each LIDC-IDRI scan, so the most outlines that one nodule can have."""

_SHRINK = 0.9
_SMALLEST_TOLERANCE = 0.1


class Clusters(NamedTuple):
    """Outlines grouped into nodules.

    Parameters
    ----------
    groups
        Numbers of the outlines (in the order given) that show the same nodule; every outline is
        in one group.
    ambiguous
        Whether a group of more than `MAX_READERS` outlines is left that couldn't be divided.
    """

    groups: tuple[tuple[int, ...], ...]
    ambiguous: bool


def cluster_outlines(
    points_ijk: Sequence[Int64[np.ndarray, "_ 3"]], slice_thickness_mm: float
) -> Clusters:
    """Group outlines as pylidc 0.2.3 does (``Scan.cluster_annotations``, default arguments).

    Two outlines touch if their closest points are no farther apart than a tolerance, and
    outlines that touch, directly or through others, are one nodule. The tolerance starts at the
    slice thickness and shrinks by a tenth at a time, down to 0.1, while a nodule has more than
    four outlines.

    The distance is between voxel *indices* (column, row, slice), although the tolerance is in
    millimetres: so pylidc measures, and nodules counted otherwise would not be those of the
    literature.

    Parameters
    ----------
    points_ijk
        For each outline its points as voxel indices, shape (point, 3).
    slice_thickness_mm
        Start of the tolerance.

    Returns
    -------
    Clusters
        The groups don't depend on the order of the outlines.
    """
    if not points_ijk:
        return Clusters((), ambiguous=False)
    tolerance = slice_thickness_mm
    pairs = list(_close_pairs(points_ijk, tolerance))
    groups = _connected(len(points_ijk), pairs, tolerance)
    while max(map(len, groups)) > MAX_READERS:
        tolerance *= _SHRINK
        if tolerance < _SMALLEST_TOLERANCE:
            return Clusters(groups, ambiguous=True)
        groups = _connected(len(points_ijk), pairs, tolerance)
    return Clusters(groups, ambiguous=False)


class _Pair(NamedTuple):
    first: int
    second: int
    distance: float


def _close_pairs(
    points_ijk: Sequence[Int64[np.ndarray, "_ 3"]], tolerance: float
) -> Iterator[_Pair]:
    """Find the pairs of outlines that may touch; pairs farther apart never will."""
    low = np.array([points.min(axis=0) for points in points_ijk])
    high = np.array([points.max(axis=0) for points in points_ijk])
    trees: dict[int, KDTree] = {}
    for first in range(len(points_ijk)):
        gaps = np.maximum(low[first] - high[first + 1 :], low[first + 1 :] - high[first])
        box_distances = np.linalg.norm(np.maximum(gaps, 0), axis=1)
        for second in (first + 1 + np.flatnonzero(box_distances <= tolerance)).tolist():
            if first not in trees:
                trees[first] = KDTree(points_ijk[first])
            nearest, _ = trees[first].query(points_ijk[second], distance_upper_bound=tolerance + 1)
            yield _Pair(first, second, float(nearest.min()))


def _connected(
    n_outlines: int, pairs: Sequence[_Pair], tolerance: float
) -> tuple[tuple[int, ...], ...]:
    """Return the connected components of the graph of outlines that touch."""
    edges = np.array(
        [(pair.first, pair.second) for pair in pairs if pair.distance <= tolerance], dtype=np.int64
    ).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (n_outlines, n_outlines))
    n_groups, labels = connected_components(graph, directed=False)
    return tuple(tuple(np.flatnonzero(labels == label).tolist()) for label in range(n_groups))
