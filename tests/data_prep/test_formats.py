"""Image files by other tools, read back where they were put; damaged ones refused by name."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.spatial.transform import Rotation

from data_prep.errors import ImageError
from data_prep.formats import find_images, read_image, read_volume
from data_prep.problems import SeriesError, SeriesWarning
from data_prep.volume import CTVolume

SHAPE = (9, 8, 7)
MARKER_IJK = (6, 2, 4)
SPACING_MM = np.array([0.7, 0.9, 1.25])
ORIGIN_MM = np.array([-31.5, 17.25, -220.125])

# directions of the array axes in RAS, one column an axis
ORIENTATIONS = {
    "ras": np.eye(3),
    "lps": np.diag([-1.0, -1, 1]),
    "left-handed": np.diag([-1.0, 1, 1]),
    "inferior": np.diag([-1.0, -1, -1]),
    "sagittal": np.array([[0.0, 0, -1], [-1, 0, 0], [0, 1, 0]]),
    "oblique": Rotation.from_euler("xyz", [12, -23, 34], degrees=True).as_matrix(),
    "oblique left-handed": Rotation.from_euler("xyz", [-40, 9, 77], degrees=True).as_matrix()
    @ np.diag([1.0, 1, -1]),
}


def phantom(low: int = -1000) -> np.ndarray:
    hu = np.random.default_rng(0).integers(low, 800, SHAPE).astype(np.int16)
    hu[MARKER_IJK] = 3000
    return hu


def ras_affine(directions: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = directions * SPACING_MM
    affine[:3, 3] = ORIGIN_MM
    return affine


def marker_ras(directions: np.ndarray) -> np.ndarray:
    """Where the marker lies, added up one axis at a time."""
    place = ORIGIN_MM.copy()
    for axis in range(3):
        place = place + MARKER_IJK[axis] * SPACING_MM[axis] * directions[:, axis]
    return place


def write_nibabel(path: Path, array: np.ndarray, affine: np.ndarray, *, codes=(1, 1)) -> Path:
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    nib.save(image, path)
    return path


def write_itk(path: Path, array: np.ndarray, directions: np.ndarray, compress=False) -> Path:
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    to_lps = np.diag([-1.0, -1, 1])
    image.SetDirection((to_lps @ directions).ravel().tolist())
    image.SetOrigin((to_lps @ ORIGIN_MM).tolist())
    image.SetSpacing(SPACING_MM.tolist())
    sitk.WriteImage(image, path, useCompression=compress)
    return path


def marker_error_mm(volume: CTVolume, expected: np.ndarray) -> float:
    index = np.array(np.unravel_index(volume.hu.argmax(), volume.shape))
    found = volume.affine[:3, :3] @ index + volume.affine[:3, 3]
    return float(np.linalg.norm(found - expected))


def reason_of(path: Path) -> str:
    with pytest.raises(ImageError) as raised:
        read_image(path)
    message = str(raised.value)
    assert message.isprintable()
    assert message.endswith(".")
    return raised.value.reason


@pytest.mark.parametrize("directions", ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("compress", [False, True])
def test_itk_writes_marker_found(tmp_path, directions, ending, compress):
    hu = phantom()
    volume = read_image(write_itk(tmp_path / f"1.2.3.{ending}", hu, directions, compress))
    assert volume.hu.dtype == np.int16
    np.testing.assert_array_equal(volume.hu, hu)
    assert marker_error_mm(volume, marker_ras(directions)) < 1e-3
    assert volume.series_uid == "1.2.3"
    np.testing.assert_allclose(volume.spacing_mm, SPACING_MM, atol=1e-6)


@pytest.mark.parametrize("directions", ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 2)])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_nibabel_writes_marker_found(tmp_path, directions, codes, ending):
    hu = phantom()
    path = write_nibabel(tmp_path / f"scan.{ending}", hu, ras_affine(directions), codes=codes)
    volume = read_image(path)
    np.testing.assert_array_equal(volume.hu, hu)
    assert marker_error_mm(volume, marker_ras(directions)) < 1e-3


def test_nifti_2_and_big_endian(tmp_path):
    hu, affine = phantom(), ras_affine(ORIENTATIONS["oblique"])
    nib.save(nib.Nifti2Image(hu, affine), tmp_path / "two.nii")
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(hu, affine, header), tmp_path / "big.nii")
    for name in ("two.nii", "big.nii"):
        volume = read_image(tmp_path / name)
        np.testing.assert_array_equal(volume.hu, hu)
        assert volume.hu.dtype == np.int16
        assert marker_error_mm(volume, marker_ras(ORIENTATIONS["oblique"])) < 1e-3


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept", "expected_dtype"),
    [
        (np.int16, 1, 0, np.int16),
        (np.uint16, 1, -1024, np.int16),
        (np.uint8, 16, -1024, np.int16),
        (np.int16, 0.5, -3, np.float32),
        (np.float64, 1, 0, np.int16),
        (np.int32, 1, 0, np.int16),
    ],
)
def test_slope_and_intercept(tmp_path, dtype, slope, intercept, expected_dtype):
    rng = np.random.default_rng(1)
    low, high = (0, 255) if dtype in (np.uint8, np.uint16) else (-900, 900)
    stored = rng.integers(low, high, SHAPE).astype(dtype)
    image = nib.Nifti1Image(stored, ras_affine(np.eye(3)))
    image.header.set_slope_inter(slope, intercept)
    image.header["scl_slope"], image.header["scl_inter"] = slope, intercept
    block = bytearray(image.to_bytes())
    # nibabel resets both when it writes; bytes 112 to 119 hold them (nifti1.h)
    block[112:120] = np.array([slope, intercept], "<f4").tobytes()
    path = tmp_path / "scaled.nii"
    path.write_bytes(block)
    volume = read_image(path)
    assert volume.hu.dtype == expected_dtype
    np.testing.assert_array_equal(volume.hu, stored.astype(float) * slope + intercept)
    np.testing.assert_array_equal(volume.hu, nib.load(path).get_fdata())


def test_fractions_and_large_values_stay_float(tmp_path):
    hu = phantom().astype(np.float32) + np.float32(0.25)
    volume = read_image(write_itk(tmp_path / "a.mha", hu, np.eye(3)))
    assert volume.hu.dtype == np.float32
    np.testing.assert_array_equal(volume.hu, hu)
    hu = phantom().astype(np.int32)
    hu[0, 0, 0] = 40_000
    volume = read_image(write_itk(tmp_path / "b.nrrd", hu, np.eye(3)))
    assert volume.hu.dtype == np.float32
    np.testing.assert_array_equal(volume.hu, hu)


def test_cut_off_and_garbage(tmp_path):
    hu = phantom()
    for ending in ("nii", "nii.gz", "nrrd", "mha"):
        whole = write_itk(tmp_path / f"a.{ending}", hu, np.eye(3), True).read_bytes()
        path = tmp_path / f"b.{ending}"
        path.write_bytes(whole[: len(whole) - 40])
        assert reason_of(path) == "truncated_pixels"
        path.write_bytes(whole[:20])
        assert reason_of(path) in ("unreadable_image", "truncated_pixels")
        path.write_bytes(b"")
        assert reason_of(path) == "unreadable_image"
        path.write_bytes(np.random.default_rng(3).bytes(3000))
        assert reason_of(path) == "unreadable_image"
    compressed = bytearray((tmp_path / "a.nii.gz").read_bytes())
    compressed[-6] ^= 1  # the checksum
    (tmp_path / "c.nii.gz").write_bytes(compressed)
    assert reason_of(tmp_path / "c.nii.gz") == "unreadable_image"


def nifti_with(path: Path, **fields: object) -> Path:
    """Write a NIfTI file whose header fields are set behind nibabel's back."""
    image = nib.Nifti1Image(phantom(), ras_affine(np.eye(3)))
    image.set_qform(ras_affine(np.eye(3)), 1)
    block = image.to_bytes()
    header = nib.Nifti1Header(block[:348], check=False)
    for field, value in fields.items():
        header[field] = value
    path.write_bytes(header.binaryblock + block[348:])
    return path


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("no_orientation", {"sform_code": 0, "qform_code": 0}),
        ("no_orientation", {"srow_x": [0, 0, 0, 0], "qform_code": 0}),
        ("no_orientation", {"srow_x": [np.nan, 0, 0, 0], "qform_code": 0}),
        ("conflicting_orientations", {"qoffset_x": 0}),
        ("conflicting_orientations", {"quatern_d": 1}),
        ("conflicting_orientations", {"pixdim": [1, 0.7, 0.9, 1.3, 0, 0, 0, 0]}),
        ("sheared_axes", {"qform_code": 0, "srow_x": [1, 0.2, 0, 0]}),
        ("bad_spacing", {"xyzt_units": 1}),
        ("bad_spacing", {"xyzt_units": 3}),
        ("unreadable_image", {"xyzt_units": 5}),
        ("unreadable_image", {"vox_offset": 0}),
        ("unreadable_image", {"vox_offset": 1e30}),
        ("unreadable_image", {"vox_offset": np.nan}),
        ("truncated_pixels", {"vox_offset": 1e6}),
        ("unreadable_image", {"scl_slope": np.inf}),
        ("unreadable_image", {"scl_inter": np.nan, "scl_slope": 2}),
        ("unreadable_image", {"datatype": 999}),
        ("unreadable_image", {"quatern_b": 1, "quatern_c": 1, "quatern_d": 1}),
        ("unsupported_image", {"datatype": 32}),
        ("unsupported_image", {"magic": b"ni1"}),
        ("unsupported_image", {"magic": b""}),
        ("not_3d", {"datatype": 128}),
        ("not_hu", {"intent_code": 1002}),
        ("not_hu", {"intent_code": 5}),
        ("not_3d", {"dim": [2, 9, 56, 1, 1, 1, 1, 1]}),
        ("not_3d", {"dim": [4, 3, 3, 8, 7, 1, 1, 1]}),
        ("single_slice", {"dim": [3, 9, 56, 1, 1, 1, 1, 1]}),
        ("unreadable_image", {"dim": [3, 9, -8, 7, 1, 1, 1, 1]}),
        ("too_large", {"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}),
        ("size_mismatch", {"datatype": 2}),
        ("truncated_pixels", {"datatype": 64}),
    ],
)
def test_refused_nifti(tmp_path, reason, fields):
    assert reason_of(nifti_with(tmp_path / "scan.nii", **fields)) == reason


def test_accepted_nifti(tmp_path):
    """One time point, a zero qfac (nifti1.h: as 1), a metre that is stated."""
    for fields in ({"dim": [4, 9, 8, 7, 1, 1, 1, 1]}, {"pixdim": [0, 0.7, 0.9, 1.25, 0, 0, 0, 0]}):
        volume = read_image(nifti_with(tmp_path / "scan.nii", **fields))
        np.testing.assert_array_equal(volume.hu, phantom())
        assert marker_error_mm(volume, marker_ras(np.eye(3))) < 1e-3
    affine = ras_affine(np.eye(3)) / 1000
    affine[3, 3] = 1
    image = nib.Nifti1Image(phantom(), affine)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "metres.nii")
    assert marker_error_mm(read_image(tmp_path / "metres.nii"), marker_ras(np.eye(3))) < 1e-3


def test_values_that_are_no_hu(tmp_path):
    hu = phantom().astype(np.float32)
    hu[1, 1, 1] = np.nan
    assert reason_of(write_itk(tmp_path / "a.mha", hu, np.eye(3))) == "not_finite"
    hu[1, 1, 1] = -np.inf
    assert reason_of(write_nibabel(tmp_path / "a.nii", hu, np.eye(4))) == "not_finite"
    mask = (phantom() > 0).astype(np.uint8)
    assert reason_of(write_itk(tmp_path / "mask.nrrd", mask, np.eye(3))) == "not_hu"
    normalised = phantom().astype(np.float32) / 3000
    assert reason_of(write_itk(tmp_path / "b.nrrd", normalised, np.eye(3))) == "not_hu"
    without_rescale = phantom().astype(np.int16) + 1024
    assert reason_of(write_itk(tmp_path / "c.nrrd", without_rescale, np.eye(3))) == "not_hu"
    enormous = phantom().astype(np.float64) * 1e9
    assert reason_of(write_itk(tmp_path / "d.mha", enormous, np.eye(3))) == "not_hu"


def test_other_names(tmp_path):
    path = tmp_path / "scan.png"
    path.write_bytes(b"x")
    assert reason_of(path) == "unsupported_format"
    assert reason_of(tmp_path / "missing.nii") == "not_found"
    hu = phantom()
    upper = write_itk(tmp_path / "a.mha", hu, np.eye(3)).rename(tmp_path / "SCAN.MHA")
    assert read_image(upper).series_uid == "SCAN"


def test_find_images_once(tmp_path):
    hu = phantom()
    (tmp_path / "b").mkdir()
    write_itk(tmp_path / "b" / "two.mhd", hu, np.eye(3))
    write_itk(tmp_path / "one.nii.gz", hu, np.eye(3))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "._one.nii.gz").write_bytes(b"x")
    (tmp_path / ".nii.gz").write_bytes(b"x")
    (tmp_path / "b" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "b" / "again.nii.gz").symlink_to(tmp_path / "one.nii.gz")
    (tmp_path / "b" / "gone.nrrd").symlink_to(tmp_path / "nowhere.nrrd")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["one.nii.gz", "b/gone.nrrd", "b/two.mhd"]
    assert reason_of(tmp_path / "b" / "gone.nrrd") == "not_found"
    assert find_images(tmp_path / "one.nii.gz") == [tmp_path / "one.nii.gz"]
    with pytest.raises(ImageError, match="check the path"):
        find_images(tmp_path / "missing")


def test_read_volume_takes_either(tmp_path, write_ct_series):
    series = write_ct_series()
    from_dicom = read_volume(series.folder)
    np.testing.assert_array_equal(from_dicom.hu, series.hu)
    path = write_itk(tmp_path / "1.2.3.mha", phantom(), np.eye(3))
    assert read_volume(path, series_uid="1.2.3").series_uid == "1.2.3"
    with pytest.raises(SeriesError, match=r"named 1\.2\.3"):
        read_volume(path, series_uid="1.2.4")


def test_odd_values_are_noted(tmp_path):
    """Stored values that lack their intercept, in a volume large enough to be judged."""
    rng = np.random.default_rng(4)
    stored = rng.choice([24, 1064, 1500], size=(40, 40, 20), p=[0.6, 0.35, 0.05])
    shifted = np.where(stored == 24, -30, stored).astype(np.int16)
    path = write_itk(tmp_path / "a.nrrd", shifted, np.eye(3))
    with pytest.warns(SeriesWarning, match=r"a\.nrrd"):
        (problem,) = read_image(path).problems
    assert problem.name == "implausible_hu"
    assert "a.nrrd" in problem.message
    right = (stored - 1064).astype(np.int16)
    assert read_image(write_itk(tmp_path / "b.nrrd", right, np.eye(3))).problems == ()


@pytest.mark.slow
@pytest.mark.shared_data
def test_real_series_as_metaimage(shared_data, tmp_path):
    """A LIDC-IDRI series converted by SimpleITK, as LUNA16's files were made: same HU and place."""
    folder = next((shared_data / "lidc" / "LIDC-IDRI-0003").rglob("*.dcm")).parent
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    sitk.WriteImage(reader.Execute(), tmp_path / "scan.mhd")
    volume, from_dicom = read_image(tmp_path / "scan.mhd"), read_volume(folder)
    assert volume.hu.dtype == np.int16
    np.testing.assert_array_equal(volume.hu, from_dicom.hu)
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(volume.shape) - 1)
    np.testing.assert_allclose(
        nib.affines.apply_affine(volume.affine, corners),
        nib.affines.apply_affine(from_dicom.affine, corners),
        atol=1e-3,
    )
