"""A series that is to become part of a cohort: what the sources give, and `prepare` takes."""

import typing
from collections.abc import Sequence
from dataclasses import dataclass

from data_prep.cohort.rows import Exclusion, is_safe_id, slicer_safe_id
from data_prep.errors import InputError
from data_prep.nodules import Nodule
from data_prep.text import printable
from data_prep.volume import CTVolume


@dataclass(frozen=True, eq=False)
class LoadedSeries:
    """A series with its nodules.

    Parameters
    ----------
    volume
        The scan.
    nodules
        Its nodules; their ids differ within the series.
    exclusions
        What the source left out of the series; nodules by their ids within the series.
    flags
        Names for the manifest that hold for the whole series, e.g. ``"initial_release_scales"``.
    sources
        Licence and citation, one line each, for ``cohort.json``.
    """

    volume: CTVolume
    nodules: Sequence[Nodule]
    exclusions: Sequence[Exclusion] = ()
    flags: Sequence[str] = ()
    sources: Sequence[str] = ()


@typing.runtime_checkable
class SeriesTask(typing.Protocol):
    """A series that is to be prepared: small enough to be sent to another process (pickled)."""

    @property
    def series_id(self) -> str:
        """Name of the series: safe as a file name, different for each task."""

    @property
    def patient_id(self) -> str:
        """Name of the patient: safe as a file name."""

    def load(self) -> LoadedSeries:
        """Read the series and its nodules.

        Raises
        ------
        InputError
            If it can't be used: it becomes a row of the exclusions.
        """


@typing.runtime_checkable
class TaskWithSettings(SeriesTask, typing.Protocol):
    """A task that says what its result depends on besides its files.

    A run that is resumed with other settings is refused instead of mixing both.
    """

    @property
    def settings(self) -> str:
        """Any text, e.g. the repairs asked for; the same whenever the same is asked for."""


def check_names(tasks: Sequence[SeriesTask]) -> None:
    """Refuse names that can't name files, or can't be told apart in them.

    Parameters
    ----------
    tasks
        The series.

    Raises
    ------
    InputError
        A name is refused.
    """
    seen: dict[str, str] = {}
    for task in tasks:
        for what, name in (("series", task.series_id), ("patient", task.patient_id)):
            if not is_safe_id(name):
                raise InputError(
                    f"The {what} name {printable(name)[:60]!a} can't be used in a path; give "
                    f"letters, digits, '_' and '-'."
                )
        # file systems that ignore case would mix them up
        name = slicer_safe_id(task.series_id).casefold()
        if name in seen:
            raise InputError(
                f"The series names {seen[name]} and {task.series_id} can't be told apart in file "
                f"names; give each series a name of its own."
            )
        seen[name] = task.series_id


def reserved_starts(tasks: Sequence[SeriesTask]) -> dict[str, tuple[str, ...]]:
    """Return for each series the beginnings of nodule names that belong to longer-named ones.

    Parameters
    ----------
    tasks
        The series.
    """
    starts = sorted(f"{slicer_safe_id(task.series_id)}_".casefold() for task in tasks)
    reserved = {}
    for task in tasks:
        own = f"{slicer_safe_id(task.series_id)}_".casefold()
        reserved[task.series_id] = tuple(
            start for start in starts if start != own and start.startswith(own)
        )
    return reserved
