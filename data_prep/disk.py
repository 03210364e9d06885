"""Writing so that nobody ever meets half a file."""

import errno
import os
import secrets
from pathlib import Path

from data_prep.errors import OutputError

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


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    The bytes go to a hidden file beside the place, reach the disk, and are then renamed, so that
    neither a crash nor a full disk leaves half a file or harms one that was there.

    Parameters
    ----------
    path : Path
        The file; its folder must exist.
    data : bytes
        All of its content.

    Raises
    ------
    OSError
        The file can't be written.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            # a network file system may report a full disk only here
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


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
    return OutputError(f"Can't write {what} {place}: {reason.lower()}; {remedy}.")
