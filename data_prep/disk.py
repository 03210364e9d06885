"""Writing files so that nobody ever meets half of one; reading them never through a link."""

import errno
import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_prep.errors import OutputError
from data_prep.text import printable

_REMEDIES = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "free some space or choose another place",
    errno.EFBIG: "raise the limit on file sizes or choose another place",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.EEXIST: "a part of this path is a file: choose another place",
    errno.ENOTDIR: "a part of this path is a file: choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}


_UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part")


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    The bytes go to a hidden file beside the place, reach the disk, and are then renamed, so that
    neither a crash nor a full disk leaves half a file or harms one that was there.

    Parameters
    ----------
    path : Path
        The file; its folder must exist. One that is there is replaced.
    data : bytes
        All of its content.

    Raises
    ------
    OSError
        The file can't be written.
    """
    with _aside(path, data) as aside:
        aside.replace(path)


def write_new_file(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file whole or not at all where nothing is, not even a link.

    Parameters
    ----------
    path : Path
        The file; its folder must exist.
    data : bytes
        All of its content.
    mode : int
        Its rights, which the user's mask lessens.

    Raises
    ------
    FileExistsError
        Something is there.
    OSError
        The file can't be written.
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
    """Turn an error of the file system into one that says what to do.

    Parameters
    ----------
    what : str
        What should have been written, e.g. ``"the case folder"``.
    place : Path
        Where.
    error : OSError
        What went wrong.
    """
    remedy = _REMEDIES.get(error.errno or 0, "choose another place")
    reason = error.strerror or type(error).__name__
    return OutputError(f"Can't write {what} {printable(str(place))}: {reason.lower()}; {remedy}.")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises
    ------
    OSError
        If it can't be read, or is a link.
    """
    with open_no_link(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_beginning(part: Path, whole: Path) -> bool:
    """Return whether a file holds nothing but the beginning of another, or nothing at all.

    Parameters
    ----------
    part : Path
        What a program that was killed may have left.
    whole : Path
        What it was writing.
    """
    with suppress(OSError), open_no_link(part) as left, open_no_link(whole) as right:
        while block := left.read(2**20):
            if block != right.read(len(block)):
                return False
        return True
    return False


def open_no_link(path: Path) -> io.BufferedReader:
    """Open a file to read it; a link is refused where the system can."""
    no_follow = getattr(os, "O_NOFOLLOW", 0)
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | no_follow))
