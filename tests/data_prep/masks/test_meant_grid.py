"""A mask of the scan's own shape lies on the scan, or is refused with what happened to it."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from data_prep.errors import InputError, MaskError
from data_prep.masks import nodules_from_masks

LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])


def write(path, mask: np.ndarray, affine: np.ndarray):
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), path)
    return path


def without_origin(affine: np.ndarray) -> np.ndarray:
    moved = affine.copy()
    moved[:3, 3] = 0
    return moved


def scaled(affine: np.ndarray) -> np.ndarray:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return np.diag([*spacing, 1.0]) + np.pad(affine[:3, 3:], ((0, 1), (3, 0)))


def shifted(affine: np.ndarray) -> np.ndarray:
    moved = affine.copy()
    moved[:3, 3] += affine[:3, 0]  # one column
    return moved


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda affine: np.eye(4), "its affine is the identity"),
        (lambda affine: LPS_TO_RAS @ affine, "LPS coordinates"),
        (lambda affine: np.diag([-1.0, 1, 1, 1]) @ affine, "left and right are exchanged"),
        (without_origin, "its origin is 0"),
        (scaled, "its directions? "),
        (shifted, "it is shifted against the scan"),
        (lambda affine: affine @ np.diag([2.0, 2, 2, 1]), "another reconstruction"),
    ],
)
def test_another_grid_of_the_same_shape(scan, tmp_path, spoil, cause):
    mask = scan.ball((20, 18, 7), 4.0)
    path = write(tmp_path / "mask.nii.gz", mask, spoil(scan.volume.affine))
    cause = "directions were lost" if spoil is scaled else cause
    with pytest.raises(MaskError, match=cause) as raised:
        nodules_from_masks(path, scan.volume)
    assert raised.value.reason == "other_grid"
    assert "mask_grid='ct'" in str(raised.value)
    (nodule,) = nodules_from_masks(path, scan.volume, mask_grid="ct")
    np.testing.assert_array_equal(nodule.mask, mask)


def test_its_own_grid_where_asked(scan, tmp_path):
    mask = scan.ball((20, 18, 7), 4.0)
    path = write(tmp_path / "mask.nii", mask, shifted(scan.volume.affine))
    (nodule,) = nodules_from_masks(path, scan.volume, mask_grid="own")
    np.testing.assert_array_equal(nodule.mask, np.roll(mask, 1, axis=0))


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_other_formats(scan, tmp_path, ending):
    """An array written by SimpleITK without the CT's geometry."""
    mask = scan.ball((20, 18, 7), 4.0)
    image = sitk.GetImageFromArray(mask.astype(np.uint8).transpose(2, 1, 0))
    sitk.WriteImage(image, tmp_path / f"mask.{ending}")
    with pytest.raises(MaskError, match=r"1 mm wide|directions|identity") as raised:
        nodules_from_masks(tmp_path / f"mask.{ending}", scan.volume)
    assert raised.value.reason == "other_grid"
    (nodule,) = nodules_from_masks(tmp_path / f"mask.{ending}", scan.volume, mask_grid="ct")
    np.testing.assert_array_equal(nodule.mask, mask)


def test_exchanged_axes(scan, tmp_path):
    """The array was saved as (slice, row, column): no option can say which axis is which."""
    path = write(tmp_path / "mask.nii", scan.ball((20, 18, 7), 4.0).transpose(2, 1, 0), np.eye(4))
    for mask_grid in (None, "ct"):
        with pytest.raises(MaskError, match="axes were exchanged") as raised:
            nodules_from_masks(path, scan.volume, mask_grid=mask_grid)
        assert raised.value.reason == "other_grid"


def test_same_grid_within_rounding_and_in_any_order_of_the_axes(scan, tmp_path):
    """float32, a tenth of a voxel, flipped and exchanged axes that the affine knows of."""
    mask = scan.ball((20, 18, 7), 4.0)
    near = scan.volume.affine.copy()
    near[:3, 3] += 0.1
    cases = [
        (mask, scan.volume.affine.astype(np.float32)),
        (mask, near),
        (
            mask[::-1],
            scan.volume.affine
            @ np.array([[-1.0, 0, 0, mask.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        ),
        (mask.transpose(2, 1, 0), scan.volume.affine[:, [2, 1, 0, 3]]),
    ]
    for array, affine in cases:
        path = write(tmp_path / "mask.nii", array, affine)
        (nodule,) = nodules_from_masks(path, scan.volume)
        np.testing.assert_array_equal(nodule.mask, mask)


def test_unknown_grid(scan, tmp_path):
    with pytest.raises(InputError, match="give 'ct' or 'own'"):
        nodules_from_masks(tmp_path / "mask.nii", scan.volume, mask_grid="mask")
