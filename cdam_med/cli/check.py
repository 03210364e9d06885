"""``cdam-med check``: what lies below a path, and whether it can be used; or a folder, verified."""

import dataclasses
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdam_med.cli.command import (
    JsonOption,
    RefuseOption,
    RepairOption,
    as_command,
    names,
    option,
)
from cdam_med.cli.terminal import in_options, print_outcome, working
from data_prep.text import printable

if TYPE_CHECKING:
    from data_prep.errors import InputError
    from data_prep.problems import Problem
    from data_prep.reports import ImageReport, MaskReport, PathReport, RegionReport, StackReport

PROBLEMS_CODE = 1
"""Exit code where a CT series is refused, or a cohort isn't as it should be."""

_RECORDS = ("cohort.json", "manifest.csv", "exclusions.csv", "case.json")
_MOST_RECORD_BYTES = 2**24
_MOST_NAMED = 5
_INDENT = " " * 10


@as_command
def check(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Folder, zip archive, DICOMDIR or file; a table of nodules; a cohort or case "
            "folder.",
        ),
    ],
    headers_only: Annotated[
        bool, option("Don't decode the pixels: quicker.", None, "--headers-only")
    ] = False,
    repair: RepairOption = "",
    refuse: RefuseOption = "",
    as_json: JsonOption = False,
) -> None:
    """List what lies below a path, and whether it can be used; or verify a cohort or case folder.

    Ends with code 1 if something is refused or has a fault, or nothing is a CT or a mask; with
    code 2 if there is nothing at all.
    """
    from data_prep.cohort.folder import RECORD_NAME

    if path.name in _RECORDS and path.is_file():
        path = path.parent
    if (path / RECORD_NAME).is_file():
        is_sound = _check_cohort(path, as_json=as_json)
    elif path.is_file() and path.suffix.lower() == ".csv":
        is_sound = _check_table(path, as_json=as_json)
    elif cases := _find_cases(path):
        is_sound = _check_cases(cases, as_json=as_json)
    else:
        is_sound = _check_series(
            path, names(repair), names(refuse), read_pixels=not headers_only, as_json=as_json
        )
    if not is_sound:
        raise typer.Exit(PROBLEMS_CODE)


def _check_cohort(path: Path, *, as_json: bool) -> bool:
    with working("Verifying the cohort"):
        from data_prep.cohort.check import check_cohort

        found = check_cohort(path)
    n_errors = sum(problem.severity == "error" for problem in found)
    print_outcome(
        [dataclasses.asdict(problem) for problem in found],
        *(f"{problem.severity}: {problem.name}: {problem.message}" for problem in found),
        f"{n_errors} errors, {len(found) - n_errors} notes.",
        as_json=as_json,
    )
    return n_errors == 0


def _check_table(path: Path, *, as_json: bool) -> bool:
    """Say what a table of nodules holds, and which of it isn't used."""
    from data_prep.errors import NoduleTableError, NoduleTableWarning
    from data_prep.nodule_table import describe_unused, read_nodule_table

    warnings.simplefilter("ignore", NoduleTableWarning)
    frame = ""
    try:
        table = read_nodule_table(path)
        frame = ", ".join(sorted({row.frame for row in table.rows}))
    except NoduleTableError as error:
        if error.reason != "no_frame":
            raise
        table = read_nodule_table(path, frame="ras")
    n_series = len({row.series_uid for row in table.rows} - {""})
    n_patients = len({row.patient_id for row in table.rows} - {""})
    ratings = sorted({name for row in table.rows for name in row.ratings})
    unused = describe_unused(table)
    left_out = [row.message(table.name) for row in table.left_out]
    report = {
        "table": table.name,
        "rows": len(table.rows),
        "series": n_series,
        "patients": n_patients,
        "frame": frame or None,
        "ratings": ratings,
        "unused": unused,
        "left_out": left_out,
    }
    shown_frame = frame or "not stated: give it to 'prepare series' by --frame ras or lps"
    print_outcome(
        [report],
        f"{table.name}: {len(table.rows)} nodules; {n_series} series and {n_patients} patients are "
        "named",
        f"{_INDENT}frame {shown_frame}; ratings: {', '.join(ratings) or 'none'}",
        *[f"{_INDENT}{unused}"] * bool(unused),
        *(f"{_INDENT}{message}" for message in left_out[1:_MOST_NAMED]),
        as_json=as_json,
    )
    return not left_out


def _find_cases(path: Path) -> list[Path]:
    """Return the case folders of ``explain`` at a path: itself, or those directly below it."""
    if (path / "case.json").is_file():
        return [path]
    below = sorted(path.iterdir()) if path.is_dir() else []
    cases = [folder for folder in below if (folder / "case.json").is_file()]
    return cases if len(cases) == sum(not folder.name.startswith(".") for folder in below) else []


def _check_cases(cases: Sequence[Path], *, as_json: bool) -> bool:
    reports = [_case_report(folder) for folder in cases]
    lines = [line for report in reports for line in _case_lines(report)]
    print_outcome(reports, *lines, as_json=as_json)
    return not any(report["faults"] for report in reports)


def _case_report(folder: Path) -> dict[str, Any]:
    """Say what is in a case folder, and by its faults whether it is as it was written."""
    from data_prep.disk import differences

    report: dict[str, Any] = {"case": printable(folder.name)}
    try:
        with (folder / "case.json").open("rb") as file:
            record = json.loads(file.read(_MOST_RECORD_BYTES))
        if record["format"] != "cdam-med case":
            raise KeyError("format")
        files = [printable(name) for name in record["files"]]
        report |= {
            "nodule": printable(str(record["nodule"]["nodule_id"])),
            "center_ras_mm": [float(mm) for mm in record["nodule"]["center_ras_mm"]],
            "model": printable(str(record["model"]["name"])),
            "method": printable(str(record["method"]["name"])),
            "targets": [printable(name) for name in record["targets"]],
            "created_utc": printable(str(record["created_utc"])),
            "files": files,
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return report | {"faults": ["case.json can't be read as the record of a case folder"]}
    changed = differences(folder, "case")
    if changed is None:
        missing = [f"{name} (missing)" for name in files if not (folder / name).is_file()]
        return report | {"faults": ["there is no record of the files' hashes", *missing]}
    return report | {"faults": [printable(name) for name in changed]}


def _case_lines(report: dict[str, Any]) -> Iterator[str]:
    yield f"{'refused' if report['faults'] else 'ok':<9} case folder {report['case']}"
    if "nodule" in report:
        x, y, z = report["center_ras_mm"]
        yield f"{_INDENT}nodule {report['nodule']} at ({x:.1f}, {y:.1f}, {z:.1f}) mm RAS"
        yield f"{_INDENT}model {report['model']}, method {report['method']}"
        yield f"{_INDENT}{', '.join(report['targets'])}; {len(report['files'])} files"
    for fault in report["faults"]:
        yield f"{_INDENT}{fault}"


def _check_series(
    path: Path,
    repair: Sequence[str],
    refuse: Sequence[str],
    *,
    read_pixels: bool,
    as_json: bool,
) -> bool:
    """List series, images and masks below a path."""
    with working("Looking at the files"):
        from data_prep import check_path
        from data_prep.problems import Policy

        policy = Policy(repair=repair, refuse=refuse)
        report = check_path(path, policy=policy, read_pixels=read_pixels)
    print_outcome(dataclasses.asdict(report), *_report_lines(report), as_json=as_json)
    if not (report.stacks or report.images):
        raise _nothing_found(path, report)
    return "refused" not in report.verdicts and report.has_usable


def _report_lines(report: "PathReport") -> Iterator[str]:
    from data_prep.masks.regions import LEFT_OUT_REASONS

    yield from map(_problem, report.problems)
    series_uids = {stack.series_uid for stack in report.stacks}
    for stack in report.stacks:
        yield f"{stack.verdict:<9} {stack.series_uid}{_which_stack(stack)}"
        yield f"{_INDENT}{_geometry(stack)}"
        yield from (f"{_INDENT}{_problem(problem)}" for problem in stack.problems)
        for mask in stack.masks:
            yield from _mask_lines(mask, series_uids)
    for image in report.images:
        yield from _image_lines(image)
    of_masks = [mask.regions for stack in report.stacks for mask in stack.masks]
    all_regions = [*of_masks, *(image.regions for image in report.images)]
    reasons = {region.not_a_nodule for regions in all_regions for region in regions}
    rules = [f"{name}: {why}" for name, why in LEFT_OUT_REASONS.items() if name in reasons]
    yield from rules
    if rules:
        yield "Choose what is a nodule: cdam-med prepare series ... --regions 'GTV*'"
    yield _summary(report)
    if (report.stacks or report.images) and not report.has_usable:
        yield "None of it can be used as a CT, or as a mask."


def _problem(problem: "Problem") -> str:
    done = {"refuse": "refused", "repair": "repaired", "note": "noted"}[problem.action.value]
    return f"{problem.name}, {done}: {in_options(problem.message)}"


def _which_stack(stack: "StackReport") -> str:
    if not stack.label:
        return ""
    note = "" if stack.is_default else f" (read it with --stack {stack.stack})"
    return f", stack {stack.stack}: {stack.label}{note}"


def _geometry(stack: "StackReport") -> str:
    if stack.verdict == "mask":
        return f"{stack.kind}, {len(stack.masks)} file(s)"
    what = stack.kind if stack.verdict == "other" else stack.modality
    if stack.grid is None:
        return f"{what}, {stack.n_slices} image(s)"
    shape = " x ".join(map(str, stack.grid.shape))
    spacing = " x ".join(f"{mm:.3g}" for mm in stack.grid.spacing_mm)
    return f"{what}, {shape}, {spacing} mm, {''.join(stack.grid.axcodes)}"


def _mask_lines(mask: "MaskReport", series_uids: set[str]) -> Iterator[str]:
    """Say what a mask was drawn on, and which of its regions are taken as nodules."""
    drawn_on = ", ".join(
        uid if uid in series_uids else f"{uid} (not below this path)" for uid in mask.series_uids
    )
    yield f"{_INDENT}{mask.file}, drawn on {f'series {drawn_on}' if drawn_on else 'no series'}"
    if mask.fault:
        yield f"{_INDENT}{mask.fault}"
    yield from _region_lines(mask.regions)


def _image_lines(image: "ImageReport") -> Iterator[str]:
    yield f"{image.verdict:<9} {image.file}"
    if image.shape and image.spacing_mm and image.axcodes:
        shape = " x ".join(map(str, image.shape))
        spacing = " x ".join(f"{mm:.3g}" for mm in image.spacing_mm)
        low_high = "values {:g} to {:g}".format(*image.values) if image.values else "no values"
        yield f"{_INDENT}{shape}, {spacing} mm, {''.join(image.axcodes)}, {low_high}"
    yield from (f"{_INDENT}{remark}" for remark in image.remarks)
    yield from _region_lines(image.regions)


def _region_lines(regions: "Sequence[RegionReport]") -> Iterator[str]:
    is_measured = any(region.size_mm for region in regions)
    rows = [("number", "name", "slices", "size in mm", "nodule", "type")]
    for region in regions:
        size = " x ".join(f"{mm:.0f}" for mm in region.size_mm or ())
        is_empty = is_measured and not region.size_mm
        reason = region.not_a_nodule or ("no outline" if is_empty else "")
        verdict = f"no: {reason}" if reason else "yes"
        slices = str(region.n_slices or "-")
        rows.append((region.number, region.name or "-", slices, size or "-", verdict, region.kind))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if regions else []:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"{_INDENT}{'  '.join(cells)}".rstrip()


def _summary(report: "PathReport") -> str:
    verdicts = report.verdicts
    counts = ", ".join(
        f"{verdicts.count(verdict)} {verdict}"
        for verdict in ("ok", "repaired", "ct", "refused", "mask", "other")
        if verdict in verdicts
    )
    total = f"{report.n_files} files; {len(report.stacks)} stacks of slices or other series"
    if report.images:
        total += f", {len(report.images)} image files"
    return f"{total}: {counts}" if counts else total


def _nothing_found(path: Path, report: "PathReport") -> "InputError":
    """Return the error of a path without a series, an image or a mask."""
    from data_prep.errors import InputError

    name = printable(str(path))
    if (path / "manifest.csv").is_file():
        return InputError(
            f"{name} holds a manifest.csv but no cohort.json, the record of a cohort folder: it "
            "isn't whole; copy it again, or prepare it anew."
        )
    tables = sorted(path.glob("*.csv"))
    if tables:
        return InputError(
            f"{name} holds no series ({report.n_files} files), but {printable(tables[0].name)}: "
            "give the path of the table to look at it, or the folder of the CT."
        )
    what = f"holds no series ({report.n_files} files)" if path.is_dir() else "is no file of a CT"
    return InputError(
        f"{name} {what}: expected DICOM files of any names, NIfTI (.nii, .nii.gz), NRRD (.nrrd, "
        ".nhdr) or MetaImage (.mha, .mhd) files, a zip archive or DICOMDIR; or a table of nodules "
        "(.csv), a cohort folder (with cohort.json) or a case folder (with case.json)."
    )
