"""Views against two tools that know patient orientation: SimpleITK and nibabel."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from cdam_med.data.views import (
    VIEW_NAMES,
    VIEWS,
    central_slices,
    check_views,
    get_view,
    slices_to_volume,
    volume_to_slices,
)
from cdam_med.errors import CdamError, ViewError

# where columns, rows and slices of a displayed stack run to, in radiological convention
DISPLAY_AXCODES = {
    "axial": ("L", "P", "S"),
    "coronal": ("L", "I", "A"),
    "sagittal": ("P", "I", "R"),
}
LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0])


@pytest.fixture
def phantom() -> np.ndarray:
    """Noise on a grid of three different sides, with a value per far end: right, front, head."""
    volume = np.random.default_rng(0).normal(size=(5, 7, 9)).astype(np.float32)
    volume[-1, 3, 4] = 100.0  # right
    volume[2, -1, 4] = 200.0  # anterior
    volume[2, 3, -1] = 300.0  # superior
    return volume


@pytest.mark.parametrize("name", VIEW_NAMES)
def test_slices_agree_with_simpleitk(phantom: np.ndarray, name: str) -> None:
    image = sitk.GetImageFromArray(phantom.transpose(2, 1, 0))  # SimpleITK's arrays are (k, j, i)
    image.SetDirection(LPS_OF_RAS.ravel().tolist())
    assert sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection()) == (
        "RAS"
    )
    oriented = sitk.DICOMOrient(image, "".join(DISPLAY_AXCODES[name]))
    np.testing.assert_array_equal(
        volume_to_slices(phantom, VIEWS[name]), sitk.GetArrayFromImage(oriented)
    )


@pytest.mark.parametrize("name", VIEW_NAMES)
def test_slices_agree_with_nibabel(phantom: np.ndarray, name: str) -> None:
    transform = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt(("R", "A", "S")),
        nibabel.orientations.axcodes2ornt(DISPLAY_AXCODES[name]),
    )
    oriented = nibabel.orientations.apply_orientation(phantom, transform)
    np.testing.assert_array_equal(
        volume_to_slices(phantom, VIEWS[name]), oriented.transpose(2, 1, 0)
    )


@pytest.mark.parametrize("name", VIEW_NAMES)
def test_back_on_the_grid(phantom: np.ndarray, name: str) -> None:
    view = VIEWS[name]
    np.testing.assert_array_equal(slices_to_volume(volume_to_slices(phantom, view), view), phantom)


def test_markers_lie_at_the_lettered_edges(phantom: np.ndarray) -> None:
    marker = {"R": 100.0, "A": 200.0, "S": 300.0}
    for view in VIEWS.values():
        slices = volume_to_slices(phantom, view)
        lines = (slices[:, :, 0], slices[:, :, -1], slices[:, 0], slices[:, -1])
        for letter, line in zip(view.edges, lines, strict=True):
            for end, value in marker.items():
                assert (value in line) == (end == letter), (view.name, letter, end)


@pytest.mark.parametrize("name", VIEW_NAMES)
def test_slice_number_is_voxel_index(phantom: np.ndarray, name: str) -> None:
    view = VIEWS[name]
    numbered = np.broadcast_to(
        np.moveaxis(np.arange(phantom.shape[view.slice_axis])[:, None, None], 0, view.slice_axis),
        phantom.shape,
    )
    slices = volume_to_slices(numbered, view)
    assert all(np.all(slices[index] == index) for index in range(len(slices)))


def test_unknown_view_is_named_with_the_closest() -> None:
    named = r"'saggital'; did you mean 'sagittal'\? There are axial, coronal, sagittal\."
    with pytest.raises(ViewError, match=named):
        get_view("saggital")
    with pytest.raises(CdamError, match=r"'oblique'.*axial, coronal, sagittal"):
        check_views(("axial", "oblique"))


def test_choice_of_views() -> None:
    assert check_views(["sagittal", "axial"]) == ("sagittal", "axial")
    assert check_views("coronal") == ("coronal",)
    with pytest.raises(ViewError, match="not none: choose from axial"):
        check_views(())
    with pytest.raises(ViewError, match="once"):
        check_views(("axial", "axial"))


def test_central_slices() -> None:
    for count in range(1, 9):
        distance = np.abs(np.arange(count) - (count - 1) / 2)
        nearest = np.flatnonzero(distance == distance.min())
        assert central_slices(count) == tuple(nearest)
