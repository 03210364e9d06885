"""Files are found and opened: folders, links, archives, DICOMDIR, deflated files."""

import gc
import pickle
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal
from pydicom.fileset import FileSet
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from data_prep.dicom.files import DicomFile, find_files
from data_prep.dicom.header import index_files, read_header
from data_prep.dicom.pixels import read_hu
from data_prep.dicom.slices import to_ct_slices
from data_prep.problems import Action, SeriesError


def zipped(folder: Path, archive: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(archive, "w", compression) as made:
        for path in sorted(folder.rglob("*")):
            made.write(path, path.relative_to(folder))
    return archive


def read_all(files: list[DicomFile]) -> np.ndarray:
    slices = [one for file in files for one in to_ct_slices(read_header(file))]
    return read_hu(slices)[0]


def unreadable(file: DicomFile) -> SeriesError:
    with pytest.raises(SeriesError) as caught, file.open() as stream:
        stream.read()
    assert caught.value.reason == "unreadable_file"
    assert caught.value.files == (file.path,)
    return caught.value


def test_every_file_of_any_name_is_found_once(write_ct_series):
    names = ["b.dcm", "a", "deep/er/1.2.3", "deep/IM0001"]
    series = write_ct_series(shape=(4, 4, 4), names=names)
    (series.folder / "notes.txt").write_text("no DICOM")
    (series.folder / "link").symlink_to(series.paths[0])
    (series.folder / "deep" / "loop").symlink_to(series.folder, target_is_directory=True)
    (series.folder / "self").symlink_to(series.folder / "self")
    found = find_files(series.folder)
    assert found == sorted(found, key=lambda file: (len(file.path.parts), file.path))
    assert {file.path.resolve() for file in found} == {
        *(path.resolve() for path in series.paths),
        (series.folder / "notes.txt").resolve(),
    }
    assert len(found) == 5
    index = index_files(series.folder)
    assert (index.n_files, len(index.series[0].files), index.problems) == (5, 4, ())


def test_a_single_file(write_ct_series):
    path = write_ct_series(shape=(4, 4, 2)).paths[1]
    assert find_files(path) == [DicomFile(path)]


def test_nothing_there(tmp_path: Path):
    for search in (find_files, index_files):
        with pytest.raises(SeriesError, match="check the path") as caught:
            search(tmp_path / "nowhere\x1b")
        assert caught.value.reason == "not_found"
        assert str(caught.value).isprintable()


def test_a_link_that_leads_nowhere(write_ct_series):
    series = write_ct_series(shape=(4, 4, 2))
    (series.folder / "gone.dcm").symlink_to(series.folder / "nowhere")
    (series.folder / "gone.txt").symlink_to(series.folder / "nowhere")
    with pytest.raises(SeriesError, match=r"gone\.dcm") as caught:
        find_files(series.folder)
    assert caught.value.reason == "unreadable_file"
    index = index_files(series.folder)
    assert [(one.name, one.files) for one in index.problems] == [("unreadable_file", ("gone.dcm",))]
    assert len(index.series[0].files) == 2


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_reads_as_its_folder(write_ct_series, tmp_path, monkeypatch, compression):
    names = [f"{'sub/' * (k % 3)}IM{k}" for k in range(8)]
    # longer than what is inflated of a member for its header alone
    series = write_ct_series(shape=(200, 250, 8), names=names)
    archive = zipped(series.folder, tmp_path / "export", compression)
    opened = []
    open_archive = zipfile.ZipFile
    monkeypatch.setattr(zipfile, "ZipFile", lambda path: opened.append(path) or open_archive(path))
    files = find_files(archive)
    by_name = {file.member: file for file in files}
    assert set(by_name) == set(names)
    for name, path in zip(names, series.paths, strict=True):
        with by_name[name].open() as stream:
            assert stream.read() == path.read_bytes()
            stream.seek(1000)
            assert stream.read(70_000) == path.read_bytes()[1000:71_000]
    assert_array_equal(
        read_all([by_name[name] for name in names]), read_all(list(map(DicomFile, series.paths)))
    )
    assert len(opened) == 1
    assert by_name[names[1]].name == f"export/{names[1]}"


def test_archives_below_a_folder_are_read_and_those_inside_of_them_named(
    write_ct_series, tmp_path: Path
):
    series = write_ct_series(shape=(4, 4, 3))
    inner = zipped(series.folder, tmp_path / "inner.zip")
    (tmp_path / "all" / "deep").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "all" / "deep" / "Outer.ZIP", "w") as outer:
        outer.write(series.paths[0], "one")
        outer.write(inner, "of many/inner.zip")
    index = index_files(tmp_path / "all")
    assert [file.name for file in index.series[0].files] == ["Outer.ZIP/one"]
    (problem,) = index.problems
    assert (problem.name, problem.action) == ("unreadable_file", Action.REPAIR)
    assert "Outer.ZIP/of many/inner.zip" in problem.message


def test_processes_that_share_an_archive(write_ct_series, tmp_path: Path):
    """An archive opened before a fork must not share its place in the file with the children."""
    series = write_ct_series(shape=(300, 250, 20))
    archive = zipped(series.folder, tmp_path / "x.zip")
    script = """
import hashlib, multiprocessing, pathlib, sys
from data_prep.dicom.files import find_files
def digest(file):
    with file.open() as stream:
        return hashlib.sha256(stream.read()).hexdigest()
files = find_files(pathlib.Path(sys.argv[1]))
digest(files[0])
with multiprocessing.get_context("fork").Pool(3) as pool:
    running = pool.map_async(digest, files, chunksize=1)
    own = [digest(file) for file in files]
    print(*own, *running.get())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, archive], capture_output=True, check=True, text=True
    )
    expected = [sha256(path.read_bytes()).hexdigest() for path in series.paths]
    assert done.stdout.split() == 2 * expected


def test_names_in_an_archive_lead_nowhere(write_ct_series, tmp_path: Path):
    content = write_ct_series(shape=(4, 4, 1)).paths[0].read_bytes()
    folder = tmp_path / "here"
    folder.mkdir()
    names = ["../outside.dcm", "/etc/absolute.dcm", "a\x1b[31m.dcm", "C:\\x.dcm"]
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, content)
    before = set(tmp_path.rglob("*"))
    index = index_files(folder)
    assert len(index.series[0].files) == 4
    assert all(file.name.isprintable() for file in index.series[0].files)
    assert read_all(list(index.series[0].files)).shape == (4, 4, 4)
    assert set(tmp_path.rglob("*")) == before


def test_an_encrypted_member(write_ct_series, tmp_path: Path):
    archive = zipped(write_ct_series(shape=(4, 4, 2)).folder, tmp_path / "x.zip")
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x03\x04") + 6] |= 1  # the first member, in both lists
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    encrypted, readable = find_files(archive)
    assert "is encrypted" in str(unreadable(encrypted))
    assert read_header(readable) is not None
    assert "x.zip/slice000.dcm" in index_files(archive).problems[0].message


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member(write_ct_series, tmp_path: Path, compression: int):
    series = write_ct_series(shape=(64, 64, 1))
    archive = zipped(series.folder, tmp_path / "x.zip", compression)
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") - 300] ^= 0xFF
    archive.write_bytes(content)
    (file,) = find_files(archive)
    assert "damaged" in str(unreadable(file))


@pytest.mark.parametrize("kept", [0, 10, -1, -30])
def test_a_damaged_archive(write_ct_series, tmp_path: Path, kept: int):
    (tmp_path / "all").mkdir()
    archive = zipped(write_ct_series(shape=(4, 4, 2)).folder, tmp_path / "all" / "x.zip")
    archive.write_bytes(archive.read_bytes()[:kept])
    index = index_files(tmp_path / "all")
    assert index.series == ()
    assert [(one.name, one.files) for one in index.problems] == [("unreadable_file", ("x.zip",))]


def test_a_bomb_in_an_archive(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.dcm", bytes(70 * 2**20))
    tracemalloc.start()
    try:
        (file,) = find_files(tmp_path / "x.zip")
        assert "claims to inflate" in str(unreadable(file))
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_an_archive_that_lists_too_much(tmp_path: Path):
    end = b"PK\5\6" + bytes(8) + (2**27).to_bytes(4, "little") + bytes(4) + bytes(2)
    (tmp_path / "x.zip").write_bytes(b"PK\3\4" + bytes(1000) + end)
    with pytest.raises(SeriesError, match="lists more files"):
        find_files(tmp_path / "x.zip")


def make_dicomdir(write_ct_series, tmp_path: Path) -> Path:
    def edit(dataset, k):
        dataset.PatientID, dataset.PatientName, dataset.StudyID = "1", "x", "1"
        dataset.StudyDate, dataset.StudyTime, dataset.SeriesNumber = "20200101", "000000", 1

    series = write_ct_series(shape=(4, 4, 5), edit=edit)
    files = FileSet()
    for path in series.paths:
        files.add(path)
    files.write(tmp_path / "disc")
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        del files  # leaves a temporary folder to the garbage collector
        gc.collect()
    return tmp_path / "disc" / "DICOMDIR"


def test_a_dicomdir_stands_for_its_folder(write_ct_series, tmp_path: Path):
    dicomdir = make_dicomdir(write_ct_series, tmp_path)
    index = index_files(dicomdir)
    assert (len(index.series[0].files), index.problems) == (5, ())
    assert index.series == index_files(dicomdir.parent).series

    gone = index.series[0].files[2].path
    gone.rename(gone.with_name(gone.name.lower()))  # as some systems mount a disc
    assert index_files(dicomdir).problems == ()

    gone.with_name(gone.name.lower()).unlink()
    index = index_files(dicomdir)
    (problem,) = index.problems
    assert problem.name == "unreadable_file"
    assert "/".join(gone.relative_to(dicomdir.parent).parts) in problem.message
    assert len(index.series[0].files) == 4


def test_a_dicomdir_leads_not_outside(write_ct_series, tmp_path: Path):
    dicomdir = make_dicomdir(write_ct_series, tmp_path)
    outside = tmp_path / "outside"
    outside.write_bytes((tmp_path / "series" / "slice000.dcm").read_bytes())
    dataset = pydicom.dcmread(dicomdir)
    images = [one for one in dataset.DirectoryRecordSequence if one.DirectoryRecordType == "IMAGE"]
    with warnings.catch_warnings(action="ignore"):
        images[0].ReferencedFileID = ["..", "outside"]
        images[1].ReferencedFileID = str(outside)
        dataset.save_as(dicomdir)
    index = index_files(dicomdir)
    assert all(file.path.is_relative_to(dicomdir.parent) for file in index.series[0].files)
    assert "lists 2 file(s) that aren't in its folder" in index.problems[0].message


@pytest.mark.parametrize("cut", [400, 700, 1500])
def test_a_damaged_dicomdir_still_stands_for_its_folder(write_ct_series, tmp_path, cut: int):
    dicomdir = make_dicomdir(write_ct_series, tmp_path)
    dicomdir.write_bytes(dicomdir.read_bytes()[:cut])
    assert len(index_files(dicomdir).series[0].files) == 5


def test_files_travel_to_workers_and_sort():
    files = [DicomFile(Path("b")), DicomFile(Path("a"), "2"), DicomFile(Path("a"), "1")]
    assert pickle.loads(pickle.dumps(files)) == files
    assert [file.member for file in sorted(files)] == ["1", "2", None]


def deflate(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)


def test_a_deflated_file_is_read_as_any_other(write_ct_series, tmp_path: Path):
    series = write_ct_series(shape=(60, 50, 3))
    expected = read_all(list(map(DicomFile, series.paths)))
    for path in series.paths:
        deflate(path)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    with DicomFile(path).open() as stream:
        inflated = pydicom.dcmread(stream)
    assert inflated.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert inflated.PixelData == pydicom.dcmread(path).PixelData
    assert_array_equal(read_all(list(map(DicomFile, series.paths))), expected)
    archive = zipped(series.folder, tmp_path / "x.zip")
    assert_array_equal(read_all(find_files(archive)), expected)


def test_a_damaged_or_exploding_deflated_file(write_ct_series):
    (path,) = write_ct_series(shape=(60, 50, 1)).paths
    deflate(path)
    content = path.read_bytes()
    end_of_meta = 144 + int.from_bytes(content[140:144], "little")
    path.write_bytes(content[:end_of_meta] + b"\xff" * 100)
    unreadable(DicomFile(path))
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = deflater.compress(bytes(70 * 2**20)) + deflater.flush()
    path.write_bytes(content[:end_of_meta] + bomb)
    tracemalloc.start()
    try:
        assert "inflates to more" in str(unreadable(DicomFile(path)))
        assert tracemalloc.get_traced_memory()[1] < 2.5 * 2**26
    finally:
        tracemalloc.stop()
    assert index_files(path).problems[0].name == "unreadable_file"


def test_what_a_download_or_a_cohort_has_not_finished_is_passed_over(write_ct_series, tmp_path):
    whole = write_ct_series(folder=tmp_path / "root" / "1.2.3")
    write_ct_series(folder=tmp_path / "root" / ".1.2.4.part")
    write_ct_series(folder=tmp_path / "root" / ".cohort.partial" / "crops")
    hidden = write_ct_series(folder=tmp_path / "root" / ".hidden")
    found = {file.path for file in find_files(tmp_path / "root")}
    assert found == {*whole.paths, *hidden.paths}
