"""A nodule-centred cube of CT, resampled to an isotropic grid that knows where it lies."""

from dataclasses import dataclass

import numpy as np

from data_prep.errors import CropError
from data_prep.geometry import (
    apply_affine,
    closest_canonical_axes,
    direction_cosines,
    inverse_affine,
    reorder_affine,
    reorder_array,
    spacing_mm,
)
from data_prep.nodules import Nodule
from data_prep.resample import points_inside, resample_linear, resample_nearest
from data_prep.volume import CTVolume

AIR_HU = -1000.0
"""What lies outside of the scan is filled with air."""

DEFAULT_SIZE_MM = 64.0
DEFAULT_SPACING_MM = 1.0

SIZE_TOLERANCE = 1e-6
"""Share of a size in millimetres that is rounding: 7 mm are ten voxels of 0.7 mm."""

_MARGIN_VOXELS = 4
"""Source voxels kept around the cube, so that smoothing and interpolation see their neighbours."""


@dataclass(frozen=True, eq=False)
class Crop:
    """A cube of CT around a nodule.

    Parameters
    ----------
    hu
        Hounsfield units, float32 (i, j, k). The axes run closest to R+, A+ and S+; a scan with
        oblique axes stays oblique, so that nothing but the spacing is interpolated.
    affine
        (4, 4) float64: voxel index to RAS millimetres.
    mask
        Consensus outline of the nodule, boolean (i, j, k); None for a bare point.
    padding
        Boolean (i, j, k): voxels outside of the scan, which hold air; None where there are none.
    """

    hu: np.ndarray
    affine: np.ndarray
    mask: np.ndarray | None
    padding: np.ndarray | None

    @property
    def spacing_mm(self) -> float:
        """Distance between neighbouring voxels, the same along each axis."""
        return float(spacing_mm(self.affine)[0])

    @property
    def padding_fraction(self) -> float:
        """Share of the voxels that lie outside of the scan."""
        return 0.0 if self.padding is None else float(self.padding.mean())


def crop_nodule(
    volume: CTVolume,
    nodule: Nodule,
    *,
    size_mm: float = DEFAULT_SIZE_MM,
    spacing_mm: float = DEFAULT_SPACING_MM,
) -> Crop:
    """Cut a cube around a nodule's centre and resample it.

    The middle of the cube is exactly the nodule's centre: of the middle voxel where the number of
    voxels is odd, of the corner between the middle voxels where it is even. Linear
    interpolation, smoothed first along axes that get coarser; the outline by nearest neighbour.

    Parameters
    ----------
    volume
        The scan.
    nodule
        A nodule of that scan, or a bare point in it.
    size_mm
        Edge of the cube in millimetres, a multiple of `spacing_mm`.
    spacing_mm
        Edge of a voxel of the result in millimetres.

    Returns
    -------
    Crop
        Cube of ``size_mm / spacing_mm`` voxels along each axis.

    Raises
    ------
    CropError
        If the size is no multiple of the spacing, the outline isn't on the grid of the scan or
        reaches beyond the cube, or the cube lies outside of the scan altogether.
    """
    n_voxels = _voxels_per_edge(size_mm, spacing_mm)
    _check_fits(volume, nodule, size_mm, spacing_mm)
    axis_order = closest_canonical_axes(volume.affine)
    source_affine = reorder_affine(volume.affine, volume.shape, axis_order)
    affine = np.eye(4)
    affine[:3, :3] = direction_cosines(source_affine) * spacing_mm
    affine[:3, 3] = nodule.center_xyz_mm - affine[:3, :3] @ np.full(3, (n_voxels - 1) / 2)
    shape = (n_voxels, n_voxels, n_voxels)

    hu = reorder_array(volume.hu, axis_order)
    box = _source_box(hu.shape, source_affine, affine, n_voxels)
    if box is None:
        raise _outside_error(volume, nodule, size_mm)
    box_affine = source_affine.copy()
    box_affine[:3, 3] = apply_affine(source_affine, np.array([edge.start for edge in box]))

    def in_box(whole: np.ndarray | None) -> np.ndarray | None:
        return None if whole is None else reorder_array(whole, axis_order)[box]

    cropped, inside = _resample_hu(hu[box], in_box(volume.outside), box_affine, affine, shape)
    if not inside.any():
        raise _outside_error(volume, nodule, size_mm)
    box_mask = in_box(nodule.mask)
    mask = None if box_mask is None else resample_nearest(box_mask, box_affine, affine, shape)
    return Crop(cropped, affine, mask, None if inside.all() else ~inside)


def _resample_hu(
    box_hu: np.ndarray,
    box_outside: np.ndarray | None,
    box_affine: np.ndarray,
    affine: np.ndarray,
    shape: tuple[int, int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Return HU on the cube's grid, air where the scan doesn't reach, and where it does."""
    values = box_hu.astype(np.float32)
    inside = points_inside(values.shape, box_affine, affine, shape)
    if box_outside is not None:
        values[box_outside] = AIR_HU  # before smoothing: a padding value isn't a density
        inside &= ~resample_nearest(box_outside, box_affine, affine, shape)
    hu = resample_linear(values, box_affine, affine, shape)
    hu[~inside] = AIR_HU
    return hu, inside


def _voxels_per_edge(size_mm: float, spacing_mm: float) -> int:
    """Return the number of voxels along an edge, or refuse sizes that don't divide."""
    if not (np.isfinite([size_mm, spacing_mm]).all() and spacing_mm > 0 and size_mm >= spacing_mm):
        raise CropError(
            f"A crop of {size_mm} mm at {spacing_mm} mm isn't possible; give a positive spacing "
            "and a size of at least one voxel."
        )
    n_voxels = round(size_mm / spacing_mm)
    if abs(n_voxels * spacing_mm - size_mm) > SIZE_TOLERANCE * size_mm:
        raise CropError(
            f"A crop of {size_mm:g} mm is no whole number of voxels of {spacing_mm:g} mm; "
            f"{n_voxels * spacing_mm:g} mm would be."
        )
    return n_voxels


def _outside_error(volume: CTVolume, nodule: Nodule, size_mm: float) -> CropError:
    """Say that there is nothing of the scan in the cube."""
    return CropError(
        f"The {size_mm:g} mm cube around nodule {nodule.nodule_id} lies outside of the scan "
        f"altogether; check that the nodule belongs to series {volume.series_uid}."
    )


def _check_fits(volume: CTVolume, nodule: Nodule, size_mm: float, spacing_mm: float) -> None:
    """Refuse a nodule of another scan, or one whose outline reaches beyond the cube."""
    if nodule.outline is None:
        return
    if nodule.outline.grid_shape != volume.shape:
        raise CropError(
            f"The outline of nodule {nodule.nodule_id} is on a grid of "
            f"{nodule.outline.grid_shape} voxels, but the scan has {volume.shape}; crop it from "
            "the volume that it was read with."
        )
    voxels = np.argwhere(nodule.outline.voxels)
    first = voxels.min(axis=0) + nodule.outline.origin_ijk - 0.5
    corners = first + np.array(list(np.ndindex(2, 2, 2))) * (np.ptp(voxels, axis=0) + 1)
    relative_mm = apply_affine(volume.affine, corners) - nodule.center_xyz_mm
    along_axes_mm = relative_mm @ direction_cosines(volume.affine)
    needed_mm = 2 * float(np.abs(along_axes_mm).max())
    if needed_mm > size_mm * (1 + SIZE_TOLERANCE):
        enough_mm = np.ceil(needed_mm / spacing_mm) * spacing_mm
        raise CropError(
            f"Nodule {nodule.nodule_id} needs a crop of {enough_mm:g} mm and would be "
            f"cut by one of {size_mm:g} mm; choose a larger size_mm, or a model with a larger "
            "field of view."
        )


def _source_box(
    source_shape: tuple[int, ...], source_affine: np.ndarray, affine: np.ndarray, n_voxels: int
) -> tuple[slice, slice, slice] | None:
    """Return the part of the source that a cube needs, or None where they don't meet."""
    corners = np.array([[-0.5] * 3, [n_voxels - 0.5] * 3])
    low, high = apply_affine(inverse_affine(source_affine) @ affine, corners)
    if np.any(high < -0.5) or np.any(low > np.array(source_shape) - 0.5):
        return None
    # a coarse grid smooths over (factor - 1) / 2 voxels: scipy cuts that at four deviations
    factor = spacing_mm(affine) / spacing_mm(source_affine)
    margin = _MARGIN_VOXELS * np.maximum(1, np.ceil(factor))
    first = np.maximum(0, np.floor(low - margin)).astype(int)
    last = np.minimum(source_shape, np.ceil(high + margin) + 1).astype(int)
    i, j, k = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return i, j, k
