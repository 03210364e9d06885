"""The cohort folder's tables and record: a round trip, a newer schema, a hostile hand."""

import csv
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic_cohort as made
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.cohort.folder import read_cohort
from data_prep.cohort.schema import (
    CONSENSUS_NAMES,
    MANIFEST_COLUMNS,
    READER_NAMES,
    CohortNodule,
    Exclusion,
    exclusions_csv,
    exclusions_from_csv,
    is_safe_id,
    label_of,
    manifest_csv,
    nodules_from_csv,
    number_text,
    reading_order,
)
from data_prep.errors import InputError
from data_prep.prepare.run import prepare_cohort

ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}", fullmatch=True)


def as_stored(value: float) -> float:
    """Return a number as it comes back from the manifest: six decimals."""
    return float(number_text(value))


def random_nodule(rng: np.random.Generator) -> CohortNodule:
    """Return a nodule with all, some or none of what a nodule may have."""

    def number() -> float:
        return as_stored(float(rng.normal(0, 10.0 ** rng.integers(-4, 6))))

    def some(names: tuple[str, ...]) -> list[str]:
        return [name for name in names if rng.random() < 0.6]

    def readers() -> tuple[float | None, ...]:
        return (number(), *(None if rng.random() < 0.3 else number() for _ in range(3)))

    ratings = {name: number() for name in some(CONSENSUS_NAMES)}
    letters = list("aZ09-_")
    nodule_id, patient_id, series_id = ("x" + "".join(rng.choice(letters, 9)) for _ in range(3))
    return CohortNodule(
        nodule_id=nodule_id,
        patient_id=patient_id,
        series_id=series_id,
        fold=None if rng.random() < 0.3 else int(rng.integers(1, 10)),
        label=label_of(ratings.get("malignancy")),
        ratings=ratings,
        reader_ratings={name: readers() for name in some(READER_NAMES)},
        n_readers=int(rng.integers(0, 9)),
        annotation_ids=tuple(rng.integers(0, 7000, int(rng.integers(0, 4))).tolist()),
        center_xyz_mm=(number(), number(), number()),
        padding_fraction=as_stored(float(rng.random())),
        source_spacing_mm=(0.7, 0.7, as_stored(float(rng.random()) + 0.1)),
        source_axcodes=str(rng.choice(["LPS", "RAS", "PSR", "SLA"])),
        interpolated_slices=int(rng.integers(0, 100)),
        repairs=tuple(some(("gantry_tilt", "missing_slices"))),
        notes=tuple(some(("position_rounding",))),
        flags=tuple(some(("cut_by_crop", "initial_release_scales"))),
        crop_sha256="0123456789abcdef" * 4,
        mask_sha256=str(rng.choice(["", "f" * 64])),
        readers_sha256=str(rng.choice(["", "0" * 64])),
    )


def test_the_manifest_comes_back_as_it_was() -> None:
    rng = np.random.default_rng(1)
    rows = [random_nodule(rng) for _ in range(60)]
    data = manifest_csv(rows)
    assert nodules_from_csv(data) == (rows, [])
    assert nodules_from_csv(manifest_csv([])) == ([], [])
    # any CSV reader sees the same
    table = list(csv.DictReader(io.StringIO(data.decode())))
    assert [row["nodule_id"] for row in table] == [row.nodule_id for row in rows]
    assert all(tuple(row) == MANIFEST_COLUMNS for row in table)
    assert [row["malignancy"] == "" for row in table] == [row.label == "" for row in rows]


@settings(max_examples=50, deadline=None)
@given(message=st.text(max_size=60), patient_id=ids | st.just(""))
def test_exclusions_come_back_without_control_characters(message: str, patient_id: str) -> None:
    rows = [Exclusion(patient_id, "s", "", "some_reason", message)]
    try:
        data = exclusions_csv(rows)
    except UnicodeEncodeError:
        pytest.fail("a message from a file must not stop the writing")
    ((back,), problems) = exclusions_from_csv(data)
    assert not problems
    assert (back.patient_id, back.reason) == (patient_id, "some_reason")
    assert back.message.isprintable()
    assert len(back.message) == len(message)


@pytest.mark.parametrize(
    ("malignancy", "label"),
    [(1.0, "benign"), (2.5, "benign"), (3.0, "indeterminate"), (3.5, "malignant"), (None, "")],
)
def test_labels_follow_the_median(malignancy: float | None, label: str) -> None:
    assert label_of(malignancy) == label


def test_nodules_are_read_in_the_order_of_their_numbers() -> None:
    rows = [Exclusion("p", s, n, "r", "m") for s in ("b", "a") for n in ("n_10", "n_9", "", "n_1")]
    ordered = [(row.series_id, row.nodule_id) for row in sorted(rows, key=reading_order)]
    assert ordered == [(s, n) for s in ("a", "b") for n in ("", "n_1", "n_9", "n_10")]


@pytest.mark.parametrize(
    "text", ["", "..", "a/b", "a\\b", "a b", ".a", "-a", "ä", "a\n", "a" * 121]
)
def test_names_that_are_no_part_of_a_path_are_unsafe(text: str) -> None:
    assert not is_safe_id(text)


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("prepared") / "cohort"
    prepare_cohort(made.tasks()[:2], made.PROTOCOL, place)
    return place


@pytest.fixture
def folder(prepared_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared_folder, tmp_path / "cohort"))


def edit_record(folder: Path, **changes: object) -> None:
    path = folder / "cohort.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_newer_schema_is_refused_by_name(folder: Path) -> None:
    edit_record(folder, schema_version=2, something="new")
    with pytest.raises(InputError, match=r"schema version 2.* reads up to 1; update it"):
        read_cohort(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"schema_version": 0},
        {"schema_version": True},
        {"schema_version": "1"},
        {"protocol": {}},
        {"protocol": None},
        {"notes": 3},
        {"notes": [3]},
        {"files": {"manifest.csv": None}},
        {"plan": 1},
    ],
    ids=str,
)
def test_a_damaged_record_is_refused(folder: Path, changes: dict) -> None:
    edit_record(folder, **changes)
    with pytest.raises(InputError, match=r"cohort\.json"):
        read_cohort(folder)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"format": NaN', b"x" * (2**24 + 1)]
)
def test_a_record_that_is_no_record_is_refused(folder: Path, content: bytes) -> None:
    (folder / "cohort.json").write_bytes(content)
    with pytest.raises(InputError, match=r"cohort\.json"):
        read_cohort(folder)


def test_what_is_no_cohort_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no cohort folder: it has no cohort\.json"):
        read_cohort(tmp_path)
    os.mkfifo(tmp_path / "cohort.json")
    with pytest.raises(InputError, match=r"is no regular file"):
        read_cohort(tmp_path)


def edit_manifest(folder: Path, line: int, **cells: str) -> None:
    path = folder / "manifest.csv"
    table = list(csv.DictReader(io.StringIO(path.read_text())))
    table[line].update(cells)
    text = io.StringIO()
    writer = csv.DictWriter(text, MANIFEST_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    path.write_text(text.getvalue())


@pytest.mark.parametrize(
    "cells",
    [
        {"nodule_id": "../../etc/passwd"},
        {"crop_file": "../../../etc/passwd"},
        {"crop_file": "/etc/passwd"},
        {"crop_file": ""},
        {"mask_file": "crops/series_0000_nodule_1.nii.gz"},
        {"mask_file": ""},
        {"crop_sha256": "0"},
        {"patient_id": ""},
        {"malignancy": "nan"},
        {"malignancy": "1e400"},
        {"center_x_ras_mm": "inf"},
        {"n_readers": "-1"},
        {"annotation_ids": "1;;2"},
        {"fold": "1" * 5000},
        {"label": "cancer"},
        {"label": ""},
        {"source_axcodes": "LRS"},
        {"flags": "=cmd()"},
        {"malignancy_readers": "1;x"},
    ],
    ids=str,
)
def test_a_row_that_does_not_hold_what_it_should_is_refused(folder: Path, cells: dict) -> None:
    edit_manifest(folder, 1, **cells)
    with pytest.raises(InputError, match=r"manifest\.csv, line 3"):
        read_cohort(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"a,b\n1,2\n", b'"' + b"x" * 200_000, b"\x00", b"nodule_id\n"],
)
def test_a_manifest_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.csv"):
        read_cohort(folder)


def test_a_nodule_that_is_there_twice_is_refused(folder: Path) -> None:
    path = folder / "manifest.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[1]]))
    with pytest.raises(InputError, match=r"holds nodule series_0000_nodule_1 twice"):
        read_cohort(folder)


def test_an_unknown_nodule_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(InputError, match=r"has no nodule 'x\?'; manifest\.csv lists"):
        read_cohort(folder).nodule("x\n")


def test_an_image_that_is_not_what_the_manifest_says_is_refused(folder: Path) -> None:
    cohort = read_cohort(folder)
    row = cohort.nodules[0]
    moved = replace(row, center_xyz_mm=tuple(np.add(row.center_xyz_mm, [0.01, 0, 0]).tolist()))
    with pytest.raises(InputError, match=r"lies around .* not around"):
        cohort.read_images(moved)
    path = folder / "crops" / f"{row.nodule_id}.nii.gz"
    image = nib.load(path)
    for odd, message in (
        (np.zeros((9, 8, 8), np.int16), "doesn't hold the"),
        (np.zeros((8, 8, 8), np.uint8), "doesn't hold the"),
        (np.zeros((8, 8, 8), np.uint16), "holds uint16, not int16"),
        (np.zeros((8, 16, 4), np.int16), "has .* voxels"),
    ):
        nib.Nifti1Image(odd, image.affine).to_filename(path)
        with pytest.raises(InputError, match=message):
            cohort.read_images(row)
    for garbage in (b"", b"x" * 1000, path.read_bytes()[:50]):
        path.write_bytes(garbage)
        with pytest.raises(InputError, match=r"can't be read as NIfTI|doesn't hold the"):
            cohort.read_images(row)
