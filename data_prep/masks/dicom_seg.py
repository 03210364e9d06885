"""DICOM segmentations (PS3.3 A.51): binary, fractional and label map, read with highdicom."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread

from data_prep.dicom.elements import PARSE_ERRORS
from data_prep.dicom.files import printable
from data_prep.errors import MaskError
from data_prep.formats.stored import MAX_VOXELS
from data_prep.geometry import affine_lps_to_ras
from data_prep.masks.grid import LabelledMask, label_box
from data_prep.masks.images import MAX_LABELS
from data_prep.masks.references import check_reference, referenced_series, unreadable
from data_prep.volume import CTVolume

FRACTION_THRESHOLD = 0.5
"""A voxel of a fractional segmentation belongs to the segment from this value on."""

_MAX_COARSER = 1.5


def read_segmentation(path: Path, volume: CTVolume) -> tuple[list[LabelledMask], list[str]]:
    """Read the segments of a DICOM segmentation that was drawn on a volume.

    Each segment is one label, also where it has several parts. Frames that the file leaves out
    are empty.

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
            geometry: Any = segmentation.get_volume_geometry(allow_missing_positions=True)
            if geometry is None:
                raise MaskError(
                    "sheared_mask",
                    f"The frames of {source} don't form a regular stack: export the "
                    "segmentation as a volume, or as NIfTI.",
                )
            if np.prod(geometry.shape, dtype=np.float64) > MAX_VOXELS:
                raise _too_large(source)
            _check_spacing(segmentation, float(geometry.spacing[0]), volume, source)
            return _segments(segmentation, source)
        except MaskError:
            raise
        except (*PARSE_ERRORS, RuntimeError, OSError) as error:
            raise unreadable(path, printable(str(error))[:80]) from error


def _segments(segmentation: Any, source: str) -> tuple[list[LabelledMask], list[str]]:
    masks, empty = [], []
    numbers = [int(number) for number in segmentation.segment_numbers if number]
    if len(numbers) > MAX_LABELS:
        raise MaskError(
            "too_many_labels",
            f"{source} holds {len(numbers)} segments, more than nodules in any patient "
            f"({MAX_LABELS}): give a segmentation of nodules.",
        )
    for number in numbers:
        part = segmentation.get_volume(segment_numbers=[number], allow_missing_positions=True)
        # one segment asked for: the last axis has one entry
        voxels = part.array.reshape(part.spatial_shape) >= FRACTION_THRESHOLD
        label = f"segment {number}"
        if voxels.any():
            affine_lps = np.asarray(part.affine, dtype=np.float64)
            masks.append(label_box(label, voxels, affine_lps_to_ras(affine_lps)))
        else:
            empty.append(label)
    if not masks:
        raise MaskError("empty_mask", f"{source} is empty: no segment marks a voxel.")
    return masks, empty


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
