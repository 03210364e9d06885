"""Nodules and series brought together: by names in any character set, row by row."""

import csv
import pickle
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset

from data_prep import prepare_cohort, series_tasks
from data_prep.cohort.check import check_cohort
from data_prep.cohort.select import PROTOCOLS
from data_prep.errors import InputError, NoduleTableWarning

CHARACTER_SETS = [
    ("ISO_IR 100", "Müller1"),
    ("ISO_IR 192", "患者1"),
    ("GB18030", "患者1"),
    (["", "ISO 2022 IR 87"], "患者1"),
    (["", "ISO 2022 IR 149"], "김희중"),
]


def named(character_set: object, patient_id: str):
    def edit(dataset: Dataset, k: int) -> None:
        dataset.SpecificCharacterSet, dataset.PatientID = character_set, patient_id

    return edit


def table(folder: Path, *rows: str) -> Path:
    path = folder / "nodules.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("character_set", "patient_id"), CHARACTER_SETS)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_patient_is_found_whatever_the_character_set(
    write_ct_series, tmp_path: Path, character_set, patient_id, form
):
    series = write_ct_series(edit=named(character_set, patient_id), shape=(24, 20, 6))
    x, y, z = series.marker_xyz_mm
    name = unicodedata.normalize(form, patient_id)
    nodules = table(tmp_path, "patient_id,x,y,z,frame", f"{name},{x},{y},{z},ras")
    found = series_tasks(series.folder, nodules=nodules)
    (task,) = found.tasks
    assert found.exclusions == ()
    assert [nodule.nodule_id for nodule in task.load().nodules] == ["nodule_1"]
    # nothing that names the patient leaves but by the key file
    assert patient_id not in f"{task!r}{task.settings}"
    key = tmp_path / "key.csv"
    found.pseudonyms.write_key_file(key, cohort=tmp_path / "cohort")
    with key.open(encoding="utf-8") as file:
        assert ["patient", unicodedata.normalize("NFC", patient_id), "patient_0001"] in csv.reader(
            file
        )


def test_a_patient_id_that_cannot_be_read_is_told(write_ct_series, tmp_path: Path):
    series = write_ct_series(edit=named("ISO_IR 192", "患者1"), shape=(24, 20, 6))
    for path in series.paths:
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 192", b"ISO_IR 999"))
    x, y, z = series.marker_xyz_mm
    nodules = table(tmp_path, "patient_id,x,y,z,frame", f"患者1,{x},{y},{z},ras")
    found = series_tasks(series.folder, nodules=nodules)
    assert found.tasks == ()
    (message,) = [row.message for row in found.exclusions if row.reason == "no_nodules"]
    assert "SpecificCharacterSet" in message
    assert "series_uid" in message
    by_uid = table(tmp_path, "series_uid,x,y,z,frame", f"{series.series_uid},{x},{y},{z},ras")
    (task,) = series_tasks(series.folder, nodules=by_uid).tasks
    assert len(pickle.loads(pickle.dumps(task)).load().nodules) == 1


def test_each_row_is_a_nodule_or_an_exclusion_of_its_own(write_ct_series, tmp_path: Path):
    series = write_ct_series(
        edit=named("ISO_IR 192", "Jane Doe"), shape=(40, 40, 24), has_body=True
    )
    x, y, z = series.marker_xyz_mm
    uid = series.series_uid
    nodules = table(
        tmp_path,
        "SeriesInstanceUID,PatientID,X,Y,Z,frame,NoduleID,Malignancy,is_nodule",
        f"{uid},,{x},{y},{z},ras,good,5,1",
        f"{uid},,{x},{y},{z + 900},ras,outside,5,1",
        f"{uid},,Jane Doe,{y},{z},ras,unreadable,5,1",
        f"{uid},Other,{x},{y},{z},ras,stranger,5,1",
        f"{uid},,{x + 2},{y},{z},ras,rated,9,1",
        f"{uid},,{x + 4},{y},{z},ras,none,,0",
        f"1.2.3,,{x},{y},{z},ras,,,1",
    )
    with pytest.warns(NoduleTableWarning, match="2 rows of nodules.csv can't be used"):
        found = series_tasks(series.folder, nodules=nodules)
    out = tmp_path / "cohort"
    protocol = replace(PROTOCOLS["clinical"], size_mm=16.0)
    prepare_cohort(found.tasks, protocol, out, exclusions=found.exclusions)
    with (out / "manifest.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["nodule_id"], row["malignancy"]) == ("series_0001_good", "5")
    with (out / "exclusions.csv").open() as file:
        rows = list(csv.DictReader(file))
    told = {(row["nodule_id"], row["reason"], row["message"].partition(" of ")[0]) for row in rows}
    assert told == {
        ("series_0001_outside", "outside_volume", "Row 3"),
        ("series_0001_unreadable", "bad_value", "Row 4"),
        ("series_0001_stranger", "other_patient", "Row 5"),
        ("series_0001_rated", "bad_value", "Row 6"),
        ("", "not_a_nodule", "1 rows"),
        ("", "no_series", "Row 8"),
    }
    assert "Jane" not in (out / "exclusions.csv").read_text()
    assert check_cohort(out) == ()


def test_a_series_with_nothing_but_bad_rows_says_them(write_ct_series, tmp_path: Path):
    series = write_ct_series(shape=(24, 20, 6))
    other = write_ct_series(folder=tmp_path / "series" / "other", shape=(24, 20, 6))
    x, y, z = other.marker_xyz_mm
    nodules = table(
        tmp_path,
        "series_uid,x,y,z,frame,nodule_id",
        f"{series.series_uid},{x},{y},{z},mni,n",
        f"{other.series_uid},{x},{y},{z},ras,n",
    )
    with pytest.warns(NoduleTableWarning, match="Row 2"):
        found = series_tasks(series.folder, nodules=nodules)
    (task,) = found.tasks
    (row,) = found.exclusions
    assert (row.reason, row.series_id != task.series_id) == ("no_frame", True)
    assert row.nodule_id == f"{row.series_id}_n"


def test_a_folder_without_a_ct_is_refused_at_once(write_ct_series, tmp_path: Path):
    def edit(dataset: Dataset, k: int) -> None:
        dataset.Modality, dataset.SOPClassUID = "MR", "1.2.840.10008.5.1.4.1.1.4"

    nodules = table(tmp_path, "patient_id,x,y,z,frame", "A,0,0,0,ras")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"0 files; no DICOM series.*NIfTI, NRRD or MetaImage"):
        series_tasks(empty, nodules=nodules)
    series = write_ct_series(edit=edit, shape=(4, 4, 2))
    with pytest.raises(InputError, match="2 files; 1 series of MR Image Storage"):
        series_tasks(series.folder, nodules=nodules)
