"""The cohort folder: its schema, read and written (see ``docs/reference/cohort_folder.md``)."""

import json
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.cohort.images import CohortImages, read_image_file
from data_prep.cohort.protocol import Protocol, protocol_from_json
from data_prep.cohort.rows import CohortNodule, Exclusion, file_places
from data_prep.cohort.tables import (
    exclusions_from_csv,
    nodules_from_csv,
)
from data_prep.errors import InputError, NamedError
from data_prep.text import printable

COHORT_FORMAT = "cdam-med cohort"
"""Marks a folder as a cohort."""

SCHEMA_VERSION = 1
"""Raised when a column or key changes its name or meaning."""

STATEMENT = "Research only, not for diagnosis."
RATINGS_NOTE = (
    "LIDC-IDRI's malignancy ratings are radiologists' opinions from the images, not pathology."
)

RECORD_NAME = "cohort.json"
MANIFEST_NAME = "manifest.csv"
EXCLUSIONS_NAME = "exclusions.csv"
OVERVIEW_FOLDER = "overview"

_MOST_RECORD_BYTES = 2**24
MOST_TABLE_BYTES = 2**28
"""Longest table that is read: a million nodules."""

_SHOWN_LENGTH = 200


@dataclass(frozen=True)
class CohortRecord:
    """What ``cohort.json`` says about a cohort as a whole.

    Parameters
    ----------
    protocol
        The settings it was made with.
    versions
        Version of each package that took part.
    notes
        Sentences on the cohort as a whole, e.g. that no folds could be made.
    sources
        Where the data are from: licence and citation, one line each.
    counts
        Of nodules, patients, series, labels, folds and exclusions.
    files
        SHA-256 of each file of the folder that isn't in the manifest, by its place.
    plan
        SHA-256 of what was asked for: the series, the protocol, the versions.
    """

    protocol: Protocol
    versions: Mapping[str, str]
    notes: tuple[str, ...]
    sources: tuple[str, ...]
    counts: Mapping[str, Any]
    files: Mapping[str, str]
    plan: str


@dataclass(frozen=True)
class Cohort:
    """A prepared cohort. The tables are in memory; images are read when asked for.

    Parameters
    ----------
    path
        The folder.
    record
        What holds for the whole cohort.
    nodules
        By patient, series and number.
    exclusions
        What was left out.
    """

    path: Path
    record: CohortRecord
    nodules: tuple[CohortNodule, ...]
    exclusions: tuple[Exclusion, ...]

    @property
    def protocol(self) -> Protocol:
        """The settings the cohort was made with."""
        return self.record.protocol

    @cached_property
    def _by_id(self) -> dict[str, CohortNodule]:
        return {nodule.nodule_id: nodule for nodule in self.nodules}

    def nodule(self, nodule_id: str) -> CohortNodule:
        """Return a nodule by its name.

        Raises
        ------
        InputError
            If the cohort has no nodule of that name.
        """
        if nodule_id not in self._by_id:
            raise InputError(
                f"The cohort {self.path} has no nodule {printable(nodule_id)[:_SHOWN_LENGTH]!r}; "
                f"manifest.csv lists its nodules."
            )
        return self._by_id[nodule_id]

    def read_images(self, nodule: CohortNodule) -> CohortImages:
        """Read the images of a nodule.

        Raises
        ------
        InputError
            If a file is missing or isn't what the manifest says.
        """
        arrays: dict[str, np.ndarray | None] = {}
        affine = np.eye(4)
        for kind, place in file_places(nodule.nodule_id).items():
            arrays[kind] = None
            if place in nodule.files:
                arrays[kind], affine = read_image_file(
                    self.path / place, kind=kind, nodule=nodule, protocol=self.protocol
                )
        hu, mask = arrays["crop"], arrays["mask"]
        if hu is None:
            raise InputError(f"Nodule {nodule.nodule_id} of {self.path} has no crop.")
        is_nodule = None if mask is None else mask.astype(np.bool_)
        return CohortImages(hu, affine, is_nodule, arrays["readers"])


def read_cohort(path: str | PathLike[str]) -> Cohort:
    """Read a cohort folder's record and tables; `Cohort.read_images` reads the images.

    Parameters
    ----------
    path
        The folder.

    Returns
    -------
    Cohort
        Hashes aren't checked: `data_prep.cohort.check.check_cohort` does that.

    Raises
    ------
    InputError
        If it is no cohort folder, or one of a newer schema, or a table is damaged.
    """
    folder = Path(path)
    record = read_record(folder)
    nodules, problems = nodules_from_csv(read_bounded(folder / MANIFEST_NAME, MOST_TABLE_BYTES))
    exclusions, more = exclusions_from_csv(read_bounded(folder / EXCLUSIONS_NAME, MOST_TABLE_BYTES))
    for problem in (*problems, *more):
        raise InputError(
            f"The cohort {folder} can't be read: {problem.message} 'cdam-med check {folder}' "
            f"lists everything that is wrong."
        )
    ids = Counter(nodule.nodule_id.casefold() for nodule in nodules)
    if len(ids) < len(nodules):
        twice = next(name for name, count in ids.items() if count > 1)
        raise InputError(f"The cohort {folder} holds nodule {twice} twice; prepare it again.")
    return Cohort(folder, record, tuple(nodules), tuple(exclusions))


def read_record(folder: Path) -> CohortRecord:
    """Read ``cohort.json``.

    Raises
    ------
    NamedError
        ``not_a_cohort``, ``bad_record`` or ``newer_schema``.
    """
    path = folder / RECORD_NAME
    if not path.exists():
        raise NamedError("not_a_cohort", f"{folder} is no cohort folder: it has no {RECORD_NAME}.")
    try:
        data = read_bounded(path, _MOST_RECORD_BYTES)
    except InputError as error:
        raise NamedError("bad_record", str(error)) from error
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NamedError("bad_record", f"{path} is no JSON; prepare the cohort again.") from error
    if not isinstance(values, dict) or values.get("format") != COHORT_FORMAT:
        message = f"{path} is no record of a cohort: its format isn't {COHORT_FORMAT!r}."
        raise NamedError("not_a_cohort", message)
    version = values.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise NamedError(
            "newer_schema",
            f"The cohort {folder} has schema version {version}, but this version of cdam-med "
            f"reads up to {SCHEMA_VERSION}; update it with 'pip install --upgrade cdam-med'.",
        )
    if version != SCHEMA_VERSION or isinstance(version, bool):
        message = f"{path} has no schema version that is known; prepare the cohort again."
        raise NamedError("bad_record", message)
    try:
        return _record(values)
    except (KeyError, TypeError, OverflowError, InputError) as error:
        what = f"{error}" if isinstance(error, InputError) else f"the key {error} is wrong."
        message = f"{path} is damaged: {printable(what)[:_SHOWN_LENGTH]}"
        raise NamedError("bad_record", message) from error


def record_json(record: CohortRecord) -> bytes:
    """Return ``cohort.json``; the same record gives the same bytes."""
    values = {
        "format": COHORT_FORMAT,
        "schema_version": SCHEMA_VERSION,
        "statement": STATEMENT,
        "ratings_note": RATINGS_NOTE,
        "sources": list(record.sources),
        "notes": list(record.notes),
        "protocol": asdict(record.protocol),
        "counts": dict(record.counts),
        "versions": dict(record.versions),
        "files": dict(sorted(record.files.items())),
        "plan": record.plan,
    }
    return f"{json.dumps(values, indent=2, allow_nan=False)}\n".encode()


def counts_of(nodules: Sequence[CohortNodule], exclusions: Sequence[Exclusion]) -> dict[str, Any]:
    """Return what ``cohort.json`` counts."""
    labels = Counter(nodule.label or "unrated" for nodule in nodules)
    folds = Counter(nodule.fold for nodule in nodules if nodule.fold is not None)
    return {
        "nodules": len(nodules),
        "patients": len({nodule.patient_id for nodule in nodules}),
        "series": len({nodule.series_id for nodule in nodules}),
        "exclusions": len(exclusions),
        "labels": {
            label: labels[label] for label in ("benign", "malignant", "indeterminate", "unrated")
        },
        "folds": {str(fold): folds[fold] for fold in sorted(folds)},
    }


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """Read a small file of a cohort folder.

    Raises
    ------
    InputError
        If it is missing, no regular file (also: a link), or larger than `most_bytes`.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is no regular file.")
        if status.st_size > most_bytes:
            raise InputError(f"{path} has {status.st_size} bytes, more than {most_bytes}.")
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise InputError(f"{path} can't be read: {reason}.") from error


def _record(values: Mapping[str, Any]) -> CohortRecord:
    return CohortRecord(
        protocol=protocol_from_json(_mapping(values, "protocol")),
        versions=_texts(_mapping(values, "versions")),
        notes=tuple(_texts(dict(enumerate(values["notes"]))).values()),
        sources=tuple(_texts(dict(enumerate(values["sources"]))).values()),
        counts=_mapping(values, "counts"),
        files=_texts(_mapping(values, "files")),
        plan=_texts({"plan": values["plan"]})["plan"],
    )


def _mapping(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = values[key]
    if not isinstance(value, dict):
        raise InputError(f"{key} is no object.")
    return value


def _texts(values: Mapping[Any, Any]) -> dict[Any, str]:
    if not all(isinstance(value, str) for value in values.values()):
        raise InputError("a text is expected where there is something else.")
    return dict(values)
