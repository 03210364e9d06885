"""What one reader drew around one nodule: contours, the voxels inside, the diameter.

A LIDC-IDRI contour runs through the first pixels *outside* the nodule, so the pixels on it
don't belong to the nodule (pylidc's ``Annotation.boolean_mask`` takes it so as well).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.spatial.distance import pdist

from data_prep.nodules import MaskBox


@dataclass(frozen=True, eq=False)
class Contour:
    """A closed polygon on one slice.

    Parameters
    ----------
    points_ij
        Corners in order, (column, row) voxel indices; the last joins the first.
    k
        Index of the slice.
    inclusion
        True: what lies inside belongs to the nodule. False: it is cut out of the nodule.
    """

    points_ij: Int64[np.ndarray, "point 2"]
    k: int
    inclusion: bool = True


@dataclass(frozen=True, eq=False)
class Outline:
    """One reader's contours and ratings of one nodule.

    Parameters
    ----------
    contours
        At least one.
    ratings
        Integers by name, see `data_prep.lidc.ratings.RATING_RANGES`.
    reading_session
        Number of the reader in the file, from 1; None where the source doesn't say.
    """

    contours: tuple[Contour, ...]
    ratings: Mapping[str, int]
    reading_session: int | None = None

    @property
    def points_ijk(self) -> Int64[np.ndarray, "point 3"]:
        """All corners of all contours as voxel indices, shape (point, 3)."""
        return np.vstack(
            [
                np.column_stack([contour.points_ij, np.full(len(contour.points_ij), contour.k)])
                for contour in self.contours
            ]
        )


def diameter_mm(outline: Outline, spacing_ij_mm: Float64[np.ndarray, "2"]) -> float:
    """Return the greatest distance between two corners of one contour.

    That is pylidc's ``Annotation.diameter``: axial, between points on the contour, the line may
    leave the nodule, and contours that cut out count as well.

    Parameters
    ----------
    outline
        The reader's outline.
    spacing_ij_mm
        Distance between columns and between rows.

    Returns
    -------
    float
        Millimetres; 0 if every contour is a single point.
    """
    spans = (
        pdist(contour.points_ij * spacing_ij_mm).max()
        for contour in outline.contours
        if len(contour.points_ij) > 1
    )
    return float(max(spans, default=0.0))


def rasterise(outline: Outline, grid_shape: tuple[int, int, int]) -> MaskBox | None:
    """Return the voxels that belong to the nodule, or None if the outline encloses none.

    A voxel belongs to it if its centre lies inside an inclusion contour of its slice (even-odd
    rule) and neither on that contour nor inside or on an exclusion contour. pylidc 0.2.3 gives
    the same voxels but for a few in a million: where a contour jumps over pixels, those on
    the line between its corners count as on the contour here; and where two inclusion contours
    of a slice overlap, their order doesn't matter here.

    Parameters
    ----------
    outline
        The reader's outline; its points must lie on the grid.
    grid_shape
        Shape (i, j, k) of the volume.
    """
    points = outline.points_ijk
    first = points.min(axis=0)
    included = np.zeros(points.max(axis=0) - first + 1, dtype=np.bool_)
    excluded = np.zeros_like(included)
    for contour in outline.contours:
        inside, on_contour, origin_ij = _inside_and_on(contour.points_ij)
        target = included if contour.inclusion else excluded
        i, j = origin_ij - first[:2]
        window = target[i : i + inside.shape[0], j : j + inside.shape[1], contour.k - first[2]]
        window |= inside & ~on_contour if contour.inclusion else inside | on_contour
    return trimmed_box(included & ~excluded, first, grid_shape)


def trimmed_box(
    voxels: Bool[np.ndarray, "i j k"],
    origin_ijk: Int64[np.ndarray, "3"],
    grid_shape: tuple[int, int, int],
) -> MaskBox | None:
    """Return the smallest box that holds all true voxels, or None if there are none."""
    filled = np.argwhere(voxels)
    if not len(filled):
        return None
    low, high = filled.min(axis=0), filled.max(axis=0)
    i, j, k = (slice(a, b + 1) for a, b in zip(low, high, strict=True))
    first_i, first_j, first_k = (origin_ijk + low).tolist()
    return MaskBox((first_i, first_j, first_k), voxels[i, j, k], grid_shape)


def _inside_and_on(
    points_ij: Int64[np.ndarray, "point 2"],
) -> tuple[Bool[np.ndarray, "i j"], Bool[np.ndarray, "i j"], Int64[np.ndarray, "2"]]:
    """Return the pixels inside (even-odd) and on a polygon, and the origin of their box.

    Pixels on the polygon may or may not be in the first mask.
    """
    origin_ij = points_ij.min(axis=0)
    starts = points_ij - origin_ij
    ends = np.roll(starts, -1, axis=0)
    size_i, size_j = starts.max(axis=0) + 1

    # Each edge crosses the rows from its lower end up to, not including, its upper end.
    lower = np.where(starts[:, 1:] < ends[:, 1:], starts, ends)
    upper = np.where(starts[:, 1:] < ends[:, 1:], ends, starts)
    n_rows = upper[:, 1] - lower[:, 1]
    edge, step = _count_up(n_rows)
    shift = np.repeat((upper - lower)[:, 0], n_rows) * step
    # first column right of the crossing, in integers: no rounding can decide
    column = lower[edge, 0] + shift // n_rows[edge] + 1
    crossings = np.zeros((size_i + 1, size_j), dtype=np.int64)
    np.add.at(crossings, (column, lower[edge, 1] + step), 1)
    inside = np.cumsum(crossings, axis=0)[:-1] % 2 == 1

    # Pixels on an edge: its corners, and those between them that it passes through exactly.
    n_steps = np.gcd(*np.abs(ends - starts).T)
    edge, step = _count_up(np.maximum(n_steps, 1))
    strides = (ends - starts) // np.maximum(n_steps, 1)[:, np.newaxis]
    on_contour = np.zeros((size_i, size_j), dtype=np.bool_)
    on_contour[tuple((starts[edge] + strides[edge] * step[:, np.newaxis]).T)] = True
    return inside, on_contour, origin_ij


def _count_up(
    counts: Int64[np.ndarray, " group"],
) -> tuple[Int64[np.ndarray, " item"], Int64[np.ndarray, " item"]]:
    """Return, for every item of groups of these sizes, its group and its number within, from 0."""
    group = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    return group, number
