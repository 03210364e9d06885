"""Writing folders whole or not at all, and replacing or cleaning them without loss.

A folder that is written here holds a record of exactly what was written, ``.cdam-med-KIND.sha256``,
as ``sha256sum`` writes it (``sha256sum -c`` checks it). A folder is replaced only if the record
proves every file in it; what is deleted is deleted file by file, each because it is proven to be
ours, and never through a link.
"""

import hashlib
import os
import re
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from data_prep.disk import file_sha256, open_no_link, output_error, write_file
from data_prep.errors import OutputError
from data_prep.text import printable

_RECORD_LINE = re.compile(r"([0-9a-f]{64})  ([^\\]+)")
_MOST_RECORD_BYTES = 2**28  # a million files
_MOST_NAMED = 3


class OutputWarning(UserWarning):
    """Something was written, but beside it something is left that isn't cdam-med's to delete."""


def remove(folder: Path, is_ours: Callable[[str, Path], bool]) -> tuple[Path, ...]:
    """Delete a folder file by file, as far as each is proven to be ours.

    Parameters
    ----------
    folder : Path
        A folder, no link to one.
    is_ours : callable
        Says it of a regular file, given its place in the folder (``a/b.txt``) and its path.

    Returns
    -------
    tuple of Path
        What is left: links, and what isn't ours. The folder is gone if that is nothing.

    Raises
    ------
    OSError
        If something can't be read or deleted.
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


def check_folder(place: Path, kind: str, *, overwrite: bool) -> None:
    """Refuse a place that can't be used before any work is done for what is to go there.

    Parameters
    ----------
    place : Path
        Where a folder is to be written. Nothing or an empty folder may be there; missing parents
        are made later.
    kind : str
        Of the folder: ``"case"``, ``"cohort"``, ``"model"`` or ``"report"``.
    overwrite : bool
        A folder of that kind may be there, if it holds what was written and nothing else.

    Raises
    ------
    OutputError
        If the place is taken or a link, holds anything that is no proven part of such a folder,
        or can't be written to.
    """
    place, shown = place.absolute(), _shown(place)
    if place.is_symlink():
        raise OutputError(
            f"{shown} is a link, and nothing is written through one: give the folder that it "
            f"stands for, or another place."
        )
    if not os.path.lexists(place) or _is_empty_folder(place):
        check_parent(place)
        return
    if not place.is_dir():
        raise OutputError(f"{shown} is a file; choose another name for the {kind} folder.")
    hashes = _recorded(place, kind)
    if hashes is None:
        raise OutputError(
            f"{shown} is there already and isn't a {kind} folder of cdam-med (it has no "
            f"{record_name(kind)} of ours); choose another place or move it away."
        )
    if not overwrite:
        raise OutputError(
            f"{shown} is there already; choose another place, or replace it by overwrite=True."
        )
    foreign = list(_foreign(place, hashes))
    if foreign:
        raise OutputError(
            f"{shown} holds what cdam-med didn't write, or what was changed since, and isn't "
            f"replaced: {_few(foreign)}; move it away or choose another place."
        )
    check_parent(place)


@contextmanager
def written_folder(
    path: str | os.PathLike[str], kind: str, *, overwrite: bool = False
) -> Iterator[Path]:
    """Give a new folder to fill, which takes its place only when the block ends well.

    The folder to fill is a hidden one beside the place (so on the same file system), renamed at
    the end. After an error nothing is left of it and the place is as it was.

    Parameters
    ----------
    path : path-like
        The place, as `check_folder` allows it. Missing parent folders are made (and unmade after
        an error).
    kind : str
        As `check_folder` takes it.
    overwrite : bool
        Replace a folder of that kind.

    Yields
    ------
    Path
        The folder to fill. Do nothing in the block but write into it: every OSError in it is
        taken for one of writing.

    Raises
    ------
    OutputError
        `check_folder` refuses the place, or it can't be written to: full, no permission, a file
        among its parents, and so on.

    Warns
    -----
    OutputWarning
        Something foreign came into the folder while it was replaced; it is kept, and named.
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
    """Write the record of a finished folder and move it to its place.

    Parameters
    ----------
    new : Path
        The folder, on the place's file system. Empty folders in it go.
    place : Path
        Where it goes; checked again by `check_folder`.
    kind, overwrite
        As for `written_folder`.

    Raises
    ------
    OutputError
        `check_folder` refuses the place.
    OSError
        The place was taken meanwhile, or can't be written to.

    Warns
    -----
    OutputWarning
        As `written_folder` does.
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
    """Name what a written folder lacks, holds besides, or holds changed.

    Parameters
    ----------
    folder : Path
        The folder.
    kind : str
        As for `written_folder`.

    Returns
    -------
    tuple of str or None
        Empty for a folder as it was written; None if it has no record of ours.
    """
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


def check_parent(place: Path) -> None:
    """Refuse a place that no file or folder could be made at.

    Parameters
    ----------
    place : Path
        Missing parents are made later.

    Raises
    ------
    OutputError
        If one of its parents is a file or a broken link, or may not be written to.
    """
    parent = next(parent for parent in place.absolute().parents if os.path.lexists(parent))
    if not parent.is_dir():
        raise OutputError(
            f"{_shown(place)} can't be written: {_shown(parent)}, a part of this path, is a file "
            f"or a broken link; choose another place."
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"{_shown(place)} can't be made in {_shown(parent)}; choose a folder that you may "
            f"write to."
        )


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
