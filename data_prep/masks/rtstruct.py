"""Radiotherapy structure sets (PS3.3 A.19): contours in patient space on a volume's slices."""

import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement

from data_prep.dicom.elements import PARSE_ERRORS
from data_prep.dicom.files import printable
from data_prep.errors import MaskError
from data_prep.geometry import apply_affine, inverse_affine, points_lps_to_ras
from data_prep.masks.grid import ROUNDING_VOXELS, PlacedMask
from data_prep.masks.images import MAX_LABELS
from data_prep.masks.polygons import fill_contours
from data_prep.masks.references import check_reference, referenced_series, unreadable
from data_prep.sections import Section, drawable_places, image_places, join_sections
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


@dataclass(eq=False)
class _Region:
    contours_lps: list[np.ndarray] = field(default_factory=list)
    is_xor: bool = False


def read_structure_set(path: Path, volume: CTVolume) -> tuple[list[PlacedMask], list[str]]:
    """Read the regions of a structure set that was drawn on a volume.

    A voxel belongs to a region if its centre lies inside of the region's closed contours on its
    slice, see `data_prep.masks.polygons.fill_contours`. A contour lies on the image that it is
    closest to. Between images that a repair filled or resampled, see
    `data_prep.sections.join_sections`.

    Returns
    -------
    tuple of list
        The regions with a closed contour, and the names of those without (points, open lines).

    Raises
    ------
    MaskError
        ``unreadable_mask``, ``other_series``, ``no_reference``, ``empty_mask``,
        ``too_many_labels``; of a contour ``not_on_slice`` (not within half a spacing of a
        slice, or askew to the slices), ``outside_volume``, ``no_voxel``; of a region
        ``too_many_contours``, or ``other_spacing`` if it was drawn on slices of another spacing.
    """
    source = printable(path.name)
    regions: defaultdict[int, _Region] = defaultdict(_Region)
    with warnings.catch_warnings(action="ignore"):
        try:
            dataset = dcmread(path)
            series_uids = referenced_series(dataset)
            check_reference(series_uids, _contour_images(dataset), volume, source)
            for item in dataset.get("ROIContourSequence") or []:
                region = regions[int(item.ReferencedROINumber)]
                for contour in item.get("ContourSequence") or []:
                    kind = contour.get("ContourGeometricType")
                    if kind in (_PLANAR, _XOR):
                        region.contours_lps.append(_points_lps(contour))
                        region.is_xor |= kind == _XOR
        except MaskError:
            raise
        except (*PARSE_ERRORS, OSError) as error:
            raise unreadable(path, printable(str(error))[:80]) from error
    return _place(regions, volume, source)


def _place(
    regions: Mapping[int, _Region], volume: CTVolume, source: str
) -> tuple[list[PlacedMask], list[str]]:
    if not any(region.contours_lps for region in regions.values()):
        raise MaskError(
            "empty_mask", f"{source} holds no closed contour: export the outlines of the nodules."
        )
    if len(regions) > MAX_LABELS:
        raise MaskError(
            "too_many_labels",
            f"{source} holds {len(regions)} regions, more than nodules in any patient "
            f"({MAX_LABELS}): export the nodules alone.",
        )
    masks, without = [], []
    for number in sorted(regions):
        label = f"ROI {number}"
        if regions[number].contours_lps:
            masks.append(_fill(label, regions[number], volume, source))
        else:
            without.append(label)
    return masks, without


def _fill(label: str, region: _Region, volume: CTVolume, source: str) -> PlacedMask:
    """Fill the contours of a region, all of a plane together."""
    to_index = inverse_affine(volume.affine)
    what = f"{label} of {source}"
    planes_k = drawable_places(volume)[:, 2]
    by_plane: dict[int, list[np.ndarray]] = {}
    height_of: dict[int, float] = {}
    for contour_lps in region.contours_lps:
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
        filled = fill_contours(by_plane[plane], volume.shape[:2], is_xor=region.is_xor)
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
    return PlacedMask(label, outline, tuple(notes))


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
        numbers = np.array(contour.ContourData, dtype=np.float64)
    if len(numbers) % 3 or len(numbers) < 9 or not np.isfinite(numbers).all():
        raise ValueError("a contour isn't a list of three points or more")
    return numbers.reshape(-1, 3)


def _contour_images(dataset: Dataset) -> frozenset[str]:
    """Return the images that single contours were drawn on (PS3.3 C.8.8.6)."""
    uids = set()
    for item in dataset.get("ROIContourSequence") or []:
        for contour in item.get("ContourSequence") or []:
            for image in contour.get("ContourImageSequence") or []:
                uids.add(str(image.get("ReferencedSOPInstanceUID", "")))
    return frozenset(uids - {""})


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
