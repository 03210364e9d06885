"""A case folder is there whole or not at all, and nothing of anybody else's is harmed."""

import errno
import json
import os

import pytest

from cdam_med.export import case_folder
from data_prep.errors import OutputError

RECORD = {"format": "cdam-med case", "files": {"case.json": "record", "a.txt": "text"}}


def fill(folder, text):
    (folder / "a.txt").write_text(text)
    (folder / "case.json").write_text(json.dumps(RECORD))


def fill_and_raise(place, text, error):
    with case_folder(place) as new:
        fill(new, text)
        raise error


@pytest.fixture
def old_case(tmp_path):
    place = tmp_path / "case"
    with case_folder(place) as new:
        fill(new, "old")
    return place


def test_folder_appears_only_at_the_end(tmp_path):
    place = tmp_path / "out" / "deeper" / "case"
    with case_folder(place) as new:
        fill(new, "text")
        assert not place.exists()
        assert new.stat().st_dev == tmp_path.stat().st_dev
    assert (place / "a.txt").read_text() == "text"
    assert [entry.name for entry in place.parent.iterdir()] == ["case"]


def test_folder_is_as_open_as_any_other(tmp_path):
    (tmp_path / "plain").mkdir()
    with case_folder(tmp_path / "case") as new:
        fill(new, "text")
    assert (tmp_path / "case").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        fill_and_raise(tmp_path / "out" / "deeper" / "case", "text", error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_case(old_case, error):
    with pytest.raises(error):
        fill_and_raise(old_case, "new", error)
    assert (old_case / "a.txt").read_text() == "old"
    assert [entry.name for entry in old_case.parent.iterdir()] == ["case"]


def test_an_old_case_is_replaced(old_case):
    with case_folder(old_case) as new:
        (new / "case.json").write_text(json.dumps(RECORD))
        assert (old_case / "a.txt").read_text() == "old"
    assert [entry.name for entry in old_case.iterdir()] == ["case.json"]
    assert [entry.name for entry in old_case.parent.iterdir()] == ["case"]


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "case").mkdir()
    with case_folder(tmp_path / "case") as new:
        fill(new, "text")
    assert (tmp_path / "case" / "a.txt").read_text() == "text"


@pytest.mark.parametrize(
    "record", [None, "{", "[]", '{"format": "other"}', '{"format": "cdam-med case"}']
)
def test_a_foreign_folder_is_refused_untouched(tmp_path, record):
    place = tmp_path / "holiday"
    place.mkdir()
    (place / "photo.jpg").write_bytes(b"sea")
    if record is not None:
        (place / "case.json").write_text(record)
    before = {entry.name: entry.read_bytes() for entry in place.iterdir()}
    with pytest.raises(OutputError, match=r"holiday .*choose another place"), case_folder(place):
        pytest.fail("the block must not begin")
    assert {entry.name: entry.read_bytes() for entry in place.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["holiday"]


def test_a_case_with_someones_own_files_is_refused_untouched(old_case):
    (old_case / "my_notes.txt").write_text("keep")
    with pytest.raises(OutputError, match=r"my_notes\.txt"), case_folder(old_case):
        pytest.fail("the block must not begin")
    assert (old_case / "my_notes.txt").read_text() == "keep"
    assert (old_case / "a.txt").read_text() == "old"


def test_a_file_that_comes_in_the_meantime_is_kept(old_case):
    with pytest.raises(OutputError, match=r"my_notes\.txt"), case_folder(old_case):
        (old_case / "my_notes.txt").write_text("keep")
    assert (old_case / "my_notes.txt").read_text() == "keep"
    assert (old_case / "a.txt").read_text() == "old"


def test_a_file_at_the_place_is_refused_untouched(tmp_path):
    (tmp_path / "case").write_text("mine")
    with pytest.raises(OutputError, match="is a file"), case_folder(tmp_path / "case"):
        pytest.fail("the block must not begin")
    assert (tmp_path / "case").read_text() == "mine"


def test_a_file_among_the_parents_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(OutputError, match=r"file/case: .*; a part of this path is a file"),
        case_folder(tmp_path / "file" / "case"),
    ):
        pytest.fail("the block must not begin")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_old_case_comes_back_when_the_new_one_cannot_take_its_place(old_case):
    # another program clears the hidden folder away: the last rename then fails
    with pytest.raises(OutputError, match="no such file"), case_folder(old_case) as new:
        new.rmdir()
    assert (old_case / "a.txt").read_text() == "old"
    assert [entry.name for entry in old_case.parent.iterdir()] == ["case"]


def test_a_link_stays_a_link(tmp_path, old_case):
    link = tmp_path / "link"
    link.symlink_to(old_case)
    with case_folder(link) as new:
        fill(new, "new")
    assert link.is_symlink()
    assert (old_case / "a.txt").read_text() == "new"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "may write to"),
        (errno.EROFS, "may write to"),
        (errno.EIO, "choose another place"),
    ],
)
def test_what_the_system_refuses_becomes_one_sentence(tmp_path, number, remedy):
    place = tmp_path / "case"
    with pytest.raises(OutputError, match=remedy) as caught:
        fill_and_raise(place, "text", OSError(number, os.strerror(number)))
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
