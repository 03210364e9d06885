"""Many series and their nodules to a cohort folder: in parallel, resumable, never half a folder."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.cohort import folder, schema
from data_prep.cohort.schema import CohortNodule, Exclusion
from data_prep.cohort.select import Protocol
from data_prep.disk import file_sha256, output_error, write_file
from data_prep.errors import InputError
from data_prep.prepare.series import (
    PreparedSeries,
    SeriesTask,
    exclusion_of_cohort,
    failure,
    prepare_series,
)
from data_prep.prepare.staging import Staging, open_staging, plan_of, versions
from data_prep.prepare.workers import WorkerDied, map_in_processes
from data_prep.text import printable

_STRATA = ("benign", "malignant", "indeterminate", "")
_MOST_NAMED = 10

Progress = Callable[[int, int, str], None]


class EmptyCohortError(InputError):
    """No nodule is left for a cohort, so that none is written; `exclusions` say why."""

    def __init__(self, place: Path, exclusions: Sequence[Exclusion]) -> None:
        counts = _count_reasons(exclusions)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        super().__init__(
            f"No nodule is left for the cohort {printable(str(place))}, so it isn't written; left "
            f"out: {reasons or 'nothing, for there was nothing to prepare'}."
        )
        self.exclusions = tuple(exclusions)


@dataclass(frozen=True)
class CohortSummary:
    """What came of a run.

    Parameters
    ----------
    path
        The cohort folder.
    counts
        As in ``cohort.json``: of nodules, patients, series, labels, folds and exclusions.
    reasons
        How many series and nodules were left out for each reason, most first.
    notes
        Sentences on the cohort as a whole.
    """

    path: Path
    counts: Mapping[str, Any]
    reasons: Mapping[str, int]
    notes: tuple[str, ...]


def prepare_cohort(  # noqa: PLR0913  what the command passes on
    tasks: Sequence[SeriesTask],
    protocol: Protocol,
    out: str | PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    jobs: int = 1,
    exclusions: Sequence[Exclusion] = (),
    overview: bool = False,
    progress: Progress | None = None,
) -> CohortSummary:
    """Make a cohort folder of many series.

    The folder appears whole or not at all: it grows in ``.<name>.partial`` beside its place. The
    same input gives the same bytes, whatever the jobs and the order of the tasks, and however
    often the run was killed and resumed. A series that fails is a row of ``exclusions.csv``.

    Parameters
    ----------
    tasks
        The series.
    protocol
        Which nodules are taken, how they are cropped and split.
    out
        Place of the cohort folder; nothing or an empty folder may be there.
    resume
        Go on with a run that was stopped and was asked for the same; one that had finished is
        left as it is.
    overwrite
        Replace an earlier cohort at the place, once the new one is whole. One that holds anything
        else, or a file that was changed since, is refused.
    jobs
        Series worked on at a time, in processes of their own. With one job all is done in this
        process, and a crash inside a decoder ends the run.
    exclusions
        What the source left out before: rows with the cohort's names (`cohort_nodule_id`).
    overview
        Also draw every nodule and the distributions of the labels.
    progress
        Called after each series with the number done, the number of all, and its id.

    Returns
    -------
    CohortSummary
        What the folder holds.

    Raises
    ------
    InputError
        If a name of a task isn't safe or not different from the others, or `jobs` is below 1.
    EmptyCohortError
        If no nodule is left: nothing is written, and the error holds the exclusions.
    OutputError
        If the place is taken or can't be written to; what is done stays for `resume`.
    """
    if jobs < 1:
        raise InputError(f"jobs is {jobs}; give a number from 1 on.")
    tasks = sorted(tasks, key=lambda task: task.series_id)
    _check_names(tasks)
    before = [exclusion_of_cohort(row) for row in exclusions]
    place = Path(out).absolute()
    if not tasks:
        raise EmptyCohortError(place, before)
    plan = plan_of(tasks, protocol)
    staging = open_staging(place, plan, resume=resume, overwrite=overwrite)
    if staging is None:
        return _summary(folder.read_cohort(place))
    try:
        done = _prepare_all(tasks, protocol, staging, jobs, progress)
        return _finish(staging, protocol, tasks, done, before, plan=plan, overview=overview)
    except OSError as error:
        raise output_error("the cohort folder", place, error) from error


class _Work(NamedTuple):
    """One series, as it is sent to a process."""

    task: SeriesTask
    protocol: Protocol
    staging: Staging
    reserved: tuple[str, ...]


def _do(work: _Work) -> OSError | None:
    """Prepare a series and record it; an error of writing is returned, as it ends the run."""
    task, cohort = work.task, work.staging.cohort
    try:
        try:
            series = prepare_series(task, work.protocol, cohort, reserved=work.reserved)
        except MemoryError as error:  # while writing; elsewhere it is an exclusion already
            series = PreparedSeries((), (failure(task, "", error),))
        work.staging.record(task.series_id, series)
    except OSError as error:
        return error
    return None


def _prepare_all(
    tasks: Sequence[SeriesTask],
    protocol: Protocol,
    staging: Staging,
    jobs: int,
    progress: Progress | None,
) -> list[PreparedSeries]:
    """Prepare every series that isn't recorded, and return all."""
    done = {task.series_id: staging.read(task.series_id) for task in tasks}
    n_done = sum(series is not None for series in done.values())
    starts = {
        task.series_id: f"{schema.slicer_safe_id(task.series_id)}_".casefold() for task in tasks
    }
    waiting = []
    for task in (task for task in tasks if done[task.series_id] is None):
        # beginnings of nodule names that belong to series with longer names
        own = starts[task.series_id]
        longer = [start for start in starts.values() if start.startswith(own) and start != own]
        waiting.append(_Work(task, protocol, staging, tuple(longer)))
    answers: Iterable[tuple[_Work, OSError | WorkerDied | None]]
    if jobs == 1:
        answers = ((work, _do(work)) for work in waiting)
    else:
        answers = map_in_processes(_do, waiting, jobs=jobs)
    for work, answer in answers:
        task = work.task
        if isinstance(answer, OSError):
            raise answer
        if answer is None:
            done[task.series_id] = staging.read(task.series_id)
        else:
            # not recorded: with more memory a resumed run may do better
            message = (
                f"The process that prepared it ended with code {answer.exit_code}, twice; "
                f"-9 often means that memory ran out: use fewer jobs."
            )
            died = Exclusion(task.patient_id, task.series_id, "", "worker_died", message)
            done[task.series_id] = PreparedSeries((), (died,))
        n_done += 1
        if progress is not None:
            progress(n_done, len(tasks), task.series_id)
    prepared = []
    for series_id, series in done.items():
        if series is None:
            raise OSError(5, f"what was written of series {series_id} can't be read back")
        prepared.append(series)
    return prepared


def _finish(
    staging: Staging,
    protocol: Protocol,
    tasks: Sequence[SeriesTask],
    done: Sequence[PreparedSeries],
    before: Sequence[Exclusion],
    *,
    plan: str,
    overview: bool,
) -> CohortSummary:
    """Write tables, pictures and record, and move the folder to its place."""
    nodules = sorted((row for series in done for row in series.nodules), key=schema.reading_order)
    left_out = {*before, *(row for series in done for row in series.exclusions)}
    exclusions = sorted(left_out, key=schema.reading_order)
    series_ids = [task.series_id for task in tasks]
    if not nodules:
        staging.discard(series_ids)
        raise EmptyCohortError(staging.out, exclusions)
    staging.clean({place for row in nodules for place in row.files}, series_ids)
    folded, notes = _with_folds(nodules, protocol)
    write_file(staging.cohort / folder.MANIFEST_NAME, schema.manifest_csv(folded))
    write_file(staging.cohort / folder.EXCLUSIONS_NAME, schema.exclusions_csv(exclusions))
    record = folder.CohortRecord(
        protocol=protocol,
        versions=versions(),
        notes=(*notes, *_mask_notes(folded)),
        sources=tuple(sorted({source for series in done for source in series.sources})),
        counts=folder.counts_of(folded, exclusions),
        files={},
        plan=plan,
    )
    cohort = folder.Cohort(staging.cohort, record, folded, tuple(exclusions))
    names = [folder.MANIFEST_NAME, folder.EXCLUSIONS_NAME]
    if overview:
        # imported here: it brings matplotlib
        from data_prep.cohort.overview import write_overview

        names += [
            f"{folder.OVERVIEW_FOLDER}/{path.name}"
            for path in write_overview(cohort, staging.cohort / folder.OVERVIEW_FOLDER)
        ]
    record = replace(record, files={name: file_sha256(staging.cohort / name) for name in names})
    write_file(staging.cohort / folder.RECORD_NAME, folder.record_json(record))
    staging.publish()
    return _summary(replace(cohort, path=staging.out, record=record))


def _check_names(tasks: Sequence[SeriesTask]) -> None:
    """Refuse names that can't name files, or can't be told apart in them."""
    seen: dict[str, str] = {}
    for task in tasks:
        for what, name in (("series", task.series_id), ("patient", task.patient_id)):
            if not schema.is_safe_id(name):
                raise InputError(
                    f"The {what} name {printable(name)[:60]!a} can't be used in a path; give "
                    f"letters, digits, '_' and '-'."
                )
        # file systems that ignore case would mix them up
        name = schema.slicer_safe_id(task.series_id).casefold()
        if name in seen:
            raise InputError(
                f"The series names {seen[name]} and {task.series_id} can't be told apart in file "
                f"names; give each series a name of its own."
            )
        seen[name] = task.series_id


def _with_folds(
    nodules: Sequence[CohortNodule], protocol: Protocol
) -> tuple[tuple[CohortNodule, ...], tuple[str, ...]]:
    """Return nodules with their folds, from 1, and sentences on what to know.

    The folds depend on the order of the nodules; each label is a stratum, also no label. Where
    they can't be made, the nodules are as they were and a sentence says why.
    """
    # imported here: worker processes start sooner without scikit-learn
    from data_prep.folds import patient_folds, ungrouped_folds

    notes = []
    folds: list[int | None] = [None] * len(nodules)
    strata = np.array([_STRATA.index(nodule.label) for nodule in nodules])
    try:
        if protocol.group_folds_by == "patient":
            patients = [nodule.patient_id for nodule in nodules]
            pairs = patient_folds(strata, patients, n_folds=protocol.n_folds, seed=protocol.seed)
        else:
            pairs = ungrouped_folds(strata, n_folds=protocol.n_folds, seed=protocol.seed)
        for fold, (_, test) in enumerate(pairs, start=1):
            for number in test.tolist():
                folds[number] = fold
    except InputError as error:
        notes.append(f"No folds: {error}")
    if protocol.group_folds_by == "nodule":
        notes.append(
            "Folds are by nodule, as published: models are tested on patients they were trained "
            "on, so compare their figures with the publication and nothing else."
        )
    pairs_of = zip(nodules, folds, strict=True)
    return tuple(replace(nodule, fold=fold) for nodule, fold in pairs_of), tuple(notes)


def _mask_notes(nodules: Sequence[CohortNodule]) -> list[str]:
    """Say of which nodules the mask isn't only what was drawn."""
    meanings = {
        "combined_contours": "Contours that lie within each other, overlap or wind around "
        "themselves were combined by a rule",
        "interpolated_mask": "Slices of the mask that nobody drew were interpolated",
    }
    notes = []
    for flag, meaning in meanings.items():
        named = [nodule.nodule_id for nodule in nodules if flag in nodule.flags]
        if named:
            more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
            notes.append(f"{meaning} ({flag}): {', '.join(named[:_MOST_NAMED])}{more}.")
    return notes


def _count_reasons(exclusions: Iterable[Exclusion]) -> dict[str, int]:
    """Count the exclusions by their reasons, most first."""
    reasons = Counter(exclusion.reason for exclusion in exclusions)
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def _summary(cohort: folder.Cohort) -> CohortSummary:
    reasons = _count_reasons(cohort.exclusions)
    return CohortSummary(cohort.path, cohort.record.counts, reasons, cohort.record.notes)
