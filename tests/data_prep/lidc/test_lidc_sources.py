"""Series and readings found below a folder, read, and held against the database."""

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from data_prep import CTVolume, InputError, SeriesError
from data_prep.cohort.select import PROTOCOLS
from data_prep.dicom.files import DicomFile
from data_prep.lidc.xml import read_xml_series_uid
from data_prep.prepare.lidc import (
    ArchiveMismatchError,
    LidcTask,
    check_volume,
    find_readings,
    lidc_tasks,
)
from data_prep.problems import Policy

CLINICAL, PAPER = PROTOCOLS["clinical"], PROTOCOLS["paper"]
PATIENTS = ["LIDC-IDRI-0001", "LIDC-IDRI-0003"]


def reasons_of(exclusions) -> dict[tuple[str, str], str]:
    return {(one.series_id, one.nodule_id): one.reason for one in exclusions}


@pytest.fixture
def scan_of(index) -> Callable[[str], object]:
    by_name = {scan.series_id: scan for scan in index.scans}
    return by_name.__getitem__


@pytest.fixture
def write_headers(write_ct_series, tmp_path: Path):
    """Write a few small images that carry a series' UID: enough to be found."""

    def write(series_uid: str, folder: str, modality: str = "CT") -> None:
        def edit(dataset, k: int) -> None:
            dataset.SeriesInstanceUID, dataset.Modality = series_uid, modality

        write_ct_series(folder=tmp_path / "root" / folder, shape=(8, 8, 3), edit=edit)

    return write


@pytest.mark.shared_data
def test_xml_and_database_agree(shared_data: Path, index):
    """The same nodules, masks, places and ratings of a real series."""
    both = [
        lidc_tasks(shared_data / "lidc", CLINICAL, annotations=source)
        for source in ("database", "xml")
    ]
    (tasks, exclusions), (xml_tasks, xml_exclusions) = both
    assert [task.series_id for task in tasks] == [task.series_id for task in xml_tasks] == PATIENTS
    assert exclusions == xml_exclusions
    assert reasons_of(exclusions) == {("", ""): "not_found"}
    assert "1016 of the 1018 scans" in exclusions[0].message
    task, xml_task = tasks[1], xml_tasks[1]
    assert pickle.loads(pickle.dumps(task)) == task
    assert len(pickle.dumps(task)) < 200_000
    loaded, from_xml = task.load(), xml_task.load()
    assert loaded.exclusions == from_xml.exclusions
    assert loaded.flags == from_xml.flags == task.scan.flags
    assert len(loaded.nodules) == len(from_xml.nodules) == 3
    for nodule, same in zip(loaded.nodules, from_xml.nodules, strict=True):
        assert nodule.nodule_id == same.nodule_id
        assert nodule.ratings == same.ratings
        np.testing.assert_array_equal(nodule.center_xyz_mm, same.center_xyz_mm)
        np.testing.assert_array_equal(nodule.mask, same.mask)
        numbers = [reader.annotation_id for reader in nodule.readers]
        indexed = {n.nodule_id: n.annotation_ids for n in task.scan.nodules}
        assert tuple(numbers) == indexed[nodule.nodule_id]
        assert {reader.annotation_id for reader in same.readers} == {None}
    left_out = [(one.nodule_id, one.reason) for one in loaded.exclusions]
    assert left_out == [("nodule_4", "too_few_readers")]
    assert task.settings != xml_task.settings


@pytest.mark.shared_data
def test_any_structure(shared_data: Path, index, tmp_path: Path):
    """Flat links under names without meaning, and the readings in a zip archive of their own."""
    root = tmp_path / "root"
    root.mkdir()
    (xml,) = (shared_data / "lidc" / PATIENTS[0]).rglob("*.xml")
    for number, path in enumerate(sorted(xml.parent.glob("*.dcm"))):
        (root / f"{number:05d}").symlink_to(path)
    with zipfile.ZipFile(root / "LIDC-XML-only.zip", "w") as archive:
        archive.write(xml, "tcia-lidc-xml/157/158.xml")
        archive.writestr("tcia-lidc-xml/185/1.xml", '<IdriReadMessage xmlns="x"/>')
    (task,), exclusions = lidc_tasks(root, PAPER, annotations="xml", patients=PATIENTS)
    assert task.series_id == PATIENTS[0]
    assert len(task.files) == 133
    assert reasons_of(exclusions) == {(PATIENTS[1], ""): "not_found"}
    (nodule,) = task.load().nodules
    assert nodule.ratings["malignancy"] == 5


@pytest.mark.shared_data
def test_missing_slices_are_found_at_the_ends_too(shared_data: Path, index):
    (task,), _ = lidc_tasks(shared_data / "lidc", PAPER, patients=PATIENTS[:1])
    in_order = sorted(
        task.files,
        key=lambda file: dcmread(file.path, stop_before_pixels=True).ImagePositionPatient[2],
    )
    shortened = replace(task, files=tuple(in_order[2:-1]))
    with pytest.raises(SeriesError, match="3 of the 133 slices") as caught:
        shortened.load()
    assert caught.value.reason == "missing_end_slices"
    assert str(caught.value).count("LIDC-IDRI-0001") == 1
    asked = replace(shortened, policy=Policy(repair=["missing_end_slices"]))
    assert asked.load().volume.shape[2] == 130
    assert asked.settings != shortened.settings


def test_what_is_below_the_folder(index, scan_of, write_headers, tmp_path: Path):
    """A first scan without nodules of the protocol, a second scan, and other series."""
    write_headers(scan_of("LIDC-IDRI-0132").series_uid, "a/b")
    write_headers(scan_of("LIDC-IDRI-0132_s2").series_uid, "a/c")
    few = next(s for s in index.scans if s.nodules and all(len(n.readers) < 3 for n in s.nodules))
    none = next(s for s in index.scans if not s.nodules)
    write_headers(few.series_uid, "few")
    write_headers(none.series_uid, "none")
    write_headers("1.2.3.4", "other")
    write_headers("1.2.3.5", "radiograph", modality="CR")
    root = tmp_path / "root"
    tasks, exclusions = lidc_tasks(root, PAPER)
    assert [task.series_id for task in tasks] == ["LIDC-IDRI-0132"]
    reasons = reasons_of(exclusions)
    assert reasons["LIDC-IDRI-0132_s2", ""] == "second_scan"
    assert reasons[none.series_id, ""] == "no_nodules"
    of_few = {key: reason for key, reason in reasons.items() if key[0] == few.series_id}
    assert len(of_few) == len(few.nodules)
    assert set(of_few.values()) == {"too_few_readers"}
    assert all(nodule_id.startswith(f"{few.series_id}_nodule_") for _, nodule_id in of_few)
    messages = {one.reason: one.message for one in exclusions if not one.series_id}
    assert set(messages) == {"not_lidc", "not_found"}
    assert messages["not_lidc"].startswith("2 series below the folder")
    assert messages["not_found"].startswith("1014 of the 1018 scans")
    assert not any("1.2.3" in one.message for one in exclusions)
    both, _ = lidc_tasks(root, CLINICAL, patients=["LIDC-IDRI-0132"])
    assert [task.series_id for task in both] == ["LIDC-IDRI-0132", "LIDC-IDRI-0132_s2"]
    assert {task.patient_id for task in both} == {"LIDC-IDRI-0132"}


def test_unknown_patient(index, tmp_path: Path):
    with pytest.raises(InputError, match=r"'LIDC-IDRI-9999' isn't a patient"):
        lidc_tasks(tmp_path, PAPER, patients=["LIDC-IDRI-0001", "LIDC-IDRI-9999"])
    with pytest.raises(SeriesError, match="no file or folder"):
        lidc_tasks(tmp_path / "none", PAPER)


def test_readings_that_are_missing_or_differ(
    index, scan_of, write_headers, readings, tmp_path: Path
):
    names = ("LIDC-IDRI-0001", "LIDC-IDRI-0003", "LIDC-IDRI-0132")
    for name in names:
        write_headers(scan_of(name).series_uid, name)
    root = tmp_path / "root"
    one = readings.document("", series_uid=scan_of(names[0]).series_uid)
    (root / "1.xml").write_text(one)
    (root / "copy of 1.XML").write_text(one)
    for number, session in enumerate(("", readings.nodule())):
        text = readings.document(session, series_uid=scan_of(names[1]).series_uid)
        (root / f"3_{number}.xml").write_text(text)
    tasks, exclusions = lidc_tasks(root, PAPER, annotations="xml", patients=names)
    assert [task.series_id for task in tasks] == [names[0]]
    reasons = reasons_of(exclusions)
    assert reasons[names[1], ""] == "conflicting_readings"
    assert reasons[names[2], ""] == "no_readings"


def test_other_xml_is_passed_over(tmp_path: Path, readings):
    files = {
        "radiograph.xml": readings.document("", root="IdriReadMessage"),
        "reading.xml": readings.document(""),
        "no_uid.xml": "<LidcReadMessage><readingSession/></LidcReadMessage>",
        "entities.xml": '<!DOCTYPE x [<!ENTITY a "b">]><LidcReadMessage>&a;</LidcReadMessage>',
        "garbage.xml": "\x00\x01",
        "page.html": readings.document(""),
        # the head is enough, and is all that is read
        "cut.xml": readings.document("", series_uid="1.9")[:400] + " " * 100_000,
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = find_readings(tmp_path)
    assert {uid: file.name for uid, file in found.items() if file} == {
        readings.series_uid: "reading.xml",
        "1.9": "cut.xml",
    }
    assert len(found) == 2
    assert read_xml_series_uid(DicomFile(tmp_path / "none.xml")) is None


@pytest.fixture
def volume_of(index) -> Callable[..., CTVolume]:
    """Make an empty volume where the database says that a scan's slices lie."""

    def make(scan, *, first: int = 0, spacing_scale: float = 1.0) -> CTVolume:
        z_mm = scan.slice_z_mm[first:]
        spacing = scan.pixel_spacing_mm * spacing_scale
        affine = np.diag([-spacing, -spacing, (z_mm[-1] - z_mm[0]) / (len(z_mm) - 1), 1.0])
        affine[2, 3] = z_mm[0]
        hu = np.zeros((2, 2, len(z_mm)), np.int16)
        return CTVolume(hu, affine, scan.series_uid)

    return make


def test_volume_against_the_database(index, volume_of):
    policy = Policy()
    regular = [scan for scan in index.scans if scan.spacing_problem is None]
    for scan in regular[::20]:
        check_volume(volume_of(scan), scan, policy)
    scan = regular[0]
    with pytest.raises(ArchiveMismatchError, match="in the archive; fetch") as caught:
        check_volume(volume_of(scan, spacing_scale=1.01), scan, policy)
    assert caught.value.reason == "other_pixel_spacing"
    with pytest.raises(SeriesError) as missing:
        check_volume(volume_of(scan, first=1), scan, policy)
    assert missing.value.reason == "missing_end_slices"


@pytest.mark.parametrize("name", ["LIDC-IDRI-0267", "LIDC-IDRI-0514"])
def test_uneven_scans(name, scan_of, write_ct_series):
    """Images where those two scans have theirs: refused under the name that the index foretells.

    Repaired, the outlines find their places.
    """
    scan = scan_of(name)
    z_mm, spacing_mm = scan.slice_z_mm, scan.pixel_spacing_mm

    def edit(dataset, k: int) -> None:
        dataset.SeriesInstanceUID = scan.series_uid
        dataset.ImagePositionPatient = ["-150", "-150", repr(z_mm[k])]

    series = write_ct_series(
        shape=(8, 8, len(z_mm)), spacing_mm=(spacing_mm, spacing_mm, 2.0), edit=edit
    )
    files = tuple(DicomFile(path) for path in series.paths)
    task = LidcTask(scan, files, replace(CLINICAL, min_readers=4))
    with pytest.raises(SeriesError) as caught:
        task.load()
    assert caught.value.reason == scan.spacing_problem
    repaired = replace(task, policy=Policy(repair=[scan.spacing_problem]))
    loaded = repaired.load()
    if scan.spacing_problem == "missing_slices":
        assert len(loaded.volume.interpolated_slices) == 18  # 38 mm, one slice each 2 mm
    assert [one.nodule_id for one in loaded.exclusions] == [n.nodule_id for n in scan.nodules]


def test_task_is_small_and_shows_no_uid(scan_of):
    task = LidcTask(scan_of("LIDC-IDRI-0132_s2"), (), CLINICAL)
    assert "1.3.6" not in repr(task)
    assert task.series_id == "LIDC-IDRI-0132_s2"
