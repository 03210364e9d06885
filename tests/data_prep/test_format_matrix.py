"""Headers in every form that SimpleITK and nibabel read: read alike, or refused by name."""

import bz2
import gzip
import itertools
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from data_prep.errors import ImageError
from data_prep.formats import read_image

LPS_TO_RAS = np.diag([-1.0, -1, 1])


def phantom() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 800, (9, 8, 7)).astype("<i2")


RAW = phantom().tobytes("F")


def assert_read_as_itk(path: Path) -> None:
    image, volume = sitk.ReadImage(path), read_image(path)
    np.testing.assert_array_equal(volume.hu, sitk.GetArrayFromImage(image).transpose())
    directions = LPS_TO_RAS @ np.array(image.GetDirection()).reshape(3, 3)
    np.testing.assert_allclose(volume.affine[:3, :3], directions * image.GetSpacing(), atol=1e-6)
    np.testing.assert_allclose(volume.affine[:3, 3], LPS_TO_RAS @ image.GetOrigin(), atol=1e-6)


META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "0 1 0 -1 0 0 0 0 1",
    "Offset": "1 2 -3.5",
    "ElementSpacing": "0.5 0.6 2",
    "DimSize": "9 8 7",
    "ElementType": "MET_SHORT",
}


def meta(data: bytes = RAW, data_file: str = "LOCAL", equals: str = " = ", **edit) -> bytes:
    fields = {**META, **edit}
    lines = [f"{key}{equals}{value}" for key, value in fields.items() if value is not None]
    return "\n".join([*lines, f"ElementDataFile{equals}{data_file}\n"]).encode() + data


META_HEADERS = {
    "size of an element": meta(ElementSpacing=None, ElementSize="0.5 0.6 2"),
    "spacing counts, not size": meta(ElementSize="7 7 7"),
    "exponents": meta(ElementSpacing="5e-1 +.6 2.", Offset="1e0 20E-1 -3.50"),
    "whole numbers as floats": meta(DimSize="9.0 8e0 7"),
    "booleans": meta(BinaryData="true", BinaryDataByteOrderMSB="false", CompressedData="F"),
    "booleans as digits": meta(BinaryData="1", BinaryDataByteOrderMSB="0", CompressedData="0"),
    "colons": meta(equals=": "),
    "no blanks": meta(equals="="),
    "tabs and blanks": meta(equals=" \t= "),
    "line ends of Windows": meta(b"").replace(b"\n", b"\r\n") + RAW,
    "what the data are": meta(Comment="a=b", Modality="MET_MOD_CT", Name="scan", ID="3"),
    "optional fields": meta(
        CenterOfRotation="0 0 0", AnatomicalOrientation="RAI", ElementMin="-1000", ElementMax="9"
    ),
    "intensity as it is": meta(
        ElementToIntensityFunctionSlope="1.0", ElementToIntensityFunctionOffset="0.0"
    ),
    "another order": meta(ObjectType=None, **{"ObjectSubType": "x"}),
    "big-endian": meta(phantom().astype(">i2").tobytes("F"), BinaryDataByteOrderMSB="True"),
    "big-endian, other name": meta(
        phantom().astype(">i2").tobytes("F"),
        BinaryDataByteOrderMSB=None,
        ElementByteOrderMSB="True",
    ),
    "compressed": meta(
        zlib.compress(RAW), CompressedData="True", CompressedDataSize=str(len(zlib.compress(RAW)))
    ),
    "one channel": meta(ElementNumberOfChannels="1"),
    "values at the end": meta(b"before" + RAW, HeaderSize="-1"),
    "a few bytes behind": meta(RAW + b"\0" * 12),
    "integers": meta(phantom().astype("<i4").tobytes("F"), ElementType="MET_INT"),
    "floats": meta(phantom().astype("<f4").tobytes("F"), ElementType="MET_FLOAT"),
}


@pytest.mark.parametrize("header", META_HEADERS.values(), ids=META_HEADERS)
def test_metaimage_as_itk_reads_it(tmp_path, header: bytes):
    (tmp_path / "scan.mha").write_bytes(header)
    assert_read_as_itk(tmp_path / "scan.mha")


def test_detached_metaimage_with_a_header_of_its_own(tmp_path):
    (tmp_path / "scan.raw").write_bytes(b"header" + RAW)
    for size in ("6", "-1"):
        (tmp_path / "scan.mhd").write_bytes(meta(b"", "scan.raw", HeaderSize=size))
        assert_read_as_itk(tmp_path / "scan.mhd")


def test_exponents_of_fortran(tmp_path):
    """ITK drops the exponent, and reads 0.05D1 as 0.05."""
    (tmp_path / "scan.mha").write_bytes(meta(ElementSpacing="0.05D1 6d-1 2"))
    np.testing.assert_allclose(read_image(tmp_path / "scan.mha").spacing_mm, [0.5, 0.6, 2])


NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "9 8 7",
    "space directions": "(0,0.5,0) (-0.6,0,0) (0,0,2)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(10,20,-30.5)",
}


def nrrd(data: bytes = RAW, colon: str = ": ", end: str = "\n", **edit) -> bytes:
    fields = {**NRRD, **{key.replace("_", " "): value for key, value in edit.items()}}
    lines = [f"{key}{colon}{value}{end}" for key, value in fields.items() if value is not None]
    return f"NRRD0005{end}{''.join(lines)}{end}".encode() + data


NRRD_HEADERS = {
    "RAS in words": nrrd(space="right anterior superior"),
    "LAS": nrrd(space="LAS"),
    "capitals": nrrd(type="Int16", encoding="RAW", space="Left-Posterior-Superior").replace(
        b"sizes", b"Sizes"
    ),
    "blanks": nrrd(colon=":   ", space_directions="( 0 , 0.5 , 0 ) (-0.6,0,0)  (0,0,2.)"),
    "exponents": nrrd(space_directions="(0,5e-1,0) (-.6,0,0) (0,0,+2)"),
    "no kinds": nrrd(kinds=None),
    "other fields": nrrd(
        thicknesses="nan nan 2",
        centerings="cell cell cell",
        labels='"x" "y" "z"',
        units=None,
        content="scan",
        old_min="-1000",
        old_max="800",
        measurement_frame="(1,0,0) (0,1,0) (0,0,1)",
    ),
    "units": nrrd(space_units='"mm" "mm" "mm"', sample_units='"Hounsfield Units"'),
    "line ends of Windows": nrrd(end="\r\n"),
    "comments and notes": nrrd().replace(b"type:", b"# a: b\nkey:=value: x\ntype:"),
    "big-endian": nrrd(phantom().astype(">i2").tobytes("F"), endian="big"),
    "gzip": nrrd(gzip.compress(RAW), encoding="gzip"),
    "gz": nrrd(gzip.compress(RAW), encoding="gz"),
    "bytes to skip": nrrd(b"1234" + RAW, byte_skip="4"),
    "values at the end": nrrd(b"1234" + RAW, byte_skip="-1"),
    "lines to skip": nrrd(b"a\nb\n" + RAW, line_skip="2", byte_skip="-1"),
    "a few bytes behind": nrrd(RAW + b"\0" * 12),
    "floats": nrrd(phantom().astype("<f4").tobytes("F"), type="float"),
}


@pytest.mark.parametrize("header", NRRD_HEADERS.values(), ids=NRRD_HEADERS)
def test_nrrd_as_itk_reads_it(tmp_path, header: bytes):
    (tmp_path / "scan.nrrd").write_bytes(header)
    assert_read_as_itk(tmp_path / "scan.nrrd")


@pytest.mark.parametrize("first", [True, False])
def test_nrrd_with_an_axis_that_is_none(tmp_path, first: bool):
    """One channel, or one point in time."""

    def with_one(text: str, one: str) -> str:
        return f"{one} {text}" if first else f"{text} {one}"

    header = nrrd(
        dimension="4",
        sizes=with_one(NRRD["sizes"], "1"),
        space_directions=with_one(NRRD["space directions"], "none"),
        kinds=with_one(NRRD["kinds"], "list"),
    )
    (tmp_path / "four.nrrd").write_bytes(header)
    (tmp_path / "three.nrrd").write_bytes(nrrd())
    four, three = read_image(tmp_path / "four.nrrd"), read_image(tmp_path / "three.nrrd")
    np.testing.assert_array_equal(four.hu, phantom())
    np.testing.assert_array_equal(four.affine, three.affine)


def test_nrrd_that_itk_does_not_read(tmp_path):
    (tmp_path / "scan.nrrd").write_bytes(nrrd(bz2.compress(RAW), encoding="bzip2"))
    np.testing.assert_array_equal(read_image(tmp_path / "scan.nrrd").hu, phantom())


@pytest.mark.parametrize("kind", ["mha", "nrrd"])
def test_directions_with_three_decimals(tmp_path, kind: str):
    """ITK takes them as they are, a little askew: here they become the nearest right angles."""
    angle = np.radians(20)
    cosines = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0]])
    if kind == "mha":
        rows = np.round([*cosines, [0, 0, 1]], 3).ravel()
        content = meta(TransformMatrix=" ".join(f"{cosine:.3f}" for cosine in rows))
    else:
        vectors = np.round([*cosines, [0, 0, 2]], 3)
        text = [f"({','.join(f'{mm:.3f}' for mm in vector)})" for vector in vectors]
        content = nrrd(space_directions=" ".join(text))
    path = tmp_path / f"scan.{kind}"
    path.write_bytes(content)
    affine = read_image(path).affine
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(axes[:, :2], LPS_TO_RAS @ cosines.T, atol=6e-4)
    if kind == "mha":
        path.write_bytes(meta(TransformMatrix="1 0.0015000 0 0 1 0 0 0 1"))
        with pytest.raises(ImageError, match="perpendicular"):
            read_image(path)


NIFTI_FORMS = {
    "codes": [(1, 0), (0, 1), (1, 1), (2, 1), (4, 4)],
    "slope": [(0, 0), (np.nan, np.nan), (1, 0), (2, -1000), (0.5, 3)],
    "unit": [0, 2, 2 | 8, 2 | 16],
    "dim": [(3, 9, 8, 7, 1, 1, 1, 1), (4, 9, 8, 7, 1, 0, 0, 0), (5, 9, 8, 7, 1, 1, 1, 1)],
}


@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_nifti_as_nibabel_reads_it(tmp_path, endianness: str, version: int, every: int):
    header_class = {1: nib.Nifti1Header, 2: nib.Nifti2Header}[version]
    affine = np.array([[0.0, -0.6, 0, 5], [0.5, 0, 0, 6], [0, 0, 2, -7.25], [0, 0, 0, 1]])
    # of every seventh, each form meets each other one somewhere
    forms = list(itertools.product(*NIFTI_FORMS.values()))[::every]
    for number, (codes, slope, unit, dim) in enumerate(forms):
        header = header_class(endianness=endianness)
        header.set_data_dtype(np.dtype(f"{endianness}i2"))
        header.set_data_shape((9, 8, 7))
        header.set_qform(affine, codes[0])
        header.set_sform(affine, codes[1])
        header["magic"] = b"n+1" if version == 1 else header["magic"]
        header["scl_slope"], header["scl_inter"] = slope
        header["xyzt_units"], header["dim"] = unit, dim
        header["vox_offset"] = 352 if version == 1 else 544
        header["descrip"], header["intent_name"], header["cal_max"] = b"x", b"y", 100
        header["toffset"], header["slice_end"], header["pixdim"][4:] = 3, 6, 0
        path = tmp_path / f"{number % 2}.nii"
        content = header.binaryblock + bytes(4) + phantom().astype(f"{endianness}i2").tobytes("F")
        path.write_bytes(gzip.compress(content, 1) if number % 2 else content)
        path = path.rename(tmp_path / f"scan.nii{'.gz' if number % 2 else ''}")
        volume, image = read_image(path), nib.load(path)
        np.testing.assert_allclose(volume.hu, image.get_fdata().reshape(9, 8, 7), atol=1e-6)
        np.testing.assert_allclose(volume.affine, image.affine, atol=1e-6)
