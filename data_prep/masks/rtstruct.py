"""Radiotherapy structure sets (PS3.3 A.19): contours in patient space on a volume's slices."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_prep.errors import MaskError
from data_prep.geometry import apply_affine, inverse_affine, points_lps_to_ras
from data_prep.masks.grid import ROUNDING_VOXELS, DrawnRegion, PlacedMask, unusable
from data_prep.masks.references import as_unreadable
from data_prep.masks.regions import MaskRegion, check_count, is_no_lesion_type, region_name
from data_prep.sections import Section, drawable_places, image_places, join_sections
from data_prep.text import printable
from data_prep.volume import CTVolume

_PLANAR, _XOR = "CLOSED_PLANAR", "CLOSEDPLANAR_XOR"
_PLANE_TOLERANCE = 0.1
"""Contours that lie this share of a slice spacing apart are in one plane."""

_MAX_CONTOURS = 1000
"""More closed contours than any nodule has on a slice."""

_NOTES = {
    "hole": "a CLOSED_PLANAR contour within another is taken as a hole",
    "united": "CLOSED_PLANAR contours that overlap or are the same outline are united",
    "winding": "a contour winds around the same pixels more than once",
}
"""What the standard leaves open (PS3.3 C.8.8.6.3), and what was done."""

_CORNER_DIGITS = 6
"""Corners are rounded to this many digits of a pixel, so that one meant to lie on a pixel's
centre does: patient coordinates come as decimal text."""

_SAME_OUTLINE = 0.25
"""Contours that lie less than this many pixels apart, on average, are one outline drawn twice."""

_MAX_CROSSINGS = 1 << 20


def read_structure_set(path: Path) -> list[DrawnRegion]:
    """Read the regions of a structure set, in the order of their numbers.

    A voxel belongs to a region if its centre lies inside of the region's closed contours on its
    slice, see `fill_contours`. A contour lies on the image that it is closest to. Between images
    that a repair filled or resampled, see `data_prep.sections.join_sections`. A file is refused
    as ``unreadable_mask``, ``empty_mask`` (no region at all) or ``too_many_labels``; a region
    placed on a volume as ``empty_mask`` (points or open lines only), ``bad_contour`` (fewer than
    three points), ``not_on_slice`` (not within half a spacing of a slice, or askew to the
    slices), ``outside_volume``, ``no_voxel``, ``too_many_contours`` or ``other_spacing`` (drawn
    on slices of another spacing).
    """
    source = printable(path.name)
    with as_unreadable(path):
        dataset = dcmread(path)
        names = {
            int(item.ROINumber): region_name(item.get("ROIName"))
            for item in dataset.get("StructureSetROISequence") or []
        }
        kinds = {
            int(item.ReferencedROINumber): region_name(item.get("RTROIInterpretedType"))
            for item in dataset.get("RTROIObservationsSequence") or []
        }
        contours: dict[int, list[Dataset]] = {number: [] for number in names}
        for item in dataset.get("ROIContourSequence") or []:
            contours.setdefault(int(item.ReferencedROINumber), []).extend(
                contour
                for contour in item.get("ContourSequence") or []
                if contour.get("ContourGeometricType") in (_PLANAR, _XOR)
            )
        check_count(len(contours), source, "region")
        drawn = []
        for number, closed in sorted(contours.items()):
            kind = kinds.get(number, "")
            name, is_no_lesion = names.get(number, ""), is_no_lesion_type(kind)
            region = MaskRegion(source, f"ROI {number}", name, kind, is_no_lesion)
            drawn.append(_drawn(region, closed))
        return drawn


def _drawn(region: MaskRegion, contours: Sequence[Dataset]) -> DrawnRegion:
    """Return a region; what is wrong with its contours is its own fault."""
    if not contours:
        what = f"{region.place} outlines nothing: it has no closed contour."
        return unusable(region, MaskError("empty_mask", what))
    try:
        outlines = [_points_lps(contour) for contour in contours]
    except ValueError as error:
        what = (
            f"{region.place} has a closed contour that isn't three points or more "
            f"({printable(str(error))[:80]}): delete that contour, and export the structure set "
            "again."
        )
        return unusable(region, MaskError("bad_contour", what))
    x, y, z = np.ptp(points_lps_to_ras(np.vstack(outlines)), axis=0).tolist()
    region = replace(region, n_slices=_count_planes(outlines), size_mm=(x, y, z))
    is_xor = any(contour.ContourGeometricType == _XOR for contour in contours)
    return DrawnRegion(region, lambda volume: _fill(region, outlines, volume, is_xor=is_xor))


def _points_lps(contour: Dataset) -> Float64[np.ndarray, "point 3"]:
    """Return the corners of a contour in LPS millimetres.

    The decimal text is taken as it stands: pydicom's list of numbers takes a hundred times as
    much memory.
    """
    element = contour.get_item("ContourData")
    if isinstance(element, RawDataElement):
        numbers = np.array((element.value or b"").strip(b" \0").split(b"\\"), dtype=np.float64)
    else:
        numbers = np.array(contour.get("ContourData") or [], dtype=np.float64)
    if len(numbers) % 3 or len(numbers) < 9 or not np.isfinite(numbers).all():
        raise ValueError(f"{len(numbers)} numbers")
    return numbers.reshape(-1, 3)


def _count_planes(outlines: Sequence[Float64[np.ndarray, "_ 3"]]) -> int:
    """Count the planes that outlines lie in, by their distance along the first one's normal."""
    first = outlines[0] - outlines[0].mean(axis=0)
    normal = np.cross(first, np.roll(first, -1, axis=0)).sum(axis=0)
    length = float(np.linalg.norm(normal))
    if not length:  # all points on a line
        return len(outlines)
    return len({round(float(points.mean(axis=0) @ normal) / length, 1) for points in outlines})


def _fill(
    region: MaskRegion, contours_lps: Sequence[np.ndarray], volume: CTVolume, *, is_xor: bool
) -> PlacedMask:
    """Fill the contours of a region, all of a plane together."""
    to_index = inverse_affine(volume.affine)
    planes_k = drawable_places(volume)[:, 2]
    by_plane: dict[int, list[np.ndarray]] = {}
    height_of: dict[int, float] = {}
    for contour_lps in contours_lps:
        points = apply_affine(to_index, points_lps_to_ras(contour_lps))
        plane, height = _plane_of(points, planes_k, volume, region)
        if abs(height_of.setdefault(plane, height) - height) > _PLANE_TOLERANCE:
            raise _other_spacing(region, volume)
        by_plane.setdefault(plane, []).append(np.ascontiguousarray(points[:, :2]))
    # how many images lie below: of neighbours, none lies between
    order = np.searchsorted(image_places(volume)[:, 2], planes_k[sorted(by_plane)])
    if len(order) > 1 and min(np.diff(order)) > 1:
        raise _other_spacing(region, volume)
    sections, notes_k = [], defaultdict(list)
    for plane, contours in sorted(by_plane.items()):
        if len(contours) > _MAX_CONTOURS:
            raise MaskError(
                "too_many_contours",
                f"{region.place} has {len(contours)} contours on a slice, more than any nodule "
                f"({_MAX_CONTOURS}): export it as a DICOM segmentation or as NIfTI.",
            )
        filled, notes = fill_contours(contours, volume.shape[:2], is_xor=is_xor)
        i, j = filled.low.tolist()
        sections.append(Section(float(planes_k[plane]), (i, j), filled.inside))
        for note in notes:
            notes_k[note].append(round(planes_k[plane]))
    outline = join_sections(sections, volume)
    if outline is None:
        raise MaskError(
            "no_voxel",
            f"{region.place} encloses no voxel centre of the scan, because it is too small or its "
            "contours cancel each other out: give it as a point.",
        )
    sentences = (
        f"{region.place}: {_NOTES[note]} (slice {', '.join(map(str, notes_k[note]))})."
        for note in sorted(notes_k)
    )
    return PlacedMask(outline, tuple(sentences))


def _plane_of(
    points: Float64[np.ndarray, "point 3"],
    planes_k: Float64[np.ndarray, " plane"],
    volume: CTVolume,
    region: MaskRegion,
) -> tuple[int, float]:
    """Return the number of the plane that a contour lies on, and its fractional slice index."""
    heights = points[:, 2]
    height = float((heights.min() + heights.max()) / 2)
    plane = int(np.abs(planes_k - height).argmin())
    if np.abs(heights - planes_k[plane]).max() >= 0.5:
        raise MaskError(
            "not_on_slice",
            f"A contour of {region.place} lies on no slice of the scan (slice index "
            f"{heights.min():.2f} to {heights.max():.2f} of 0 to {volume.shape[2] - 1}): check "
            f"that it was drawn on the slices of series {volume.series_uid}.",
        )
    reach = np.array(volume.shape[:2]) - 0.5 + ROUNDING_VOXELS
    if np.any(points[:, :2] < -0.5 - ROUNDING_VOXELS) or np.any(points[:, :2] > reach):
        raise MaskError(
            "outside_volume",
            f"A contour of {region.place} reaches outside of the scan: check that it was drawn on "
            f"series {volume.series_uid}.",
        )
    return plane, height


def _other_spacing(region: MaskRegion, volume: CTVolume) -> MaskError:
    return MaskError(
        "other_spacing",
        f"The contours of {region.place} lie on planes of another spacing than the scan's slices "
        f"({volume.spacing_mm[2]:g} mm), so slices would be lost or doubled: give the series that "
        "they were drawn on, or export the region as NIfTI.",
    )


class _Pixels(NamedTuple):
    """Pixels in a box: its first index (i, j), and which of its pixels are inside."""

    low: Int64[np.ndarray, "2"]
    inside: Bool[np.ndarray, "i j"]

    @property
    def high(self) -> Int64[np.ndarray, "2"]:
        """The first index beyond the box."""
        return self.low + self.inside.shape

    def cut(self, low: np.ndarray, high: np.ndarray) -> Bool[np.ndarray, "_ _"]:
        """Return a view of a part, from and to indices of the grid."""
        (i, j), (end_i, end_j) = low - self.low, high - self.low
        return self.inside[i:end_i, j:end_j]


def fill_contours(
    contours: Sequence[Float64[np.ndarray, "_ 2"]], shape: tuple[int, int], *, is_xor: bool
) -> tuple[_Pixels, set[str]]:
    """Return the pixels of a grid whose centres lie inside of the contours of a region.

    PS3.3 C.8.8.6.3 knows two ways to leave something out: a channel within a single contour
    ("keyhole"), and contours of type CLOSEDPLANAR_XOR, which are combined by exclusive
    disjunction. It doesn't say how several contours of type CLOSED_PLANAR are combined. Here,
    those that overlap or are the same outline are united; then one within another is a hole, and
    one within a hole an island. What a contour that winds around a pixel twice encloses is left
    out (a keyhole in the outline's own direction); but one traced twice as a whole is filled.

    Of a centre exactly on an edge, those on the low side (smaller i or j) are in and those on
    the high side out, so that contours that share an edge share no pixel.

    Contours are corners in order as fractional pixel indices (i, j), the last joins the first;
    what reaches beyond the grid is cut. With the pixels come keys of `_NOTES`.
    """
    filled = [_fill_contour(contour, shape) for contour in contours]
    parts = [part for part, _ in filled]
    notes = {"winding"} if any(is_wound for _, is_wound in filled) else set()
    groups = np.arange(len(parts)) if is_xor else _groups(contours, parts)
    if len(set(groups.tolist())) < len(parts):
        notes.add("united")
    low = np.min([part.low for part in parts], axis=0)
    high = np.max([part.high for part in parts], axis=0)
    result = np.zeros(high - low, np.bool_)
    for group in range(groups.max() + 1):
        united = _Pixels(low, np.zeros_like(result))
        for number in np.flatnonzero(groups == group):
            part = parts[number]
            united.cut(part.low, part.high)[...] |= part.inside
        if not is_xor and (result & united.inside).any():
            notes.add("hole")
        result ^= united.inside
    return _Pixels(low, result), notes


def _groups(
    contours: Sequence[Float64[np.ndarray, "_ 2"]], parts: Sequence[_Pixels]
) -> Int64[np.ndarray, " contour"]:
    """Return, for each contour, the number of those that it is united with."""
    low, high = (np.array([getattr(part, edge) for part in parts]) for edge in ("low", "high"))
    meet = (low[:, np.newaxis] < high).all(axis=-1)
    sizes = [int(part.inside.sum()) for part in parts]
    edges = [np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1) for corners in contours]
    pairs = []
    for pair in np.argwhere(np.triu(meet & meet.T, 1)).tolist():
        inner, outer = sorted(pair, key=sizes.__getitem__)
        common = np.maximum(*low[pair]), np.minimum(*high[pair])
        shared = np.count_nonzero(parts[inner].cut(*common) & parts[outer].cut(*common))
        is_same = sizes[outer] - sizes[inner] <= _SAME_OUTLINE * edges[inner].sum()
        if shared and (shared < sizes[inner] or is_same):
            pairs.append(pair)
    a, b = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(a)), (a, b)), (len(parts), len(parts)))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _fill_contour(
    corners: Float64[np.ndarray, "_ 2"], shape: tuple[int, int]
) -> tuple[_Pixels, bool]:
    """Return the pixels that a contour winds around an odd number of times; if any is twice."""
    starts = np.round(corners, _CORNER_DIGITS)
    limit = np.array(shape)
    low = np.clip(np.floor(starts.min(axis=0)), 0, limit).astype(np.int64)
    high = np.clip(np.ceil(starts.max(axis=0)) + 1, low, limit).astype(np.int64)
    size_i, size_j = (int(n) for n in high - low)
    crossed = np.zeros((size_i + 1, size_j), np.int64)
    for i, j, turn in _crossings(starts, int(low[1]), int(high[1])):
        np.add.at(crossed, (np.clip(i - low[0], 0, size_i), j - low[1]), turn)
    turns = np.cumsum(crossed, axis=0)[:-1]
    inside = turns % 2 == 1
    if not inside.any():
        inside = turns != 0
    return _Pixels(low, inside), bool((np.abs(turns) > 1).any())


def _crossings(
    starts: np.ndarray, first_row: int, end_row: int
) -> Iterator[tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]]:
    """Yield, for each edge and each row j that it crosses, the first pixel i not left of it.

    With it goes the edge's direction: 1 up, -1 down.
    """
    ends = np.roll(starts, -1, axis=0)
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
        yield np.ceil(np.round(i, _CORNER_DIGITS + 3)).astype(np.int64), j, turn[edge]
