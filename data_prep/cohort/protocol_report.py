"""What a protocol selects from LIDC-IDRI, as plain data that can be printed or stored as JSON."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from data_prep.cohort.published import published_steps
from data_prep.cohort.select import REASONS, LeftOutNodule, SelectedNodule, Selection
from data_prep.lidc.records import AmbiguousScan, IndexedNodule, IndexedScan


def dry_run_report(selection: Selection) -> dict[str, Any]:
    """Return what a protocol selects, without a pixel.

    Parameters
    ----------
    selection
        From `data_prep.cohort.select.select_nodules`.

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
    scans = selection.index.scans
    taken_ids = {_id(found.scan, found.nodule) for found in selection.taken}
    return {
        "protocol": selection.protocol.name,
        "archive": {
            "scans": len(scans),
            "patients": len({scan.patient_id for scan in scans}),
            "nodules": sum(len(scan.nodules) for scan in scans),
        },
        "taken": _counts(selection.taken),
        "left_out": _reasons(selection.left_out),
        "patients_with_two_scans": [
            _two_scans(scan, scans, taken_ids) for scan in scans if scan.is_second
        ],
        "ambiguous": [_ambiguous(scan, taken_ids) for scan in selection.index.ambiguous_scans],
        "irregular_scans": _irregular(scans, taken_ids),
        "flags": _flags(selection),
        "published": _published(selection),
        "nodules": [_row(found) for found in _in_order(selection)],
    }


def _id(scan: IndexedScan, nodule: IndexedNodule) -> tuple[str, str]:
    return scan.series_id, nodule.nodule_id


def _count_taken(scan: IndexedScan, taken_ids: set[tuple[str, str]]) -> int:
    return sum(_id(scan, nodule) in taken_ids for nodule in scan.nodules)


def _counts(nodules: Sequence[SelectedNodule]) -> dict[str, Any]:
    return {
        "nodules": len(nodules),
        "scans": len({found.scan.series_id for found in nodules}),
        "patients": len({found.scan.patient_id for found in nodules}),
        "labels": _labels(nodules),
    }


def _labels(nodules: Sequence[SelectedNodule]) -> dict[str, int]:
    counts = Counter(found.label for found in nodules)
    return {label: counts[label] for label in ("benign", "malignant", "indeterminate")}


def _reasons(left_out: Sequence[LeftOutNodule]) -> dict[str, Any]:
    reasons = {}
    for reason, meaning in REASONS.items():
        found = [nodule for nodule in left_out if nodule.reason == reason]
        if found:
            reasons[reason] = {
                "meaning": meaning,
                "nodules": len(found),
                "labels": _labels(found),
            }
    return reasons


def _two_scans(
    second: IndexedScan, scans: Sequence[IndexedScan], taken_ids: set[tuple[str, str]]
) -> dict[str, Any]:
    both = [scan for scan in scans if scan.patient_id == second.patient_id]
    return {
        "patient_id": second.patient_id,
        "taken": {scan.series_id: _count_taken(scan, taken_ids) for scan in both},
    }


def _ambiguous(found: AmbiguousScan, taken_ids: set[tuple[str, str]]) -> dict[str, Any]:
    return {
        "series_id": found.scan.series_id,
        "left_out": [
            {
                "nodule_id": nodule.nodule_id,
                "outlines": len(nodule.readers),
                "annotation_ids": list(nodule.annotation_ids),
            }
            for nodule in found.left_out
        ],
        "kept": [
            {
                "nodule_id": nodule.nodule_id,
                "outlines": len(nodule.readers),
                "taken": _id(found.scan, nodule) in taken_ids,
            }
            for nodule in found.kept
        ],
    }


def _irregular(
    scans: Sequence[IndexedScan], taken_ids: set[tuple[str, str]]
) -> list[dict[str, Any]]:
    return [
        {
            "series_id": scan.series_id,
            "problem": scan.spacing_problem or "repeated_slices",
            "repeated_slices": scan.n_repeated_slices,
            "taken": _count_taken(scan, taken_ids),
        }
        for scan in scans
        if scan.spacing_problem or scan.n_repeated_slices
    ]


def _published(selection: Selection) -> list[dict[str, Any]]:
    return [
        {
            "step": step.name,
            **_counts(step.nodules),
            "left_out": [
                {"series_id": found.scan.series_id, "nodule_id": found.nodule.nodule_id}
                for found in step.removed
            ],
        }
        for step in published_steps(selection.index)
    ]


def _flags(selection: Selection) -> dict[str, Any]:
    scans = Counter(flag for scan in selection.index.scans for flag in scan.flags)
    taken = Counter(flag for found in selection.taken for flag in found.scan.flags)
    return {flag: {"scans": n_scans, "taken": taken[flag]} for flag, n_scans in scans.items()}


def _in_order(selection: Selection) -> list[SelectedNodule]:
    """Return all nodules by series, and from superior to inferior."""
    return sorted(
        (*selection.taken, *selection.left_out),
        key=lambda found: (found.scan.series_id, int(found.nodule.nodule_id.split("_")[1])),
    )


def _row(found: SelectedNodule) -> dict[str, Any]:
    i, j, k = found.nodule.center_ijk
    return {
        "series_id": found.scan.series_id,
        "patient_id": found.scan.patient_id,
        "nodule_id": found.nodule.nodule_id,
        "reason": found.reason if isinstance(found, LeftOutNodule) else "",
        "label": found.label,
        "n_readers": len(found.nodule.readers),
        "annotation_ids": list(found.nodule.annotation_ids),
        "center_ijk": [round(i, 3), round(j, 3), round(k, 3)],
        "center_z_mm": round(found.nodule.center_z_mm, 3),
        "ratings": {name: round(value, 4) for name, value in found.nodule.ratings.items()},
        "flags": list(found.scan.flags),
    }
