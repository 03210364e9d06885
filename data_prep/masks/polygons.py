"""Which pixel centres lie inside of polygons with fractional corners."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64

CORNER_DIGITS = 6
"""Corners are rounded to this many digits of a pixel, so that one meant to lie on a pixel's
centre does: patient coordinates come as decimal text."""

_MAX_CROSSINGS = 1 << 20


def fill_polygons(
    polygons: Sequence[Float64[np.ndarray, "_ 2"]], shape: tuple[int, int]
) -> tuple[Bool[np.ndarray, "i j"], Int64[np.ndarray, "2"]]:
    """Return the pixels of a grid whose centres lie inside of polygons (even-odd rule).

    A pixel inside of an even number of the polygons is out: a polygon within another is a hole.
    Of a centre exactly on an edge, those on the low side (smaller i or j) are in and those on
    the high side out, so that polygons that share an edge share no pixel.

    Parameters
    ----------
    polygons
        Corners in order as fractional pixel indices (i, j), at least three each; the last joins
        the first.
    shape
        Of the grid; what reaches beyond is cut.

    Returns
    -------
    tuple of ndarray
        The pixels of a box that holds them all, and the index of the box's first pixel.

    Examples
    --------
    >>> square = np.array([[0.5, 0.5], [2.5, 0.5], [2.5, 2.5], [0.5, 2.5]])
    >>> inside, origin_ij = fill_polygons([square], (9, 9))
    >>> int(inside.sum()), (np.argwhere(inside) + origin_ij).tolist()[0]
    (4, [1, 1])
    """
    starts = np.round(np.vstack(polygons), CORNER_DIGITS)
    ends = np.vstack([np.roll(polygon, -1, axis=0) for polygon in polygons])
    ends = np.round(ends, CORNER_DIGITS)
    limit = np.array(shape)
    low = np.clip(np.floor(starts.min(axis=0)), 0, limit).astype(np.int64)
    high = np.clip(np.ceil(starts.max(axis=0)) + 1, low, limit).astype(np.int64)
    size_i, size_j = (int(n) for n in high - low)
    crossed = np.zeros((size_i + 1, size_j), dtype=np.bool_)
    for i, j in _crossings(starts, ends, int(low[1]), int(high[1])):
        column = np.clip(i - low[0], 0, size_i)
        np.logical_xor.at(crossed, (column, j - low[1]), True)
    inside = np.logical_xor.accumulate(crossed, axis=0)[:-1]
    return inside, low


def _crossings(
    starts: np.ndarray, ends: np.ndarray, first_row: int, end_row: int
) -> Iterator[tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]]:
    """Yield, for each edge and each row j that it crosses, the first pixel i not left of it."""
    is_up = (starts[:, 1] < ends[:, 1])[:, np.newaxis]
    lower, upper = np.where(is_up, starts, ends), np.where(is_up, ends, starts)
    # an edge crosses the rows from its lower end up to, not including, its upper end
    first = np.clip(np.ceil(lower[:, 1]), first_row, end_row).astype(np.int64)
    n_rows = np.clip(np.ceil(upper[:, 1]), first_row, end_row).astype(np.int64) - first
    edges = np.flatnonzero(n_rows > 0)
    # in parts, as a hostile file may hold a million edges that all cross every row
    per_part = max(1, _MAX_CROSSINGS // max(1, end_row - first_row))
    for part in range(0, len(edges), per_part):
        some = edges[part : part + per_part]
        edge = np.repeat(some, n_rows[some])
        before = np.cumsum(n_rows[some]) - n_rows[some]
        j = np.arange(len(edge)) - np.repeat(before, n_rows[some]) + first[edge]
        slope = (upper[edge, 0] - lower[edge, 0]) / (upper[edge, 1] - lower[edge, 1])
        i = lower[edge, 0] + (j - lower[edge, 1]) * slope
        yield np.ceil(np.round(i, CORNER_DIGITS + 3)).astype(np.int64), j
