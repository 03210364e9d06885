"""Files made to hurt, or hurt themselves: refused by name, in little memory and time."""

import contextlib
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import EnhancedCTImageStorage, RLELossless

from data_prep.dicom.files import DicomFile
from data_prep.dicom.header import index_files, read_header
from data_prep.dicom.pixels import read_hu, with_default_rescale
from data_prep.dicom.slices import to_ct_slices
from data_prep.problems import PROBLEMS, SeriesError

MIB = 2**20


@contextlib.contextmanager
def bounded(mib: float, seconds: float = 2) -> Iterator[None]:
    start = time.perf_counter()
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mib * MIB
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < seconds


def outcome(path: Path) -> str:
    """Return the reason of a refusal, "passed over" or "read"."""
    try:
        header = read_header(DicomFile(path))
        if header is None:
            return "passed over"
        hu, _ = read_hu(with_default_rescale(to_ct_slices(header)))
    except SeriesError as error:
        reason, sentence = error.reason, str(error)
    else:
        return "read" if np.isfinite(hu).all() else "not finite"
    assert reason in PROBLEMS
    assert sentence.isprintable()
    return reason


@pytest.mark.parametrize("sop_class", [None, EnhancedCTImageStorage])
def test_a_header_that_claims_65535_x_65535_x_10000(write_ct_series, sop_class: str | None):
    def edit(dataset, k):
        dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 65535, 65535, 10000
        dataset.SOPClassUID = sop_class or dataset.SOPClassUID

    path = write_ct_series(shape=(4, 4, 1), edit=edit).paths[0]
    with bounded(1):
        assert outcome(path) == "size_mismatch"


def test_frames_beyond_every_memory(write_enhanced_ct):
    def edit(dataset):
        dataset.Rows = dataset.Columns = 4096
        dataset.NumberOfFrames = 2**31 - 1

    path = write_enhanced_ct(edit=edit).path
    with bounded(1):
        assert outcome(path) == "too_large"


def test_a_compressed_object_of_many_frames_that_arent_there(write_enhanced_ct):
    written = write_enhanced_ct()
    dataset = pydicom.dcmread(written.path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.NumberOfFrames = 100_000
    dataset.save_as(written.path)
    with bounded(1):
        assert outcome(written.path) == "unreadable_pixels"


@pytest.fixture
def slice_path(write_ct_series) -> Path:
    return write_ct_series(shape=(12, 10, 1)).paths[0]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.4, 0.6, 0.75])
def test_a_header_cut_off_anywhere(slice_path: Path, share: float):
    header = slice_path.stat().st_size - 240
    slice_path.write_bytes(slice_path.read_bytes()[: int(share * header)])
    assert outcome(slice_path) in {"unreadable_file", "no_uid", "no_pixels"}


@pytest.mark.parametrize("missing", [1, 2, 100, 239, 240])
def test_pixels_cut_off_anywhere(slice_path: Path, missing: int):
    slice_path.write_bytes(slice_path.read_bytes()[:-missing])
    assert outcome(slice_path) == "truncated_pixels"


def test_a_file_that_shrinks_while_it_is_read(slice_path: Path):
    slices = to_ct_slices(read_header(DicomFile(slice_path)))
    os.truncate(slice_path, slice_path.stat().st_size - 10)
    with pytest.raises(SeriesError, match="became shorter") as caught:
        read_hu(slices)
    assert caught.value.reason == "truncated_pixels"
    slice_path.unlink()
    with pytest.raises(SeriesError) as caught:
        read_hu(slices)
    assert caught.value.reason == "unreadable_pixels"


def insert(path: Path, element: bytes) -> None:
    """Put an element before SeriesInstanceUID."""
    content = path.read_bytes()
    at = content.index(b"\x20\x00\x0e\x00UI")
    path.write_bytes(content[:at] + element + content[at:])


@pytest.mark.parametrize("tag", [b"\x18\x00\x60\x00", b"\x29\x00\x01\x10", b"\x10\x00\x20\x00"])
def test_a_value_longer_than_any_file(slice_path: Path, tag: bytes):
    insert(slice_path, tag + b"UN\0\0\xfe\xff\xff\xff")
    with bounded(1):
        assert outcome(slice_path) == "unreadable_file"


def test_a_long_value_of_an_attribute_that_is_kept(slice_path: Path):
    os.truncate(slice_path, 0)
    head = bytes(128) + b"DICM"
    with slice_path.open("wb") as stream:
        stream.write(head + b"\x08\x00\x08\x00UN\0\0" + (2**31).to_bytes(4, "little"))
        stream.truncate(2**31 + 1000)  # sparse: takes no room on disk
    with bounded(1):
        assert outcome(slice_path) == "unreadable_file"


@pytest.mark.parametrize("depth", [900, 20_000])
def test_sequences_within_sequences(slice_path: Path, depth: int):
    opening = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    insert(slice_path, opening * depth)
    with bounded(4):
        assert outcome(slice_path) == "unreadable_file"


def test_functional_groups_within_functional_groups(write_enhanced_ct):
    path = write_enhanced_ct().path
    content = path.read_bytes()
    opening = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    deep = opening * 900 + closing * 900
    at = content.index(b"\x00\x52\x29\x92SQ")
    path.write_bytes(content[:at] + deep + content[at:])
    assert outcome(path) in {"bad_header", "read"}


def test_a_file_of_fragments_alone(slice_path: Path):
    dataset = pydicom.dcmread(slice_path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(slice_path)
    start = read_header(DicomFile(slice_path)).pixel_offset
    item = b"\xfe\xff\x00\xe0\0\0\0\0"
    slice_path.write_bytes(slice_path.read_bytes()[:start] + item * 300_000)
    start_time = time.perf_counter()
    assert outcome(slice_path) == "unreadable_pixels"
    assert time.perf_counter() - start_time < 5


@pytest.mark.parametrize("name", ["x", "x.dcm"])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=600), has_prefix=st.booleans())
def test_random_bytes(tmp_path: Path, name: str, content: bytes, has_prefix: bool):
    path = tmp_path / name
    path.write_bytes((bytes(128) + b"DICM" if has_prefix else b"") + content)
    assert outcome(path) in {"passed over", "unreadable_file"}
    index = index_files(tmp_path)
    assert index.series == ()
    assert {problem.name for problem in index.problems} <= {"unreadable_file"}


def mutated(content: bytes, data: st.DataObject, n_header: int) -> bytes:
    """Change bytes of the header, or cut something out of it."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 5))):
        position = data.draw(st.integers(128, n_header - 1))
        changed[position] = data.draw(st.sampled_from([0, 1, 0x7F, 0xFF]) | st.integers(0, 255))
    if data.draw(st.booleans()):
        start = data.draw(st.integers(128, n_header - 1))
        del changed[start : start + data.draw(st.integers(1, 30))]
    return bytes(changed)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["native", "RLE", "enhanced"])
def test_mutated_headers(
    kind: str, write_ct_series: Callable, write_enhanced_ct: Callable, tmp_path: Path, data
):
    original = tmp_path / "original"
    if not original.exists():
        if kind == "enhanced":
            write_enhanced_ct(original, order=(1, 0))
        else:
            dataset = pydicom.dcmread(write_ct_series(shape=(9, 8, 1)).paths[0])
            if kind == "RLE":
                dataset.compress(RLELossless, generate_instance_uid=False)
            dataset.save_as(original)
    content = original.read_bytes()
    path = tmp_path / "mutated.dcm"
    n_header = read_header(DicomFile(original)).pixel_offset
    path.write_bytes(mutated(content, data, n_header))
    start = time.perf_counter()
    assert outcome(path) in {*PROBLEMS, "passed over", "read"}
    assert time.perf_counter() - start < 2
