"""NIfTI files: two independent readers agree with the array and affine that went in."""

from itertools import product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation

from data_prep.errors import OutputError
from data_prep.nifti import write_nifti

SHAPE = (7, 9, 5)


def make_affine(rotation, spacing=(0.7, 0.9, 1.25)):
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(rotation) @ np.diag(spacing)
    affine[:3, 3] = (-120.5, 33.25, -410.0)
    return affine


AFFINES = {
    "plain": make_affine(np.eye(3)),
    "negative column cosine": make_affine(np.diag([-1, -1, 1])),
    "left-handed": make_affine(np.diag([1, -1, 1])),
    "axes swapped": make_affine([[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "oblique": make_affine(Rotation.from_euler("xyz", [20, -35, 12], degrees=True).as_matrix()),
    "nearly half a turn": make_affine(Rotation.from_euler("z", 179.9, degrees=True).as_matrix()),
    "random": make_affine(Rotation.random(rng=np.random.default_rng(5)).as_matrix()),
}


def make_scores():
    scores = np.random.default_rng(1).normal(0, 0.01, SHAPE).astype(np.float32)
    scores[np.abs(scores) < 0.005] = 0.0
    scores[6, 0, 4] = 0.75  # at one corner, so that no flip goes unnoticed
    return scores


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_nibabel_and_simpleitk_place_every_voxel_alike(tmp_path, affine):
    scores = make_scores()
    path = tmp_path / "attribution_x.nii.gz"
    write_nifti(path, scores, affine, description="x", symmetric_limit=0.75)

    image = nib.load(path)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), scores)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)

    other = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(other).transpose(2, 1, 0), scores)
    for corner in product(*((0, n - 1) for n in SHAPE)):
        lps = other.TransformContinuousIndexToPhysicalPoint([float(index) for index in corner])
        ras = affine @ [*corner, 1]
        np.testing.assert_allclose(np.array(lps) * (-1, -1, 1), ras[:3], atol=1e-3)
    assert other.GetPixel(6, 0, 4) == 0.75


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_both_header_affines_are_the_same_with_code_one(tmp_path, affine):
    path = tmp_path / "x.nii.gz"
    write_nifti(path, make_scores(), affine, description="x")
    header = nib.load(path).header
    assert (header["sform_code"], header["qform_code"]) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm"
    far_corner = np.array([*(np.array(SHAPE) - 1), 1])
    # the quaternion is kept in float32, which costs most near half a turn
    np.testing.assert_allclose(
        header.get_qform() @ far_corner, header.get_sform() @ far_corner, atol=2e-3
    )


def test_zeros_stay_exactly_zero_and_nothing_is_scaled(tmp_path):
    scores = make_scores()
    path = tmp_path / "x.nii.gz"
    write_nifti(path, scores, AFFINES["plain"], description="x", symmetric_limit=0.75)
    image = nib.load(path)
    assert image.get_data_dtype() == np.float32
    assert np.count_nonzero(image.get_fdata() == 0) == np.count_nonzero(scores == 0) > 100
    assert (image.dataobj.slope, image.dataobj.inter) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.arange(-1000, 3000, 400, dtype=np.int16).reshape(1, 2, 5), np.int16),
        (np.arange(10).reshape(1, 2, 5) % 3 == 0, np.uint8),
    ],
    ids=["hu", "mask"],
)
def test_hu_and_masks_keep_their_whole_numbers(tmp_path, array, dtype):
    path = tmp_path / "x.nii.gz"
    write_nifti(path, array, AFFINES["oblique"], description="x")
    stored = np.asanyarray(nib.load(path).dataobj)
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, array)


def test_display_range_is_symmetric(tmp_path):
    path = tmp_path / "x.nii.gz"
    write_nifti(path, make_scores(), AFFINES["plain"], description="x", symmetric_limit=0.75)
    header = nib.load(path).header
    assert (header["cal_min"], header["cal_max"]) == (-0.75, 0.75)


def test_description_says_research_only(tmp_path):
    path = tmp_path / "x.nii.gz"
    write_nifti(path, make_scores(), AFFINES["plain"], description="d" * 64)
    text = nib.load(path).header["descrip"].item()
    assert text == b"d" * 64 + b"; RESEARCH ONLY"
    assert len(text) == 79


@pytest.mark.parametrize("description", ["d" * 65, "Größe", "two\nlines"])
def test_descriptions_that_do_not_fit_are_refused(tmp_path, description):
    with pytest.raises(ValueError, match="printable ASCII"):
        write_nifti(tmp_path / "x.nii.gz", make_scores(), AFFINES["plain"], description=description)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    scores = make_scores()
    scores[0, 0, 0] = value
    with pytest.raises(OutputError, match=r"x\.nii\.gz .* 1 of 315 values"):
        write_nifti(tmp_path / "x.nii.gz", scores, AFFINES["plain"], description="x")
    assert not list(tmp_path.iterdir())


def test_sheared_affine_is_refused(tmp_path):
    affine = make_affine(np.eye(3))
    affine[1, 2] = 0.2  # a gantry tilted by nine degrees
    with pytest.raises(OutputError, match="sheared"):
        write_nifti(tmp_path / "x.nii.gz", make_scores(), affine, description="x")
    assert not list(tmp_path.iterdir())


def test_rounded_direction_cosines_are_no_shear(tmp_path):
    rotation = Rotation.from_euler("xyz", [20, -35, 12], degrees=True).as_matrix()
    affine = make_affine(np.round(rotation, 5), spacing=(1, 1, 1))
    write_nifti(tmp_path / "x.nii.gz", make_scores(), affine, description="x")
    other = SimpleITK.ReadImage(str(tmp_path / "x.nii.gz"))
    directions = np.array(other.GetDirection()).reshape(3, 3)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(nib.load(tmp_path / "x.nii.gz").affine, affine, atol=1e-4)


@pytest.mark.parametrize(
    "affine",
    [np.diag([1, 1, 0, 1.0]), np.diag([1, 1, np.nan, 1.0]), np.diag([1, 1, 1, 2.0])],
    ids=["flat", "nan", "last row"],
)
def test_affines_that_place_nothing_are_refused(tmp_path, affine):
    with pytest.raises(ValueError, match="affine"):
        write_nifti(tmp_path / "x.nii.gz", make_scores(), affine, description="x")


@pytest.mark.parametrize(
    "name",
    [
        "ct.nii",
        "herz_größe.nii.gz",
        "my ct.nii.gz",
        "ct_label.nii.gz",
        "Labels.nii.gz",
        "seg_ct.nii.gz",
    ],
)
def test_names_that_mislead_viewers_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"name|label"):
        write_nifti(tmp_path / name, make_scores(), AFFINES["plain"], description="x")
    assert not list(tmp_path.iterdir())


def test_masks_may_be_named_as_label_maps(tmp_path):
    path = tmp_path / "nodule_label.nii.gz"
    write_nifti(path, make_scores() > 0, AFFINES["plain"], description="x")
    assert nib.load(path).get_data_dtype() == np.uint8


@pytest.mark.parametrize("limit", [-1.0, np.nan, np.inf])
def test_display_limits_that_make_no_range_are_refused(tmp_path, limit):
    with pytest.raises(ValueError, match="symmetric_limit"):
        write_nifti(
            tmp_path / "x.nii.gz",
            make_scores(),
            AFFINES["plain"],
            description="x",
            symmetric_limit=limit,
        )


def test_arrays_that_would_need_scaling_are_refused(tmp_path):
    with pytest.raises(ValueError, match="float64"):
        write_nifti(
            tmp_path / "x.nii.gz",
            make_scores().astype(np.float64),
            AFFINES["plain"],
            description="x",
        )


def test_same_content_gives_the_same_bytes(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, make_scores(), AFFINES["oblique"], description="x")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_an_overwritten_file_survives_a_refusal(tmp_path):
    path = tmp_path / "x.nii.gz"
    write_nifti(path, make_scores(), AFFINES["plain"], description="x")
    before = path.read_bytes()
    with pytest.raises(OutputError):
        write_nifti(path, make_scores() * np.float32(np.nan), AFFINES["plain"], description="x")
    assert path.read_bytes() == before
