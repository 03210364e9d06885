"""Radiotherapy structure sets (PS3.3 A.19): contours in patient space on a volume's slices."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement

from data_prep.dicom.elements import PARSE_ERRORS
from data_prep.dicom.files import printable
from data_prep.errors import MaskError
from data_prep.geometry import apply_affine, inverse_affine, points_lps_to_ras
from data_prep.masks.grid import ROUNDING_VOXELS, PlacedMask, trimmed
from data_prep.masks.images import MAX_LABELS
from data_prep.masks.polygons import fill_polygons
from data_prep.masks.references import check_reference, referenced_series, unreadable
from data_prep.volume import CTVolume

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_PLANE_TOLERANCE = 0.1
"""Contours that lie this share of a slice spacing apart are in one plane."""


def read_structure_set(path: Path, volume: CTVolume) -> tuple[list[PlacedMask], list[str]]:
    """Read the regions of a structure set that was drawn on a volume.

    A voxel belongs to a region if its centre lies inside of an odd number of the region's closed
    contours on its slice, so a contour within another is a hole. A contour lies on the slice
    that it is closest to. Nothing is interpolated between slices.

    Returns
    -------
    tuple of list
        The regions with a closed contour, and the names of those without (points, open lines).

    Raises
    ------
    MaskError
        ``unreadable_mask``, ``other_series``, ``no_reference``, ``empty_mask``,
        ``too_many_labels``; of a contour ``not_on_slice`` (not within half a spacing of a
        slice, or askew to the slices), ``outside_volume``, ``no_voxel``; ``other_spacing`` if a
        region was drawn on slices of another spacing.
    """
    source = printable(path.name)
    regions: dict[int, list[np.ndarray]] = {}
    with warnings.catch_warnings(action="ignore"):
        try:
            dataset = dcmread(path)
            series_uids = referenced_series(dataset)
            check_reference(series_uids, _contour_images(dataset), volume, source)
            for item in dataset.get("ROIContourSequence") or []:
                contours = [
                    _points_lps(contour)
                    for contour in item.get("ContourSequence") or []
                    if contour.get("ContourGeometricType") in _CLOSED
                ]
                number = int(item.ReferencedROINumber)
                regions.setdefault(number, []).extend(contours)
        except MaskError:
            raise
        except (*PARSE_ERRORS, OSError) as error:
            raise unreadable(path, printable(str(error))[:80]) from error
    return _place(regions, volume, source)


def _place(
    regions: Mapping[int, Sequence[np.ndarray]], volume: CTVolume, source: str
) -> tuple[list[PlacedMask], list[str]]:
    if not any(regions.values()):
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
        if regions[number]:
            masks.append(_fill(label, regions[number], volume, source))
        else:
            without.append(label)
    return masks, without


def _fill(
    label: str, contours_lps: Sequence[np.ndarray], volume: CTVolume, source: str
) -> PlacedMask:
    """Fill the contours of a region, all of a slice together."""
    to_index = inverse_affine(volume.affine)
    what = f"{label} of {source}"
    by_slice: dict[int, list[np.ndarray]] = {}
    plane_of: dict[int, float] = {}
    for contour_lps in contours_lps:
        points = apply_affine(to_index, points_lps_to_ras(contour_lps))
        k, plane = _slice_of(points, volume, what)
        if abs(plane_of.setdefault(k, plane) - plane) > _PLANE_TOLERANCE:
            raise _other_spacing(what, volume)
        by_slice.setdefault(k, []).append(np.ascontiguousarray(points[:, :2]))
    slices = sorted(by_slice)
    if len(slices) > 1 and min(np.diff(slices)) > 1:
        raise _other_spacing(what, volume)
    size_i, size_j, _ = volume.shape
    filled = {k: fill_polygons(by_slice[k], (size_i, size_j)) for k in slices}
    if not any(inside.any() for inside, _ in filled.values()):
        raise MaskError(
            "no_voxel",
            f"{what} is so small that it holds no voxel centre of the scan: give it as a point.",
        )
    low = np.min([origin for _, origin in filled.values()], axis=0)
    high = np.max([origin + inside.shape for inside, origin in filled.values()], axis=0)
    box = np.zeros((*(high - low), slices[-1] - slices[0] + 1), dtype=np.bool_)
    for k, (inside, origin) in filled.items():
        i, j = origin - low
        box[i : i + inside.shape[0], j : j + inside.shape[1], k - slices[0]] = inside
    return PlacedMask(label, trimmed(box, np.array([*low, slices[0]]), volume.shape))


def _slice_of(
    points: Float64[np.ndarray, "point 3"], volume: CTVolume, what: str
) -> tuple[int, float]:
    """Return the slice that a contour lies on, and its fractional index."""
    planes = points[:, 2]
    plane = float((planes.min() + planes.max()) / 2)
    k = round(plane)
    if np.abs(planes - k).max() >= 0.5 or not 0 <= k < volume.shape[2]:
        raise MaskError(
            "not_on_slice",
            f"A contour of {what} lies on no slice of the scan (slice index "
            f"{planes.min():.2f} to {planes.max():.2f} of 0 to {volume.shape[2] - 1}): check that "
            f"it was drawn on the slices of series {volume.series_uid}.",
        )
    reach = np.array(volume.shape[:2]) - 0.5 + ROUNDING_VOXELS
    if np.any(points[:, :2] < -0.5 - ROUNDING_VOXELS) or np.any(points[:, :2] > reach):
        raise MaskError(
            "outside_volume",
            f"A contour of {what} reaches outside of the scan: check that it was drawn on series "
            f"{volume.series_uid}.",
        )
    return k, plane


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
