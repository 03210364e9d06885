"""A mask on any grid, placed on a volume's grid in patient space."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.spatial.distance import pdist

from data_prep.errors import MaskError
from data_prep.geometry import apply_affine, closest_canonical_axes, inverse_affine, spacing_mm
from data_prep.masks.regions import MaskRegion
from data_prep.nodules import MaskBox, trimmed_box
from data_prep.volume import CTVolume

ROUNDING_VOXELS = 1e-3
"""Share of a voxel that is the rounding of two files' affines (float32: 1e-4)."""


class PlacedMask(NamedTuple):
    """A region on a volume's grid, and what a rule decided as the file doesn't say it."""

    outline: MaskBox
    notes: tuple[str, ...] = ()


class DrawnRegion(NamedTuple):
    """A region, and what places it on a volume; a `MaskError` where it can't be used."""

    region: MaskRegion
    to_grid: Callable[[CTVolume], PlacedMask]


class OwnGrid(NamedTuple):
    """A region's voxels, boolean (i, j, k), on the grid of its file: index to RAS millimetres."""

    voxels: np.ndarray
    affine: np.ndarray

    @classmethod
    def cut(cls, voxels: np.ndarray, affine: np.ndarray, box: tuple[slice, ...]) -> "OwnGrid":
        """Return a box of an array with its own affine; `voxels` are those of the box."""
        moved = affine.copy()
        moved[:3, 3] = apply_affine(affine, np.array([edge.start for edge in box]))
        return cls(voxels, moved)

    def measured(self, region: MaskRegion) -> MaskRegion:
        """Return a region with the number of axial slices and the size of these voxels' box."""
        order = closest_canonical_axes(self.affine).order
        sides_mm = self.voxels.shape * spacing_mm(self.affine)
        x, y, z = (float(sides_mm[axis]) for axis in order)
        n_slices = int(self.voxels.any(axis=(order[0], order[1])).sum())
        return replace(region, n_slices=n_slices, size_mm=(x, y, z))


def smallest_box(voxels: Bool[np.ndarray, "_ _ _"], affine: Float64[np.ndarray, "4 4"]) -> OwnGrid:
    """Return the smallest box that holds all true voxels; there must be one."""
    ranges = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        filled = np.flatnonzero(voxels.any(axis=others))
        ranges.append(slice(int(filled[0]), int(filled[-1]) + 1))
    box = tuple(ranges)
    return OwnGrid.cut(voxels[box].copy(), affine, box)


def unusable(region: MaskRegion, error: MaskError) -> DrawnRegion:
    """Return a region that is refused by an error whenever it is wanted."""

    def refuse(_: CTVolume) -> PlacedMask:
        raise error

    return DrawnRegion(region, refuse)


def place_on_grid(mask: OwnGrid, volume: CTVolume, region: MaskRegion) -> PlacedMask:
    """Sample a mask at the voxel centres of a volume: nearest neighbour in patient space.

    The two grids may lie to each other in any way. Refused are ``outside_volume`` (the centre of
    a voxel of the mask lies outside of the volume) and ``no_voxel`` (no voxel centre of the
    volume lies in the mask).
    """
    to_volume = inverse_affine(volume.affine) @ mask.affine
    check_inside([(mask.voxels, to_volume)], volume, region)
    voxels, low = sample(mask.voxels, to_volume, volume.shape)
    return placed(trimmed_box(voxels, low, volume.shape), region)


def check_inside(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], volume: CTVolume, region: MaskRegion
) -> None:
    """Refuse a mask that has voxels outside of the volume; its parts come with their affines."""
    index = np.concatenate([apply_affine(affine, np.argwhere(part)) for part, affine in parts])
    reach = np.array(volume.shape) - 0.5 + ROUNDING_VOXELS
    outside = np.any((index < -0.5 - ROUNDING_VOXELS) | (index > reach), axis=1)
    if outside.any():
        raise MaskError(
            "outside_volume",
            f"{region.place} lies outside of the scan with {outside.sum()} of {len(index)} voxels: "
            f"check that it was drawn on series {volume.series_uid}, and the mask's orientation.",
        )


def placed(outline: MaskBox | None, region: MaskRegion) -> PlacedMask:
    """Return a placed mask, or refuse one that holds no voxel."""
    if outline is None:
        raise MaskError(
            "no_voxel",
            f"{region.place} is so small that it holds no voxel centre of the scan: outline it on "
            "the scan's own grid, or give it as a point.",
        )
    return PlacedMask(outline)


def sample(
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


def axial_diameter_mm(outline: MaskBox, volume: CTVolume) -> float | None:
    """Return the greatest distance between two voxel centres of a mask in one axial slice.

    Axial is the plane of the array that lies closest to the patient's. Of a disc it is too small
    by 0.2 to 0.5 pixels (30 to 4 pixels wide); the corners of the pixels would be too large by
    about one. None where no slice holds two voxels, as nothing can be measured then.
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
