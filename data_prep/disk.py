"""Writing files and folders whole or not at all, and deleting only what is proven to be ours.

A folder that is written here holds a record of exactly what was written, ``.cdam-med-KIND.sha256``,
as ``sha256sum`` writes it (``sha256sum -c`` checks it). A folder is replaced only if the record
proves every file in it; what is deleted is deleted file by file, and never through a link.
"""

import csv
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.errors import OutputError
from data_prep.text import printable

_WRITABLE = "choose a folder that you may write to"
_REMEDIES = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "free some space or choose another place",
    errno.EFBIG: "raise the limit on file sizes or choose another place",
    errno.EACCES: _WRITABLE,
    errno.EPERM: _WRITABLE,
    errno.EROFS: _WRITABLE,
    errno.EEXIST: "a part of this path is a file: choose another place",
    errno.ENOTDIR: "a part of this path is a file: choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part")
_RECORD_LINE = re.compile(r"([0-9a-f]{64})  ([^\\]+)")
_MOST_RECORD_BYTES = 2**28  # a million files
_MOST_NAMED = 3


class OutputWarning(UserWarning):
    """Something was written, but beside it something is left that isn't cdam-med's to delete."""


def json_bytes(values: Any, *, indent: int | None = 2) -> bytes:
    """Return a JSON file's content; a number that isn't finite is a ValueError."""
    return f"{json.dumps(values, indent=indent, allow_nan=False)}\n".encode()


def csv_bytes(
    header: Sequence[str], rows: Iterable[Iterable[object]], *, quote_all: bool = False
) -> bytes:
    """Return a CSV file's content; bytes of file names that are no UTF-8 stay as they were."""
    table = io.StringIO(newline="")
    writer = csv.writer(
        table, quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL, lineterminator="\n"
    )
    writer.writerow(header)
    writer.writerows(rows)
    return table.getvalue().encode("utf-8", "surrogateescape")


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, also when the disk is full or the machine stops.

    Its folder must exist; a file that is there is replaced. What fails is an OSError.
    """
    with _aside(path, data) as aside:
        aside.replace(path)


def write_new_file(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file whole or not at all where nothing is, not even a link, else FileExistsError.

    The user's mask lessens the rights `mode`.
    """
    with _aside(path, data, mode) as aside:
        # unlike renaming, linking never replaces what appeared in the meantime
        try:
            os.link(aside, path)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise
            # a file system without hard links
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
            aside.replace(path)


@contextmanager
def _aside(path: Path, data: bytes, mode: int = 0o666) -> Iterator[Path]:
    """Give a hidden file beside a place, with the data on the disk; it goes with the block."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor has no path
            file.write(data)
            file.flush()
            # a network file system may report a full disk only here
            os.fsync(file.fileno())
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def finished_name(name: str) -> str:
    """Return the name that a file has, or would have got had its writing not been ended."""
    found = _UNFINISHED.fullmatch(name)
    return found[1] if found else name


def output_error(what: str, place: Path, error: OSError) -> OutputError:
    """Turn an error of the file system into one that says what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "choose another place")
    reason = error.strerror or type(error).__name__
    return OutputError(f"Can't write {what} {_shown(place)}: {reason.lower()}; {remedy}.")


def open_no_link(path: Path) -> io.BufferedReader:
    """Open a file to read it; a link is refused where the system can."""
    no_follow = getattr(os, "O_NOFOLLOW", 0)
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | no_follow))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; a link is an OSError."""
    with open_no_link(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_beginning(part: Path, whole: Path) -> bool:
    """Return whether a file holds only the beginning of another, as a killed program leaves it."""
    with suppress(OSError), open_no_link(part) as left, open_no_link(whole) as right:
        while block := left.read(2**20):
            if block != right.read(len(block)):
                return False
        return True
    return False


def remove(folder: Path, is_ours: Callable[[str, Path], bool]) -> tuple[Path, ...]:
    """Delete a folder file by file, as far as each is proven to be ours; return what is left.

    `is_ours` says it of a regular file, given its place in the folder (``a/b.txt``) and its path.
    Links are left. The folder is gone if nothing is left.
    """
    return _remove(folder, "", is_ours)


def _remove(folder: Path, under: str, is_ours: Callable[[str, Path], bool]) -> tuple[Path, ...]:
    left: list[Path] = []
    for entry in _entries(folder):
        path, place = Path(entry.path), f"{under}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            left += _remove(path, f"{place}/", is_ours)
        elif entry.is_file(follow_symlinks=False) and is_ours(place, path):
            path.unlink()
        else:
            left.append(path)
    if not left:
        folder.rmdir()
    return tuple(left)


def clear(folder: Path, is_ours: Callable[[str, Path], bool]) -> None:
    """Delete the hidden folder of a run as `remove` does, with an OutputWarning if any is left."""
    left = remove(folder, is_ours)
    if left:
        warnings.warn(
            f"{_shown(folder)} is left: it holds what can't be told to be of this run, such as "
            f"{printable(left[0].relative_to(folder).as_posix())}; delete it if you don't need it.",
            OutputWarning,
            stacklevel=3,
        )


def check_folder(place: Path, kind: str, *, overwrite: bool) -> None:
    """Refuse a place for a folder that `written_folder` would refuse later.

    Nothing or an empty folder may be there; missing parents are made later. With `overwrite`, a
    folder of that kind may be there if it holds what was written and nothing else. Anything else is
    an OutputError. A kind is ``"case"``, ``"cohort"``, ``"model"`` or ``"report"``.
    """
    place, shown = place.absolute(), _shown(place)
    if place.is_symlink():
        what = f"{shown} is a link, and nothing is written through one"
        raise OutputError(f"{what}: give the folder that it stands for, or another place.")
    if not os.path.lexists(place) or _is_empty_folder(place):
        check_parent(place)
        return
    if not place.is_dir():
        raise OutputError(f"{shown} is a file; choose another name for the {kind} folder.")
    hashes = _recorded(place, kind)
    if hashes is None:
        what = f"{shown} is there already and isn't a {kind} folder of cdam-med"
        remedy = "choose another place or move it away"
        raise OutputError(f"{what} (it has no {record_name(kind)} of ours); {remedy}.")
    if not overwrite:
        what = f"{shown} is there already"
        raise OutputError(f"{what}; choose another place, or replace it by overwrite=True.")
    foreign = list(_foreign(place, hashes))
    if foreign:
        raise OutputError(
            f"{shown} holds what cdam-med didn't write, or what was changed since, and isn't "
            f"replaced: {_few(foreign)}; move it away or choose another place."
        )
    check_parent(place)


def check_parent(place: Path) -> None:
    """Refuse a place that no file or folder could be made at; missing parents are made later."""
    parent = next(parent for parent in place.absolute().parents if os.path.lexists(parent))
    if not parent.is_dir():
        raise OutputError(
            f"{_shown(place)} can't be written: {_shown(parent)}, a part of this path, is a file "
            f"or a broken link; choose another place."
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{_shown(place)} can't be made in {_shown(parent)}; {_WRITABLE}.")


@contextmanager
def written_folder(
    path: str | os.PathLike[str], kind: str, *, overwrite: bool = False
) -> Iterator[Path]:
    """Give a new folder to fill, which takes its place only when the block ends well.

    The folder to fill is a hidden one beside the place, renamed at the end. After an error nothing
    is left of it, nor of parents made for it, and the place is as it was. An OSError of the block
    (do nothing in it but write) and a place that `check_folder` refuses are an OutputError.
    `publish` may warn.
    """
    place = Path(path).absolute()
    missing_parents: list[Path] = []
    try:
        check_folder(place, kind, overwrite=overwrite)
        missing_parents = [parent for parent in place.parents if not parent.exists()]
        place.parent.mkdir(parents=True, exist_ok=True)
        # made by this call under a new name and closed to others, so all in it is ours
        staging = Path(tempfile.mkdtemp(prefix=".cdam-med-", dir=place.parent))
        try:
            # one level down: mkdtemp's folder is closed to all but its owner
            new = staging / "new"
            new.mkdir()
            yield new
            publish(new, place, kind, overwrite=overwrite)
        finally:
            # at worst a hidden folder stays; it must not hide the error or undo the success
            shutil.rmtree(staging, ignore_errors=True)
    except BaseException as error:
        for parent in missing_parents:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise output_error(f"the {kind} folder", place, error) from error
        raise


def publish(new: Path, place: Path, kind: str, *, overwrite: bool) -> None:
    """Write the record of a finished folder on the place's file system, and move it to its place.

    The place is checked again. Empty folders go. What came into a replaced folder meanwhile is kept
    and named in an OutputWarning.
    """
    lines = [f"{sha256}  {name}\n" for name, sha256 in sorted(_hashes(new, kind).items())]
    write_file(new / record_name(kind), "".join(lines).encode())
    # the first check may be hours old
    check_folder(place, kind, overwrite=overwrite)
    hashes = _recorded(place, kind)
    if hashes is None:
        if place.exists():
            place.rmdir()
        new.rename(place)
        return
    old = place.with_name(f"{place.name}.replaced-{secrets.token_hex(4)}")
    place.rename(old)
    try:
        new.rename(place)
    except OSError:
        old.rename(place)
        raise
    # what came in between the check and the renaming is found here, and stays
    left = remove(old, lambda name, file: file_sha256(file) == hashes.get(name))
    if left:
        named = _few([file.relative_to(old).as_posix() for file in left])
        warnings.warn(
            f"{_shown(place)} was replaced, but something came into the old folder meanwhile "
            f"({named}); it is kept in {_shown(old)}.",
            OutputWarning,
            stacklevel=3,
        )


def differences(folder: Path, kind: str) -> tuple[str, ...] | None:
    """Name what a written folder lacks, holds besides, or holds changed; None without a record."""
    hashes = _recorded(folder, kind)
    if hashes is None:
        return None
    missing = [f"{place} (missing)" for place in hashes if not (folder / place).exists()]
    return (*missing, *_foreign(folder, hashes))


def record_name(kind: str) -> str:
    """Return the name of the record in a folder of a kind."""
    return f".cdam-med-{kind}.sha256"


def _hashes(folder: Path, kind: str) -> dict[str, str]:
    """Return the hash of each file by its place; take empty folders and an older record away."""
    (folder / record_name(kind)).unlink(missing_ok=True)
    hashes = {}
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            path = Path(parent) / name
            hashes[path.relative_to(folder).as_posix()] = file_sha256(path)
        if Path(parent) != folder and _is_empty_folder(Path(parent)):
            Path(parent).rmdir()
    return hashes


def _recorded(folder: Path, kind: str) -> dict[str, str] | None:
    """Return the hashes in a folder's record and that of the record; None if it has none of ours.

    A record that names anything outside of its folder isn't ours.
    """
    path = folder / record_name(kind)
    try:
        with open_no_link(path) as file:
            data = file.read(_MOST_RECORD_BYTES)
        lines = data.decode().split("\n")[:-1]
    except (OSError, UnicodeDecodeError):
        return None
    hashes = {path.name: hashlib.sha256(data).hexdigest()}
    for line in lines:
        found = _RECORD_LINE.fullmatch(line)
        name = PurePosixPath(found[2]) if found else PurePosixPath("/")
        if found is None or name.is_absolute() or ".." in name.parts:
            return None
        hashes[name.as_posix()] = found[1]
    return hashes if len(hashes) > 1 else None


def _foreign(folder: Path, hashes: Mapping[str, str], under: str = "") -> Iterator[str]:
    """Name what a folder holds beside the files of its record, and those that were changed."""
    for entry in _entries(folder):
        place = f"{under}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            if any(name.startswith(f"{place}/") for name in hashes):
                yield from _foreign(Path(entry.path), hashes, f"{place}/")
            else:
                yield f"{place}/"
        elif not entry.is_file(follow_symlinks=False) or place not in hashes:
            yield place
        elif file_sha256(Path(entry.path)) != hashes[place]:
            yield f"{place} (changed)"


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not _entries(path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _few(names: list[str]) -> str:
    shown = ", ".join(map(printable, names[:_MOST_NAMED]))
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"


def _shown(path: Path) -> str:
    return printable(str(path))
