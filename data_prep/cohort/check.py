"""Whether a cohort folder is what it says: tables, files, hashes, geometry, folds."""

import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TypeVar

from data_prep.cohort.folder import (
    EXCLUSIONS_NAME,
    MANIFEST_NAME,
    MOST_TABLE_BYTES,
    OVERVIEW_FOLDER,
    RECORD_NAME,
    counts_of,
    most_image_bytes,
    read_bounded,
    read_image_file,
    read_record,
)
from data_prep.cohort.schema import (
    CohortNodule,
    CohortProblem,
    Exclusion,
    exclusions_from_csv,
    file_places,
    nodules_from_csv,
    problem,
)
from data_prep.cohort.select import Protocol, cube_refusal, nodule_refusal
from data_prep.disk import file_sha256, record_name
from data_prep.errors import InputError, NamedError

MOST_PROBLEMS = 1000
"""A folder with more isn't worth listing further."""

_MOST_PICTURE_BYTES = 2**26
_PICTURE = re.compile(rf"{OVERVIEW_FOLDER}/[A-Za-z0-9_-]{{1,60}}\.png")
_CONCEPT = re.compile(r"concepts/[A-Za-z0-9_-]+\.safetensors")

Row = TypeVar("Row")


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
        yield problem(error.reason, str(error), RECORD_NAME)
        return
    nodules, of_manifest = _read_table(folder / MANIFEST_NAME, nodules_from_csv)
    exclusions, of_exclusions = _read_table(folder / EXCLUSIONS_NAME, exclusions_from_csv)
    yield from (*of_manifest, *of_exclusions)
    yield from _check_names(nodules, exclusions)
    are_whole = not of_manifest and not of_exclusions
    if are_whole and dict(record.counts) != counts_of(nodules, exclusions):
        message = f"{RECORD_NAME} counts something else than the tables hold."
        yield problem("wrong_counts", message, RECORD_NAME)
    for nodule in nodules:
        yield from _check_against_protocol(nodule, record.protocol)
    yield from _check_folds(nodules, record.protocol)
    for name in {MANIFEST_NAME, EXCLUSIONS_NAME} - set(record.files):
        yield problem("bad_record", f"{RECORD_NAME} has no hash of {name}.", RECORD_NAME)
    for place, sha256 in record.files.items():
        if place in (MANIFEST_NAME, EXCLUSIONS_NAME):
            yield from _check_file(folder, place, sha256, MOST_TABLE_BYTES)
        elif _PICTURE.fullmatch(place):
            yield from _check_file(folder, place, sha256, _MOST_PICTURE_BYTES)
        else:
            message = f"{RECORD_NAME} lists a file that a cohort doesn't have."
            yield problem("bad_record", message, place)
    for nodule in nodules:
        yield from _check_images(folder, nodule, record.protocol)
    if not of_manifest:
        places = {place for row in nodules for place in row.files}
        yield from _extra_files(folder, {*record.files, *places})


def _read_table(
    path: Path, parse: Callable[[bytes], tuple[list[Row], list[CohortProblem]]]
) -> tuple[list[Row], list[CohortProblem]]:
    try:
        return parse(read_bounded(path, MOST_TABLE_BYTES))
    except InputError as error:
        return [], [problem("missing_file", str(error))]


def _check_names(
    nodules: Sequence[CohortNodule], exclusions: Sequence[Exclusion]
) -> Iterator[CohortProblem]:
    """Two nodules must not share a name or a file, also where case doesn't count."""
    uses = Counter(
        place.casefold() for nodule in nodules for place in file_places(nodule.nodule_id).values()
    )
    patients: dict[str, str] = {}
    for nodule in nodules:
        name = nodule.nodule_id
        if any(uses[place.casefold()] > 1 for place in file_places(name).values()):
            yield problem(
                "duplicate_id", f"Nodule {name} shares a name or file with another.", name
            )
        if patients.setdefault(nodule.series_id, nodule.patient_id) != nodule.patient_id:
            message = f"Series {nodule.series_id} belongs to two patients."
            yield problem("series_of_two_patients", message, name)
    included = {nodule.nodule_id for nodule in nodules}
    for name in (exclusion.nodule_id for exclusion in exclusions):
        if name in included:
            yield problem("included_and_excluded", f"Nodule {name} is in both tables.", name)


def _check_against_protocol(nodule: CohortNodule, protocol: Protocol) -> Iterator[CohortProblem]:
    of_cube = cube_refusal(
        protocol,
        is_cut="cut_by_crop" in nodule.flags,
        is_beyond_scan="reaches_beyond_scan" in nodule.flags,
    )
    of_nodule = nodule_refusal(nodule.n_readers, nodule.ratings.get("malignancy"), protocol)
    for refused in (of_nodule, of_cube):
        if refused is not None:
            message = f"The protocol leaves nodule {nodule.nodule_id} out: {refused.reason}."
            yield problem("against_protocol", message, nodule.nodule_id)


def _check_folds(nodules: Sequence[CohortNodule], protocol: Protocol) -> Iterator[CohortProblem]:
    folds_of: dict[str, set[int]] = defaultdict(set)
    for nodule in nodules:
        if nodule.fold is not None:
            folds_of[nodule.patient_id].add(nodule.fold)
            if not 1 <= nodule.fold <= protocol.n_folds:
                message = f"Fold {nodule.fold} isn't one of the protocol's {protocol.n_folds}."
                yield problem("unknown_fold", message, nodule.nodule_id)
    n_without = sum(nodule.fold is None for nodule in nodules)
    if folds_of and n_without:
        yield problem("missing_fold", f"{n_without} nodules are in no fold, others are.")
    leaks = sorted(patient for patient, folds in folds_of.items() if len(folds) > 1)
    if leaks and protocol.group_folds_by == "patient":
        for patient in leaks:
            message = f"Patient {patient} is in folds {sorted(folds_of[patient])}."
            yield problem("patient_in_several_folds", message, patient)
    elif leaks:
        yield problem(
            "patient_in_several_folds",
            f"{len(leaks)} patients are in several folds, as this protocol wants: a model is "
            f"tested on patients it was trained on.",
            severity="note",
        )


def _check_file(folder: Path, place: str, sha256: str, most_bytes: int) -> Iterator[CohortProblem]:
    """Check that a file is there, a regular one in real folders, and has its hash."""
    path = folder / place
    try:
        status = path.lstat()
        if path.parent != folder and path.parent.is_symlink():
            yield problem("not_a_file", f"The folder of {place} is a link.", place)
        elif not stat.S_ISREG(status.st_mode):
            yield problem("not_a_file", f"{place} is no regular file.", place)
        elif status.st_size > most_bytes:
            message = f"{place} has {status.st_size} bytes, more than it can have."
            yield problem("wrong_hash", message, place)
        elif file_sha256(path) != sha256:
            message = f"{place} isn't the file that was written: its SHA-256 differs."
            yield problem("wrong_hash", message, place)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        yield problem("missing_file", f"{place} can't be read: {reason}.", place)


def _check_images(
    folder: Path, nodule: CohortNodule, protocol: Protocol
) -> Iterator[CohortProblem]:
    for kind, place in file_places(nodule.nodule_id).items():
        if place not in nodule.files:
            continue
        found = list(_check_file(folder, place, nodule.files[place], most_image_bytes(protocol)))
        yield from found
        # an image whose hash differs is looked at all the same: it may be of the right kind
        if all(each.name == "wrong_hash" for each in found):
            try:
                read_image_file(folder / place, kind=kind, nodule=nodule, protocol=protocol)
            except InputError as error:
                message = str(error).replace(str(folder / place), place)
                yield problem("wrong_image", message, place)


def _extra_files(folder: Path, known: set[str]) -> Iterator[CohortProblem]:
    """Note what belongs to nothing: nobody reads it, but it would be passed on.

    Concepts (``concepts/*.safetensors``) are made from a cohort and lie in it.
    """
    known = known | {RECORD_NAME, record_name("cohort")}
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            place = (Path(parent) / name).relative_to(folder).as_posix()
            if place not in known and not _CONCEPT.fullmatch(place):
                message = f"{place} doesn't belong to the cohort."
                yield problem("extra_file", message, place, severity="note")
