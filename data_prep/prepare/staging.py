"""The hidden folder that a cohort grows in, so that a run can be killed and resumed.

``.<name>.partial`` beside the place of the cohort holds the plan and a folder for each time that
the run was begun, ``0001`` and on. A run that goes on takes over what is recorded with the right
hashes and touches nothing else; in the end, what is left is deleted as far as it is proven to be
ours.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from data_prep.cohort.folder import COHORT_FORMAT, SCHEMA_VERSION, read_record
from data_prep.cohort.schema import slicer_safe_id
from data_prep.cohort.select import Protocol
from data_prep.disk import (
    check_folder,
    clear,
    file_sha256,
    finished_name,
    is_beginning,
    json_bytes,
    open_no_link,
    output_error,
    publish,
    write_file,
)
from data_prep.errors import InputError, OutputError
from data_prep.prepare.series import PreparedSeries, SeriesTask
from data_prep.statements import version_of
from data_prep.text import printable

_PLAN_NAME = "plan.json"
_RECORDS, _COHORT = "records", "cohort"
_IMAGE_FOLDERS = ("crops", "masks")
_DISTRIBUTIONS = ("cdam-med", "numpy", "scipy", "nibabel", "pydicom", "scikit-learn", "matplotlib")


@dataclass(frozen=True)
class Staging:
    """A cohort that isn't finished.

    Parameters
    ----------
    out
        Where the cohort goes.
    path
        The folder of this time, made by this run: ``cohort/`` in it becomes the cohort;
        ``records/`` holds a file for each series that is done.
    overwrite
        Whether an earlier cohort at the place is replaced.
    """

    out: Path
    path: Path
    overwrite: bool = False

    @property
    def cohort(self) -> Path:
        """The folder that becomes the cohort."""
        return self.path / _COHORT

    def record(self, series_id: str, series: PreparedSeries) -> None:
        """Record that a series is done: after its images are on the disk."""
        write_file(self.path / _RECORDS / f"{series_id}.json", series.to_json())

    def read(self, series_id: str) -> PreparedSeries | None:
        """Return what became of a series, or None if it has to be done (again).

        A record whose images are missing or changed, as after a crash of the machine, counts as
        none.
        """
        return _read(self.path, f"{series_id}.json")

    def clean(self, places: Collection[str], series_ids: Collection[str]) -> None:
        """Take every file out of the cohort but those at `places`, before the tables are written.

        Images that this run wrote of series that failed later are deleted, anything else is
        moved to the folder ``left`` beside the cohort.
        """
        ours = tuple(
            f"{folder}/{slicer_safe_id(name)}_" for folder in _IMAGE_FOLDERS for name in series_ids
        )
        for parent, folders, files in os.walk(self.cohort):
            for path in [Path(parent) / name for name in (*files, *folders)]:
                place = path.relative_to(self.cohort).as_posix()
                is_plain = path.is_file() and not path.is_symlink()
                if (is_plain and place in places) or _is_folder(path):
                    continue
                if is_plain and _finished_place(place).startswith(ours):
                    path.unlink()
                    continue
                left = self.path / "left" / place
                left.parent.mkdir(parents=True, exist_ok=True)
                path.rename(left)

    def publish(self) -> None:
        """Move the finished cohort to its place in one step, and remove the hidden folder.

        What in the hidden folder isn't ours to delete stays, with an OutputWarning.
        """
        publish(self.cohort, self.out, "cohort", overwrite=self.overwrite)
        _clear(self.path.parent, self.out)

    def discard(self, series_ids: Collection[str]) -> None:
        """Remove the hidden folder of a cohort that isn't wanted, as far as it is ours."""
        self.clean((), series_ids)
        _clear(self.path.parent, self.cohort)

    def take_over(self, earlier: Path) -> None:
        """Move what is recorded with the right hashes from the folder of an earlier time."""
        for name in _names(earlier / _RECORDS):
            series = _read(earlier, name)
            if series is None:
                continue
            for nodule in series.nodules:
                for place in nodule.files:
                    (earlier / _COHORT / place).rename(self.cohort / place)
            # last: killed before it, the series is done again
            (earlier / _RECORDS / name).rename(self.path / _RECORDS / name)


def open_staging(
    out: Path, plan: str, *, resume: bool = False, overwrite: bool = False
) -> Staging | None:
    """Make the hidden folder of a new cohort at an absolute path, or go on with one.

    Returns
    -------
    Staging or None
        None if the cohort is there already, made by the same plan, and `resume` is asked for.

    Raises
    ------
    OutputError
        If the place is taken, a stopped run is there and `resume` isn't asked for, or the stopped
        run had another plan.
    """
    partial = out.with_name(f".{out.name}.partial")
    try:
        if resume and not out.is_symlink() and _plan_of_cohort(out) == plan:
            if _is_folder(partial):
                _clear(partial, out)
            return None
        check_folder(out, "cohort", overwrite=overwrite)
        if os.path.lexists(partial):
            _check_resumable(partial, out, plan, resume=resume)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            partial.mkdir()
        if not (partial / _PLAN_NAME).exists():
            write_file(partial / _PLAN_NAME, _plan_json(plan))
        earlier = [partial / name for name in _names(partial) if re.fullmatch("[0-9]{4}", name)]
        number = int(earlier[-1].name) + 1 if earlier else 1
        staging = Staging(out, partial / f"{number:04d}", overwrite)
        for folder in ("", _RECORDS, _COHORT, *(f"{_COHORT}/{name}" for name in _IMAGE_FOLDERS)):
            (staging.path / folder).mkdir()
        for attempt in earlier:
            staging.take_over(attempt)
    except OSError as error:
        raise output_error("the cohort folder", out, error) from error
    return staging


def plan_of(tasks: Sequence[SeriesTask], protocol: Protocol) -> str:
    """Return a hash of what is asked for: series, their settings, protocol and versions."""
    series = sorted(
        [task.series_id, task.patient_id, getattr(task, "settings", "")] for task in tasks
    )
    plan = [COHORT_FORMAT, SCHEMA_VERSION, series, asdict(protocol), versions()]
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


@cache
def versions() -> dict[str, str]:
    """Return the version of each package that takes part in a cohort."""
    return {name: version_of(name) for name in _DISTRIBUTIONS}


def _plan_of_cohort(folder: Path) -> str:
    """Return the plan of a finished cohort, or ``""`` where there is none."""
    try:
        return read_record(folder).plan
    except InputError:
        return ""


def _check_resumable(partial: Path, out: Path, plan: str, *, resume: bool) -> None:
    """Refuse a hidden folder that isn't to be resumed, or holds a run of another plan."""
    place = printable(str(partial))
    if not resume:
        raise OutputError(
            f"A run for {printable(str(out))} was stopped and left {place}; go on with it by "
            f"resume=True, or remove that folder."
        )
    plan_path = partial / _PLAN_NAME
    is_known = _is_folder(partial)
    if is_known and os.path.lexists(plan_path):
        is_known = _is_plan(plan_path)
    elif is_known:  # killed before it began
        is_known = all(_finished_place(name) == _PLAN_NAME for name in _names(partial))
    if not is_known:
        raise OutputError(f"{place} is no folder of a stopped run; move it away.")
    if plan_path.exists() and plan_path.read_bytes() != _plan_json(plan):
        raise OutputError(
            f"The stopped run in {place} was asked for something else (other series, settings, "
            f"protocol or versions); ask for the same again, or remove that folder and start anew."
        )


def _plan_json(plan: str) -> bytes:
    return json_bytes({"plan": plan}, indent=None)


def _is_plan(path: Path) -> bool:
    with suppress(OSError), open_no_link(path) as file:
        return re.fullmatch(rb'\{"plan": "[0-9a-f]{64}"\}\n', file.read(100)) is not None
    return False


def _read(attempt: Path, record_name: str) -> PreparedSeries | None:
    """Return a recorded series whose images are there with the recorded hashes, through no link."""
    folders = (attempt, attempt / _RECORDS, attempt / _COHORT)
    if not all(map(_is_folder, (*folders, *(folders[2] / name for name in _IMAGE_FOLDERS)))):
        return None
    series = _read_record(attempt / _RECORDS / record_name)
    files = {} if series is None else {p: h for row in series.nodules for p, h in row.files.items()}
    with suppress(OSError):
        if all(file_sha256(attempt / _COHORT / place) == files[place] for place in files):
            return series
    return None


def _read_record(path: Path) -> PreparedSeries | None:
    """Return the series of a file that is exactly what `Staging.record` writes, or None."""
    with suppress(OSError), open_no_link(path) as file:
        return PreparedSeries.from_json(file.read())
    return None


def _clear(partial: Path, cohort: Path) -> None:
    """Delete what runs left, as far as it is a part of the finished cohort or a record of ours."""

    def is_ours(place: str, path: Path) -> bool:
        _, folder, name = (*_finished_place(place).split("/", 2), "", "")[:3]
        if folder == _COHORT:
            return is_beginning(path, cohort / name)
        if folder == _RECORDS:
            others = (each for each in partial.glob(f"*/{folder}/{name}") if each != path)
            is_record = _read_record(path) is not None
            return is_record or any(is_beginning(path, each) for each in others)
        return _is_plan(path)

    clear(partial, is_ours)


def _finished_place(place: str) -> str:
    folder, slash, name = place.rpartition("/")
    return f"{folder}{slash}{finished_name(name)}"


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _names(folder: Path) -> list[str]:
    """Return the names in a folder, in order; none if it is a link or isn't there."""
    return sorted(path.name for path in folder.iterdir()) if _is_folder(folder) else []
