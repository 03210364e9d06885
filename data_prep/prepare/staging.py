"""The hidden folder that a cohort grows in, so that a run can be killed and resumed."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.cohort.folder import COHORT_FORMAT, OVERVIEW_FOLDER, SCHEMA_VERSION, read_record
from data_prep.cohort.images import file_sha256
from data_prep.cohort.protocol import Protocol
from data_prep.disk import output_error, write_file
from data_prep.errors import InputError, OutputError
from data_prep.prepare.prepared_series import PreparedSeries
from data_prep.prepare.tasks import SeriesTask, TaskWithSettings
from data_prep.versions import version_of

_PLAN_NAME = "plan.json"
_IMAGE_FOLDERS = ("crops", "masks")
_DISTRIBUTIONS = ("cdam-med", "numpy", "scipy", "nibabel", "pydicom", "scikit-learn", "matplotlib")


@dataclass(frozen=True)
class Staging:
    """A cohort that isn't finished: ``.<name>.partial`` beside the place of the cohort.

    Parameters
    ----------
    out
        Where the cohort goes.
    path
        The hidden folder. ``cohort/`` in it becomes the cohort; ``records/`` holds a file for
        each series that is done.
    """

    out: Path
    path: Path

    @property
    def cohort(self) -> Path:
        """The folder that becomes the cohort."""
        return self.path / "cohort"

    def record(self, series_id: str, series: PreparedSeries) -> None:
        """Record that a series is done: after its images are on the disk.

        Raises
        ------
        OSError
            If the record can't be written.
        """
        write_file(self._record_path(series_id), series.to_json())

    def read(self, series_id: str) -> PreparedSeries | None:
        """Return what became of a series, or None if it has to be done (again).

        A record whose images are missing or changed, as after a crash of the machine, counts as
        none.
        """
        try:
            series = PreparedSeries.from_json(self._record_path(series_id).read_bytes())
            for nodule in series.nodules:
                for place, sha256 in nodule.files.items():
                    if file_sha256(self.cohort / place) != sha256:
                        return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return series

    def clean(self, places: Collection[str]) -> None:
        """Remove every file of the cohort but those at `places`: what a killed run left.

        Raises
        ------
        OSError
            If something can't be removed.
        """
        shutil.rmtree(self.cohort / OVERVIEW_FOLDER, ignore_errors=True)
        for folder in (self.cohort, *(self.cohort / name for name in _IMAGE_FOLDERS)):
            for path in folder.iterdir():
                if path.is_file() and path.relative_to(self.cohort).as_posix() not in places:
                    path.unlink()

    def publish(self) -> None:
        """Move the finished cohort to its place in one step, and remove the hidden folder.

        Raises
        ------
        OSError
            If the place was taken meanwhile, or can't be written to.
        """
        if self.out.exists():
            self.out.rmdir()
        self.cohort.rename(self.out)
        shutil.rmtree(self.path)

    def _record_path(self, series_id: str) -> Path:
        return self.path / "records" / f"{series_id}.json"


def open_staging(out: Path, plan: str, *, resume: bool) -> Staging | None:
    """Make the hidden folder of a new cohort, or go on with one.

    Parameters
    ----------
    out
        Where the cohort goes, absolute.
    plan
        What is asked for, from `plan_of`.
    resume
        Whether to go on with a run that was stopped.

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
    staging = Staging(out, out.with_name(f".{out.name}.partial"))
    try:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            if not (resume and _plan_of_cohort(out) == plan):
                raise OutputError(
                    f"{out} is there already; give another place for the cohort, or remove it."
                )
            shutil.rmtree(staging.path, ignore_errors=True)
            return None
        if os.path.lexists(staging.path):
            _check_resumable(staging, plan, resume=resume)
        for folder in (staging.path / "records", *(staging.cohort / n for n in _IMAGE_FOLDERS)):
            folder.mkdir(parents=True, exist_ok=True)
        write_file(staging.path / _PLAN_NAME, f"{json.dumps({'plan': plan})}\n".encode())
    except OSError as error:
        raise output_error("the cohort folder", out, error) from error
    return staging


def plan_of(tasks: Sequence[SeriesTask], protocol: Protocol) -> str:
    """Return a hash of what is asked for: series, their settings, protocol and versions."""
    series = sorted(
        [
            task.series_id,
            task.patient_id,
            task.settings if isinstance(task, TaskWithSettings) else "",
        ]
        for task in tasks
    )
    plan = [COHORT_FORMAT, SCHEMA_VERSION, series, asdict(protocol), versions()]
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the version of each package that takes part in a cohort."""
    return {name: version_of(name) for name in _DISTRIBUTIONS}


def _plan_of_cohort(folder: Path) -> str:
    """Return the plan of a finished cohort, or ``""`` where there is none."""
    try:
        return read_record(folder).plan
    except InputError:
        return ""


def _check_resumable(staging: Staging, plan: str, *, resume: bool) -> None:
    """Refuse a hidden folder that isn't to be resumed, or holds a run of another plan."""
    place = staging.path
    if not resume:
        raise OutputError(
            f"A run for {staging.out} was stopped and left {place}; go on with it by --resume, or "
            f"remove that folder."
        )
    if place.is_symlink() or not place.is_dir():
        raise OutputError(f"{place} is no folder of a stopped run; remove it.")
    plan_path = place / _PLAN_NAME
    if not plan_path.exists():
        # killed before it began; anything else isn't ours to go on with
        if any(path.is_file() and not path.name.startswith(".") for path in place.rglob("*")):
            raise OutputError(f"{place} is no folder of a stopped run; remove it.")
        return
    try:
        old_plan = json.loads(plan_path.read_bytes()).get("plan")
    except (ValueError, AttributeError):
        old_plan = None
    if old_plan != plan:
        raise OutputError(
            f"The stopped run in {place} was asked for something else (other series, settings, "
            f"protocol or versions); ask for the same again, or remove that folder and start anew."
        )
