"""Which pixel centres lie inside of the closed contours of one slice."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

CORNER_DIGITS = 6
"""Corners are rounded to this many digits of a pixel, so that one meant to lie on a pixel's
centre does: patient coordinates come as decimal text."""

SAME_OUTLINE = 0.25
"""Contours that lie less than this many pixels apart, on average, are one outline drawn twice."""

_MAX_CROSSINGS = 1 << 20


class Filled(NamedTuple):
    """The pixels inside of contours.

    Parameters
    ----------
    origin_ij
        Index of the first pixel of `inside`.
    inside
        Boolean (i, j): a box that holds every pixel inside.
    notes
        What the contours don't say themselves and the rule decided, of `fill_contours`.
    """

    origin_ij: Int64[np.ndarray, "2"]
    inside: Bool[np.ndarray, "i j"]
    notes: frozenset[str] = frozenset()


def fill_contours(
    contours: Sequence[Float64[np.ndarray, "_ 2"]], shape: tuple[int, int], *, is_xor: bool
) -> Filled:
    """Return the pixels of a grid whose centres lie inside of the contours of a region.

    PS3.3 C.8.8.6.3 knows two ways to leave something out: a channel within a single contour
    ("keyhole"), and contours of type CLOSEDPLANAR_XOR, which are combined by exclusive
    disjunction. It doesn't say how several contours of type CLOSED_PLANAR are combined. Here,
    those that overlap or are the same outline are united; then one within another is a hole, and
    one within a hole an island. What a contour that winds around a pixel twice encloses is left
    out (a keyhole in the outline's own direction); but one traced twice as a whole is filled.

    Of a centre exactly on an edge, those on the low side (smaller i or j) are in and those on
    the high side out, so that contours that share an edge share no pixel.

    Parameters
    ----------
    contours
        Corners in order as fractional pixel indices (i, j), at least three each; the last joins
        the first.
    shape
        Of the grid; what reaches beyond is cut.
    is_xor
        Whether one of them is of type CLOSEDPLANAR_XOR; it is combined so with all others.

    Returns
    -------
    Filled
        Its notes: ``united``, ``hole``, ``winding``.

    Examples
    --------
    >>> square = np.array([[0.5, 0.5], [2.5, 0.5], [2.5, 2.5], [0.5, 2.5]])
    >>> filled = fill_contours([square, square], (9, 9), is_xor=False)
    >>> int(filled.inside.sum()), filled.origin_ij.tolist(), sorted(filled.notes)
    (4, [0, 0], ['united'])
    """
    parts = [_fill_contour(contour, shape) for contour in contours]
    notes = set().union(*(part.notes for part in parts))
    groups = np.arange(len(parts)) if is_xor else _groups(contours, parts)
    if len(set(groups.tolist())) < len(parts):
        notes.add("united")
    low = np.min([part.origin_ij for part in parts], axis=0)
    high = np.max([part.origin_ij + part.inside.shape for part in parts], axis=0)
    result = np.zeros(high - low, np.bool_)
    for group in range(groups.max() + 1):
        united = np.zeros_like(result)
        for number in np.flatnonzero(groups == group):
            i, j = parts[number].origin_ij - low
            size_i, size_j = parts[number].inside.shape
            united[i : i + size_i, j : j + size_j] |= parts[number].inside
        if not is_xor and (result & united).any():
            notes.add("hole")
        result ^= united
    return Filled(low, result, frozenset(notes))


def _groups(
    contours: Sequence[Float64[np.ndarray, "_ 2"]], parts: Sequence[Filled]
) -> Int64[np.ndarray, " contour"]:
    """Return, for each contour, the number of those that it is united with."""
    low = np.array([part.origin_ij for part in parts])
    high = low + np.array([part.inside.shape for part in parts])
    meet = (low[:, np.newaxis] < high).all(axis=-1)
    sizes = [int(part.inside.sum()) for part in parts]
    edges = [np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1) for corners in contours]
    pairs = []
    for pair in np.argwhere(np.triu(meet & meet.T, 1)).tolist():
        inner, outer = sorted(pair, key=sizes.__getitem__)
        shared = _count_shared(parts[inner], parts[outer])
        is_same = sizes[outer] - sizes[inner] <= SAME_OUTLINE * edges[inner].sum()
        if shared and (shared < sizes[inner] or is_same):
            pairs.append(pair)
    a, b = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(a)), (a, b)), (len(parts), len(parts)))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _count_shared(first: Filled, other: Filled) -> int:
    low = np.maximum(first.origin_ij, other.origin_ij)
    high = np.minimum(first.origin_ij + first.inside.shape, other.origin_ij + other.inside.shape)
    return int(np.count_nonzero(_cut(first, low, high) & _cut(other, low, high)))


def _cut(part: Filled, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    (i, j), (end_i, end_j) = low - part.origin_ij, high - part.origin_ij
    return part.inside[i:end_i, j:end_j]


def _fill_contour(corners: Float64[np.ndarray, "_ 2"], shape: tuple[int, int]) -> Filled:
    """Return the pixels that a contour winds around an odd number of times."""
    starts = np.round(corners, CORNER_DIGITS)
    ends = np.roll(starts, -1, axis=0)
    limit = np.array(shape)
    low = np.clip(np.floor(starts.min(axis=0)), 0, limit).astype(np.int64)
    high = np.clip(np.ceil(starts.max(axis=0)) + 1, low, limit).astype(np.int64)
    size_i, size_j = (int(n) for n in high - low)
    crossed = np.zeros((size_i + 1, size_j), np.int64)
    for i, j, turn in _crossings(starts, ends, int(low[1]), int(high[1])):
        column = np.clip(i - low[0], 0, size_i)
        np.add.at(crossed, (column, j - low[1]), turn)
    turns = np.cumsum(crossed, axis=0)[:-1]
    inside = turns % 2 == 1
    if not inside.any():
        inside = turns != 0
    is_wound = bool((np.abs(turns) > 1).any())
    return Filled(low, inside, frozenset({"winding"} if is_wound else ()))


def _crossings(
    starts: np.ndarray, ends: np.ndarray, first_row: int, end_row: int
) -> Iterator[tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]]:
    """Yield, for each edge and each row j that it crosses, the first pixel i not left of it.

    With it goes the edge's direction: 1 up, -1 down.
    """
    is_up = (starts[:, 1] < ends[:, 1])[:, np.newaxis]
    lower, upper = np.where(is_up, starts, ends), np.where(is_up, ends, starts)
    # an edge crosses the rows from its lower end up to, not including, its upper end
    first = np.clip(np.ceil(lower[:, 1]), first_row, end_row).astype(np.int64)
    n_rows = np.clip(np.ceil(upper[:, 1]), first_row, end_row).astype(np.int64) - first
    edges = np.flatnonzero(n_rows > 0)
    turn = np.where(is_up[:, 0], 1, -1)
    # in parts, as a hostile file may hold a million edges that all cross every row
    per_part = max(1, _MAX_CROSSINGS // max(1, end_row - first_row))
    for part in range(0, len(edges), per_part):
        some = edges[part : part + per_part]
        edge = np.repeat(some, n_rows[some])
        before = np.cumsum(n_rows[some]) - n_rows[some]
        j = np.arange(len(edge)) - np.repeat(before, n_rows[some]) + first[edge]
        slope = (upper[edge, 0] - lower[edge, 0]) / (upper[edge, 1] - lower[edge, 1])
        i = lower[edge, 0] + (j - lower[edge, 1]) * slope
        yield np.ceil(np.round(i, CORNER_DIGITS + 3)).astype(np.int64), j, turn[edge]
