"""A mask on any grid, placed on a volume's grid in patient space."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.spatial.distance import pdist

from data_prep.errors import MaskError
from data_prep.geometry import apply_affine, closest_canonical_axes, inverse_affine
from data_prep.nodules import MaskBox, trimmed_box
from data_prep.sections import Section, join_sections
from data_prep.volume import CTVolume

ROUNDING_VOXELS = 1e-3
"""Share of a voxel that is the rounding of two files' affines (float32: 1e-4)."""


@dataclass(frozen=True, eq=False)
class LabelledMask:
    """The voxels of one label, on the grid of the file that holds it.

    Parameters
    ----------
    label
        What the file calls it, e.g. ``"label 2"``.
    voxels
        Boolean (i, j, k), at least one true: the label's box.
    affine
        Voxel index of the box to RAS millimetres.
    """

    label: str
    voxels: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True, eq=False)
class PlacedMask:
    """The voxels of one label on the grid of a volume.

    Parameters
    ----------
    label
        What the file calls it.
    outline
        The voxels.
    notes
        What the file doesn't say itself and a rule decided: one sentence each.
    """

    label: str
    outline: MaskBox
    notes: tuple[str, ...] = ()


def label_box(
    label: str, voxels: Bool[np.ndarray, "_ _ _"], affine: Float64[np.ndarray, "4 4"]
) -> LabelledMask:
    """Return a label's smallest box; at least one voxel must be true."""
    ranges = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        filled = np.flatnonzero(voxels.any(axis=others))
        ranges.append(slice(int(filled[0]), int(filled[-1]) + 1))
    box_affine = affine.copy()
    box_affine[:3, 3] = apply_affine(affine, np.array([edge.start for edge in ranges]))
    return LabelledMask(label, voxels[tuple(ranges)].copy(), box_affine)


class DrawnFrame(NamedTuple):
    """The pixels of one label on one image, or on where an image was.

    Parameters
    ----------
    place_k
        The plane, one of `data_prep.sections.drawable_places`.
    pixels
        Boolean (i, j).
    to_volume
        Index of a pixel, as (i, j, 0), to index on the volume's grid, whose k is 0.
    """

    place_k: float
    pixels: np.ndarray
    to_volume: np.ndarray


def place_on_grid(mask: LabelledMask, volume: CTVolume, source: str) -> PlacedMask:
    """Sample a mask at the voxel centres of a volume: nearest neighbour in patient space.

    The two grids may lie to each other in any way.

    Parameters
    ----------
    mask
        The voxels of one label.
    volume
        The scan.
    source
        Printable name of the file, for messages.

    Raises
    ------
    MaskError
        ``outside_volume`` if the centre of a voxel of the mask lies outside of the volume;
        ``no_voxel`` if no voxel centre of the volume lies in the mask.
    """
    to_volume = inverse_affine(volume.affine) @ mask.affine
    _check_inside([(mask.voxels, to_volume)], volume, mask.label, source)
    voxels, low = _sample(mask.voxels, to_volume, volume.shape)
    return _placed(mask.label, trimmed_box(voxels, low, volume.shape), source)


def place_frames(
    label: str, frames: Sequence[DrawnFrame], volume: CTVolume, source: str
) -> PlacedMask:
    """Place a mask that was drawn on the images of a volume, image by image.

    Within a slice nearest neighbour; between images see `data_prep.sections.join_sections`.

    Parameters
    ----------
    label
        What the file calls it.
    frames
        One for each plane.
    volume
        The scan.
    source
        Printable name of the file, for messages.

    Raises
    ------
    MaskError
        As `place_on_grid`.
    """
    plates = [(frame.pixels[:, :, np.newaxis], frame.to_volume) for frame in frames]
    _check_inside(plates, volume, label, source)
    sections = []
    for frame, (plate, to_volume) in zip(frames, plates, strict=True):
        voxels, low = _sample(plate, to_volume, (*volume.shape[:2], 1))
        sections.append(Section(frame.place_k, (int(low[0]), int(low[1])), voxels[:, :, 0]))
    return _placed(label, join_sections(sections, volume), source)


def _check_inside(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], volume: CTVolume, label: str, source: str
) -> None:
    """Refuse a mask that has voxels outside of the volume; its parts come with their affines."""
    index = np.concatenate([apply_affine(affine, np.argwhere(part)) for part, affine in parts])
    reach = np.array(volume.shape) - 0.5 + ROUNDING_VOXELS
    outside = np.any((index < -0.5 - ROUNDING_VOXELS) | (index > reach), axis=1)
    if outside.any():
        raise MaskError(
            "outside_volume",
            f"{label} of {source} lies outside of the scan with {outside.sum()} of "
            f"{len(index)} voxels: check that it was drawn on series {volume.series_uid}, and the "
            "mask's orientation.",
        )


def _placed(label: str, outline: MaskBox | None, source: str) -> PlacedMask:
    if outline is None:
        raise MaskError(
            "no_voxel",
            f"{label} of {source} is so small that it holds no voxel centre of the scan: "
            "outline it on the scan's own grid, or give it as a point.",
        )
    return PlacedMask(label, outline)


def axial_diameter_mm(outline: MaskBox, volume: CTVolume) -> float | None:
    """Return the greatest distance between two voxel centres of a mask in one axial slice.

    Axial is the plane of the array that lies closest to the patient's. Of a disc it is too small
    by 0.2 to 0.5 pixels (30 to 4 pixels wide); the corners of the pixels would be too large by
    about one.

    Returns
    -------
    float or None
        Millimetres; None where no slice holds two voxels, as nothing can be measured then.
    """
    axis = closest_canonical_axes(volume.affine).order[2]
    spacing = np.delete(volume.spacing_mm, axis)
    largest = 0.0
    for plane in np.moveaxis(outline.voxels, axis, 0):
        rows = np.flatnonzero(plane.any(axis=1))
        if not len(rows):
            continue
        # only the ends of a row can be the farthest
        first = plane[rows].argmax(axis=1)
        last = plane.shape[1] - 1 - plane[rows, ::-1].argmax(axis=1)
        ends = np.vstack([np.column_stack([rows, first]), np.column_stack([rows, last])])
        largest = max(largest, float(pdist(ends * spacing).max()))
    return largest or None


def _sample(
    mask: np.ndarray, to_volume: np.ndarray, shape: tuple[int, int, int]
) -> tuple[Bool[np.ndarray, "_ _ _"], Int64[np.ndarray, "3"]]:
    """Return a mask's value at each voxel of a box of a grid, and the box's first voxel."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * mask.shape - 0.5
    reached = apply_affine(to_volume, corners)
    low = np.maximum(np.floor(reached.min(axis=0)), 0).astype(np.int64)
    high = np.minimum(np.ceil(reached.max(axis=0)) + 1, shape).astype(np.int64)
    to_mask = inverse_affine(to_volume)
    size_i, size_j, size_k = (int(n) for n in high - low)
    voxels = np.zeros((size_i, size_j, size_k), dtype=np.bool_)
    plane = np.stack(np.meshgrid(np.arange(size_i), np.arange(size_j), indexing="ij"), axis=-1)
    start = apply_affine(to_mask, low)
    steps = plane @ to_mask[:3, :2].T
    # one slice at a time
    for k in range(size_k):
        # half-way goes to the upper voxel, whatever the last digits of the affines
        nearest = np.floor(start + steps + k * to_mask[:3, 2] + 0.5 + ROUNDING_VOXELS).astype(int)
        inside = np.all((nearest >= 0) & (nearest < mask.shape), axis=-1)
        voxels[inside, k] = mask[tuple(nearest[inside].T)]
    return voxels, low
