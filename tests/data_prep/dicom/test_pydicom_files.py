"""The files that pydicom tests itself with: read as pydicom reads them, or refused by name."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal

from data_prep.dicom.elements import read_elements
from data_prep.dicom.files import DicomFile, find_files
from data_prep.dicom.header import index_files, read_header
from data_prep.dicom.pixels import read_hu, with_default_rescale
from data_prep.dicom.slices import to_ct_slices
from data_prep.problems import PROBLEMS, SeriesError

FOLDER = Path(pydicom.__file__).parent / "data"
FILES = [file.path for file in find_files(FOLDER) if file.path.suffix != ".py"]
KEYWORDS = [
    "ImageType",
    "Modality",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "Rows",
    "PixelRepresentation",
]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(FOLDER)) for path in paths]


def test_there_are_enough():
    assert len(FILES) > 150


def test_every_file_is_indexed_or_refused_by_name():
    index = index_files(FOLDER)
    assert index.n_files >= len(FILES)
    assert {problem.name for problem in index.problems} == {"unreadable_file"}
    modalities = Counter({one.modality: 0 for one in index.series})
    for one in index.series:
        modalities[one.modality] += len(one.files)
    assert modalities["CT"] >= 20
    assert set(modalities) >= {"CT", "MR", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "OT", "US"}
    assert all(
        name.isprintable() for one in index.series for name in (one.modality, one.description)
    )


def agrees_with_pydicom(path: Path) -> bool:
    """Tell whether a file is parsed by both, after making sure that both say the same."""
    try:
        header = read_header(DicomFile(path))
    except SeriesError:
        return False
    if header is None:
        return False
    dataset = pydicom.dcmread(path, force=True)
    with DicomFile(path).open() as stream:
        elements = read_elements(stream, {int(pydicom.tag.Tag(one)) for one in KEYWORDS})
        stream.seek(header.pixel_offset or 0)
        pixels = stream.read(header.pixel_length or 0)
    for keyword in KEYWORDS:
        raw = pydicom.dcmread(path, force=True, stop_before_pixels=True).get_item(keyword)
        value = None if raw is None else raw.value or b""
        assert elements.values.get(int(pydicom.tag.Tag(keyword))) == value
    assert (header.pixel_offset is not None) == ("PixelData" in dataset)
    if header.pixel_length:
        assert pixels == dataset.PixelData
    return True


def test_headers_say_what_pydicom_reads():
    with warnings.catch_warnings(action="ignore"):
        agreeing = sum(agrees_with_pydicom(path) for path in FILES)
    assert agreeing > 130


def hu_or_reason(path: Path) -> np.ndarray | str | None:
    try:
        header = read_header(DicomFile(path))
        if header is None:
            return None
        return read_hu(with_default_rescale(to_ct_slices(header)))[0]
    except SeriesError as error:
        return error.reason


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_ct_images_have_pydicoms_values(path: Path):
    found = hu_or_reason(path)
    if not isinstance(found, np.ndarray):
        assert found is None or found in PROBLEMS
        return
    with warnings.catch_warnings(action="ignore"):
        dataset = pydicom.dcmread(path)
        slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
        expected = dataset.pixel_array * slope + intercept
    assert_array_equal(found[:, :, 0].T, expected)


def test_the_ct_images_among_them():
    read = [path for path in FILES if isinstance(hu_or_reason(path), np.ndarray)]
    assert {path.name for path in read} >= {"CT_small.dcm", "693_J2KI.dcm", "17106", "2062"}
    assert len(read) >= 12
