"""DICOM segmentations (PS3.3 A.51): binary, fractional and label map, read with highdicom."""

import sqlite3
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from pydicom import Dataset, dcmread

from data_prep.dicom.elements import PARSE_ERRORS
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
    LabelledMask,
    PlacedMask,
    label_box,
    place_frames,
    place_on_grid,
)
from data_prep.masks.images import MAX_LABELS
from data_prep.masks.references import unreadable
from data_prep.masks.region_names import says_nodule
from data_prep.masks.regions import (
    DrawnRegion,
    MaskRegion,
    is_no_lesion_code,
    measured,
    region_name,
    unusable,
)
from data_prep.sections import drawable_places
from data_prep.text import printable
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


@dataclass(frozen=True, eq=False)
class _Stack:
    """A segmentation, and whether its frames make a grid of their own."""

    segmentation: Any
    path: Path
    fault: MaskError | None
    unstated_mm: float | None  # the distance of the frames, where the file doesn't state it

    @cached_property
    def frames_on(self) -> Callable[[CTVolume], list[_Frame] | None]:
        """See `_frames_on_images`; the answer for a volume is kept for the other segments."""
        return lru_cache(maxsize=1)(partial(_frames_on_images, self.segmentation))


def read_segmentation(path: Path) -> list[DrawnRegion]:
    """Read the segments of a DICOM segmentation.

    Each segment is one region, also where it has several parts. Frames that the file leaves out
    are empty. Between images that a repair filled or resampled, see
    `data_prep.sections.join_sections`. Placed on a volume, a segment by itself is refused as
    ``empty_mask``, ``unreadable_mask``, ``sheared_mask``, ``too_large``, ``other_spacing``,
    ``outside_volume`` or ``no_voxel``.

    Raises
    ------
    MaskError
        ``unreadable_mask``, ``too_large``, ``empty_mask`` (no segment at all) or
        ``too_many_labels``.
    """
    import highdicom as hd

    source = printable(path.name)
    with _as_unreadable(path):
        _check_size(dcmread(path, stop_before_pixels=True), path, source)
        segmentation: Any = hd.seg.segread(path)
        numbers = [int(number) for number in segmentation.segment_numbers if number]
        if not numbers:
            raise MaskError("empty_mask", f"{source} is empty: it holds no segment.")
        if len(numbers) > MAX_LABELS:
            raise MaskError(
                "too_many_labels",
                f"{source} holds {len(numbers)} segments, more than nodules in any patient "
                f"({MAX_LABELS}): give a segmentation of nodules.",
            )
        items = {int(item.SegmentNumber): item for item in segmentation.SegmentSequence}
        stack = _stack(segmentation, path, source)
        return [
            _drawn(_described(number, items.get(number, Dataset()), source), number, stack)
            for number in numbers
        ]


@contextmanager
def _as_unreadable(path: Path) -> Iterator[None]:
    """Turn what the libraries raise within the block into a `MaskError`."""
    with warnings.catch_warnings(action="ignore"):
        try:
            yield
        except MaskError:
            raise
        except sqlite3.Error as error:
            # highdicom looks frames up by them
            raise unreadable(path, "its DimensionIndexSequence doesn't tell segments") from error
        except (*PARSE_ERRORS, RuntimeError, OSError) as error:
            raise unreadable(path, printable(str(error))[:80]) from error


def _stack(segmentation: Any, path: Path, source: str) -> _Stack:
    geometry: Any = segmentation.get_volume_geometry(allow_missing_positions=True)
    if geometry is None:
        fault = MaskError(
            "sheared_mask",
            f"The frames of {source} don't form a regular stack: export the segmentation as a "
            "volume, or as NIfTI.",
        )
        return _Stack(segmentation, path, fault, None)
    if np.prod(geometry.shape, dtype=np.float64) > MAX_VOXELS:
        return _Stack(segmentation, path, _too_large(source), None)
    groups = [
        *(segmentation.get("SharedFunctionalGroupsSequence") or []),
        *(segmentation.get("PerFrameFunctionalGroupsSequence") or []),
    ]
    is_stated = any(
        measures.get("SpacingBetweenSlices")
        for group in groups
        for measures in group.get("PixelMeasuresSequence") or []
    )
    return _Stack(segmentation, path, None, None if is_stated else float(geometry.spacing[0]))


def _drawn(region: MaskRegion, number: int, stack: _Stack) -> DrawnRegion:
    mask = None
    if stack.fault is None:
        mask = _on_own_grid(stack.segmentation, number, region.title)
        if mask is None:
            return unusable(region, _empty(region))
        region = measured(region, mask)

    def to_grid(volume: CTVolume) -> PlacedMask:
        with _as_unreadable(stack.path):
            frames = stack.frames_on(volume)
            if frames is not None:
                return _on_images(stack.segmentation, number, frames, region, volume)
        if mask is None:
            raise stack.fault or _empty(region)
        _check_spacing(stack.unstated_mm, region, volume)
        return place_on_grid(mask, volume, region.file)

    return DrawnRegion(region, to_grid)


def _on_own_grid(segmentation: Any, number: int, label: str) -> LabelledMask | None:
    """Return a segment on the grid of its frames, or None if it marks no voxel."""
    part = segmentation.get_volume(segment_numbers=[number], allow_missing_positions=True)
    # one segment asked for: the last axis has one entry
    voxels = part.array.reshape(part.spatial_shape) >= FRACTION_THRESHOLD
    if not voxels.any():
        return None
    affine_lps = np.asarray(part.affine, dtype=np.float64)
    return label_box(label, voxels, affine_lps_to_ras(affine_lps))


def _on_images(
    segmentation: Any, number: int, frames: Sequence[_Frame], region: MaskRegion, volume: CTVolume
) -> PlacedMask:
    drawn = [
        DrawnFrame(frame.place_k, _pixels(segmentation, frame, number), frame.to_volume)
        for frame in frames
        if frame.segment in (number, None)
    ]
    if not any(frame.pixels.any() for frame in drawn):
        raise _empty(region)
    return place_frames(region.title, drawn, volume, region.file)


def _described(number: int, item: Dataset, source: str) -> MaskRegion:
    """Return a segment by its description (PS3.3 C.8.20.4)."""
    category, category_code = _meaning(item, "SegmentedPropertyCategoryCodeSequence")
    kind, kind_code = _meaning(item, "SegmentedPropertyTypeCodeSequence")
    # 3D Slicer calls whatever isn't specified tissue, of the type tissue
    is_unspecified = category_code == kind_code
    return MaskRegion(
        source,
        f"segment {number}",
        region_name(item.get("SegmentLabel")),
        ", ".join(filter(None, (category, kind))),
        is_no_lesion_code(category_code) and not says_nodule(kind) and not is_unspecified,
    )


def _meaning(item: Dataset, keyword: str) -> tuple[str, str]:
    """Return the printable meaning and the value of a code."""
    code = next(iter(item.get(keyword) or []), Dataset())
    return region_name(code.get("CodeMeaning")), str(code.get("CodeValue") or "")


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


def _check_spacing(unstated_mm: float | None, region: MaskRegion, volume: CTVolume) -> None:
    """Refuse a spacing that is merely the distance of the few frames that there are.

    Frames without a voxel are left out of the file; where it doesn't state the spacing, two
    nodules ten slices apart would get ten slices thick.
    """
    if unstated_mm is not None and unstated_mm > _MAX_COARSER * volume.spacing_mm.max():
        raise MaskError(
            "other_spacing",
            f"{region.place} can't be placed: the file doesn't state the spacing of its slices, "
            f"and those that it holds lie {unstated_mm:g} mm apart, the scan's "
            f"{volume.spacing_mm.max():g} mm; export it with SpacingBetweenSlices, or as NIfTI.",
        )


def _empty(region: MaskRegion) -> MaskError:
    return MaskError("empty_mask", f"{region.place} is empty: it marks no voxel.")


def _too_large(source: str) -> MaskError:
    return MaskError(
        "too_large",
        f"{source} claims more voxels than any CT has ({MAX_VOXELS}): its header is damaged; "
        "fetch it again.",
    )
