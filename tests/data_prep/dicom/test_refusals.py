"""Series that can't be read without guessing: each is refused by its reason, naming a file."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    MPEG2MPML,
    CTImageStorage,
    EnhancedCTImageStorage,
    JPEG2000Lossless,
)

from data_prep import CTVolume, SeriesError, read_series


def refusal(folder: Path, **options) -> SeriesError:
    """Return the refusal of a folder: one sentence, and files that exist."""
    with pytest.raises(SeriesError) as caught:
        read_series(folder, **options)
    sentence = str(caught.value)
    assert re.search(r"\.$", sentence), sentence
    assert "\n" not in sentence
    assert sentence.isprintable()
    return caught.value


def setting(keyword: str, value, only: int | None = 5) -> Callable:
    """Return an edit that sets (or, with None, deletes) an attribute of one or every slice."""

    def edit(dataset, k):
        if only in (None, k):
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return edit


def moving(position_lps: Callable[[int], tuple[float, float, float]]) -> Callable:
    """Return an edit that places every slice."""

    def edit(dataset, k):
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in position_lps(k)]

    return edit


ONE_SLICE = {
    "an enhanced CT": ("bad_header", setting("SOPClassUID", EnhancedCTImageStorage)),
    "two frames": ("bad_header", setting("NumberOfFrames", 2)),
    "an effective-Z map": ("not_hu", setting("RescaleType", "Z_EFF")),
    "no image UID": ("no_uid", setting("SOPInstanceUID", None)),
    "no position": ("no_position", setting("ImagePositionPatient", None)),
    "no orientation": ("no_position", setting("ImageOrientationPatient", None)),
    "an empty position": ("no_position", setting("ImagePositionPatient", "")),
    "half a position": ("bad_header", setting("ImagePositionPatient", ["1", "2"])),
    "no pixel spacing": ("no_pixel_spacing", setting("PixelSpacing", None)),
    "zero pixel spacing": ("no_pixel_spacing", setting("PixelSpacing", ["0", "1"])),
    "no rows": ("size_mismatch", setting("Rows", None)),
    "a row too many": ("size_mismatch", setting("Rows", 21)),
    "65535 rows": ("size_mismatch", setting("Rows", 65535)),
    "12 of 8 bits": ("unsupported_pixels", setting("BitsAllocated", 8)),
    "32 bits": ("unsupported_pixels", setting("BitsAllocated", 32)),
    "no sign": ("unsupported_pixels", setting("PixelRepresentation", None)),
    "no pixels": ("no_pixels", setting("PixelData", None)),
    "no slope": ("no_rescale", setting("RescaleSlope", None)),
    "slope zero": ("bad_rescale", setting("RescaleSlope", "0")),
    "slope 1e9": ("bad_rescale", setting("RescaleSlope", "1e9")),
}


@pytest.mark.parametrize(("reason", "edit"), ONE_SLICE.values(), ids=ONE_SLICE)
def test_one_wrong_slice(write_ct_series, reason: str, edit: Callable):
    series = write_ct_series(edit=edit)
    error = refusal(series.folder)
    assert error.reason == reason
    assert series.paths[5].name in str(error)
    assert error.files == (series.paths[5],)


STACKS = {
    "askew cosines": (
        "bad_orientation",
        setting("ImageOrientationPatient", ["1", "0", "0", "0.1", "1", "0"], only=None),
    ),
    "a time point twice": ("conflicting_slices", moving(lambda k: (0, 0, 1.5 * (k // 2)))),
    "one position twice": ("conflicting_slices", moving(lambda k: (0, 0, 1.5 * min(k, 10)))),
    "the same UID twice": ("conflicting_uids", setting("SOPInstanceUID", "1.2.3", only=None)),
    "lying down": ("gantry_tilt", moving(lambda k: (0, 3.0 * k, 1.5 * k))),
    "a kilometre away": ("bad_header", moving(lambda k: (0, 0, 1e7 + 1.5 * k))),
    "an endless gap": ("missing_slices", moving(lambda k: (0, 0, 1.5 * k + 6e5 * (k > 5)))),
    "a tiny step": ("variable_spacing", moving(lambda k: (0, 0, 1.5 * k - 1.48 * (k > 5)))),
    "tilted by 15 degrees": (
        "gantry_tilt",
        moving(lambda k: (0, 1.5 * k * np.tan(np.radians(15)), 1.5 * k)),
    ),
    "tilted by 1 degree": (
        "gantry_tilt",
        moving(lambda k: (0, 1.5 * k * np.tan(np.radians(1)), 1.5 * k)),
    ),
    "moved patient": ("shifted_slices", moving(lambda k: (2.0 * (k >= 7), 0, 1.5 * k))),
    "two spacings": ("variable_spacing", moving(lambda k: (0, 0, 1.5 * k + 0.7 * max(0, k - 6)))),
    "growing spacing": ("variable_spacing", moving(lambda k: (0, 0, 1.5 * k + 0.02 * k * k))),
    "barely growing spacing": (
        "variable_spacing",
        moving(lambda k: (0, 0, 1.5 * k + 0.004 * k * k)),
    ),
    "a gap of 2.4 spacings": (
        "variable_spacing",
        moving(lambda k: (0, 0, 1.5 * k + 2.1 * (k > 5))),
    ),
    "one slice off": ("variable_spacing", moving(lambda k: (0, 0, 1.5 * k + 0.4 * (k == 6)))),
}


@pytest.mark.parametrize(("reason", "edit"), STACKS.values(), ids=STACKS)
def test_slices_that_form_no_regular_stack(write_ct_series, reason: str, edit: Callable):
    series = write_ct_series(edit=edit)
    error = refusal(series.folder)
    assert error.reason == reason
    assert error.files
    assert set(error.files) <= set(series.paths)
    assert all(path.name in str(error) for path in error.files)


@pytest.mark.parametrize(
    ("missing", "gap_mm", "count"),
    [
        ([6], 3.0, 1),
        ([4, 5, 6], 6.0, 3),
        ([2, 7, 8], 3.0, 3),
        ([1, 3, 4], 3.0, 3),
        ([1, 4, 7, 10], 3.0, 4),  # most steps are gaps
    ],
)
def test_missing_slices_name_the_gap(write_ct_series, missing, gap_mm: float, count: int):
    series = write_ct_series()
    for k in missing:
        series.paths[k].unlink()
    error = refusal(series.folder)
    assert error.reason == "missing_slices"
    assert f"{gap_mm:.2f} mm apart" in str(error)
    assert f"all {count} slice" in str(error)
    end = next(k for k in range(missing[0], 12) if k not in missing)
    assert error.files == (series.paths[missing[0] - 1], series.paths[end])


def test_single_slice(write_ct_series):
    series = write_ct_series(shape=(24, 20, 1))
    error = refusal(series.folder)
    assert (error.reason, error.files) == ("single_slice", (series.paths[0],))


def test_folders_without_a_series(tmp_path: Path):
    assert refusal(tmp_path / "nowhere").reason == "not_found"
    assert refusal(tmp_path).reason == "no_dicom"
    (tmp_path / "readers.xml").write_text("<LidcReadMessage/>")
    assert refusal(tmp_path).reason == "no_dicom"
    error = refusal(tmp_path / "readers.xml")
    assert error.reason == "no_dicom"
    assert "readers.xml holds no DICOM file" in str(error)


def test_an_mr_series(write_ct_series):
    def edit(dataset, k):
        dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.4", "MR"

    series = write_ct_series(edit=edit)
    error = refusal(series.folder)
    assert error.reason == "not_ct"
    assert "modality MR" in str(error)
    assert refusal(series.folder, series_uid=series.series_uid).reason == "not_ct"


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (0, "unreadable_file"),
        (50, "unreadable_file"),
        (140, "unreadable_file"),
        (300, "unreadable_file"),
        (700, "no_pixels"),
        (-1, "truncated_pixels"),
    ],
)
def test_cut_off_files(write_ct_series, kept: int, reason: str):
    series = write_ct_series()
    series.paths[4].write_bytes(series.paths[4].read_bytes()[:kept])
    error = refusal(series.folder)
    assert (error.reason, error.files) == (reason, (series.paths[4],))


def test_a_cut_off_file_is_noticed_before_any_pixel_is_read(write_ct_series):
    series = write_ct_series()
    series.paths[4].write_bytes(series.paths[4].read_bytes()[:-1])
    assert "ends 1 bytes before its pixels do" in str(refusal(series.folder))


def test_a_dicom_name_without_dicom_inside(write_ct_series):
    series = write_ct_series()
    (series.folder / "page.dcm").write_text("<html>not found</html>")
    (series.folder / "gone.dcm").symlink_to(series.folder / "nowhere")
    error = refusal(series.folder)
    assert error.reason == "unreadable_file"
    assert "gone.dcm" in str(error)
    (series.folder / "gone.dcm").unlink()
    assert "page.dcm" in str(refusal(series.folder))


def test_a_header_that_claims_more_than_fits(write_ct_series):
    def edit(dataset, k):
        dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 65535, 65535, 10000

    assert refusal(write_ct_series(edit=edit).folder).reason == "size_mismatch"


def test_numbers_that_are_none(write_ct_series):
    series = write_ct_series()
    content = series.paths[2].read_bytes()
    assert content.count(b"-1024") == 1
    series.paths[2].write_bytes(content.replace(b"-1024", b"1e999"))
    error = refusal(series.folder)
    assert error.reason == "bad_header"
    assert "RescaleIntercept" in str(error)
    series.paths[2].write_bytes(content.replace(b"-1024", b"about"))
    assert refusal(series.folder).reason == "bad_header"


def test_unsigned_pixels_without_rescale(write_ct_series):
    def edit(dataset, k):
        del dataset.RescaleSlope, dataset.RescaleIntercept

    assert refusal(write_ct_series(is_signed=False, edit=edit).folder).reason == "no_rescale"


@pytest.mark.parametrize("syntax", [MPEG2MPML, "1.2.3.4"])
def test_a_syntax_that_cannot_be_decoded(write_ct_series, syntax: str):
    series = write_ct_series()
    path = series.paths[7]
    dataset = pydicom.dcmread(path)
    old = f"{dataset.file_meta.TransferSyntaxUID}\0".encode()
    element = b"UI" + len(old).to_bytes(2, "little") + old
    new = syntax.encode() + b"\0" * (len(syntax) % 2)
    content = path.read_bytes()
    assert content.count(element) == 1
    content = content.replace(element, b"UI" + len(new).to_bytes(2, "little") + new)
    path.write_bytes(content)
    error = refusal(series.folder)
    assert error.reason == "unsupported_syntax"
    assert error.files == (path,)
    assert "Explicit VR Little Endian" in str(error)


def test_compressed_pixels_that_are_noise(write_ct_series):
    def edit(dataset, k):
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        dataset.PixelData = pydicom.encaps.encapsulate([bytes(range(256))])
        dataset["PixelData"].is_undefined_length = True

    series = write_ct_series(edit=edit)
    error = refusal(series.folder)
    assert error.reason == "unreadable_pixels"
    assert error.files == (series.paths[0],)


def test_a_compressed_image_of_another_size(write_ct_series):
    series = write_ct_series(shape=(64, 64, 2))
    for path in series.paths:
        dataset = pydicom.dcmread(path)
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
        dataset.Rows = 63
        dataset.save_as(path)
    assert refusal(series.folder).reason == "unreadable_pixels"


def test_names_cannot_reach_the_terminal(write_ct_series):
    names = [f"\x1b[31m{k}\r.dcm" for k in range(12)]
    series = write_ct_series(names=names, edit=setting("ImagePositionPatient", None))
    assert "?[31m5?.dcm" in str(refusal(series.folder))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(tmp_path_factory, data):
    """Whatever happens to the bytes of a file, there is a volume or a reason, never a crash."""
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(_two_slices(folder))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    (folder / "1.dcm").write_bytes(content[:cut])
    with contextlib.suppress(SeriesError):
        assert isinstance(read_series(folder), CTVolume)


def _two_slices(folder: Path) -> bytes:
    """Write a slice of a tiny series and return the bytes of the next one."""
    for k in range(2):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.Modality = CTImageStorage, "CT"
        dataset.SOPInstanceUID, dataset.SeriesInstanceUID = f"1.2.3.{k}", "1.2.3"
        dataset.Rows = dataset.Columns = 4
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.PixelRepresentation, dataset.SamplesPerPixel = 0, 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.ImagePositionPatient = [0, 0, 2 * k]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [1, 1]
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = bytes(range(32))
        dataset.save_as(folder / f"{k}.dcm", enforce_file_format=True)
    return (folder / "1.dcm").read_bytes()
