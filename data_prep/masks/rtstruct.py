"""Radiotherapy structure sets (PS3.3 A.19): contours in patient space on a volume's slices."""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement

from data_prep.dicom.elements import PARSE_ERRORS
from data_prep.errors import MaskError
from data_prep.geometry import apply_affine, inverse_affine, points_lps_to_ras
from data_prep.masks.grid import ROUNDING_VOXELS, PlacedMask
from data_prep.masks.images import MAX_LABELS
from data_prep.masks.polygons import fill_contours
from data_prep.masks.references import unreadable
from data_prep.masks.regions import DrawnRegion, MaskRegion, region_name, unusable
from data_prep.sections import Section, drawable_places, image_places, join_sections
from data_prep.text import printable
from data_prep.volume import CTVolume

_PLANAR, _XOR = "CLOSED_PLANAR", "CLOSEDPLANAR_XOR"
_PLANE_TOLERANCE = 0.1
"""Contours that lie this share of a slice spacing apart are in one plane."""

MAX_CONTOURS = 1000
"""More closed contours than any nodule has on a slice."""

NOTES = {
    "hole": "a CLOSED_PLANAR contour within another is taken as a hole",
    "united": "CLOSED_PLANAR contours that overlap or are the same outline are united",
    "winding": "a contour winds around the same pixels more than once",
}
"""What the standard leaves open (PS3.3 C.8.8.6.3), and what was done."""


# RTROIInterpretedType (PS3.3 C.8.8.8.1) of what is no lesion
_NO_LESION = frozenset(
    [
        *("EXTERNAL", "ORGAN", "AVOIDANCE", "CAVITY", "CONTRAST_AGENT", "CONTROL", "BOLUS"),
        *("SUPPORT", "FIXATION", "MARKER", "REGISTRATION", "ISOCENTER", "IRRAD_VOLUME"),
        *("TREATED_VOLUME", "DOSE_REGION", "DOSE_MEASUREMENT", "BRACHY_CHANNEL"),
        *("BRACHY_ACCESSORY", "BRACHY_SRC_APP", "BRACHY_CHNL_SHLD"),
    ]
)


def read_structure_set(path: Path) -> list[DrawnRegion]:
    """Read the regions of a structure set, in the order of their numbers.

    A voxel belongs to a region if its centre lies inside of the region's closed contours on its
    slice, see `data_prep.masks.polygons.fill_contours`. A contour lies on the image that it is
    closest to. Between images that a repair filled or resampled, see
    `data_prep.sections.join_sections`.

    Placed on a volume, a region by itself is refused as ``empty_mask`` (points or open lines
    only), ``bad_contour`` (fewer than three points), ``not_on_slice`` (not within half a spacing
    of a slice, or askew to the slices), ``outside_volume``, ``no_voxel``, ``too_many_contours``
    or ``other_spacing`` (drawn on slices of another spacing).

    Raises
    ------
    MaskError
        ``unreadable_mask``, ``empty_mask`` (no region at all) or ``too_many_labels``.
    """
    source = printable(path.name)
    with warnings.catch_warnings(action="ignore"):
        try:
            dataset = dcmread(path)
            names = _by_number(dataset, "StructureSetROISequence", "ROINumber", "ROIName")
            kinds = _by_number(
                dataset, "RTROIObservationsSequence", "ReferencedROINumber", "RTROIInterpretedType"
            )
            contours: dict[int, list[Dataset]] = {number: [] for number in names}
            for item in dataset.get("ROIContourSequence") or []:
                contours.setdefault(int(item.ReferencedROINumber), []).extend(
                    contour
                    for contour in item.get("ContourSequence") or []
                    if contour.get("ContourGeometricType") in (_PLANAR, _XOR)
                )
            _check_count(contours, source)
            return [
                _drawn(source, number, names.get(number, ""), kinds.get(number, ""), drawn)
                for number, drawn in sorted(contours.items())
            ]
        except MaskError:
            raise
        except (*PARSE_ERRORS, OSError) as error:
            raise unreadable(path, printable(str(error))[:80]) from error


def _by_number(dataset: Dataset, sequence: str, number: str, text: str) -> dict[int, str]:
    """Return a text of each region by the region's number."""
    return {
        int(item[number].value): region_name(item.get(text)) for item in dataset.get(sequence) or []
    }


def _check_count(contours: Mapping[int, object], source: str) -> None:
    if not contours:
        raise MaskError(
            "empty_mask", f"{source} holds no region: export the outlines of the nodules."
        )
    if len(contours) > MAX_LABELS:
        raise MaskError(
            "too_many_labels",
            f"{source} holds {len(contours)} regions, more than nodules in any patient "
            f"({MAX_LABELS}): export the nodules alone.",
        )


def _drawn(
    source: str, number: int, name: str, kind: str, contours: Sequence[Dataset]
) -> DrawnRegion:
    """Return a region; what is wrong with its contours is its own fault."""
    region = MaskRegion(source, f"ROI {number}", name, kind, kind in _NO_LESION)
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
    points_ras = points_lps_to_ras(np.vstack(outlines))
    x, y, z = (float(mm) for mm in np.ptp(points_ras, axis=0))
    region = replace(region, n_slices=_count_planes(outlines), size_mm=(x, y, z))
    is_xor = any(contour.ContourGeometricType == _XOR for contour in contours)
    return DrawnRegion(region, lambda volume: _fill(region, outlines, volume, is_xor=is_xor))


def _count_planes(outlines: Sequence[Float64[np.ndarray, "_ 3"]]) -> int:
    """Count the planes that outlines lie in, by their distance along the first one's normal."""
    first = outlines[0] - outlines[0].mean(axis=0)
    normal = np.cross(first, np.roll(first, -1, axis=0)).sum(axis=0)
    length = float(np.linalg.norm(normal))
    if not length:  # all points on a line
        return len(outlines)
    offsets_mm = [float(outline.mean(axis=0) @ normal) / length for outline in outlines]
    return len({round(mm, 1) for mm in offsets_mm})


def _fill(
    region: MaskRegion, contours_lps: Sequence[np.ndarray], volume: CTVolume, *, is_xor: bool
) -> PlacedMask:
    """Fill the contours of a region, all of a plane together."""
    to_index = inverse_affine(volume.affine)
    what = region.place
    planes_k = drawable_places(volume)[:, 2]
    by_plane: dict[int, list[np.ndarray]] = {}
    height_of: dict[int, float] = {}
    for contour_lps in contours_lps:
        points = apply_affine(to_index, points_lps_to_ras(contour_lps))
        plane, height = _plane_of(points, planes_k, volume, what)
        if abs(height_of.setdefault(plane, height) - height) > _PLANE_TOLERANCE:
            raise _other_spacing(what, volume)
        by_plane.setdefault(plane, []).append(np.ascontiguousarray(points[:, :2]))
    drawn_k = planes_k[sorted(by_plane)]
    # how many images lie below: of neighbours, none lies between
    order = np.searchsorted(image_places(volume)[:, 2], drawn_k)
    if len(order) > 1 and min(np.diff(order)) > 1:
        raise _other_spacing(what, volume)
    sections, notes_k = [], defaultdict(list)
    for plane in sorted(by_plane):
        if len(by_plane[plane]) > MAX_CONTOURS:
            raise _too_many_contours(what, len(by_plane[plane]))
        filled = fill_contours(by_plane[plane], volume.shape[:2], is_xor=is_xor)
        i, j = filled.origin_ij.tolist()
        sections.append(Section(float(planes_k[plane]), (i, j), filled.inside))
        for note in filled.notes:
            notes_k[note].append(round(planes_k[plane]))
    outline = join_sections(sections, volume)
    if outline is None:
        raise MaskError(
            "no_voxel",
            f"{what} encloses no voxel centre of the scan, because it is too small or its contours "
            "cancel each other out: give it as a point.",
        )
    notes = [
        f"{what}: {NOTES[note]} (slice {', '.join(map(str, notes_k[note]))})."
        for note in sorted(notes_k)
    ]
    return PlacedMask(region.title, outline, tuple(notes))


def _plane_of(
    points: Float64[np.ndarray, "point 3"],
    planes_k: Float64[np.ndarray, " plane"],
    volume: CTVolume,
    what: str,
) -> tuple[int, float]:
    """Return the number of the plane that a contour lies on, and its fractional slice index."""
    heights = points[:, 2]
    height = float((heights.min() + heights.max()) / 2)
    plane = int(np.abs(planes_k - height).argmin())
    if np.abs(heights - planes_k[plane]).max() >= 0.5:
        raise MaskError(
            "not_on_slice",
            f"A contour of {what} lies on no slice of the scan (slice index "
            f"{heights.min():.2f} to {heights.max():.2f} of 0 to {volume.shape[2] - 1}): check "
            f"that it was drawn on the slices of series {volume.series_uid}.",
        )
    reach = np.array(volume.shape[:2]) - 0.5 + ROUNDING_VOXELS
    if np.any(points[:, :2] < -0.5 - ROUNDING_VOXELS) or np.any(points[:, :2] > reach):
        raise MaskError(
            "outside_volume",
            f"A contour of {what} reaches outside of the scan: check that it was drawn on series "
            f"{volume.series_uid}.",
        )
    return plane, height


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


def _other_spacing(what: str, volume: CTVolume) -> MaskError:
    return MaskError(
        "other_spacing",
        f"The contours of {what} lie on planes of another spacing than the scan's slices "
        f"({volume.spacing_mm[2]:g} mm), so slices would be lost or doubled: give the series that "
        "they were drawn on, or export the region as NIfTI.",
    )


def _too_many_contours(what: str, count: int) -> MaskError:
    return MaskError(
        "too_many_contours",
        f"{what} has {count} contours on a slice, more than any nodule ({MAX_CONTOURS}): export "
        "the region as a DICOM segmentation or as NIfTI.",
    )
