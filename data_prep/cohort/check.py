"""Whether a cohort folder is what it says: tables, files, hashes, geometry, folds."""

import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Literal, TypeVar

from data_prep.cohort.folder import (
    EXCLUSIONS_NAME,
    MANIFEST_NAME,
    MOST_TABLE_BYTES,
    OVERVIEW_FOLDER,
    RECORD_NAME,
    CohortRecord,
    counts_of,
    read_bounded,
    read_record,
)
from data_prep.cohort.images import most_image_bytes, read_image_file
from data_prep.cohort.protocol import Protocol
from data_prep.cohort.rows import CohortNodule, Exclusion, file_places
from data_prep.cohort.tables import TableProblem, exclusions_from_csv, nodules_from_csv
from data_prep.disk import file_sha256
from data_prep.errors import InputError, NamedError
from data_prep.text import printable
from data_prep.written import record_name

MOST_PROBLEMS = 1000
"""A folder with more isn't worth listing further."""

_MOST_PICTURE_BYTES = 2**26
_SHOWN_LENGTH = 400
_PICTURE = re.compile(rf"{OVERVIEW_FOLDER}/[A-Za-z0-9_-]{{1,60}}\.png")

_CONCEPT = re.compile(r"concepts/[A-Za-z0-9_-]+\.safetensors")

Row = TypeVar("Row")


@dataclass(frozen=True)
class CohortProblem:
    """Something that is wrong, or odd, with a cohort folder.

    Parameters
    ----------
    name
        Stable name; scripts may rely on it.
    severity
        ``"error"``: the cohort must not be used like this; ``"note"``: know about it.
    message
        One sentence for a person.
    place
        The file or nodule concerned, within the folder; ``""`` for the whole.
    """

    name: str
    severity: Literal["error", "note"]
    message: str
    place: str = ""


def check_cohort(path: str | PathLike[str]) -> tuple[CohortProblem, ...]:
    """Check a cohort folder, whoever made it.

    Nothing in the folder is trusted: every place is worked out from a nodule's name, links
    aren't followed, and no more memory is taken than the tables and one cube need.

    Parameters
    ----------
    path
        The folder.

    Returns
    -------
    tuple of CohortProblem
        Errors and notes, at most `MOST_PROBLEMS`; empty for a sound cohort. The names are listed
        in ``docs/reference/cohort_folder.md``.
    """
    return tuple(islice(_problems(Path(path)), MOST_PROBLEMS))


def _problems(folder: Path) -> Iterator[CohortProblem]:
    try:
        record = read_record(folder)
    except NamedError as error:
        yield _error(error.reason, str(error), RECORD_NAME)
        return
    nodules, problems = _read_table(folder / MANIFEST_NAME, nodules_from_csv)
    exclusions, more = _read_table(folder / EXCLUSIONS_NAME, exclusions_from_csv)
    for problem in (*problems, *more):
        yield _error(problem.name, problem.message)
    yield from _check_names(nodules, exclusions)
    if not problems and not more and dict(record.counts) != counts_of(nodules, exclusions):
        message = f"{RECORD_NAME} counts something else than the tables hold."
        yield _error("wrong_counts", message, RECORD_NAME)
    for nodule in nodules:
        yield from _check_against_protocol(nodule, record.protocol)
    yield from _check_folds(nodules, record.protocol)
    yield from _check_record_files(folder, record)
    for nodule in nodules:
        yield from _check_images(folder, nodule, record.protocol)
    if not problems:
        yield from _extra_files(folder, nodules, record)


def _error(name: str, message: str, place: str = "") -> CohortProblem:
    return CohortProblem(
        name, "error", printable(message)[:_SHOWN_LENGTH], printable(place)[:_SHOWN_LENGTH]
    )


def _note(name: str, message: str, place: str = "") -> CohortProblem:
    return CohortProblem(
        name, "note", printable(message)[:_SHOWN_LENGTH], printable(place)[:_SHOWN_LENGTH]
    )


def _read_table(
    path: Path, parse: Callable[[bytes], tuple[list[Row], list[TableProblem]]]
) -> tuple[list[Row], list[TableProblem]]:
    try:
        return parse(read_bounded(path, MOST_TABLE_BYTES))
    except InputError as error:
        return [], [TableProblem("missing_file", str(error))]


def _check_names(
    nodules: Sequence[CohortNodule], exclusions: Sequence[Exclusion]
) -> Iterator[CohortProblem]:
    """Two nodules must not share a name or a file, also where case doesn't count."""
    places = Counter(
        place.casefold() for nodule in nodules for place in file_places(nodule.nodule_id).values()
    )
    included = set()
    for nodule in nodules:
        included.add(nodule.nodule_id)
        if any(places[place.casefold()] > 1 for place in file_places(nodule.nodule_id).values()):
            message = f"Nodule {nodule.nodule_id} shares its name or a file with another."
            yield _error("duplicate_id", message, nodule.nodule_id)
    for exclusion in exclusions:
        if exclusion.nodule_id in included:
            message = f"Nodule {exclusion.nodule_id} is in both tables."
            yield _error("included_and_excluded", message, exclusion.nodule_id)
    patients: dict[str, str] = {}
    for nodule in nodules:
        if patients.setdefault(nodule.series_id, nodule.patient_id) != nodule.patient_id:
            message = f"Series {nodule.series_id} belongs to two patients."
            yield _error("series_of_two_patients", message, nodule.nodule_id)


def _check_against_protocol(nodule: CohortNodule, protocol: Protocol) -> Iterator[CohortProblem]:
    dropped = {
        "an indeterminate label": nodule.label == "indeterminate"
        and protocol.indeterminate == "drop",
        f"{nodule.n_readers} readers": nodule.n_readers > 0
        and not protocol.min_readers <= nodule.n_readers <= protocol.max_readers,
        "a cube beyond the scan": "reaches_beyond_scan" in nodule.flags and protocol.rim == "drop",
        "an outline beyond the cube": "cut_by_crop" in nodule.flags
        and protocol.too_large == "drop",
    }
    for what, holds in dropped.items():
        if holds:
            message = f"Nodule {nodule.nodule_id} has {what}, which the protocol leaves out."
            yield _error("against_protocol", message, nodule.nodule_id)


def _check_folds(nodules: Sequence[CohortNodule], protocol: Protocol) -> Iterator[CohortProblem]:
    folds_of: dict[str, set[int]] = defaultdict(set)
    for nodule in nodules:
        if nodule.fold is not None:
            folds_of[nodule.patient_id].add(nodule.fold)
            if not 1 <= nodule.fold <= protocol.n_folds:
                message = f"Fold {nodule.fold} isn't one of the protocol's {protocol.n_folds}."
                yield _error("unknown_fold", message, nodule.nodule_id)
    n_without = sum(nodule.fold is None for nodule in nodules)
    if folds_of and n_without:
        yield _error("missing_fold", f"{n_without} nodules are in no fold, others are.")
    leaks = sorted(patient for patient, folds in folds_of.items() if len(folds) > 1)
    if leaks and protocol.group_folds_by == "patient":
        for patient in leaks:
            message = f"Patient {patient} is in folds {sorted(folds_of[patient])}."
            yield _error("patient_in_several_folds", message, patient)
    elif leaks:
        yield _note(
            "patient_in_several_folds",
            f"{len(leaks)} patients are in several folds, as this protocol wants: a model is "
            f"tested on patients it was trained on.",
        )


def _check_record_files(folder: Path, record: CohortRecord) -> Iterator[CohortProblem]:
    for name in (MANIFEST_NAME, EXCLUSIONS_NAME):
        if name not in record.files:
            yield _error("bad_record", f"{RECORD_NAME} has no hash of {name}.", RECORD_NAME)
    for place, sha256 in record.files.items():
        if place in (MANIFEST_NAME, EXCLUSIONS_NAME):
            yield from _check_file(folder, place, sha256, MOST_TABLE_BYTES)
        elif _PICTURE.fullmatch(place):
            yield from _check_file(folder, place, sha256, _MOST_PICTURE_BYTES)
        else:
            message = f"{RECORD_NAME} lists a file that a cohort doesn't have."
            yield _error("bad_record", message, place)


def _check_file(folder: Path, place: str, sha256: str, most_bytes: int) -> Iterator[CohortProblem]:
    """Check that a file is there, a regular one in real folders, and has its hash."""
    path = folder / place
    try:
        if path.parent != folder and path.parent.is_symlink():
            yield _error("not_a_file", f"The folder of {place} is a link.", place)
            return
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            yield _error("not_a_file", f"{place} is no regular file.", place)
        elif status.st_size > most_bytes:
            message = f"{place} has {status.st_size} bytes, more than it can have."
            yield _error("wrong_hash", message, place)
        elif file_sha256(path) != sha256:
            message = f"{place} isn't the file that was written: its SHA-256 differs."
            yield _error("wrong_hash", message, place)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        yield _error("missing_file", f"{place} can't be read: {reason}.", place)


def _check_images(
    folder: Path, nodule: CohortNodule, protocol: Protocol
) -> Iterator[CohortProblem]:
    for kind, place in file_places(nodule.nodule_id).items():
        if place not in nodule.files:
            continue
        problems = list(_check_file(folder, place, nodule.files[place], most_image_bytes(protocol)))
        yield from problems
        # an image whose hash differs is looked at all the same: it may be of the right kind
        if all(problem.name == "wrong_hash" for problem in problems):
            try:
                read_image_file(folder / place, kind=kind, nodule=nodule, protocol=protocol)
            except InputError as error:
                message = str(error).replace(str(folder / place), place)
                yield _error("wrong_image", message, place)


def _extra_files(
    folder: Path, nodules: Sequence[CohortNodule], record: CohortRecord
) -> Iterator[CohortProblem]:
    """Note what belongs to nothing: nobody reads it, but it would be passed on.

    Concepts (``concepts/*.safetensors``) are made from a cohort and lie in it.
    """
    known = {
        RECORD_NAME,
        record_name("cohort"),
        *record.files,
        *(place for row in nodules for place in row.files),
    }
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            place = (Path(parent) / name).relative_to(folder).as_posix()
            if place not in known and not _CONCEPT.fullmatch(place):
                yield _note("extra_file", f"{place} doesn't belong to the cohort.", place)
