"""Tables of nodules: every point where it was meant, nothing guessed, errors that name the row."""

from pathlib import Path

import numpy as np
import pytest

from data_prep import CTVolume, read_lidc_xml, read_series
from data_prep.errors import InputError, NoduleTableError, NoduleTableWarning
from data_prep.nodule_table import NoduleTable, read_nodule_table

UID = "1.2.3"


@pytest.fixture
def volume() -> CTVolume:
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    affine[:3, 3] = [50, 60, -100]  # x -49.5..50.5, y -39.5..60.5, z -101..-61 in RAS
    return CTVolume(np.zeros((100, 100, 20), np.int16), affine, UID)


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "nodules.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def table(tmp_path: Path, text: str | bytes, **options: str) -> NoduleTable:
    return read_nodule_table(written(tmp_path, text), **options)


def table_with_a_warning(tmp_path: Path, text: str, match: str) -> NoduleTable:
    with pytest.warns(NoduleTableWarning, match=match):
        return table(tmp_path, text)


def left_out(tmp_path: Path, text: str, volume: CTVolume, **owner: object) -> dict[int, str]:
    """Return the rows that give no nodule of the series, with their reasons."""
    placed = table(tmp_path, text).place(UID, owner.pop("patient_id", ""), volume, **owner)
    return {row.row: row.reason for row in placed.left_out}


def refused(tmp_path: Path, text: str | bytes, **options: str) -> NoduleTableError:
    with pytest.raises(NoduleTableError) as raised:
        table(tmp_path, text, **options)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400
    return raised.value


def test_points_in_either_frame(tmp_path, volume):
    text = (
        "patient_id,series_uid,x,y,z,frame,diameter_mm,malignancy,spiculation,note\n"
        f"A,{UID},10,20,-90,ras,6.5,4,2.5,free text\n"
        f",{UID},-30,-40,-70,LPS,,,,\n"
        "\n"
        "B,9.9,1,2,3,ras,,,,\n"
    )
    read = table_with_a_warning(tmp_path, text, "columns that aren't used: 'note'")
    nodules = read.for_series(UID, "A", volume)
    assert [nodule.nodule_id for nodule in nodules] == ["nodule_1", "nodule_2"]
    np.testing.assert_array_equal(nodules[0].center_xyz_mm, [30, 40, -70])
    np.testing.assert_array_equal(nodules[1].center_xyz_mm, [10, 20, -90])
    assert dict(nodules[0].ratings) == {}
    assert dict(nodules[1].ratings) == {"diameter": 6.5, "malignancy": 4.0, "spiculation": 2.5}
    assert nodules[0].outline is None
    assert read.ignored_columns == ("'note'",)


def test_frame_as_argument(tmp_path, volume):
    text = f"series_uid,x,y,z\n{UID},-30,-40,-70\n"
    (nodule,) = table(tmp_path, text, frame="lps").for_series(UID, "", volume)
    np.testing.assert_array_equal(nodule.center_xyz_mm, [30, 40, -70])
    with pytest.warns(NoduleTableWarning, match="'lps'"):  # y reaches from -39.5
        assert table(tmp_path, text, frame="ras").for_series(UID, "", volume) == []


def test_frame_is_never_guessed(tmp_path):
    text = f"series_uid,x,y,z\n{UID},1,2,3\n"
    error = refused(tmp_path, text)
    assert error.reason == "no_frame"
    assert "ras" in str(error)
    assert "lps" in str(error)
    with_column = f"series_uid,x,y,z,frame\n{UID},1,2,3,ras\n"
    assert refused(tmp_path, with_column, frame="ras").reason == "conflicting_frames"
    empty = f"series_uid,x,y,z,frame\n{UID},1,2,3,ras\n{UID},1,2,4,\n"
    read = table_with_a_warning(tmp_path, empty, "Row 3")
    assert [(row.row, row.reason) for row in read.left_out] == [(3, "no_frame")]
    assert [row.row for row in read.rows] == [2]
    luna = f"seriesuid,coordX,coordY,coordZ\n{UID},1,2,3\n"
    assert refused(tmp_path, luna, frame="ras").reason == "conflicting_frames"
    assert table(tmp_path, luna, frame="lps").rows[0].frame == "lps"
    luna_and_frame = f"seriesuid,coordX,coordY,coordZ,frame\n{UID},1,2,3,ras\n"
    assert refused(tmp_path, luna_and_frame).reason == "conflicting_frames"
    with pytest.raises(InputError, match="'mni'"):
        table(tmp_path, text, frame="mni")


def test_patient_with_several_series(tmp_path, volume):
    text = (
        f"patient_id,series_uid,x,y,z,frame\nA,,10,20,-90,ras\nB,,0,0,0,ras\nA,{UID},1,2,-80,ras\n"
    )
    read = table(tmp_path, text)
    with pytest.warns(NoduleTableWarning, match=r"Row 2 of nodules\.csv names a patient"):
        (nodule,) = read.for_series(UID, "A", volume)
    np.testing.assert_array_equal(nodule.center_xyz_mm, [1, 2, -80])
    assert left_out(tmp_path, text, volume, patient_id="A") == {2: "ambiguous_series"}
    both = read.for_series(UID, "A", volume, patient_has_one_series=True)
    np.testing.assert_array_equal(both[1].center_xyz_mm, [10, 20, -90])
    assert read.for_series("1.9", "C", volume) == []
    assert read.for_series("1.9", "", volume) == []


def test_series_of_another_patient(tmp_path, volume):
    text = f"patient_id,series_uid,x,y,z,frame\nB,{UID},10,20,-90,ras\nA,{UID},1,2,-90,ras\n"
    assert left_out(tmp_path, text, volume, patient_id="A") == {2: "other_patient"}
    assert len(table(tmp_path, text).for_series(UID, "", volume)) == 2


def test_a_point_outside_leaves_the_others(tmp_path, volume):
    text = (
        "series_uid,x,y,z,frame,nodule_id\n"
        f"{UID},0,0,-90,lps,a\n{UID},0,0,-40,lps,out\n{UID},1,1,-70,ras,b\n"
    )
    read = table(tmp_path, text)
    with pytest.warns(NoduleTableWarning, match=r"Row 3 of nodules\.csv.*outside the volume"):
        nodules = read.for_series(UID, "", volume)
    assert [nodule.nodule_id for nodule in nodules] == ["b", "a"]
    (row,) = read.place(UID, "", volume).left_out
    assert (row.row, row.nodule_id, row.reason) == (3, "out", "outside_volume")


def test_names(tmp_path, volume):
    head = "series_uid,x,y,z,frame,nodule_id\n"
    read = table(tmp_path, f"{head}{UID},0,0,-90,ras,b-2\n{UID},0,0,-70,ras,a_1\n")
    assert [nodule.nodule_id for nodule in read.for_series(UID, "", volume)] == ["a_1", "b-2"]
    same = f"{head}{UID},0,0,-90,ras,a\n{UID},0,0,-70,ras,a\n9,0,0,0,ras,a\n{UID},5,0,-70,ras,b\n"
    assert left_out(tmp_path, same, volume) == {2: "same_id", 3: "same_id"}
    placed = table(tmp_path, same).place(UID, "", volume)
    assert [nodule.nodule_id for nodule in placed.nodules] == ["b"]
    for name in ("../../x", "a b", "=cmd()", "a\x1b[31m", "é"):
        assert refused(tmp_path, f"{head}{UID},0,0,0,ras,{name}\n").reason == "bad_value"


def test_duplicates(tmp_path, volume):
    head = "series_uid,x,y,z,frame,malignancy\n"
    read = table(tmp_path, f"{head}{UID},1,2,-90,ras,3\n{UID},1,2,-90,ras,3\n{UID}, 1,2,-90,ras,3")
    assert read.duplicate_rows == (3, 4)
    assert len(read.for_series(UID, "", volume)) == 1
    differ = f"{head}{UID},1,2,-90,ras,3\n{UID},-1,-2,-90,lps,4\n{UID},9,9,-90,lps,4\n"
    assert left_out(tmp_path, differ, volume) == {2: "same_place", 3: "same_place"}
    assert len(table(tmp_path, differ).place(UID, "", volume).nodules) == 1


@pytest.mark.parametrize(
    ("column", "value", "is_right"),
    [
        ("malignancy", "5", True),
        ("malignancy", "0", False),
        ("malignancy", "5.5", False),
        ("calcification", "6", True),
        ("margin", "6", False),
        ("texture", "2.75", True),
        ("diameter_mm", "31.5", True),
        ("diameter_mm", "0", False),
        ("diameter_mm", "-3", False),
        ("diameter_mm", "900", False),
        ("diameter_mm", "nan", False),
        ("diameter_mm", "inf", False),
        ("diameter_mm", "1_0", False),
        ("diameter_mm", "٣", False),
        ("x", "", False),
        ("x", "12,5", False),
        ("x", "1e2", True),
        ("x", "=1+1", False),
    ],
)
def test_ranges(tmp_path, column, value, is_right):
    values = {"series_uid": UID, "x": "1", "y": "2", "z": "3", "frame": "ras", column: f'"{value}"'}
    text = f"{','.join(values)}\n{','.join(values.values())}\n"
    if is_right:
        assert len(table(tmp_path, text).rows) == 1
    else:
        error = refused(tmp_path, text)
        assert error.reason == (
            "rating_scale" if value == "0" and column != "diameter_mm" else "bad_value"
        )
        if error.reason == "rating_scale":
            return
        assert str(error).startswith(f"Row 2 of nodules.csv has the {column}")
    if value == "12,5":
        assert "decimal point" in str(error)


@pytest.mark.parametrize(
    ("reason", "content"),
    [
        ("semicolons", "series_uid;x;y;z;frame\n1;2;3;4;ras\n"),
        ("semicolons", "series_uid\tx\ty\tz\tframe\n1\t2\t3\t4\tras\n"),
        ("columns", "series_uid,x,y,frame\n1,2,3,ras\n"),
        ("columns", "x,y,z,frame\n1,2,3,ras\n"),
        ("columns", "series_uid,x,x,y,z,frame\n1,2,3,4,5,ras\n"),
        ("columns", "series_uid,x,y,z,frame,diameter\n1,2,3,4,ras,5\n"),
        ("columns", "seriesuid,coordX,coordY,coordZ,x\n1,2,3,4,5\n"),
        ("columns", ""),
        ("no_rows", "series_uid,x,y,z,frame\n\n , , , , \n"),
        ("bad_row", "series_uid,x,y,z,frame\n1,2,3,4\n"),
        ("bad_row", "series_uid,x,y,z,frame\n1,2,5,3,0,4,0,ras\n"),
        ("bad_value", "series_uid,x,y,z,frame\n,2,3,4,ras\n"),
        ("encoding", "series_uid,x,y,z,frame\n1,2,3,4,ras\n".encode("utf-16")),
        ("encoding", "series_uid,x,y,z,frame,größe\n1,2,3,4,ras,5\n".encode("latin-1")),
        ("encoding", b"series_uid,x,y,z,frame\n1\0,2,3,4,ras\n"),
        ("unreadable_table", 'series_uid,x,y,z,frame\n"1,2,3,4,ras\n'),
        ("bad_row", "series_uid,x,y,z,frame\n" + "1" * 200_000 + ",2,3,4,ras\n"),
        ("columns", "series_uid,SeriesInstanceUID,x,y,z,frame\n1,1,2,3,4,ras\n"),
        ("columns", "series_uid,x,X (mm),y,z,frame\n1,1,2,3,4,ras\n"),
    ],
)
def test_refused_tables(tmp_path, reason, content):
    assert refused(tmp_path, content).reason == reason


def test_byte_order_mark_and_line_ends(tmp_path):
    text = f"\ufeffseries_uid,x,y,z,frame\r\n{UID},1,2,3,ras\r\n"
    (row,) = table(tmp_path, text).rows
    assert (row.row, row.series_uid, row.point_mm) == (2, UID, (1.0, 2.0, 3.0))


def test_hostile_text_is_shown_short_and_plain(tmp_path):
    evil = "\x1b[2J=HYPERLINK(1)" + "A" * 5000
    error = refused(tmp_path, f'series_uid,x,y,z,frame\n{UID},"{evil}",2,3,ras\n')
    assert "\x1b" not in str(error)
    text = f"series_uid,x,y,z,frame,{evil}\n{UID},1,2,3,ras,\n"
    read = table_with_a_warning(tmp_path, text, "aren't used")
    assert read.ignored_columns[0].isprintable()
    assert len(read.ignored_columns[0]) < 60


def test_too_large(tmp_path, monkeypatch):
    text = f"series_uid,x,y,z,frame\n{UID},1,2,3,ras\n"
    monkeypatch.setattr("data_prep.nodule_table.MAX_BYTES", len(text) - 1)
    assert refused(tmp_path, text).reason == "too_large"


@pytest.mark.parametrize(
    "bad",
    [
        f"{UID},1,2,-80",
        f"{UID},1,2,-80,ras,3,4",
        f"{UID},one,2,-80,ras,3",
        f"{UID},1,2,-80,mni,3",
        f"{UID},1,2,-80,ras,9",
        ",1,2,-80,ras,3",
        f'{UID},"1"2,2,-80,ras,3',
        f"{UID},{'1' * 200_000},2,-80,ras,3",
    ],
)
def test_a_bad_row_leaves_the_others(tmp_path, volume, bad):
    text = f"series_uid,x,y,z,frame,malignancy\n{UID},1,2,-90,ras,2\n{bad}\n{UID},3,4,-70,ras,4\n"
    read = table_with_a_warning(tmp_path, text, r"1 rows of nodules\.csv.*Row 3 of nodules\.csv")
    assert [row.row for row in read.left_out] == [3]
    placed = read.place(UID, "", volume)
    centers = [nodule.center_xyz_mm.tolist() for nodule in placed.nodules]
    assert centers == [[3, 4, -70], [1, 2, -90]]


def test_where_no_row_can_be_used(tmp_path):
    text = f"series_uid,x,y,z,frame\n{UID},one,2,3,ras\n{UID},1,2,3\n"
    error = refused(tmp_path, text)
    assert error.reason == "bad_value"
    assert "Row 2" in str(error)
    assert "None of the 1 other rows" in str(error)


def test_what_a_cohort_says_of_a_row_names_nobody(tmp_path):
    text = f"series_uid,x,y,z,frame\n{UID},Doe^Jane,2,3,ras\n{UID},1,2,3,ras\n"
    (row,) = table_with_a_warning(tmp_path, text, "Doe").left_out
    assert "Doe" in row.message("nodules.csv")
    assert row.anonymous_message.startswith("Row 2 of the table of nodules has the x")
    assert "Doe" not in row.anonymous_message


@pytest.mark.parametrize(
    "header",
    [
        "series_uid,patient_id,x,y,z,frame,diameter_mm,malignancy,internal_structure,nodule_id",
        "SERIES_UID,Patient_ID,X,Y,Z,Frame,Diameter_mm,Malignancy,internalStructure,Nodule_ID",
        "SeriesInstanceUID,PatientID,coordX,coordY,coordZ,FRAME,Diameter (mm),MALIGNANCY,"
        "Internal Structure,NoduleID",
        "series instance uid,patient id,x_mm,y_mm,z_mm,Coordinate System,diameter mm,malignancy ,"
        "internal-structure,nodule id",
        "seriesuid,patient,CoordX,CoordY,Coord_Z (mm),frame,diameterMm,Malignancy,"
        "InternalStructure,noduleId",
    ],
)
def test_spellings_of_columns(tmp_path, header):
    # LUNA16's four columns state their frame themselves, so that a column for it would be a second
    text = f"{header}\n{UID},A,1,2,3,ras,6,4,1,n-1\n"
    (row,) = table(tmp_path, text.replace("seriesuid,", "Series UID,").replace("coordX", "X")).rows
    assert (row.series_uid, row.patient_id, row.nodule_id) == (UID, "A", "n-1")
    assert (row.point_mm, row.frame) == ((1, 2, 3), "ras")
    assert dict(row.ratings) == {"diameter": 6, "malignancy": 4, "internal_structure": 1}


def test_luna16_candidates_that_are_no_nodules(tmp_path, volume):
    """The challenge's candidates.csv: a class of 0 is no nodule."""
    text = (
        "seriesuid,coordX,coordY,coordZ,class\n"
        f"{UID},-1,-2,-90,1\n{UID},-5,-6,-80,0\n{UID},0,0,-70,0\n1.9,0,0,0,0\n"
    )
    read = table_with_a_warning(tmp_path, text, "3 rows of nodules.csv say that they are no nodule")
    assert read.of_series(UID, "").not_nodules == {(UID, ""): 2}
    (nodule,) = read.for_series(UID, "", volume)
    np.testing.assert_array_equal(nodule.center_xyz_mm, [1, 2, -90])
    only_no = "seriesuid,coordX,coordY,coordZ,class\n1.2,0,0,0,0\n"
    assert refused(tmp_path, only_no).reason == "no_rows"


@pytest.mark.parametrize("no", ["0", "false", "No", "0.0"])
def test_a_column_that_says_no_nodule(tmp_path, no):
    text = f"series_uid,x,y,z,frame,Is Nodule\n{UID},1,2,3,ras,{no}\n{UID},1,2,4,ras,yes\n"
    read = table_with_a_warning(tmp_path, text, "no nodule")
    assert [row.row for row in read.rows] == [3]
    unknown = text.replace("yes", "maybe") + f"{UID},1,2,5,ras,1\n"
    with pytest.warns(NoduleTableWarning, match="Row 3"):
        assert [row.row for row in table(tmp_path, unknown).left_out] == [3]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("class", "0"),
        ("label", "0"),  # benign in LUNA25
        ("Label", "negative"),
        ("nodule", "False"),
        ("target", "0.0"),
        ("remark", "non-nodule"),
    ],
)
def test_a_column_that_may_say_no_nodule_is_refused(tmp_path, column, value):
    text = f"series_uid,x,y,z,frame,{column}\n{UID},1,2,3,ras,1\n{UID},1,2,4,ras,{value}\n"
    error = refused(tmp_path, text)
    assert error.reason == "unclear_column"
    assert f"Row 3 of nodules.csv has the '{column}' '{value}'" in str(error)
    assert "is_nodule" in str(error)
    assert len(table_with_a_warning(tmp_path, text.replace(value, "2"), column).rows) == 2


def test_ratings_of_another_scale(tmp_path):
    """0 and 1 as in a table of pathology: its ones aren't the reader's lowest rating."""
    text = f"series_uid,x,y,z,frame,Malignancy\n{UID},1,2,3,ras,1\n{UID},1,2,4,ras,0\n"
    error = refused(tmp_path, text)
    assert error.reason == "rating_scale"
    assert "Malignancy" in str(error)


def test_names_are_compared_in_one_form(tmp_path, volume):
    """Decomposed letters, as macOS writes them, are the composed ones."""
    read = table(tmp_path, "patient_id,x,y,z,frame\nMu\u0308ller ,1,2,-90,ras\n")
    nodules = read.for_series(UID, " M\u00fcller", volume, patient_has_one_series=True)
    assert len(nodules) == 1


def test_too_many_for_a_series(tmp_path, volume):
    lines = [f"{UID},{n % 40},{n // 40},-90,ras" for n in range(1001)]
    read = table(tmp_path, "\n".join(["series_uid,x,y,z,frame", *lines]))
    with pytest.raises(NoduleTableError) as raised:
        read.for_series(UID, "", volume)
    assert raised.value.reason == "too_many_nodules"


def test_missing_file(tmp_path):
    with pytest.raises(NoduleTableError, match="check the path"):
        read_nodule_table(tmp_path / "missing.csv")
    with pytest.raises(NoduleTableError):
        read_nodule_table(tmp_path)


@pytest.mark.shared_data
@pytest.mark.parametrize(("patient", "n_nodules"), [("LIDC-IDRI-0001", 1), ("LIDC-IDRI-0003", 3)])
def test_luna16_on_real_series(shared_data, patient, n_nodules):
    """LUNA16's own file, its columns and frame known: within 0.5 mm of the readers' consensus."""
    (xml,) = (shared_data / "lidc" / patient).rglob("*.xml")
    volume = read_series(xml.parent)
    read = read_nodule_table(shared_data / "luna16_annotations.csv")
    nodules = read.for_series(volume.series_uid, patient, volume)
    consensus = read_lidc_xml(xml, volume)
    assert len(nodules) == len(consensus) == n_nodules
    for nodule, same in zip(nodules, consensus, strict=True):
        assert np.linalg.norm(nodule.center_xyz_mm - same.center_xyz_mm) < 0.5
    # the file's own figure, by a rule of the challenge
    if patient == "LIDC-IDRI-0001":
        assert dict(nodules[0].ratings) == {"diameter": 23.35064438}
    assert len(read.rows) + len(read.duplicate_rows) == 1117
