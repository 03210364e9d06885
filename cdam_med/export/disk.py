"""Writing case folders so that nobody ever meets half of one."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_prep.disk import output_error
from data_prep.errors import OutputError

CASE_FORMAT = "cdam-med case"
"""Value of ``format`` in the ``case.json`` of every case folder."""

RECORD_NAME = "case.json"
"""The file that makes a folder a case folder; it lists all the others."""


@contextmanager
def case_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a new folder to fill, which takes its place only when the block ends well.

    The folder to fill is a hidden one beside the place (so on the same file system), renamed at
    the end. After an error nothing is left of it and the place is as it was. A case folder of an
    earlier run is replaced; anything else that is there is refused and left alone.

    Parameters
    ----------
    path : path-like
        The place. Missing parent folders are made (and unmade after an error).

    Yields
    ------
    Path
        The folder to fill. Do nothing in the block but write into it: every OSError in it is
        taken for one of writing.

    Raises
    ------
    OutputError
        Something else is at the place, or the place can't be written to: full, no permission, a
        file among its parents, and so on.
    """
    place = Path(path).absolute()
    missing_parents: list[Path] = []
    try:
        # the real place, so that a link to a folder on another disk stays a link
        place = place.resolve()
        _check_place(place)
        missing_parents = [parent for parent in place.parents if not parent.exists()]
        place.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".cdam-med-", dir=place.parent))
        try:
            # one level down: mkdtemp's folder is closed to all but its owner
            new = staging / "new"
            new.mkdir()
            yield new
            _swap(new, place, staging / "old")
        finally:
            # at worst a hidden folder stays; it must not hide the error or undo the success
            shutil.rmtree(staging, ignore_errors=True)
    except BaseException as error:
        for parent in missing_parents:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise output_error("the case folder", place, error) from error
        raise


def _swap(new: Path, place: Path, old: Path) -> None:
    # again: the check before the block may be minutes old
    _check_place(place)
    if not place.exists():
        new.rename(place)
        return
    place.rename(old)
    try:
        new.rename(place)
    except OSError:
        old.rename(place)
        raise


def _check_place(place: Path) -> None:
    """Refuse to replace what isn't a case folder of ours, or holds anything beside our files."""
    if not place.exists():
        return
    if not place.is_dir():
        raise OutputError(f"{place} is a file; choose another name for the case folder.")
    present = {entry.name for entry in place.iterdir() if not entry.name.startswith(".")}
    if not present:
        return
    ours = _recorded_files(place / RECORD_NAME)
    if ours is None:
        raise OutputError(
            f"{place} exists and isn't a case folder of cdam-med (it has no {RECORD_NAME} of ours);"
            f" choose another place or move it away."
        )
    foreign = sorted(present - ours)
    if foreign:
        raise OutputError(
            f"{place} also holds files that cdam-med didn't write ({', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}); move them away or choose another place."
        )


def _recorded_files(record: Path) -> set[str] | None:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("format") != CASE_FORMAT:
        return None
    files = content.get("files")
    return {str(name) for name in files} if isinstance(files, dict) else None
