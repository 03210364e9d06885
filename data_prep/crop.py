"""A nodule-centred cube of CT, resampled to an isotropic grid that knows where it lies."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

from data_prep import geometry
from data_prep.errors import CropError
from data_prep.geometry import (
    apply_affine,
    axcodes,
    closest_canonical_axes,
    direction_cosines,
    inverse_affine,
    reorder_affine,
    reorder_array,
    spacing_mm,
)
from data_prep.nodules import MaskBox, Nodule
from data_prep.resample import points_inside, resample_linear, resample_nearest
from data_prep.volume import AIR_HU, CTVolume

DEFAULT_SIZE_MM = 64.0
DEFAULT_SPACING_MM = 1.0

SIZE_TOLERANCE = 1e-6
"""Share of a size in millimetres that is rounding: 7 mm are ten voxels of 0.7 mm."""

CROP_AXCODES = ("R", "A", "S")
"""Where the axes of a crop run closest to."""

_SPACING_TOLERANCE = 1e-4
"""Share of a spacing that is rounding: a file's affine in float32."""

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
    is_beyond_scan
        Whether the cube reaches beyond the scan's own grid; padding may also come from voxels of
        the scan that lie outside of what was reconstructed.
    is_cut
        Whether the nodule's outline reaches beyond the cube.
    """

    hu: np.ndarray
    affine: np.ndarray
    mask: np.ndarray | None
    padding: np.ndarray | None
    is_beyond_scan: bool = False
    is_cut: bool = False

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
    too_large: Literal["refuse", "cut"] = "refuse",
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
    too_large
        Where the outline reaches beyond the cube: refuse, or cut it and say so (`Crop.is_cut`).

    Returns
    -------
    Crop
        Cube of ``size_mm / spacing_mm`` voxels along each axis.

    Raises
    ------
    CropError
        If the size is no multiple of the spacing, the outline isn't on the scan's grid or is too
        large, or the cube lies outside of the scan altogether.
    """
    n_voxels = voxels_per_edge(size_mm, spacing_mm)
    needed_mm = needed_size_mm(volume, nodule)
    is_cut = needed_mm > size_mm * (1 + SIZE_TOLERANCE)
    if is_cut and too_large == "refuse":
        enough_mm = np.ceil(needed_mm / spacing_mm) * spacing_mm
        raise CropError(
            f"Nodule {nodule.nodule_id} needs a crop of {enough_mm:g} mm and would be cut by one "
            f"of {size_mm:g} mm; choose a larger size_mm, or a model with a larger field of view."
        )
    axis_order = closest_canonical_axes(volume.affine)
    source_affine = reorder_affine(volume.affine, volume.shape, axis_order)
    affine = np.eye(4)
    affine[:3, :3] = direction_cosines(source_affine) * spacing_mm
    affine[:3, 3] = nodule.center_xyz_mm - affine[:3, :3] @ np.full(3, (n_voxels - 1) / 2)
    shape = (n_voxels, n_voxels, n_voxels)
    hu = reorder_array(volume.hu, axis_order)
    outside = CropError(
        f"The {size_mm:g} mm cube around nodule {nodule.nodule_id} lies outside of the scan "
        f"altogether; check that the nodule belongs to series {volume.series_uid}."
    )
    box = _source_box(hu.shape, source_affine, affine, n_voxels)
    if box is None:
        raise outside
    box_affine = _moved(source_affine, [edge.start for edge in box])
    box_outside = None if volume.outside is None else reorder_array(volume.outside, axis_order)[box]
    is_inside = points_inside(hu[box].shape, box_affine, affine, shape)
    cropped, is_known = _resample_hu(hu[box], box_outside, box_affine, affine, is_inside)
    if not is_known.any():
        raise outside
    return Crop(
        hu=cropped,
        affine=affine,
        mask=None if nodule.outline is None else _sampled(volume, nodule.outline, affine, shape),
        padding=None if is_known.all() else ~is_known,
        is_beyond_scan=not is_inside.all(),
        is_cut=bool(is_cut),
    )


def cut_crop(crop: Crop, *, size_mm: float, spacing_mm: float) -> Crop:
    """Return the middle of a crop: what `crop_nodule` gives for a smaller cube on the same grid.

    No voxel is interpolated. A crop that is smaller, has another spacing, other axes, or an odd
    number of voxels where an even one is asked for (or the reverse) is a CropError, and so is a
    nodule that would be cut.
    """
    n_voxels = voxels_per_edge(size_mm, spacing_mm)
    has_spacing = np.allclose(
        geometry.spacing_mm(crop.affine), spacing_mm, rtol=_SPACING_TOLERANCE, atol=0
    )
    rest = np.array(crop.hu.shape) - n_voxels
    if axcodes(crop.affine) != CROP_AXCODES or not has_spacing or any(rest < 0) or any(rest % 2):
        shape = " x ".join(map(str, crop.hu.shape))
        spacing = " x ".join(f"{edge:.4g}" for edge in geometry.spacing_mm(crop.affine))
        raise CropError(
            f"A crop of {shape} voxels of {spacing} mm, axes {''.join(axcodes(crop.affine))}, "
            f"can't be cut to {n_voxels} voxels of {spacing_mm:g} mm, axes RAS, about the same "
            f"centre; use crop_nodule(volume, nodule, size_mm={size_mm:g}, "
            f"spacing_mm={spacing_mm:g})."
        )
    if not rest.any():
        return crop
    i, j, k = (slice(int(first), int(first) + n_voxels) for first in rest // 2)
    mask = None if crop.mask is None else crop.mask[i, j, k]
    if mask is not None and crop.mask is not None and mask.sum() < crop.mask.sum():
        raise CropError(
            f"The nodule in the crop would be cut by the {size_mm:g} mm in its middle: choose a "
            f'model with a larger field of view, or crop_nodule with too_large="cut".'
        )
    padding = None if crop.padding is None else crop.padding[i, j, k]
    if padding is not None and not padding.any():
        padding = None
    return replace(
        crop,
        hu=crop.hu[i, j, k],
        affine=_moved(crop.affine, [i.start, j.start, k.start]),
        mask=mask,
        padding=padding,
        is_beyond_scan=crop.is_beyond_scan and padding is not None,
    )


def needed_size_mm(volume: CTVolume, nodule: Nodule) -> float:
    """Return the edge of the smallest cube around the nodule's centre that holds its outline.

    0 for a bare point; a CropError if the outline isn't on the grid of the scan.
    """
    if nodule.outline is None:
        return 0.0
    if nodule.outline.grid_shape != volume.shape:
        raise CropError(
            f"The outline of nodule {nodule.nodule_id} is on a grid of "
            f"{nodule.outline.grid_shape} voxels, but the scan has {volume.shape}; crop it from "
            "the volume that it was read with."
        )
    first, ends = _outline_edges_ijk(nodule.outline)
    corners = first + np.array(list(np.ndindex(2, 2, 2))) * (ends - first)
    relative_mm = apply_affine(volume.affine, corners) - nodule.center_xyz_mm
    along_axes_mm = relative_mm @ direction_cosines(volume.affine)
    return 2 * float(np.abs(along_axes_mm).max())


def box_center_xyz_mm(volume: CTVolume, outlines: Sequence[MaskBox]) -> Float64[np.ndarray, "3"]:
    """Return the middle of the bounding box around outlines, in RAS millimetres.

    Around the outlines of all readers that is the box of pylidc's ``consensus``, which the
    published crops are centred on.
    """
    edges = [_outline_edges_ijk(outline) for outline in outlines]
    first = np.min([first for first, _ in edges], axis=0)
    ends = np.max([ends for _, ends in edges], axis=0)
    return apply_affine(volume.affine, (first + ends) / 2)


def outline_on_crop(volume: CTVolume, outline: MaskBox, crop: Crop) -> Bool[np.ndarray, "i j k"]:
    """Return a mask of the scan on the grid of a crop of it; the nearest voxel decides."""
    i, j, k = crop.hu.shape
    return _sampled(volume, outline, crop.affine, (i, j, k))


def _outline_edges_ijk(
    outline: MaskBox,
) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3"]]:
    """Return the outer edges of an outline's bounding box in voxels of the scan."""
    voxels = np.argwhere(outline.voxels)
    first = voxels.min(axis=0) + outline.origin_ijk - 0.5
    return first, first + np.ptp(voxels, axis=0) + 1


def _sampled(
    volume: CTVolume, outline: MaskBox, affine: np.ndarray, shape: tuple[int, int, int]
) -> Bool[np.ndarray, "i j k"]:
    """Return an outline on another grid; only its box is looked at, not the whole scan."""
    axis_order = closest_canonical_axes(volume.affine)
    box_affine = _moved(volume.affine, outline.origin_ijk)
    i, j, k = outline.voxels.shape
    return resample_nearest(
        reorder_array(outline.voxels, axis_order),
        reorder_affine(box_affine, (i, j, k), axis_order),
        affine,
        shape,
    )


def _moved(affine: np.ndarray, origin_ijk: Sequence[int]) -> np.ndarray:
    """Return the affine of the part of an array that begins at a voxel."""
    moved = affine.copy()
    moved[:3, 3] = apply_affine(affine, np.array(origin_ijk))
    return moved


def _resample_hu(
    box_hu: np.ndarray,
    box_outside: np.ndarray | None,
    box_affine: np.ndarray,
    affine: np.ndarray,
    is_inside: Bool[np.ndarray, "i j k"],
) -> tuple[np.ndarray, np.ndarray]:
    """Return HU on the cube's grid, air where the scan doesn't reach, and where it does."""
    i, j, k = is_inside.shape
    values = box_hu.astype(np.float32)
    is_known = is_inside
    if box_outside is not None:
        values[box_outside] = AIR_HU  # before smoothing: a padding value isn't a density
        is_known = is_inside & ~resample_nearest(box_outside, box_affine, affine, (i, j, k))
    hu = resample_linear(values, box_affine, affine, (i, j, k))
    hu[~is_known] = AIR_HU
    return hu, is_known


def voxels_per_edge(size_mm: float, spacing_mm: float) -> int:
    """Return the number of voxels along the edge of a cube; a CropError if it isn't whole."""
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
