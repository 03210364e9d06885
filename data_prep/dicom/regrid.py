"""Slices with gaps, of varying spacing or askew -> the regular grid of their placement."""

import numpy as np
from jaxtyping import Bool, Float32, Float64, Num

from data_prep.volume import AIR_HU

WHOLE = 1e-6
"""Shift, in voxels, that is float rounding."""


def regrid(
    hu: Num[np.ndarray, "i j k"],
    outside: Bool[np.ndarray, "i j k"] | None,
    *,
    shape: tuple[int, int, int],
    source_k: Float64[np.ndarray, " level"],
    shift_ij: Float64[np.ndarray, "k 2"],
) -> tuple[Num[np.ndarray, "_ _ _"], Bool[np.ndarray, "_ _ _"] | None]:
    """Bring the images of a stack onto its regular grid.

    Within a slice, an image that is shifted (gantry tilt) is interpolated linearly along its rows
    and columns; between slices, the two nearest images are, along the normal. Slices that need
    neither are copied bit by bit.

    Parameters
    ----------
    hu, outside
        The images in the order of their placement, and their padding.
    shape
        Of the grid: (i, j, k).
    source_k
        For each slice of the grid, its place among the images.
    shift_ij
        For each image, where its first pixel lies in the grid, in voxels along (i, j).

    Returns
    -------
    hu : ndarray
        Of the grid's shape and the same type; interpolated values are rounded where that is int16.
    outside : ndarray or None
        Where an image that enters has padding, or none reaches (HU is then `AIR_HU`); None where
        there is no such voxel.
    """
    columns, rows, count = shape
    result = np.empty((count, rows, columns), hu.dtype)
    result_outside = np.zeros((count, rows, columns), np.bool_)
    is_copy = not shift_ij.any()
    source = _Source(hu, outside, shift_ij, (rows, columns))
    for k, place in enumerate(source_k):
        below = int(np.floor(place))
        weight = np.float32(place - below)
        if is_copy and not weight:
            result[k] = hu[:, :, below].T
            if outside is not None:
                result_outside[k] = outside[:, :, below].T
            continue
        values, inside = source.shifted(below)
        if weight:
            above, inside_above = source.shifted(below + 1)
            values = values + weight * (above - values)
            inside = inside & inside_above
        values = np.where(inside, values, np.float32(AIR_HU))
        result[k] = np.rint(values) if hu.dtype == np.int16 else values
        result_outside[k] = ~inside
    return result.T, result_outside.T if result_outside.any() else None


class _Source:
    """Images shifted to their place within the slice, the last two of them kept."""

    def __init__(
        self,
        hu: np.ndarray,
        outside: np.ndarray | None,
        shift_ij: np.ndarray,
        size: tuple[int, int],
    ) -> None:
        self._hu, self._outside, self._shift_ij, self._size = hu, outside, shift_ij, size
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def shifted(self, k: int) -> tuple[Float32[np.ndarray, "_ _"], Bool[np.ndarray, "_ _"]]:
        """Return image `k` on the grid of a slice (j, i), and where it is."""
        if k not in self._kept:
            self._kept = {old: kept for old, kept in self._kept.items() if old == k - 1}
            values = self._hu[:, :, k].T.astype(np.float32)
            inside = np.ones(values.shape, np.bool_)
            if self._outside is not None:
                inside = ~self._outside[:, :, k].T
            shift_i, shift_j = self._shift_ij[k]
            rows, columns = self._size
            values, inside = _shift_rows(values, inside, shift_j, rows)
            across, inside_across = _shift_rows(values.T, inside.T, shift_i, columns)
            self._kept[k] = across.T, inside_across.T
        return self._kept[k]


def _shift_rows(
    values: Float32[np.ndarray, "n m"],
    inside: Bool[np.ndarray, "n m"],
    shift: float | np.float64,
    count: int,
) -> tuple[Float32[np.ndarray, "_ m"], Bool[np.ndarray, "_ m"]]:
    """Move rows by a number of rows that need not be whole, linearly, into `count` rows."""
    whole = int(np.floor(shift + WHOLE))
    part = np.float32(max(0.0, shift - whole))
    moved = np.full((count, values.shape[1]), np.float32(AIR_HU))
    is_inside = np.zeros(moved.shape, np.bool_)
    if part < WHOLE:
        moved[whole : whole + len(values)] = values
        is_inside[whole : whole + len(values)] = inside
    else:
        target = slice(whole + 1, whole + len(values))
        moved[target] = values[1:] + part * (values[:-1] - values[1:])
        is_inside[target] = inside[1:] & inside[:-1]
    return moved, is_inside
