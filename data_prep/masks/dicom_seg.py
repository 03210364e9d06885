"""DICOM segmentations (PS3.3 A.51): binary, fractional and label map, read with highdicom."""

import sqlite3
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from pydicom import Dataset, dcmread

from data_prep.dicom.elements import PARSE_ERRORS
from data_prep.dicom.files import printable
from data_prep.errors import MaskError
from data_prep.formats.stored import MAX_VOXELS
from data_prep.geometry import (
    affine_lps_from_dicom,
    affine_lps_to_ras,
    apply_affine,
    inverse_affine,
)
from data_prep.masks.grid import (
    DrawnFrame,
    PlacedMask,
    label_box,
    place_frames,
    place_on_grid,
)
from data_prep.masks.images import MAX_LABELS
from data_prep.masks.references import check_reference, referenced_series, unreadable
from data_prep.sections import drawable_places
from data_prep.volume import CTVolume

FRACTION_THRESHOLD = 0.5
"""A voxel of a fractional segmentation belongs to the segment from this value on."""

_MAX_COARSER = 1.5

_PLANE_TOLERANCE = 0.1
"""A frame that lies this share of a slice spacing from an image was drawn on it."""


class _Frame(NamedTuple):
    number: int
    segment: int | None  # of a label map, each frame is of all segments
    place_k: float
    to_volume: np.ndarray


def read_segmentation(path: Path, volume: CTVolume) -> tuple[list[PlacedMask], list[str]]:
    """Read the segments of a DICOM segmentation that was drawn on a volume.

    Each segment is one label, also where it has several parts. Frames that the file leaves out
    are empty. Between images that a repair filled or resampled, see
    `data_prep.sections.join_sections`.

    Returns
    -------
    tuple of list
        The segments that mark a voxel, and the names of those that mark none.

    Raises
    ------
    MaskError
        ``unreadable_mask``, ``too_large``, ``too_many_labels``, ``other_series``,
        ``no_reference``, ``empty_mask``, ``other_spacing`` or ``sheared_mask``.
    """
    import highdicom as hd

    source = printable(path.name)
    with warnings.catch_warnings(action="ignore"):
        try:
            _check_size(dcmread(path, stop_before_pixels=True), path, source)
            segmentation: Any = hd.seg.segread(path)
            series_uids = referenced_series(segmentation)
            check_reference(series_uids, _source_images(segmentation), volume, source)
            frames = _frames_on_images(segmentation, volume)
            if frames is None:
                _check_stack(segmentation, volume, source)
            return _segments(segmentation, frames, volume, source)
        except MaskError:
            raise
        except (*PARSE_ERRORS, RuntimeError, OSError, sqlite3.Error) as error:
            raise unreadable(path, printable(str(error))[:80]) from error


def _segments(
    segmentation: Any, frames: Sequence[_Frame] | None, volume: CTVolume, source: str
) -> tuple[list[PlacedMask], list[str]]:
    masks, empty = [], []
    numbers = [int(number) for number in segmentation.segment_numbers if number]
    if len(numbers) > MAX_LABELS:
        raise MaskError(
            "too_many_labels",
            f"{source} holds {len(numbers)} segments, more than nodules in any patient "
            f"({MAX_LABELS}): give a segmentation of nodules.",
        )
    for number in numbers:
        label = f"segment {number}"
        mask = _segment(segmentation, number, frames, volume, source)
        if mask is None:
            empty.append(label)
        else:
            masks.append(mask)
    if not masks:
        raise MaskError("empty_mask", f"{source} is empty: no segment marks a voxel.")
    return masks, empty


def _segment(
    segmentation: Any,
    number: int,
    frames: Sequence[_Frame] | None,
    volume: CTVolume,
    source: str,
) -> PlacedMask | None:
    """Return a segment on the volume's grid, or None if it marks no voxel."""
    label = f"segment {number}"
    if frames is not None:
        drawn = [
            DrawnFrame(frame.place_k, _pixels(segmentation, frame, number), frame.to_volume)
            for frame in frames
            if frame.segment in (number, None)
        ]
        is_empty = not any(frame.pixels.any() for frame in drawn)
        return None if is_empty else place_frames(label, drawn, volume, source)
    part = segmentation.get_volume(segment_numbers=[number], allow_missing_positions=True)
    # one segment asked for: the last axis has one entry
    voxels = part.array.reshape(part.spatial_shape) >= FRACTION_THRESHOLD
    if not voxels.any():
        return None
    affine_lps = np.asarray(part.affine, dtype=np.float64)
    return place_on_grid(label_box(label, voxels, affine_lps_to_ras(affine_lps)), volume, source)


def _pixels(segmentation: Any, frame: _Frame, number: int) -> Bool[np.ndarray, "i j"]:
    stored = segmentation.get_stored_frame(frame.number).T
    if frame.segment is None:
        return np.asarray(stored == number)
    full = float(segmentation.get("MaximumFractionalValue") or 1)
    return np.asarray(stored >= FRACTION_THRESHOLD * full)


def _frames_on_images(segmentation: Any, volume: CTVolume) -> list[_Frame] | None:
    """Return where the frames lie on a repaired volume, whose images are no regular stack.

    Returns
    -------
    list or None
        None where the volume's slices are its images, or a frame lies on no image and in no gap:
        then the segmentation has a grid of its own.
    """
    if not volume.images:
        return None
    planes_k = drawable_places(volume)[:, 2]
    to_index = inverse_affine(volume.affine)
    corners = np.array(list(np.ndindex(2, 2, 1))) * (segmentation.Columns, segmentation.Rows, 1)
    shared = (segmentation.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    frames = []
    for number, own in enumerate(segmentation.PerFrameFunctionalGroupsSequence, start=1):
        groups = Dataset()
        groups.update(shared)
        groups.update(own)
        affine_lps = affine_lps_from_dicom(
            np.array(groups.PlaneOrientationSequence[0].ImageOrientationPatient, np.float64),
            np.array(groups.PixelMeasuresSequence[0].PixelSpacing, np.float64),
            np.array(groups.PlanePositionSequence[0].ImagePositionPatient, np.float64),
            1.0,
        )
        to_volume = to_index @ affine_lps_to_ras(affine_lps)
        heights_k = apply_affine(to_volume, corners)[:, 2]
        plane_k = float(planes_k[np.abs(planes_k - heights_k[0]).argmin()])
        if np.abs(heights_k - plane_k).max() > _PLANE_TOLERANCE:
            return None
        to_volume[2], to_volume[:, 2] = (0, 0, 1, 0), (0, 0, 1, 0)
        segment = None
        if segmentation.SegmentationType != "LABELMAP":
            segment = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        frames.append(_Frame(number, segment, plane_k, to_volume))
    return frames


def _check_stack(segmentation: Any, volume: CTVolume, source: str) -> None:
    """Refuse frames that are no regular stack, or may be another than they seem to be."""
    geometry: Any = segmentation.get_volume_geometry(allow_missing_positions=True)
    if geometry is None:
        raise MaskError(
            "sheared_mask",
            f"The frames of {source} don't form a regular stack: export the segmentation as a "
            "volume, or as NIfTI.",
        )
    if np.prod(geometry.shape, dtype=np.float64) > MAX_VOXELS:
        raise _too_large(source)
    _check_spacing(segmentation, float(geometry.spacing[0]), volume, source)


def _check_size(dataset: Dataset, path: Path, source: str) -> None:
    """Refuse sizes that no patient's segmentation has, before pixels are read."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    claimed = frames * int(dataset.Rows) * int(dataset.Columns)
    if claimed > MAX_VOXELS or claimed < 1:
        raise _too_large(source)
    if not dataset.file_meta.TransferSyntaxUID.is_compressed:
        n_bytes = claimed * int(dataset.BitsAllocated) // 8
        if n_bytes > path.stat().st_size:
            raise unreadable(path, "cut off")


def _check_spacing(segmentation: Any, found_mm: float, volume: CTVolume, source: str) -> None:
    """Refuse a spacing that is merely the distance of the few frames that there are.

    Frames without a voxel are left out of the file; where it doesn't state the spacing, two
    nodules ten slices apart would get ten slices thick.
    """
    frames = [
        *(segmentation.get("SharedFunctionalGroupsSequence") or []),
        *(segmentation.get("PerFrameFunctionalGroupsSequence") or []),
    ]
    is_stated = any(
        measures.get("SpacingBetweenSlices")
        for frame in frames
        for measures in frame.get("PixelMeasuresSequence") or []
    )
    if not is_stated and found_mm > _MAX_COARSER * volume.spacing_mm.max():
        raise MaskError(
            "other_spacing",
            f"{source} doesn't state the spacing of its slices, and those that it holds lie "
            f"{found_mm:g} mm apart, the scan's {volume.spacing_mm.max():g} mm: export it with "
            "SpacingBetweenSlices, or as NIfTI.",
        )


def _source_images(segmentation: Any) -> frozenset[str]:
    """Return the images that single frames were drawn on (PS3.3 C.7.6.16.2.6)."""
    uids = set()
    for frame in segmentation.get("PerFrameFunctionalGroupsSequence") or []:
        for derivation in frame.get("DerivationImageSequence") or []:
            for image in derivation.get("SourceImageSequence") or []:
                uids.add(str(image.get("ReferencedSOPInstanceUID", "")))
    return frozenset(uids - {""})


def _too_large(source: str) -> MaskError:
    return MaskError(
        "too_large",
        f"{source} claims more voxels than any CT has ({MAX_VOXELS}): its header is damaged; "
        "fetch it again.",
    )
