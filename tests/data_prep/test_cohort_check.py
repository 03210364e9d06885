"""Checking a cohort folder: each fault is found by its name, whoever put it there."""

import csv
import gzip
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic_cohort as made

from data_prep.cohort.check import MOST_PROBLEMS, check_cohort
from data_prep.cohort.schema import MANIFEST_COLUMNS
from data_prep.prepare.run import prepare_cohort

FIRST = "series_0000_nodule_1"


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("prepared") / "cohort"
    prepare_cohort(made.tasks(), made.PROTOCOL, place, overview=True)
    return place


@pytest.fixture
def folder(prepared_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared_folder, tmp_path / "cohort"))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def edit_record(folder: Path, **changes: object) -> None:
    path = folder / "cohort.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def seal(folder: Path) -> None:
    """Make the hashes of the tables right again, as one would who tampers with care."""
    path = folder / "cohort.json"
    files = json.loads(path.read_text())["files"]
    edit_record(folder, files={name: sha256(folder / name) for name in files})


def edit_manifest(folder: Path, edit: Callable[[list[dict[str, str]]], None]) -> None:
    path = folder / "manifest.csv"
    table = list(csv.DictReader(io.StringIO(path.read_text())))
    edit(table)
    text = io.StringIO()
    writer = csv.DictWriter(text, MANIFEST_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    path.write_text(text.getvalue())
    seal(folder)


def replace_image(folder: Path, place: str, image: nib.Nifti1Image) -> None:
    """Put another image in a place, with its hash in the manifest."""
    image.to_filename(folder / place)
    kind = "crop" if place.startswith("crops") else "mask"

    def edit(table: list[dict[str, str]]) -> None:
        for row in table:
            if row[f"{kind}_file"] == place:
                row[f"{kind}_sha256"] = sha256(folder / place)

    edit_manifest(folder, edit)


def found(folder: Path) -> set[tuple[str, str]]:
    return {(problem.name, problem.severity) for problem in check_cohort(folder)}


def test_a_sound_cohort_has_no_problem(folder: Path) -> None:
    assert check_cohort(folder) == ()
    assert check_cohort(str(folder)) == ()


def test_a_changed_byte_is_found_wherever_it_is(folder: Path) -> None:
    for place in (
        f"crops/{FIRST}.nii.gz",
        f"masks/{FIRST}.nii.gz",
        f"masks/{FIRST}_readers.nii.gz",
        "exclusions.csv",
        "overview/labels.png",
    ):
        path = folder / place
        before = path.read_bytes()
        # the last letter of a message, the modification time of a gzip stream
        at = 5 if place.endswith("gz") else len(before) - 2
        path.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
        problems = check_cohort(folder)
        assert {(problem.name, problem.place) for problem in problems} == {("wrong_hash", place)}
        path.unlink()
        assert ("missing_file", "error") in found(folder)
        path.write_bytes(before)
    assert check_cohort(folder) == ()


def test_images_elsewhere_or_of_another_kind_are_found(folder: Path) -> None:
    place = f"crops/{FIRST}.nii.gz"
    image = nib.load(folder / place)
    hu, affine = np.asarray(image.dataobj), image.affine
    shifted = affine.copy()
    shifted[0, 3] += 0.05
    other = nib.Nifti1Image(hu, affine)
    other.set_qform(shifted, code=1)
    other.set_sform(affine, code=1)
    for wrong in (
        nib.Nifti1Image(hu, shifted),
        nib.Nifti1Image(hu, affine @ np.diag([1.01, 1, 1, 1])),
        nib.Nifti1Image(hu.astype(np.float32), affine),
        nib.Nifti1Image(hu[:-1], affine),
        other,
    ):
        if wrong is not other:
            wrong.set_qform(wrong.affine, code=1)
            wrong.set_sform(wrong.affine, code=1)
        replace_image(folder, place, wrong)
        assert found(folder) == {("wrong_image", "error")}, wrong.affine
    replace_image(folder, place, nib.Nifti1Image(hu, affine))  # code 2 for sform, none for qform
    assert found(folder) == {("wrong_image", "error")}


def test_a_mask_of_other_values_is_found(folder: Path) -> None:
    place = f"masks/{FIRST}.nii.gz"
    image = nib.load(folder / place)
    odd = nib.Nifti1Image(np.asarray(image.dataobj) * np.uint8(2), image.affine)
    odd.set_qform(image.affine, code=1)
    odd.set_sform(image.affine, code=1)
    replace_image(folder, place, odd)
    (problem,) = check_cohort(folder)
    assert (problem.name, problem.place) == ("wrong_image", place)
    assert "between 0 and 1" in problem.message


def test_a_patient_in_several_folds_is_an_error_or_a_note(folder: Path) -> None:
    def leak(table: list[dict[str, str]]) -> None:
        first, second = table[:2]
        assert first["patient_id"] == second["patient_id"]
        second["fold"] = "1" if first["fold"] == "2" else "2"

    edit_manifest(folder, leak)
    assert ("patient_in_several_folds", "error") in found(folder)
    record = json.loads((folder / "cohort.json").read_text())
    edit_record(folder, protocol={**record["protocol"], "group_folds_by": "nodule"})
    assert ("patient_in_several_folds", "note") in found(folder)
    assert ("patient_in_several_folds", "error") not in found(folder)


@pytest.mark.parametrize(
    ("cells", "name"),
    [
        ({"fold": "3"}, "unknown_fold"),
        ({"fold": ""}, "missing_fold"),
        ({"patient_id": "patient_0003"}, "series_of_two_patients"),
        ({"nodule_id": "../x"}, "unsafe_id"),
        ({"crop_file": "../../etc/passwd"}, "bad_row"),
        ({"malignancy": "x"}, "bad_row"),
        ({"n_readers": "2", "readers_file": "", "readers_sha256": ""}, "against_protocol"),
        ({"flags": "cut_by_crop"}, "against_protocol"),
        ({"label": "", "malignancy": ""}, "wrong_counts"),
    ],
    ids=str,
)
def test_faults_of_a_row_are_found_by_name(folder: Path, cells: dict, name: str) -> None:
    edit_manifest(folder, lambda table: table[0].update(cells))
    assert (name, "error") in found(folder)


def test_names_that_are_taken_twice_are_found(folder: Path) -> None:
    edit_manifest(folder, lambda table: table.append(dict(table[0])))
    assert ("duplicate_id", "error") in found(folder)


def test_a_nodule_in_both_tables_is_found(folder: Path) -> None:
    path = folder / "exclusions.csv"
    path.write_text(f"{path.read_text()}patient_0000,series_0000,{FIRST},x,y\n")
    seal(folder)
    assert ("included_and_excluded", "error") in found(folder)


def test_a_wrong_count_is_found(folder: Path) -> None:
    counts = json.loads((folder / "cohort.json").read_text())["counts"]
    edit_record(folder, counts={**counts, "patients": 99})
    assert found(folder) == {("wrong_counts", "error")}


def test_files_that_belong_to_nothing_are_noted(folder: Path) -> None:
    (folder / "crops" / "doe\x1b.nii.gz").write_bytes(b"")
    (folder / "more").mkdir()
    (folder / "more" / "names.txt").write_text("Doe")
    problems = check_cohort(folder)
    assert {(p.name, p.severity, p.place) for p in problems} == {
        ("extra_file", "note", "crops/doe?.nii.gz"),
        ("extra_file", "note", "more/names.txt"),
    }


def test_links_and_pipes_are_not_read(folder: Path, tmp_path: Path) -> None:
    crop, mask = folder / "crops" / f"{FIRST}.nii.gz", folder / "masks" / f"{FIRST}.nii.gz"
    copy = tmp_path / "elsewhere.nii.gz"
    crop.rename(copy)
    crop.symlink_to(copy)
    mask.unlink()
    os.mkfifo(mask)
    names = [(problem.name, problem.place) for problem in check_cohort(folder)]
    assert names == [
        ("not_a_file", f"crops/{FIRST}.nii.gz"),
        ("not_a_file", f"masks/{FIRST}.nii.gz"),
    ]
    (folder / "overview").rename(tmp_path / "overview")
    (folder / "overview").symlink_to(tmp_path / "overview")
    assert ("not_a_file", "overview/labels.png") in {
        (problem.name, problem.place) for problem in check_cohort(folder)
    }


def test_a_record_that_points_outside_is_found(folder: Path) -> None:
    files = json.loads((folder / "cohort.json").read_text())["files"]
    edit_record(folder, files={**files, "../../etc/passwd": "0" * 64})
    (problem,) = check_cohort(folder)
    assert (problem.name, problem.place) == ("bad_record", "../../etc/passwd")


def test_few_bytes_that_claim_to_be_many_are_refused(folder: Path) -> None:
    place = f"crops/{FIRST}.nii.gz"
    with gzip.open(folder / place, "wb") as file:
        for _ in range(64):
            file.write(bytes(2**20))
    assert (folder / place).stat().st_size < 2**20
    assert ("wrong_image", "error") in found(folder)


def test_values_that_start_beyond_every_file_are_refused(folder: Path) -> None:
    path = folder / "crops" / f"{FIRST}.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[108:112] = np.array([1e30], "<f4").tobytes()  # vox_offset
    path.write_bytes(gzip.compress(content))
    assert ("wrong_image", "error") in found(folder)


def test_a_table_of_rubbish_ends_somewhere(folder: Path) -> None:
    header = (folder / "manifest.csv").read_text().splitlines()[0]
    (folder / "manifest.csv").write_text(header + "\n" + "x\n" * 50_000)
    problems = check_cohort(folder)
    assert ("bad_row", "error") in {(problem.name, problem.severity) for problem in problems}
    assert len(problems) < MOST_PROBLEMS


def test_what_is_no_cohort_says_so_by_name(folder: Path, tmp_path: Path) -> None:
    assert [problem.name for problem in check_cohort(tmp_path / "none")] == ["not_a_cohort"]
    protocol = json.loads((folder / "cohort.json").read_text())["protocol"]
    edit_record(folder, protocol={**protocol, "spacing_mm": 10**400})
    assert [problem.name for problem in check_cohort(folder)] == ["bad_record"]
    edit_record(folder, schema_version=7)
    assert [problem.name for problem in check_cohort(folder)] == ["newer_schema"]
    (folder / "cohort.json").write_text("{")
    assert [problem.name for problem in check_cohort(folder)] == ["bad_record"]


def test_a_missing_table_is_found(folder: Path) -> None:
    (folder / "manifest.csv").unlink()
    assert ("missing_file", "error") in found(folder)
