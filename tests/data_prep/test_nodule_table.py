"""Tables of nodules: every point where it was meant, nothing guessed, errors that name the row."""

from pathlib import Path

import numpy as np
import pytest

from data_prep import CTVolume, read_lidc_xml, read_series
from data_prep.errors import InputError, NoduleTableError
from data_prep.nodule_table import NoduleTable, read_nodule_table

UID = "1.2.3"


@pytest.fixture
def volume() -> CTVolume:
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    affine[:3, 3] = [50, 60, -100]  # x -49.5..50.5, y -39.5..60.5, z -101..-61 in RAS
    return CTVolume(np.zeros((100, 100, 20), np.int16), affine, UID)


def table(tmp_path: Path, text: str | bytes, **options: str) -> NoduleTable:
    path = tmp_path / "nodules.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_nodule_table(path, **options)


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
    nodules = table(tmp_path, text).for_series(UID, "A", volume)
    assert [nodule.nodule_id for nodule in nodules] == ["nodule_1", "nodule_2"]
    np.testing.assert_array_equal(nodules[0].center_xyz_mm, [30, 40, -70])
    np.testing.assert_array_equal(nodules[1].center_xyz_mm, [10, 20, -90])
    assert dict(nodules[0].ratings) == {}
    assert dict(nodules[1].ratings) == {"diameter": 6.5, "malignancy": 4.0, "spiculation": 2.5}
    assert nodules[0].outline is None
    assert table(tmp_path, text).ignored_columns == ("'note'",)


def test_frame_as_argument(tmp_path, volume):
    text = f"series_uid,x,y,z\n{UID},-30,-40,-70\n"
    (nodule,) = table(tmp_path, text, frame="lps").for_series(UID, "", volume)
    np.testing.assert_array_equal(nodule.center_xyz_mm, [30, 40, -70])
    with pytest.raises(NoduleTableError, match="'lps'"):  # y reaches from -39.5
        table(tmp_path, text, frame="ras").for_series(UID, "", volume)


def test_frame_is_never_guessed(tmp_path):
    text = f"series_uid,x,y,z\n{UID},1,2,3\n"
    error = refused(tmp_path, text)
    assert error.reason == "no_frame"
    assert "ras" in str(error)
    assert "lps" in str(error)
    with_column = f"series_uid,x,y,z,frame\n{UID},1,2,3,ras\n"
    assert refused(tmp_path, with_column, frame="ras").reason == "conflicting_frames"
    empty = f"series_uid,x,y,z,frame\n{UID},1,2,3,ras\n{UID},1,2,4,\n"
    assert refused(tmp_path, empty).reason == "no_frame"
    assert "Row 3" in str(refused(tmp_path, empty))
    luna = f"seriesuid,coordX,coordY,coordZ\n{UID},1,2,3\n"
    assert refused(tmp_path, luna, frame="ras").reason == "conflicting_frames"
    assert table(tmp_path, luna, frame="lps").rows[0].frame == "lps"
    luna_and_frame = f"seriesuid,coordX,coordY,coordZ,frame\n{UID},1,2,3,ras\n"
    assert refused(tmp_path, luna_and_frame).reason == "conflicting_frames"
    with pytest.raises(InputError, match="'mni'"):
        table(tmp_path, text, frame="mni")


def test_patient_with_several_series(tmp_path, volume):
    read = table(tmp_path, "patient_id,x,y,z,frame\nA,10,20,-90,ras\nB,0,0,0,ras\n")
    with pytest.raises(NoduleTableError, match=r"Row 2 of nodules\.csv") as raised:
        read.for_series(UID, "A", volume)
    assert raised.value.reason == "ambiguous_series"
    (nodule,) = read.for_series(UID, "A", volume, patient_has_one_series=True)
    np.testing.assert_array_equal(nodule.center_xyz_mm, [10, 20, -90])
    assert read.for_series(UID, "C", volume) == []
    assert read.for_series(UID, "", volume) == []


def test_series_of_another_patient(tmp_path, volume):
    read = table(tmp_path, f"patient_id,series_uid,x,y,z,frame\nB,{UID},10,20,-90,ras\n")
    with pytest.raises(NoduleTableError, match="Row 2") as raised:
        read.for_series(UID, "A", volume)
    assert raised.value.reason == "other_patient"
    assert len(read.for_series(UID, "", volume)) == 1


def test_points_outside(tmp_path, volume):
    read = table(tmp_path, f"series_uid,x,y,z,frame\n{UID},0,0,-90,lps\n{UID},0,0,-40,lps\n")
    with pytest.raises(NoduleTableError, match=r"Row 3 of nodules\.csv.*outside the volume") as e:
        read.for_series(UID, "", volume)
    assert e.value.reason == "outside_volume"


def test_names(tmp_path, volume):
    head = "series_uid,x,y,z,frame,nodule_id\n"
    read = table(tmp_path, f"{head}{UID},0,0,-90,ras,b-2\n{UID},0,0,-70,ras,a_1\n")
    assert [nodule.nodule_id for nodule in read.for_series(UID, "", volume)] == ["a_1", "b-2"]
    same = table(tmp_path, f"{head}{UID},0,0,-90,ras,a\n{UID},0,0,-70,ras,a\n9,0,0,0,ras,a\n")
    with pytest.raises(NoduleTableError, match="Row 3") as raised:
        same.for_series(UID, "", volume)
    assert raised.value.reason == "same_id"
    for name in ("../../x", "a b", "=cmd()", "a\x1b[31m", "é"):
        assert refused(tmp_path, f"{head}{UID},0,0,0,ras,{name}\n").reason == "bad_value"


def test_duplicates(tmp_path, volume):
    head = "series_uid,x,y,z,frame,malignancy\n"
    read = table(tmp_path, f"{head}{UID},1,2,-90,ras,3\n{UID},1,2,-90,ras,3\n{UID}, 1,2,-90,ras,3")
    assert read.duplicate_rows == (3, 4)
    assert len(read.for_series(UID, "", volume)) == 1
    differ = table(tmp_path, f"{head}{UID},1,2,-90,ras,3\n{UID},-1,-2,-90,lps,4\n")
    with pytest.raises(NoduleTableError, match=r"Row 3 .* row 2") as raised:
        differ.for_series(UID, "", volume)
    assert raised.value.reason == "same_place"


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
        assert error.reason == "bad_value"
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
        ("unreadable_table", "series_uid,x,y,z,frame\n" + "1" * 200_000 + ",2,3,4,ras\n"),
        ("too_large", b"series_uid,x,y,z,frame\n" + b"\n" * (1 << 26)),
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
    read = table(tmp_path, f"series_uid,x,y,z,frame,{evil}\n{UID},1,2,3,ras,\n")
    assert read.ignored_columns[0].isprintable()
    assert len(read.ignored_columns[0]) < 60


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
