"""DICOM segmentations (PS3.3 A.51): binary, fractional and label map, read with highdicom."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from pydicom import Dataset, dcmread

from data_prep.errors import MaskError
from data_prep.formats.stored import MAX_VOXELS
from data_prep.geometry import (
    affine_lps_from_dicom,
    affine_lps_to_ras,
    apply_affine,
    inverse_affine,
)
from data_prep.masks.grid import (
    DrawnRegion,
    OwnGrid,
    PlacedMask,
    check_inside,
    place_on_grid,
    placed,
    sample,
    smallest_box,
    unusable,
)
from data_prep.masks.references import as_unreadable, unreadable
from data_prep.masks.regions import MaskRegion, check_count, described_region
from data_prep.sections import Section, drawable_places, join_sections
from data_prep.text import printable
from data_prep.volume import CTVolume

FRACTION_THRESHOLD = 0.5
"""A voxel of a fractional segmentation belongs to the segment from this value on."""

_MAX_COARSER = 1.5

_PLANE_TOLERANCE = 0.1
"""A frame that lies this share of a slice spacing from an image was drawn on it."""


def read_segmentation(path: Path) -> list[DrawnRegion]:
    """Read the segments of a DICOM segmentation.

    Each segment is one region, also where it has several parts. Frames that the file leaves out
    are empty. Between images that a repair filled or resampled, see
    `data_prep.sections.join_sections`. A file is refused as ``unreadable_mask``, ``too_large``,
    ``empty_mask`` (no segment at all) or ``too_many_labels``; a segment placed on a volume as
    ``empty_mask``, ``unreadable_mask``, ``sheared_mask``, ``too_large``, ``other_spacing``,
    ``outside_volume`` or ``no_voxel``.
    """
    import highdicom as hd

    source = printable(path.name)
    with as_unreadable(path):
        _check_size(dcmread(path, stop_before_pixels=True), path)
        segmentation: Any = hd.seg.segread(path)
        numbers = [int(number) for number in segmentation.segment_numbers if number]
        check_count(len(numbers), source, "segment")
        items = {int(item.SegmentNumber): item for item in segmentation.SegmentSequence}
        # the same for each segment
        frames_on = lru_cache(maxsize=1)(partial(_frames_on_images, segmentation))
        stack = _Stack(segmentation, path, frames_on, *_own_grid(segmentation, source))
        return [_drawn(stack, number, items.get(number, Dataset())) for number in numbers]


class _Frame(NamedTuple):
    number: int
    segment: int | None  # of a label map, each frame is of all segments
    plane_k: float  # one of `drawable_places`
    to_volume: np.ndarray  # index of a pixel, (i, j, 0), to index on the volume's grid, k = 0


class _Stack(NamedTuple):
    """A segmentation, and whether its frames make a grid of their own."""

    segmentation: Any
    path: Path
    frames_on: Callable[[CTVolume], list[_Frame] | None]
    fault: MaskError | None
    unstated_mm: float | None  # the distance of the frames, where the file doesn't state it


def _own_grid(segmentation: Any, source: str) -> tuple[MaskError | None, float | None]:
    """Return why the frames make no grid, or their distance where the file doesn't state it."""
    geometry: Any = segmentation.get_volume_geometry(allow_missing_positions=True)
    if geometry is None:
        message = (
            f"The frames of {source} don't form a regular stack: export the segmentation as a "
            "volume, or as NIfTI."
        )
        return MaskError("sheared_mask", message), None
    if np.prod(geometry.shape, dtype=np.float64) > MAX_VOXELS:
        return _too_large(source), None
    is_stated = any(
        measures.get("SpacingBetweenSlices")
        for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
        for group in segmentation.get(keyword) or []
        for measures in group.get("PixelMeasuresSequence") or []
    )
    return None, None if is_stated else float(geometry.spacing[0])


def _drawn(stack: _Stack, number: int, item: Dataset) -> DrawnRegion:
    segmentation = stack.segmentation
    codes = [
        next(iter(item.get(f"SegmentedProperty{part}CodeSequence") or []), Dataset())
        for part in ("Category", "Type")
    ]
    category, kind = (
        (str(code.get("CodeValue") or ""), str(code.get("CodeMeaning") or "")) for code in codes
    )
    source, label = printable(stack.path.name), f"segment {number}"
    region = described_region(source, label, item.get("SegmentLabel"), category, kind)
    empty = MaskError("empty_mask", f"{region.place} is empty: it marks no voxel.")
    mask: OwnGrid | None = None
    if stack.fault is None:
        part = segmentation.get_volume(segment_numbers=[number], allow_missing_positions=True)
        # one segment asked for: the last axis has one entry
        voxels = part.array.reshape(part.spatial_shape) >= FRACTION_THRESHOLD
        if not voxels.any():
            return unusable(region, empty)
        affine_lps = np.asarray(part.affine, dtype=np.float64)
        mask = smallest_box(voxels, affine_lps_to_ras(affine_lps))
        region = mask.measured(region)

    def to_grid(volume: CTVolume) -> PlacedMask:
        with as_unreadable(stack.path):
            frames = stack.frames_on(volume)
            if frames is not None:
                parts = [
                    (frame, _pixels(segmentation, frame, number))
                    for frame in frames
                    if frame.segment in (number, None)
                ]
                if not any(pixels.any() for _, pixels in parts):
                    raise empty
                return _place_frames(parts, volume, region)
        if mask is None:
            raise stack.fault or empty
        _check_spacing(stack.unstated_mm, region, volume)
        return place_on_grid(mask, volume, region)

    return DrawnRegion(region, to_grid)


def _pixels(segmentation: Any, frame: _Frame, number: int) -> Bool[np.ndarray, "i j"]:
    stored = segmentation.get_stored_frame(frame.number).T
    if frame.segment is None:
        return np.asarray(stored == number)
    full = float(segmentation.get("MaximumFractionalValue") or 1)
    return np.asarray(stored >= FRACTION_THRESHOLD * full)


def _place_frames(
    parts: list[tuple[_Frame, np.ndarray]], volume: CTVolume, region: MaskRegion
) -> PlacedMask:
    """Place what was drawn on the images of a volume: nearest neighbour within each."""
    plates = [(pixels[:, :, np.newaxis], frame.to_volume) for frame, pixels in parts]
    check_inside(plates, volume, region)
    sections = []
    for (frame, _), (plate, to_volume) in zip(parts, plates, strict=True):
        voxels, low = sample(plate, to_volume, (*volume.shape[:2], 1))
        sections.append(Section(frame.plane_k, (int(low[0]), int(low[1])), voxels[:, :, 0]))
    return placed(join_sections(sections, volume), region)


def _frames_on_images(segmentation: Any, volume: CTVolume) -> list[_Frame] | None:
    """Return where the frames lie on a repaired volume, whose images are no regular stack.

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


def _check_size(dataset: Dataset, path: Path) -> None:
    """Refuse sizes that no patient's segmentation has, before pixels are read."""
    claimed = int(dataset.get("NumberOfFrames") or 1) * int(dataset.Rows) * int(dataset.Columns)
    if claimed > MAX_VOXELS or claimed < 1:
        raise _too_large(printable(path.name))
    is_compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
    if not is_compressed and claimed * int(dataset.BitsAllocated) // 8 > path.stat().st_size:
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


def _too_large(source: str) -> MaskError:
    return MaskError(
        "too_large",
        f"{source} claims more voxels than any CT has ({MAX_VOXELS}): its header is damaged; "
        "fetch it again.",
    )
