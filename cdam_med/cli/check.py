"""``cdam-med check``: what lies below a path, and whether it can be used; or a cohort, verified."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdam_med.cli.command import JsonOption, as_command
from cdam_med.cli.repairs import RefuseOption, RepairOption, names
from cdam_med.cli.terminal import in_options, print_json, print_result, working

if TYPE_CHECKING:
    from data_prep.image_report import ImageReport, RegionReport
    from data_prep.problems import Problem
    from data_prep.reports import MaskReport, PathReport, StackReport

_RECORDS = ("cohort.json", "manifest.csv", "exclusions.csv", "case.json")

PROBLEMS_CODE = 1
"""Exit code where a CT series is refused, or a cohort isn't as it should be."""


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
        bool, typer.Option("--headers-only", help="Don't decode the pixels: quicker.")
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
        _check_cohort(path, as_json=as_json)
        return
    if _check_others(path, as_json=as_json):
        return
    with working("Looking at the files"):
        from data_prep import check_path
        from data_prep.problems import Policy

        policy = Policy(repair=names(repair), refuse=names(refuse))
        report = check_path(path, policy=policy, read_pixels=not headers_only)
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        _print_report(report)
    if not (report.stacks or report.images):
        from cdam_med.cli.check_others import nothing_found

        raise nothing_found(path, report)
    if "refused" in report.verdicts or not report.has_usable:
        raise typer.Exit(PROBLEMS_CODE)


def _check_others(path: Path, *, as_json: bool) -> bool:
    """Check a table of nodules or case folders; False if the path is neither."""
    from cdam_med.cli.check_others import (
        check_case,
        check_table,
        find_cases,
        print_case,
        print_table,
    )

    if path.is_file() and path.suffix.lower() == ".csv":
        reports, show = [check_table(path)], print_table
        faults = any(report["left_out"] for report in reports)
    elif cases := find_cases(path):
        reports, show = [check_case(case) for case in cases], print_case
        faults = any(report["faults"] for report in reports)
    else:
        return False
    if as_json:
        print_json(reports)
    else:
        for report in reports:
            show(report)
    if faults:
        raise typer.Exit(PROBLEMS_CODE)
    return True


def _print_report(report: "PathReport") -> None:
    for problem in report.problems:
        _print_problem(problem, indent="")
    for stack in report.stacks:
        print_result(f"{stack.verdict:<9} {stack.series_uid}{_which_stack(stack)}")
        print_result(f"          {_geometry(stack)}")
        for problem in stack.problems:
            _print_problem(problem, indent="          ")
        for mask in stack.masks:
            _print_mask(mask, {each.series_uid for each in report.stacks})
    for image in report.images:
        _print_image(image)
    _print_rules({region.not_a_nodule for each in _masks(report) for region in each.regions})
    print_result(_summary(report))
    if (report.stacks or report.images) and not report.has_usable:
        print_result("None of it can be used as a CT, or as a mask.")


def _print_image(image: "ImageReport") -> None:
    print_result(f"{image.verdict:<9} {image.file}")
    if image.shape and image.spacing_mm and image.axcodes:
        spacing = " x ".join(f"{mm:.3g}" for mm in image.spacing_mm)
        values = (
            "no values" if image.values is None else "values {:g} to {:g}".format(*image.values)
        )
        shape = " x ".join(map(str, image.shape))
        print_result(f"          {shape}, {spacing} mm, {''.join(image.axcodes)}, {values}")
    for remark in image.remarks:
        print_result(f"          {remark}")
    _print_regions(image.regions)


def _masks(report: "PathReport") -> "list[MaskReport | ImageReport]":
    return [*(mask for stack in report.stacks for mask in stack.masks), *report.images]


def _print_mask(mask: "MaskReport", series_uids: set[str]) -> None:
    """Print the regions of a mask, and which are taken as nodules unless others are chosen."""
    indent = " " * 10
    drawn_on = ", ".join(
        uid if uid in series_uids else f"{uid} (not below this path)" for uid in mask.series_uids
    )
    print_result(
        f"{indent}{mask.file}, drawn on {f'series {drawn_on}' if drawn_on else 'no series'}"
    )
    if mask.fault:
        print_result(f"{indent}{mask.fault}")
    _print_regions(mask.regions)


def _print_regions(regions: "Sequence[RegionReport]") -> None:
    indent = " " * 10
    is_measured = any(region.size_mm for region in regions)
    rows = [("number", "name", "slices", "size in mm", "nodule", "type")]
    for region in regions:
        size = " x ".join(f"{mm:.0f}" for mm in region.size_mm or ())
        is_empty = is_measured and not region.size_mm
        reason = region.not_a_nodule or ("no outline" if is_empty else "")
        verdict = f"no: {reason}" if reason else "yes"
        slices = str(region.n_slices or "-")
        rows.append((region.number, region.name or "-", slices, size or "-", verdict, region.kind))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows if regions else []:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print_result(f"{indent}{'  '.join(cells)}".rstrip())


def _print_rules(reasons: set[str]) -> None:
    """Say why regions aren't taken as nodules, and how they are all the same."""
    from data_prep.masks.regions import LEFT_OUT_REASONS

    used = {name: meaning for name, meaning in LEFT_OUT_REASONS.items() if name in reasons}
    for name, meaning in used.items():
        print_result(f"{name}: {meaning}")
    if used:
        print_result("Choose what is a nodule: cdam-med prepare series ... --regions 'GTV*'")


def _which_stack(stack: "StackReport") -> str:
    if not stack.label:
        return ""
    note = "" if stack.is_default else f" (read it with --stack {stack.stack})"
    return f", stack {stack.stack}: {stack.label}{note}"


def _geometry(stack: "StackReport") -> str:
    parts = [stack.kind if stack.verdict in ("mask", "other") else stack.modality]
    if stack.verdict == "mask":
        return f"{stack.kind}, {len(stack.masks)} file(s)"
    if stack.grid is None:
        return ", ".join([*parts, f"{stack.n_slices} image(s)"])
    shape = " x ".join(map(str, stack.grid.shape))
    spacing = " x ".join(f"{mm:.3g}" for mm in stack.grid.spacing_mm)
    return ", ".join([*parts, shape, f"{spacing} mm", "".join(stack.grid.axcodes)])


def _print_problem(problem: "Problem", *, indent: str) -> None:
    done = {"refuse": "refused", "repair": "repaired", "note": "noted"}[problem.action.value]
    print_result(f"{indent}{problem.name}, {done}: {in_options(problem.message)}")


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


def _check_cohort(path: Path, *, as_json: bool) -> None:

    with working("Verifying the cohort"):
        from data_prep.cohort.check import check_cohort

        problems = check_cohort(path)
    if as_json:
        print_json([dataclasses.asdict(problem) for problem in problems])
    else:
        for problem in problems:
            print_result(f"{problem.severity}: {problem.name}: {problem.message}")
        n_errors = sum(problem.severity == "error" for problem in problems)
        print_result(f"{n_errors} errors, {len(problems) - n_errors} notes.")
    if any(problem.severity == "error" for problem in problems):
        raise typer.Exit(PROBLEMS_CODE)
