"""A folder is there whole or not at all, and nothing of anybody else's is ever deleted."""

import errno
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from data_prep.disk import (
    OutputWarning,
    check_folder,
    is_beginning,
    remove,
    write_file,
    write_new_file,
    written_folder,
)
from data_prep.errors import OutputError

RECORD = ".cdam-med-case.sha256"
OLD_SHA256 = hashlib.sha256(b"old").hexdigest()


def fill(folder, text="new"):
    (folder / "a.txt").write_text(text)
    (folder / "maps").mkdir()
    (folder / "maps" / "b.txt").write_text(text)


def fill_and_raise(place, text, error):
    with written_folder(place, "case", overwrite=True) as new:
        fill(new, text)
        raise error


def tree(folder):
    """All that lies below a folder: files with their content, links with where they point to."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = path.read_bytes() if path.is_file() else "folder"
    return found


def assert_refused(place, match, *, top=None):
    """Neither the check before nor the writing itself touches anything."""
    before = tree(top or place.parent)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=match if overwrite else None):
            check_folder(place, "case", overwrite=overwrite)
        with (
            pytest.raises(OutputError),
            written_folder(place, "case", overwrite=overwrite),
        ):
            pytest.fail("the block must not begin")
    assert tree(top or place.parent) == before


@pytest.fixture
def old_case(tmp_path):
    place = tmp_path / "case"
    with written_folder(place, "case") as new:
        fill(new, "old")
    return place


def test_folder_appears_only_at_the_end(tmp_path):
    place = tmp_path / "out" / "deeper" / "case"
    with written_folder(place, "case") as new:
        fill(new)
        assert not place.exists()
        assert new.stat().st_dev == tmp_path.stat().st_dev
    assert (place / "a.txt").read_text() == "new"
    assert [entry.name for entry in place.parent.iterdir()] == ["case"]


def test_folder_is_as_open_as_any_other(tmp_path):
    (tmp_path / "plain").mkdir()
    with written_folder(tmp_path / "case", "case") as new:
        fill(new)
    assert (tmp_path / "case").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_record_lists_every_file_with_its_hash(old_case):
    rows = [line.split("  ") for line in (old_case / RECORD).read_text().splitlines()]
    assert rows == [[OLD_SHA256, "a.txt"], [OLD_SHA256, "maps/b.txt"]]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum isn't installed")
def test_the_record_is_what_sha256sum_reads(old_case):
    check = ["sha256sum", "--check", "--strict", "--quiet", RECORD]
    assert subprocess.run(check, cwd=old_case).returncode == 0
    (old_case / "a.txt").write_text("changed")
    assert subprocess.run(check, cwd=old_case, capture_output=True).returncode == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        fill_and_raise(tmp_path / "out" / "deeper" / "case", "text", error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_folder(old_case, error):
    before = tree(old_case.parent)
    with pytest.raises(error):
        fill_and_raise(old_case, "new", error)
    assert tree(old_case.parent) == before


def test_what_is_there_is_replaced_only_when_asked(old_case):
    before = tree(old_case)
    with pytest.raises(OutputError, match=r"case is there already; .*overwrite=True"):
        check_folder(old_case, "case", overwrite=False)
    with pytest.raises(OutputError, match="is there already"), written_folder(old_case, "case"):
        pytest.fail("the block must not begin")
    assert tree(old_case) == before
    with written_folder(old_case, "case", overwrite=True) as new:
        (new / "c.txt").write_text("new")
        assert tree(old_case) == before
    assert [entry.name for entry in old_case.parent.iterdir()] == ["case"]
    assert sorted(tree(old_case)) == [RECORD, "c.txt"]


def test_files_of_ours_that_were_deleted_are_no_reason_to_refuse(old_case):
    (old_case / "a.txt").unlink()
    with written_folder(old_case, "case", overwrite=True) as new:
        fill(new)
    assert (old_case / "a.txt").read_text() == "new"


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "case").mkdir()
    with written_folder(tmp_path / "case", "case") as new:
        fill(new)
    assert (tmp_path / "case" / "a.txt").read_text() == "new"


@pytest.mark.parametrize(
    "files",
    [
        {"photo.jpg": "sea"},
        {".git/HEAD": "ref", ".env": "SECRET"},
        {"case.json": '{"format": "cdam-med case", "files": {"case.json": "", "index.md": ""}}'},
        {
            ".cdam-med-model.sha256": f"{OLD_SHA256}  a.txt\n",
            "a.txt": "old",
        },
        {RECORD: "", "a.txt": "old"},
        {RECORD: "a.txt\n", "a.txt": "old"},
        {RECORD: f"{OLD_SHA256}  ../mine.txt\n"},
        {RECORD: f"{OLD_SHA256}  maps/../../mine.txt\n"},
        {RECORD: f"{OLD_SHA256}  /etc/hostname\n"},
    ],
    ids=[
        "visible",
        "hidden",
        "record_without_hashes",
        "other_kind",
        "empty_record",
        "no_hashes",
        "outside",
        "outside_below",
        "absolute",
    ],
)
def test_a_folder_that_nobody_proves_to_be_ours_is_left_alone(tmp_path, files):
    (tmp_path / "mine.txt").write_text("old")
    place = tmp_path / "docs"
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    assert_refused(place, r"docs .*isn't a case folder of cdam-med.*choose another place")


@pytest.mark.parametrize("name", ["scene.mrml", ".env", "maps/scene.mrml", "notes/a.txt", "a.txt/"])
def test_what_somebody_added_is_named_and_kept(old_case, name):
    if name == "a.txt/":  # a folder in the place of our file
        (old_case / "a.txt").unlink()
        (old_case / "a.txt").mkdir()
    else:
        (old_case / name).parent.mkdir(exist_ok=True)
        (old_case / name).write_text("years of work")
    named = "notes/" if name.startswith("notes") else name
    assert_refused(old_case, rf"didn't write.*: {named}; move it away")


def test_what_somebody_changed_is_named_and_kept(old_case):
    (old_case / "maps" / "b.txt").write_text("my own")
    assert_refused(old_case, r"changed since.*: maps/b\.txt \(changed\)")


def test_few_are_named_of_many(old_case):
    for number in range(6):
        (old_case / f"{number}.txt").touch()
    assert_refused(old_case, r": 0\.txt, 1\.txt, 2\.txt and 3 more;")


@pytest.mark.parametrize("target", ["mine.txt", "mine", "nowhere"])
@pytest.mark.parametrize("name", ["link", "a.txt", "maps", RECORD])
def test_links_in_the_folder_are_kept_and_not_followed(old_case, tmp_path, target, name):
    (tmp_path / "mine.txt").write_text("old")  # even of the same content
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "b.txt").write_text("old")
    if name == "maps":
        shutil.rmtree(old_case / "maps")
    else:
        (old_case / name).unlink(missing_ok=True)
    (old_case / name).symlink_to(tmp_path / target)
    why = "isn't a case folder" if name == RECORD else f": {name}; move it away"
    assert_refused(old_case, why)


@pytest.mark.parametrize("target", ["case", "empty", "mine.txt", "nowhere"])
def test_a_place_that_is_a_link_is_refused(old_case, tmp_path, target):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / target)
    assert_refused(tmp_path / "link", "link is a link.*give the folder that it stands for")


def test_a_parent_that_is_a_link_stays_one(old_case, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    old_case.rename(tmp_path / "elsewhere" / "case")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with written_folder(link / "case", "case", overwrite=True) as new:
        fill(new)
    assert link.is_symlink()
    assert (tmp_path / "elsewhere" / "case" / "a.txt").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link"]
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    assert_refused(tmp_path / "broken" / "case", "broken link", top=tmp_path)


def test_a_file_at_the_place_is_refused_untouched(tmp_path):
    (tmp_path / "case").write_text("mine")
    assert_refused(tmp_path / "case", "is a file")


def test_a_file_among_the_parents_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_refused(
        tmp_path / "file" / "case", r"file/case can't be written: .*/file, ", top=tmp_path
    )


def test_a_file_that_comes_in_the_meantime_is_kept(old_case):
    with (
        pytest.raises(OutputError, match=r"my_notes\.txt"),
        written_folder(old_case, "case", overwrite=True),
    ):
        (old_case / "my_notes.txt").write_text("keep")
    assert (old_case / "my_notes.txt").read_text() == "keep"
    assert (old_case / "a.txt").read_text() == "old"


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_takes_the_place_in_the_meantime_is_kept(tmp_path, kind):
    place = tmp_path / "case"
    (tmp_path / "mine").mkdir()
    before = {}

    def take_the_place():
        if kind == "file":
            place.write_text("mine")
        elif kind == "folder":
            place.mkdir()
            (place / "mine.txt").write_text("mine")
        else:
            place.symlink_to(tmp_path / "mine")
        before.update((name, held) for name, held in tree(tmp_path).items() if "cdam" not in name)

    with (
        pytest.raises(OutputError, match=r"case .*(is a file|isn't a case|is a link)"),
        written_folder(place, "case", overwrite=True),
    ):
        take_the_place()
    assert tree(tmp_path) == before


@pytest.fixture
def before_renaming(monkeypatch):
    """Let something happen between the last check and the first renaming of a folder."""
    renamed = Path.rename

    def arrange(happens):
        def rename(path, target):
            if path.is_dir():
                monkeypatch.setattr(Path, "rename", renamed)
                happens()
            return renamed(path, target)

        monkeypatch.setattr(Path, "rename", rename)

    return arrange


def test_a_file_that_comes_after_the_last_check_is_kept_and_named(old_case, before_renaming):
    def happens():
        (old_case / "my_notes.txt").write_text("keep")
        (old_case / "a.txt").write_text("my own")

    before_renaming(happens)
    with (
        pytest.warns(OutputWarning, match=r"a\.txt, my_notes\.txt\); it is kept in .*replaced-"),
        written_folder(old_case, "case", overwrite=True) as new,
    ):
        fill(new)
    assert (old_case / "a.txt").read_text() == "new"
    (aside,) = (path for path in old_case.parent.iterdir() if path != old_case)
    assert tree(aside) == {"my_notes.txt": b"keep", "a.txt": b"my own"}


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_takes_the_place_after_the_last_check_is_kept(tmp_path, before_renaming, kind):
    place = tmp_path / "case"

    def happens():
        if kind == "file":
            place.write_text("mine")
        elif kind == "folder":
            place.mkdir()
            (place / "mine.txt").write_text("mine")
        else:
            place.symlink_to(tmp_path)

    before_renaming(happens)
    with pytest.raises(OutputError, match="Can't write"), written_folder(place, "case") as new:
        fill(new)
    if kind == "link":
        assert place.is_symlink()
    else:
        assert (place if kind == "file" else place / "mine.txt").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [place]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(old_case):
    before = tree(old_case.parent)
    # another program clears the hidden folder away
    with (
        pytest.raises(OutputError, match="no such file"),
        written_folder(old_case, "case", overwrite=True) as new,
    ):
        new.rmdir()
    assert tree(old_case.parent) == before


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
    place = tmp_path / "case\x1b[31m"
    with pytest.raises(OutputError, match=remedy) as caught:
        fill_and_raise(place, "text", OSError(number, os.strerror(number)))
    assert f"{tmp_path}/case?[31m" in str(caught.value)
    assert str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_removing_goes_through_no_link(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "b.txt").write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").touch()
    (folder / "link").symlink_to(tmp_path / "mine")
    (folder / "b.txt").symlink_to(tmp_path / "mine" / "b.txt")
    left = remove(folder, lambda place, path: True)
    assert [path.name for path in left] == ["b.txt", "link"]
    assert (tmp_path / "mine" / "b.txt").read_text() == "mine"
    assert not (folder / "a.txt").exists()


def test_a_new_file_replaces_nothing(tmp_path):
    place = tmp_path / "file"
    write_new_file(place, b"first")
    for each in (place, tmp_path / "link"):
        if each != place:
            each.symlink_to(tmp_path / "nowhere")
        with pytest.raises(FileExistsError):
            write_new_file(each, b"second")
    assert place.read_bytes() == b"first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]
    write_file(place, b"third")
    assert place.read_bytes() == b"third"


def test_a_new_file_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*names):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_new_file(tmp_path / "file", b"data", mode=0o600)
    assert (tmp_path / "file").read_bytes() == b"data"
    with pytest.raises(FileExistsError):
        write_new_file(tmp_path / "file", b"other")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_the_beginning_of_a_file(tmp_path):
    def file(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    whole = file("whole", b"abc" * 2**20)
    assert is_beginning(file("part", b"abc" * 2**19), whole)
    assert is_beginning(file("empty", b""), whole)
    assert is_beginning(whole, whole)
    assert not is_beginning(file("longer", b"abc" * 2**20 + b"a"), whole)
    assert not is_beginning(file("other", b"abd"), whole)
    assert not is_beginning(whole, tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(whole)
    assert not is_beginning(tmp_path / "link", whole)
