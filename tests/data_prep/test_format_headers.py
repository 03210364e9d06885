"""NRRD and MetaImage headers written by hand: read as they say, or refused by name."""

import gzip
import tracemalloc
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from data_prep.errors import ImageError
from data_prep.formats import read_image


def phantom() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 800, (9, 8, 7)).astype(np.int16)


def reason_of(path: Path) -> str:
    with pytest.raises(ImageError) as raised:
        read_image(path)
    message = str(raised.value)
    assert message.isprintable()
    assert message.endswith(".")
    return raised.value.reason


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("LAS", (-1, 1, 1)),
        ("left-posterior-superior", (-1, -1, 1)),
    ],
)
def test_spaces_of_nrrd(tmp_path, space, signs):
    path = tmp_path / "scan.nrrd"
    path.write_bytes(nrrd(space=space))
    affine = read_image(path).affine
    np.testing.assert_allclose(affine[:3, 3], np.array([10, 20, 30]) * signs)
    np.testing.assert_allclose(affine[:3, :3], np.diag([0.5, 2, 3]) * np.array(signs)[:, None])
    itk = sitk.ReadImage(path)  # LPS
    np.testing.assert_allclose(np.array(itk.GetOrigin()) * [-1, -1, 1], affine[:3, 3])


def nrrd(
    *,
    space="LPS",
    extra="",
    sizes="9 8 7",
    directions="(0.5,0,0) (0, 2, 0) (0,0,3)",
    kind="short",
    dimension=3,
) -> bytes:
    space = f"space: {space}" if space else ""
    head = (
        f"NRRD0004\n# note\ntype: {kind}\ndimension: {dimension}\n{space}\n"
        f"sizes: {sizes}\nspace directions: {directions}\nkinds: domain domain domain\n"
        f"endian: little\nencoding: raw\nspace origin: (10,20,30)\nnote:=a: b\n{extra}\n"
    )
    return head.replace("\n\n", "\n", head.count("\n\n") - 1).encode() + phantom().tobytes("F")


@pytest.mark.parametrize(
    ("reason", "edit"),
    [
        ("no_orientation", {"space": ""}),
        ("no_orientation", {"space": "scanner-xyz"}),
        ("no_orientation", {"space": "3D-right-handed"}),
        ("no_orientation", {"directions": "(0,0,0) (0,2,0) (0,0,3)"}),
        ("no_orientation", {"directions": "(nan,0,0) (0,2,0) (0,0,3)"}),
        ("bad_spacing", {"extra": 'space units: "m" "m" "m"\n'}),
        ("bad_spacing", {"directions": "(0.0005,0,0) (0,0.0005,0) (0,0,0.001)"}),
        ("sheared_axes", {"directions": "(1,0,0) (0,1,0) (0,0.3,1)"}),
        ("not_3d", {"directions": "none (0,2,0) (0,0,3)"}),
        ("not_3d", {"sizes": "9 56", "dimension": 2, "directions": "(1,0,0) (0,1,0)"}),
        (
            "not_3d",
            {"sizes": "2 9 4 7", "dimension": 4, "directions": "none (1,0,0) (0,1,0)(0,0,1)"},
        ),
        ("unreadable_image", {"sizes": "9 56"}),
        ("unreadable_image", {"dimension": 100}),
        ("unreadable_image", {"directions": "(1,0,0) (0,1,0)"}),
        ("not_hu", {"extra": 'sample units: "ml"\n'}),
        ("single_slice", {"sizes": "9 56 1"}),
        ("too_large", {"sizes": "65535 65535 10000"}),
        ("truncated_pixels", {"sizes": "900 800 700"}),
        ("truncated_pixels", {"sizes": "9 8 8"}),
        ("size_mismatch", {"sizes": "9 8 6"}),
        ("unreadable_image", {"sizes": "9 8 x"}),
        ("unreadable_image", {"sizes": "9 -8 7"}),
        ("unreadable_image", {"directions": "(a,0,0) (0,2,0) (0,0,3)"}),
        ("unreadable_image", {"directions": "(1,0) (0,2) (0,3)"}),
        ("unreadable_image", {"extra": "type: short\n"}),
        ("unsupported_image", {"kind": "block"}),
        ("truncated_pixels", {"extra": "byte skip: 4\n"}),
        ("truncated_pixels", {"extra": "line skip: 1000000000000\n"}),
        ("unsupported_image", {"extra": "byte skip: -2\n"}),
        ("data_elsewhere", {"extra": "data file: ../x.raw\n"}),
        ("data_elsewhere", {"extra": "data file: /etc/passwd\n"}),
        ("data_elsewhere", {"extra": "data file: C:\\x.raw\n"}),
        ("data_elsewhere", {"extra": "datafile: a/../../x.raw\n"}),
        ("unsupported_image", {"extra": "data file: x%03d.raw 1 9 1\n"}),
        ("unsupported_image", {"extra": "data file: LIST\n"}),
        ("not_found", {"extra": "data file: none.raw\n"}),
    ],
)
def test_refused_nrrd(tmp_path, reason, edit):
    path = tmp_path / "scan.nrrd"
    path.write_bytes(nrrd(**edit))
    (tmp_path.parent / "x.raw").write_bytes(phantom().tobytes("F"))
    assert reason_of(path) == reason


META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "1 2 3",
    "ElementSpacing": "0.5 0.6 2",
    "DimSize": "9 8 7",
    "ElementType": "MET_SHORT",
}


def write_meta(path: Path, content: bytes | None = None, **edit: str | None) -> Path:
    fields = {**META, "ElementDataFile": "LOCAL", **edit}
    data_file = fields.pop("ElementDataFile")
    lines = [f"{key} = {value}" for key, value in fields.items() if value is not None]
    head = "\n".join([*lines, f"ElementDataFile = {data_file}\n"])
    path.write_bytes(head.encode() + (phantom().tobytes("F") if content is None else content))
    return path


def test_handwritten_meta(tmp_path):
    """The form of LUNA16's files; aliases; big-endian; SimpleITK places it alike."""
    edits = (
        {},
        {"CenterOfRotation": "0 0 0", "AnatomicalOrientation": "RAI", "DistanceUnits": "mm"},
        {"TransformMatrix": None, "Rotation": META["TransformMatrix"]},
        {"Offset": None, "Position": META["Offset"]},
    )
    for edit in edits:
        path = write_meta(tmp_path / "scan.mha", **edit)
        volume = read_image(path)
        np.testing.assert_array_equal(volume.hu, phantom())
        np.testing.assert_array_equal(volume.affine[:3, 3], [-1, -2, 3])
        itk = sitk.ReadImage(path)
        assert itk.GetOrigin() == (1, 2, 3)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(itk).transpose(2, 1, 0), volume.hu)
    swapped = phantom().astype(">i2").tobytes("F")
    path = write_meta(tmp_path / "scan.mha", swapped, BinaryDataByteOrderMSB="True")
    np.testing.assert_array_equal(read_image(path).hu, phantom())


@pytest.mark.parametrize(
    ("reason", "edit"),
    [
        ("no_orientation", {"TransformMatrix": None}),
        ("no_orientation", {"Offset": None}),
        ("no_orientation", {"ElementSpacing": None}),
        ("no_orientation", {"TransformMatrix": "1 0 0 1 0 0 0 0 1"}),
        ("sheared_axes", {"TransformMatrix": "1 0 0 0 1 0 0 0.2 1"}),
        ("bad_spacing", {"ElementSpacing": "0.0005 0.0005 0.001"}),
        ("not_3d", {"DimSize": "72 7", "NDims": "2"}),
        ("not_3d", {"DimSize": "3 3 8 7", "NDims": "4"}),
        ("unreadable_image", {"DimSize": "72 7"}),
        ("unreadable_image", {"NDims": "100"}),
        ("unreadable_image", {"NDims": "-1"}),
        ("not_hu", {"Modality": "MET_MOD_MR"}),
        ("not_3d", {"ElementNumberOfChannels": "3"}),
        ("too_large", {"DimSize": "65535 65535 10000"}),
        ("truncated_pixels", {"DimSize": "900 800 700"}),
        ("unsupported_image", {"ElementType": "MET_STRING"}),
        ("unsupported_image", {"BinaryData": "False"}),
        ("unsupported_image", {"HeaderSize": "-2"}),
        ("truncated_pixels", {"HeaderSize": "4"}),
        ("unsupported_image", {"DistanceUnits": "um"}),
        ("unsupported_image", {"ElementToIntensityFunctionSlope": "2"}),
        ("unsupported_image", {"ElementDataFile": "LIST"}),
        ("data_elsewhere", {"ElementDataFile": "../secret.raw"}),
        ("data_elsewhere", {"ElementDataFile": "/etc/passwd"}),
        ("data_elsewhere", {"ElementDataFile": "..\\secret.raw"}),
        ("unreadable_image", {"DimSize": "9 8 inf"}),
        ("unreadable_image", {"Offset": "1 2 x"}),
        ("unreadable_image", {"CompressedData": "True"}),
    ],
)
def test_refused_meta(tmp_path, reason, edit):
    assert reason_of(write_meta(tmp_path / "scan.mha", **edit)) == reason


def test_detached_data_in_a_folder_below(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scan.raw").write_bytes(phantom().tobytes("F"))
    path = write_meta(tmp_path / "scan.mhd", b"", ElementDataFile="data/scan.raw")
    np.testing.assert_array_equal(read_image(path).hu, phantom())


def test_bombs_take_no_memory(tmp_path):
    """A few kilobytes that claim or inflate to gigabytes are refused at once."""
    huge = {"DimSize": "1024 1024 1024", "CompressedData": "True"}
    zeros = zlib.compress(bytes(1 << 24))
    bomb = write_meta(tmp_path / "claims.mha", zeros, **huge)
    small_claim = write_meta(tmp_path / "inflates.mha", zeros, CompressedData="True")
    nifti = nib.Nifti1Image(phantom(), np.diag([1.0, 1, 2, 1])).to_bytes()
    inflating = tmp_path / "inflates.nii.gz"
    inflating.write_bytes(gzip.compress(nifti + bytes(1 << 26)))
    tracemalloc.start()
    assert reason_of(bomb) == "truncated_pixels"
    assert reason_of(small_claim) == "size_mismatch"
    assert reason_of(inflating) == "size_mismatch"
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
