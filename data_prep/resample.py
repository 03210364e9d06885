"""Resampling between grids whose axes run in parallel: linear with anti-aliasing, or nearest."""

import numpy as np
from jaxtyping import Bool, Float32, Float64, Shaped
from scipy import ndimage

from data_prep.geometry import apply_affine, inverse_affine, spacing_mm

PARALLEL_TOLERANCE = 1e-6
"""Greatest off-diagonal entry of the index-to-index affine, in voxels per voxel."""


def resample_linear(
    array: Shaped[np.ndarray, "_ _ _"],
    affine: Float64[np.ndarray, "4 4"],
    grid_affine: Float64[np.ndarray, "4 4"],
    grid_shape: tuple[int, int, int],
) -> Float32[np.ndarray, "_ _ _"]:
    """Sample an array on another grid by linear interpolation.

    Where an axis gets coarser, a Gaussian of standard deviation ``(factor - 1) / 2`` voxels
    smooths it first, so that fine structure doesn't alias (the rule of MONAI and scikit-image).
    Points beyond the array take its nearest edge value: use `points_inside` to find them.

    Both affines lead to the same millimetres; the axes of the grid run parallel to those of the
    array, in the same order and direction, else it is a ValueError.

    Examples
    --------
    >>> ramp = np.arange(4.0).reshape(4, 1, 1)
    >>> grid_affine = np.diag([0.5, 1, 1, 1])
    >>> resample_linear(ramp, np.eye(4), grid_affine, (7, 1, 1)).ravel()
    array([0. , 0.5, 1. , 1.5, 2. , 2.5, 3. ], dtype=float32)
    """
    scale, offset = _index_map(affine, grid_affine)
    factor = spacing_mm(grid_affine) / spacing_mm(affine)
    sigma = np.maximum(0.0, (factor - 1) / 2)
    values = array.astype(np.float32)
    if sigma.any():
        values = ndimage.gaussian_filter(values, sigma, mode="nearest")
    resampled: np.ndarray = ndimage.affine_transform(
        values, np.diag(scale), offset, grid_shape, order=1, mode="nearest"
    )
    return resampled


def resample_nearest(
    mask: Bool[np.ndarray, "_ _ _"],
    affine: Float64[np.ndarray, "4 4"],
    grid_affine: Float64[np.ndarray, "4 4"],
    grid_shape: tuple[int, int, int],
) -> Bool[np.ndarray, "_ _ _"]:
    """Sample a mask on another, parallel grid at the nearest voxel; false beyond the array.

    Examples
    --------
    >>> mask = np.array([False, True]).reshape(2, 1, 1)
    >>> resample_nearest(mask, np.eye(4), np.diag([0.5, 1, 1, 1]), (5, 1, 1)).ravel()
    array([False,  True,  True, False, False])
    """
    scale, offset = _index_map(affine, grid_affine)
    result = np.zeros(grid_shape, dtype=np.bool_)
    axes = []
    for axis, size in enumerate(grid_shape):
        # floor(x + 1/2) rather than round: a point half-way always goes to the upper voxel
        nearest = np.floor(scale[axis] * np.arange(size) + offset[axis] + 0.5).astype(np.intp)
        inside = (nearest >= 0) & (nearest < mask.shape[axis])
        axes.append((np.flatnonzero(inside), nearest[inside]))
    (to_i, from_i), (to_j, from_j), (to_k, from_k) = axes
    result[np.ix_(to_i, to_j, to_k)] = mask[np.ix_(from_i, from_j, from_k)]
    return result


def points_inside(
    shape: tuple[int, int, int],
    affine: Float64[np.ndarray, "4 4"],
    grid_affine: Float64[np.ndarray, "4 4"],
    grid_shape: tuple[int, int, int],
) -> Bool[np.ndarray, "_ _ _"]:
    """Tell which points of a grid lie in an array; a voxel reaches half a spacing each way.

    Examples
    --------
    >>> points_inside((2, 1, 1), np.eye(4), np.diag([0.5, 1, 1, 1]), (5, 1, 1)).ravel()
    array([ True,  True,  True, False, False])
    """
    return resample_nearest(np.ones(shape, dtype=np.bool_), affine, grid_affine, grid_shape)


def _index_map(
    affine: np.ndarray, grid_affine: np.ndarray
) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3"]]:
    """Return scale and offset, per axis, from indices of the grid to indices of the array."""
    grid_to_array = inverse_affine(affine) @ grid_affine
    matrix = grid_to_array[:3, :3]
    scale = np.diag(matrix).copy()
    if np.abs(matrix - np.diag(scale)).max() > PARALLEL_TOLERANCE or scale.min() <= 0:
        raise ValueError("the grids are not parallel: reorder the array's axes first")
    return scale, apply_affine(grid_to_array, np.zeros(3))
