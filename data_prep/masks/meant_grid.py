"""The grid that a mask image is meant on: its own, or the scan's where its own can't be meant."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from data_prep.errors import InputError, MaskError
from data_prep.formats.stored import StoredImage
from data_prep.geometry import apply_affine, inverse_affine, spacing_mm
from data_prep.volume import CTVolume

MASK_GRIDS = ("ct", "own")
"""Whose grid a mask image lies on, where that is asked for."""

_HALF_VOXEL = 0.5
"""Grids that lie closer together than this give the same voxels by nearest neighbour."""

_FLIPS = tuple(np.ndindex(2, 2, 2))
_AXIS_NAMES = ("left and right", "front and back", "head and feet")


def check_mask_grid(mask_grid: str | None) -> None:
    """Refuse a grid that isn't known.

    Raises
    ------
    InputError
        With the names that are.
    """
    if mask_grid is not None and mask_grid not in MASK_GRIDS:
        raise InputError(f"The mask grid {mask_grid!r} is unknown; give 'ct' or 'own'.")


def on_meant_grid(stored: StoredImage, volume: CTVolume, mask_grid: str | None) -> StoredImage:
    """Return a mask image on the grid that it is meant on.

    An image with exactly as many voxels along its axes as the scan was made on the scan's grid.
    Where its header says another place, one of the two is wrong, and placing it there would mark
    other tissue.

    Parameters
    ----------
    stored
        The mask image.
    volume
        The scan.
    mask_grid
        ``"ct"``: a mask of the scan's shape lies voxel by voxel on the scan, whatever its header
        says. ``"own"``: its header is right. None: refused where both differ.

    Raises
    ------
    MaskError
        ``other_grid``.
    """
    shape = stored.values.shape
    has_shape = sorted(shape) == sorted(volume.shape)
    if mask_grid == "own" or not has_shape or _is_same(stored.affine, shape, volume):
        return stored
    size = " x ".join(map(str, shape))
    if shape != volume.shape:
        raise MaskError(
            "other_grid",
            f"{stored.name} has the scan's numbers of voxels in another order ({size} instead of "
            f"{' x '.join(map(str, volume.shape))}), and its header places it elsewhere: its axes "
            "were exchanged when it was saved. Export it again with the scan's geometry; if it "
            "really lies there, take its own grid (mask_grid='own').",
        )
    if mask_grid == "ct":
        return replace(stored, affine=volume.affine)
    raise MaskError(
        "other_grid",
        f"{stored.name} has the shape of the scan ({size} voxels), but its header places it "
        f"elsewhere, up to {_apart_mm(stored.affine, volume):.0f} mm off: "
        f"{_suspected_cause(stored.affine, volume)}. Export it again with the scan's geometry; "
        "or, if its voxels are the scan's one by one, take the scan's grid (mask_grid='ct'); if "
        "it really lies there, its own (mask_grid='own').",
    )


def _is_same(affine: Float64[np.ndarray, "4 4"], shape: tuple[int, ...], volume: CTVolume) -> bool:
    """Tell whether the voxel centres of a mask are the scan's, in whatever order of the axes."""
    to_volume = inverse_affine(volume.affine) @ affine
    steps = np.rint(to_volume[:3, :3])
    if not (np.abs(steps).sum(axis=0) == 1).all() or not (np.abs(steps).sum(axis=1) == 1).all():
        return False
    if (np.abs(steps).T @ np.array(volume.shape)).tolist() != list(shape):
        return False
    reached = apply_affine(to_volume, _corners(np.array(shape)))
    ends = np.array(volume.shape) - 1
    is_end = np.minimum(np.abs(reached), np.abs(reached - ends)) < _HALF_VOXEL
    return bool(is_end.all())


def _suspected_cause(affine: Float64[np.ndarray, "4 4"], volume: CTVolume) -> str:
    """Say what most likely happened to the header of a mask of the scan's shape."""
    if np.allclose(affine, np.eye(4)):
        return "its affine is the identity, so the geometry was lost when it was saved"
    flipped = [
        flip
        for flip in _FLIPS
        if any(flip)
        and _is_same(np.diag([*(1 - 2 * np.array(flip)), 1.0]) @ affine, volume.shape, volume)
    ]
    if (1, 1, 0) in flipped:
        return (
            "left and right, front and back are exchanged, as where LPS coordinates (DICOM, ITK) "
            "were written as RAS (NIfTI) without turning the signs"
        )
    if flipped:
        names = [name for name, is_turned in zip(_AXIS_NAMES, flipped[0], strict=True) if is_turned]
        return f"{' and '.join(names)} are exchanged in its coordinates"
    if np.allclose(spacing_mm(affine), volume.spacing_mm, rtol=1e-3):
        if not affine[:3, 3].any():
            return "its origin is 0, so its place was lost when it was saved"
        if np.allclose(affine[:3, :3], volume.affine[:3, :3], atol=1e-3):
            return "it is shifted against the scan"
        return "its axes point elsewhere, so their directions were lost or changed"
    if np.allclose(spacing_mm(affine), 1.0):
        return "its voxels are 1 mm wide, so the spacing was lost when it was saved"
    return "it was drawn on another reconstruction, or its geometry was changed"


def _apart_mm(affine: Float64[np.ndarray, "4 4"], volume: CTVolume) -> float:
    """Return how far the farthest corner of a mask of the scan's shape lies from the scan's."""
    corners = _corners(np.array(volume.shape))
    moved = apply_affine(affine, corners) - apply_affine(volume.affine, corners)
    return float(np.linalg.norm(moved, axis=1).max())


def _corners(shape: np.ndarray) -> np.ndarray:
    corners: np.ndarray = np.array(list(np.ndindex(2, 2, 2))) * (shape - 1)
    return corners
