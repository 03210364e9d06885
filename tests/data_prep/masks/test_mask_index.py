"""Each mask is found for the series that it was drawn on."""

import numpy as np
import pytest

from data_prep.errors import InputError, MaskError
from data_prep.masks import masks_of_series, nodules_from_masks


def square(scan) -> np.ndarray:
    return scan.lps(np.array([[5, 5, 2], [10, 5, 2], [10, 12, 2], [5, 12, 2]], float))


def test_by_reference_and_by_name(scan, write_seg, write_rtstruct, tmp_path):
    series_uid = scan.volume.series_uid
    seg = write_seg([scan.ball((20, 18, 7), 6.0)])
    rt = write_rtstruct({1: [square(scan)]})
    other = write_rtstruct({1: [square(scan)]}, series_uid="1.2.3", name="other")
    by_uid, by_patient = tmp_path / f"{series_uid}.seg.nrrd", tmp_path / "P1.nii.gz"
    for path in (by_uid, by_patient, tmp_path / "P10.nii", tmp_path / "._P1.nii.gz"):
        path.write_bytes(b"x")
    (tmp_path / "notes.csv").write_text("x")
    index = masks_of_series(tmp_path)  # the CT series lies below as well
    assert index.for_series(series_uid, "P1") == sorted([seg, rt, by_uid, by_patient])
    assert index.for_series(series_uid, "") == sorted([seg, rt, by_uid])
    assert index.for_series("1.2.3", "P2") == [other]
    assert index.for_series("1.2", "P") == []
    assert len(index.paths) == 6
    assert len(nodules_from_masks([seg, rt], scan.volume)) == 2


def test_single_file(scan, write_rtstruct):
    rt = write_rtstruct({1: [square(scan)]})
    index = masks_of_series(rt)
    assert index.for_series(scan.volume.series_uid, "") == [rt]


def test_problems(scan, write_seg, tmp_path):
    with pytest.raises(InputError, match="missing"):
        masks_of_series(tmp_path / "missing")
    whole = write_seg([scan.ball((20, 18, 7), 6.0)]).read_bytes()
    folder = tmp_path / "cut"
    folder.mkdir()
    # cut off behind its references: found, and refused when it is read
    (folder / "cut.dcm").write_bytes(whole[: whole.index(b"MONOCHROME2")])
    (found,) = masks_of_series(folder).for_series(scan.volume.series_uid, "")
    with pytest.raises(MaskError, match=r"cut\.dcm"):
        nodules_from_masks(found, scan.volume)
    # sequences within sequences without end, in place of its content
    nested = b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff"
    head = whole[: whole.index(b"\x08\x00\x16\x00")]
    (folder / "cut.dcm").write_bytes(head + nested[8:] + nested * 3000)
    with pytest.raises(MaskError, match=r"cut\.dcm") as raised:
        masks_of_series(folder)
    assert raised.value.reason == "unreadable_mask"
