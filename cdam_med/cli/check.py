"""``cdam-med check``: what lies below a path, and whether it can be used; or a cohort, verified."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdam_med.cli.command import JsonOption, as_command
from cdam_med.cli.repairs import RefuseOption, RepairOption, names
from cdam_med.cli.terminal import in_options, print_json, working

if TYPE_CHECKING:
    from data_prep.problems import Problem
    from data_prep.reports import MaskReport, PathReport, StackReport

PROBLEMS_CODE = 1
"""Exit code where a CT series is refused, or a cohort isn't as it should be."""


@as_command
def check(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="Folder, zip archive, DICOMDIR or file; or a cohort folder."
        ),
    ],
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Don't decode the pixels: quicker.")
    ] = False,
    repair: RepairOption = "",
    refuse: RefuseOption = "",
    as_json: JsonOption = False,
) -> None:
    """List every series below a path with its geometry and problems; or verify a cohort folder.

    Ends with code 1 if a CT series is refused, or if the cohort has a fault.
    """
    from data_prep.cohort.folder import RECORD_NAME

    if (path / RECORD_NAME).is_file():
        _check_cohort(path, as_json=as_json)
        return
    with working("Looking at the files"):
        from data_prep import check_path
        from data_prep.problems import Policy

        policy = Policy(repair=names(repair), refuse=names(refuse))
        report = check_path(path, policy=policy, read_pixels=not headers_only)
    if as_json:
        typer.echo(report.to_json())
    else:
        _print_report(report)
    if any(stack.verdict == "refused" for stack in report.stacks):
        raise typer.Exit(PROBLEMS_CODE)


def _print_report(report: "PathReport") -> None:
    for problem in report.problems:
        _print_problem(problem, indent="")
    for stack in report.stacks:
        typer.echo(f"{stack.verdict:<9} {stack.series_uid}{_which_stack(stack)}")
        typer.echo(f"          {_geometry(stack)}")
        for problem in stack.problems:
            _print_problem(problem, indent="          ")
        for mask in stack.masks:
            _print_mask(mask, {each.series_uid for each in report.stacks})
    _print_rules({region.not_a_nodule for each in _masks(report) for region in each.regions})
    typer.echo(_summary(report))


def _masks(report: "PathReport") -> list["MaskReport"]:
    return [mask for stack in report.stacks for mask in stack.masks]


def _print_mask(mask: "MaskReport", series_uids: set[str]) -> None:
    """Print the regions of a mask, and which are taken as nodules unless others are chosen."""
    indent = " " * 10
    drawn_on = ", ".join(
        uid if uid in series_uids else f"{uid} (not below this path)" for uid in mask.series_uids
    )
    typer.echo(f"{indent}{mask.file}, drawn on {f'series {drawn_on}' if drawn_on else 'no series'}")
    if mask.fault:
        typer.echo(f"{indent}{mask.fault}")
    is_measured = any(region.size_mm for region in mask.regions)
    rows = [("number", "name", "slices", "size in mm", "nodule", "type")]
    for region in mask.regions:
        size = " x ".join(f"{mm:.0f}" for mm in region.size_mm or ())
        is_empty = is_measured and not region.size_mm
        reason = region.not_a_nodule or ("no outline" if is_empty else "")
        verdict = f"no: {reason}" if reason else "yes"
        slices = str(region.n_slices or "-")
        rows.append((region.number, region.name or "-", slices, size or "-", verdict, region.kind))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows if mask.regions else []:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(f"{indent}{'  '.join(cells)}".rstrip())


def _print_rules(reasons: set[str]) -> None:
    """Say why regions aren't taken as nodules, and how they are all the same."""
    from data_prep.masks.regions import LEFT_OUT_REASONS

    used = {name: meaning for name, meaning in LEFT_OUT_REASONS.items() if name in reasons}
    for name, meaning in used.items():
        typer.echo(f"{name}: {meaning}")
    if used:
        typer.echo("Choose what is a nodule: cdam-med prepare series ... --regions 'GTV*'")


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
    typer.echo(f"{indent}{problem.name}, {done}: {in_options(problem.message)}")


def _summary(report: "PathReport") -> str:
    verdicts = [stack.verdict for stack in report.stacks]
    counts = ", ".join(
        f"{verdicts.count(verdict)} {verdict}"
        for verdict in ("ok", "repaired", "refused", "mask", "other")
        if verdict in verdicts
    )
    total = f"{report.n_files} files; {len(report.stacks)} stacks of slices or other series"
    return f"{total}: {counts}" if counts else total


def _check_cohort(path: Path, *, as_json: bool) -> None:
    import dataclasses

    with working("Verifying the cohort"):
        from data_prep.cohort.check import check_cohort

        problems = check_cohort(path)
    if as_json:
        print_json([dataclasses.asdict(problem) for problem in problems])
    else:
        for problem in problems:
            typer.echo(f"{problem.severity}: {problem.name}: {problem.message}")
        n_errors = sum(problem.severity == "error" for problem in problems)
        typer.echo(f"{n_errors} errors, {len(problems) - n_errors} notes.")
    if any(problem.severity == "error" for problem in problems):
        raise typer.Exit(PROBLEMS_CODE)
