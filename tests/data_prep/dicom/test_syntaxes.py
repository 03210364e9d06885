"""Every transfer syntax decodes to the same pixels; one that can't be is refused by name."""

import io
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import gdcm
import numpy as np
import PIL.Image
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.testing import assert_array_equal
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    JPEG2000,
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from data_prep.dicom import syntaxes
from data_prep.dicom.files import DicomFile
from data_prep.dicom.header import read_header
from data_prep.dicom.pixels import CTSlice, read_hu
from data_prep.dicom.slices import to_ct_slices
from data_prep.problems import SeriesError

LOSSLESS = ("J2KR", "JLSL", "JPLL", "RLE")


def slice_of(path: Path) -> CTSlice:
    (one,) = to_ct_slices(read_header(DicomFile(path)))
    return one


def hu_of(path: Path) -> np.ndarray:
    return read_hu([slice_of(path)])[0][:, :, 0].T


def refusal(path: Path) -> SeriesError:
    """Return how a file is refused before any pixel is decoded."""
    with pytest.raises(SeriesError) as caught:
        slice_of(path)
    assert caught.value.files == (path,)
    assert path.name in str(caught.value)
    return caught.value


@pytest.mark.shared_data
@pytest.mark.parametrize("name", [*LOSSLESS, "J2KI", "JLSN"])
def test_a_real_slice_equals_simpleitk(shared_data: Path, name: str):
    path = shared_data / "dicom_syntaxes" / f"CT1_{name}.dcm"
    assert_array_equal(hu_of(path), sitk.GetArrayFromImage(sitk.ReadImage(path))[0])


@pytest.mark.shared_data
def test_the_lossless_ones_hold_the_same_pixels(shared_data: Path):
    first, *others = [
        hu_of(shared_data / "dicom_syntaxes" / f"CT1_{name}.dcm") for name in LOSSLESS
    ]
    assert first.std() > 100
    for other in others:
        assert_array_equal(other, first)


def compressed_by_pydicom(path: Path, syntax: str) -> None:
    dataset = pydicom.dcmread(path)
    if syntax == DeflatedExplicitVRLittleEndian:
        dataset.file_meta.TransferSyntaxUID = syntax
    else:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path)


def compressed_by_gdcm(path: Path, syntax: str) -> None:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


@pytest.mark.parametrize(
    ("is_signed", "bits_stored"), [(True, 16), (False, 16), (False, 12), (True, 13)]
)
@pytest.mark.parametrize(
    ("syntax", "compress"),
    [
        (RLELossless, compressed_by_pydicom),
        (JPEG2000Lossless, compressed_by_pydicom),
        (JPEGLSLossless, compressed_by_pydicom),
        (DeflatedExplicitVRLittleEndian, compressed_by_pydicom),
        (JPEGLosslessSV1, compressed_by_gdcm),
        (JPEGLossless, compressed_by_gdcm),
    ],
)
def test_made_series(write_ct_series, syntax, compress, is_signed: bool, bits_stored: int):
    series = write_ct_series(
        shape=(64, 72, 2),
        is_signed=is_signed,
        bits_stored=bits_stored,
        rescale=lambda k: (1.0, 0.0 if is_signed else -1024.0),
    )
    for path in series.paths:
        compress(path, syntax)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    hu, _ = read_hu([slice_of(path) for path in series.paths])
    assert_array_equal(hu, series.hu)


@pytest.mark.parametrize(("syntax", "largest_error"), [(JPEGLSNearLossless, 3), (JPEG2000, 20)])
def test_lossy_ones_come_near(write_ct_series, syntax: str, largest_error: int):
    series = write_ct_series(shape=(64, 72, 1), is_signed=False)
    path = series.paths[0]
    dataset = pydicom.dcmread(path)
    options = {"jls_error": 3} if syntax == JPEGLSNearLossless else {"j2k_cr": [4]}
    dataset.compress(syntax, generate_instance_uid=False, **options)
    dataset.save_as(path)
    error = np.abs(hu_of(path) - series.hu[:, :, 0].T)
    assert 0 < error.max() <= largest_error


def test_baseline_jpeg_of_eight_bits(write_ct_series):
    j, i = np.indices((48, 64))
    image = (2 * i + j).astype(np.uint8)
    encoded = io.BytesIO()
    PIL.Image.fromarray(image).save(encoded, "JPEG", quality=95)

    def edit(dataset, k):
        dataset.Rows, dataset.Columns = 48, 64
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.PixelData = encapsulate([encoded.getvalue()])
        dataset["PixelData"].is_undefined_length = True

    path = write_ct_series(
        shape=(4, 4, 1), is_signed=False, rescale=lambda k: (4, -1000), edit=edit
    ).paths[0]
    stored = (hu_of(path) + 1000) / 4
    assert np.abs(stored - np.asarray(PIL.Image.open(encoded), float)).max() <= 1


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_orders_of_bytes(write_ct_series, syntax: str):
    def edit(dataset, k):
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.add_new("PixelPaddingValue", "SS", -2024)
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()

    series = write_ct_series(edit=edit)
    slices = [slice_of(path) for path in series.paths]
    assert slices[0].pixels.padding == (-2024, -2024)
    assert_array_equal(read_hu(slices)[0], series.hu)


def test_eight_bits_in_big_endian_words_are_refused(write_ct_series):
    def edit(dataset, k):
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelData = bytes(16)

    path = write_ct_series(shape=(4, 4, 1), is_signed=False, edit=edit).paths[0]
    assert refusal(path).reason == "unsupported_pixels"


@pytest.mark.parametrize(
    ("syntax", "bits_stored", "plugin"),
    [
        (RLELossless, 16, "pydicom"),
        (JPEG2000Lossless, 16, "pylibjpeg"),
        (HTJ2KLossless, 16, "pylibjpeg"),
        (JPEGLSLossless, 16, "pyjpegls"),
        (JPEGLossless, 16, "gdcm"),
        (JPEGLosslessSV1, 16, "gdcm"),
        (JPEGBaseline8Bit, 8, "gdcm"),
        (JPEGExtended12Bit, 8, "gdcm"),
        (MPEG2MPML, 8, None),
        ("1.2.3.4", 8, None),
    ],
)
def test_which_decoder_is_used(syntax: str, bits_stored: int, plugin: str | None):
    assert syntaxes.choose_decoder(syntax, bits_stored) == plugin


def relabelled(path: Path, syntax: str) -> None:
    """Change what a file says of its syntax, and nothing else."""
    content = path.read_bytes()
    old = b"UI\x14\0" + ExplicitVRLittleEndian.encode() + b"\0"
    new = syntax.encode() + b"\0" * (len(syntax) % 2)
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, b"UI" + len(new).to_bytes(2, "little") + new))


@pytest.mark.parametrize("syntax", [MPEG2MPML, "1.2.3.4\x1b"])
def test_a_syntax_without_decoder(write_ct_series, syntax: str):
    path = write_ct_series(shape=(4, 4, 1)).paths[0]
    relabelled(path, syntax)
    error = refusal(path)
    assert error.reason == "unsupported_syntax"
    assert "convert the series to Explicit VR Little Endian" in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("syntax", "package"),
    [
        (JPEG2000Lossless, "pylibjpeg[openjpeg]"),
        (JPEGLSLossless, "pyjpegls"),
        (JPEGLosslessSV1, "python-gdcm"),
        (JPEGExtended12Bit, "pylibjpeg-libjpeg"),
    ],
)
def test_a_missing_decoder_is_named(write_ct_series, monkeypatch, syntax: str, package: str):
    path = write_ct_series(shape=(4, 4, 1)).paths[0]
    relabelled(path, syntax)
    monkeypatch.setattr(syntaxes, "get_decoder", lambda uid: SimpleNamespace(available_plugins=()))
    error = refusal(path)
    assert error.reason == "unsupported_syntax"
    assert f"install {package}, or" in str(error)


def frame_of(path: Path) -> tuple[pydicom.Dataset, bytes]:
    dataset = pydicom.dcmread(path)
    return dataset, next(generate_frames(dataset.PixelData, number_of_frames=1))


@pytest.mark.parametrize(
    ("syntax", "compress"),
    [
        (JPEG2000Lossless, compressed_by_pydicom),
        (JPEGLSLossless, compressed_by_pydicom),
        (JPEGLosslessSV1, compressed_by_gdcm),
        (RLELossless, compressed_by_pydicom),
    ],
)
class TestDamage:
    @pytest.fixture
    def path(self, write_ct_series, syntax, compress) -> Path:
        path = write_ct_series(shape=(64, 72, 1), is_signed=False).paths[0]
        compress(path, syntax)
        return path

    def test_another_size_in_the_stream(self, path: Path):
        dataset = pydicom.dcmread(path)
        dataset.Rows = 71
        dataset.save_as(path)
        with pytest.raises(SeriesError, match="can't be decoded") as caught:
            hu_of(path)
        assert caught.value.reason == "unreadable_pixels"

    def test_noise(self, path: Path):
        dataset, frame = frame_of(path)
        dataset.PixelData = encapsulate([frame[:40] + bytes(range(256))])
        dataset.save_as(path)
        with pytest.raises(SeriesError) as caught:
            hu_of(path)
        assert caught.value.reason == "unreadable_pixels"

    @pytest.mark.parametrize("missing", [1, 9, 17])
    def test_a_cut_off_file_is_noticed_before_it_is_decoded(self, path: Path, missing: int):
        content = path.read_bytes()
        (start, length) = slice_of(path).pixels.fragments[-1]
        path.write_bytes(content[: start + length - missing])
        assert refusal(path).reason == "truncated_pixels"

    def test_several_fragments(self, path: Path):
        dataset, frame = frame_of(path)
        expected = hu_of(path)
        dataset.PixelData = encapsulate([frame], fragments_per_frame=3, has_bot=False)
        dataset.save_as(path)
        assert len(slice_of(path).pixels.fragments) == 3
        assert_array_equal(hu_of(path), expected)

    def test_pixels_that_are_not_encapsulated(self, path: Path):
        dataset, frame = frame_of(path)
        dataset.PixelData = encapsulate([frame])
        dataset.save_as(path)
        content = path.read_bytes()
        start = read_header(DicomFile(path)).pixel_offset
        path.write_bytes(content[:start] + frame + content[start + len(frame) :])
        assert refusal(path).reason == "unreadable_pixels"


def test_a_stream_that_claims_a_huge_image_takes_no_memory(write_ct_series):
    path = write_ct_series(shape=(64, 72, 1), is_signed=False).paths[0]
    compressed_by_pydicom(path, JPEG2000Lossless)
    content = bytearray(path.read_bytes())
    size = content.index(b"\xff\x4f\xff\x51") + 8
    content[size : size + 8] = (60_000).to_bytes(4, "big") * 2
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(SeriesError, match="can't be decoded"):
            hu_of(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
