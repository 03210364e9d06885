"""Whole slices of the CT through a nodule, so that one sees where in the chest it lies."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Shaped

from cdam_med.data.views import AXIAL, CORONAL, View, volume_to_slices
from data_prep import geometry
from data_prep.crop import Crop
from data_prep.volume import CTVolume


@dataclass(frozen=True, eq=False)
class ChestSlice:
    """One slice of the whole CT as it is displayed, and where on it the crop lies.

    Parameters
    ----------
    view : View
        Its plane; a scan with oblique axes stays oblique, as its crop does.
    hu : ndarray
        Hounsfield units.
    pixel_mm : tuple of float
        Height and width of a pixel.
    box_mm : tuple of float
        Left, top, width and height of the crop, from the slice's top left corner.
    """

    view: View
    hu: Shaped[np.ndarray, "rows columns"]
    pixel_mm: tuple[float, float]
    box_mm: tuple[float, float, float, float]


def chest_slices(volume: CTVolume, crop: Crop) -> tuple[ChestSlice, ...]:
    """Return the axial and the coronal slice of the whole CT through the middle of a crop.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    crop : Crop
        A crop of it.
    """
    axis_order = geometry.closest_canonical_axes(volume.affine)
    affine = geometry.reorder_affine(volume.affine, volume.shape, axis_order)
    hu = geometry.reorder_array(volume.hu, axis_order)
    to_voxels = geometry.inverse_affine(affine) @ crop.affine
    corners = np.array([[-0.5] * 3, np.array(crop.hu.shape) - 0.5])
    box = geometry.apply_affine(to_voxels, corners)
    return tuple(_slice(hu, geometry.spacing_mm(affine), box, view) for view in (AXIAL, CORONAL))


def _slice(
    hu: Shaped[np.ndarray, "i j k"],
    spacing_mm: Float64[np.ndarray, "3"],
    box: Float64[np.ndarray, "corner 3"],
    view: View,
) -> ChestSlice:
    shape = np.array(hu.shape)
    middle = int(np.rint(box.mean(axis=0)[view.slice_axis]))
    index = min(max(middle, 0), int(shape[view.slice_axis]) - 1)
    # rows and columns run against their axes
    first_mm = (shape - 0.5 - box[1]) * spacing_mm
    size_mm = (box[1] - box[0]) * spacing_mm
    return ChestSlice(
        view,
        volume_to_slices(hu, view)[index].copy(),  # a copy, so that the volume can go
        (float(spacing_mm[view.row_axis]), float(spacing_mm[view.column_axis])),
        (
            float(first_mm[view.column_axis]),
            float(first_mm[view.row_axis]),
            float(size_mm[view.column_axis]),
            float(size_mm[view.row_axis]),
        ),
    )
