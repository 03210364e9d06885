"""A mask on any grid, placed on a volume's grid in patient space."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from scipy.spatial.distance import pdist

from data_prep.errors import MaskError
from data_prep.geometry import apply_affine, closest_canonical_axes, inverse_affine
from data_prep.nodules import MaskBox
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
    """The voxels of one label on the grid of a volume."""

    label: str
    outline: MaskBox


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
    index = apply_affine(to_volume, np.argwhere(mask.voxels))
    reach = np.array(volume.shape) - 0.5 + ROUNDING_VOXELS
    outside = np.any((index < -0.5 - ROUNDING_VOXELS) | (index > reach), axis=1)
    if outside.any():
        raise MaskError(
            "outside_volume",
            f"{mask.label} of {source} lies outside of the scan with {outside.sum()} of "
            f"{len(index)} voxels: check that it was drawn on series {volume.series_uid}, and the "
            "mask's orientation.",
        )
    corners = np.array(list(np.ndindex(2, 2, 2))) * mask.voxels.shape - 0.5
    reached = apply_affine(to_volume, corners)
    low = np.maximum(np.floor(reached.min(axis=0)), 0).astype(int)
    high = np.minimum(np.ceil(reached.max(axis=0)) + 1, volume.shape).astype(int)
    voxels = _sample(mask.voxels, inverse_affine(to_volume), low, high)
    filled = np.argwhere(voxels)
    if not len(filled):
        raise MaskError(
            "no_voxel",
            f"{mask.label} of {source} is so small that it holds no voxel centre of the scan: "
            "outline it on the scan's own grid, or give it as a point.",
        )
    return PlacedMask(mask.label, trimmed(voxels, low, volume.shape))


def trimmed(
    voxels: Bool[np.ndarray, "_ _ _"], origin_ijk: np.ndarray, grid_shape: tuple[int, int, int]
) -> MaskBox:
    """Return the smallest box of a mask that isn't empty."""
    filled = np.argwhere(voxels)
    low, high = filled.min(axis=0), filled.max(axis=0) + 1
    i, j, k = (int(n) for n in origin_ijk + low)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return MaskBox((i, j, k), voxels[box], grid_shape)


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
    mask: np.ndarray, to_mask: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Bool[np.ndarray, "_ _ _"]:
    """Return a mask's value at each voxel of a box of the volume, one slice at a time."""
    size_i, size_j, size_k = (int(n) for n in high - low)
    voxels = np.zeros((size_i, size_j, size_k), dtype=np.bool_)
    plane = np.stack(np.meshgrid(np.arange(size_i), np.arange(size_j), indexing="ij"), axis=-1)
    start = apply_affine(to_mask, low)
    steps = plane @ to_mask[:3, :2].T
    for k in range(size_k):
        # half-way goes to the upper voxel, whatever the last digits of the affines
        nearest = np.floor(start + steps + k * to_mask[:3, 2] + 0.5 + ROUNDING_VOXELS).astype(int)
        inside = np.all((nearest >= 0) & (nearest < mask.shape), axis=-1)
        voxels[inside, k] = mask[tuple(nearest[inside].T)]
    return voxels
