"""Damaged input of every kind: read right or refused in our words, never a library's exception."""

import gzip
import io
import random
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.uid import ExplicitVRLittleEndian

from data_prep import CTVolume, InputError, check_path, read_series, read_volume

DEMO = Path(__file__).parents[2] / "cdam_med" / "demo" / "series"

BAD_VALUES = (
    b"",
    b"\0",
    b"nan ",
    b"1e400 ",
    b"0e99999999999999999999",
    b"1\\2\\3\\4\\5\\6\\7 ",
    b"\xff" * 5,
    b"\x1b$B\xff",
    b"\\" * 8,
    b"x" * 70_000,
    bytes(200),
)


def read(path: Path) -> CTVolume | None:
    """Return the volume, or None where it is refused in one of our errors."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        volume, sentence = None, ""
        try:
            volume = read_volume(path)
        except InputError as error:
            sentence = str(error)
    assert sentence.isprintable()
    return volume


@pytest.fixture
def two_slices(tmp_path: Path) -> Iterator[tuple[Path, CTVolume]]:
    """Give a folder of two real slices, and the volume that they make."""
    folder = tmp_path / "series"
    folder.mkdir()
    for path in sorted(DEMO.glob("*.dcm"))[:2]:
        shutil.copy(path, folder / path.name)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        yield folder, read_series(folder)


def same_or_refused(folder: Path, whole: CTVolume) -> bool:
    volume = read(folder)
    if volume is None:
        return False
    np.testing.assert_array_equal(volume.hu, whole.hu)
    np.testing.assert_allclose(volume.affine, whole.affine, atol=1e-6)
    return True


def test_attributes_missing_or_of_another_type(two_slices):
    """Every attribute in turn; what is still read is what was read before."""
    folder, _ = two_slices
    for path in folder.iterdir():  # the real headers, with few pixels
        original = pydicom.dcmread(path)
        pixels = original.pixel_array[200:216, 200:220]
        original.Rows, original.Columns = pixels.shape
        original.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        original.PixelData = pixels.tobytes()
        original.save_as(path)
    path = max(folder.iterdir())
    original, whole = pydicom.dcmread(path), read(folder)
    assert whole is not None
    choose = random.Random(0)
    n_read = 0
    for element in original:
        if element.keyword == "PixelData":
            continue
        for value in choose.sample((None, choose.choice(BAD_VALUES)), 1):
            dataset = Dataset({each.tag: each for each in original})
            dataset.file_meta, tag = original.file_meta, element.tag
            dataset.set_original_encoding(False, True, "utf8")
            del dataset[tag]
            if value is not None:
                vr = choose.choice(["UN", "LO", "OB", "SQ", "US", "FD", "DS", "IS", "UI", "CS"])
                dataset[tag] = RawDataElement(tag, vr, 0, value, 0, False, True)
            try:
                dataset.save_as(path, enforce_file_format=False)
            except (ValueError, TypeError, AttributeError, OverflowError):
                continue  # pydicom doesn't write it
            n_read += same_or_refused(folder, whole)
    assert n_read > 10


def test_cut_off_anywhere(two_slices):
    folder, whole = two_slices
    path = max(folder.iterdir())
    content = path.read_bytes()
    ends = np.linspace(0, len(content) - 20, 16).astype(int)
    for end in (*ends, len(content) - 2):
        path.write_bytes(content[:end])
        # the last bytes say that there are no more fragments
        assert same_or_refused(folder, whole) == (end == len(content) - 2)


def mutated(content: bytes, choose: random.Random, n_first: int) -> bytes:
    """Change, insert and remove some of the first bytes, or cut the rest off."""
    changed = bytearray(content)
    for _ in range(choose.randint(1, 5)):
        at = choose.randrange(min(n_first, len(changed)) or 1)
        kind = choose.random()
        if kind < 0.5:
            changed[at : at + 1] = bytes([choose.choice([0, 1, 0x7F, 0xFF, 0x2D, 0x39])])
        elif kind < 0.7:
            del changed[at : at + choose.randint(1, 30)]
        elif kind < 0.95:
            changed[at:at] = choose.choice(BAD_VALUES[:9])
        else:
            del changed[at:]
    return bytes(changed)


def image_bytes(tmp_path: Path, name: str) -> bytes:
    hu = np.random.default_rng(0).integers(-1000, 800, (9, 8, 7)).astype(np.int16)
    path = tmp_path / name
    if name.startswith("two"):
        nib.save(nib.Nifti2Image(hu, np.diag([1.0, 1, 2, 1])), path)
    else:
        image = sitk.GetImageFromArray(hu.transpose())
        sitk.WriteImage(image, path, useCompression="compressed" in name)
    return path.read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        *("a.nii", "two.nii", "a.nii.gz", "a.nrrd", "compressed.nrrd"),
        *("a.mha", "compressed.mha"),
    ],
)
def test_mutated_image_files(tmp_path, name: str):
    content = image_bytes(tmp_path, name)
    choose = random.Random(name)
    for _ in range(30):
        if name.endswith("gz") and choose.random() < 0.7:
            damaged = gzip.compress(mutated(gzip.decompress(content), choose, 360), 1)
        else:
            damaged = mutated(content, choose, choose.choice([400, len(content)]))
        (tmp_path / name).write_bytes(damaged)
        volume = read(tmp_path / name)
        assert volume is None or np.isfinite(volume.hu).all()


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_mutated_archives(two_slices, tmp_path, method: int):
    folder, whole = two_slices
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    content, choose = stream.getvalue(), random.Random(method)
    for n in range(6):
        damaged = (
            mutated(content, choose, 120)
            if n % 2
            else content[:-300] + mutated(content[-300:], choose, 300)
        )
        (tmp_path / "a.zip").write_bytes(damaged)
        volume = read(tmp_path / "a.zip")
        assert volume is None or volume.shape == whole.shape


@pytest.mark.shared_data
def test_mutated_compressed_slices(shared_data: Path, tmp_path):
    """Every decoder: JPEG 2000, JPEG-LS, JPEG Lossless, RLE."""
    choose = random.Random(1)
    for source in sorted((shared_data / "dicom_syntaxes").glob("*.dcm")):
        content = source.read_bytes()
        for n_first in (1500, len(content), len(content)):
            (tmp_path / "a.dcm").write_bytes(mutated(content, choose, n_first))
            check_path(tmp_path)


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + ".nii", "a\0b", "a.nii/b"])
def test_paths_that_cannot_be_looked_at(tmp_path, name: str):
    (tmp_path / "a.nii").write_bytes(b"")
    for reader in (read_series, read_volume, check_path):
        with pytest.raises(InputError) as caught:
            reader(tmp_path / name)
        assert caught.value.reason == "not_found"
