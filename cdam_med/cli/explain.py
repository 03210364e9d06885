"""``cdam-med explain``: case folders for the nodules of a CT series, or for a point in it."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdam_med.cli.command import (
    INPUT,
    RUNNING,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    as_command,
    choose_device,
)
from cdam_med.cli.repairs import (
    RefuseOption,
    RepairOption,
    names,
    print_problems,
    without_series_warnings,
)
from cdam_med.cli.terminal import working

if TYPE_CHECKING:
    from data_prep.lidc import LeftOutFinding


class Frame(StrEnum):
    """Frames of patient coordinates, by where x, y and z grow to."""

    RAS = "ras"
    LPS = "lps"


WHAT, HOW = "What to explain", "How"
"""Panels of the options."""


@as_command
def explain(
    series: Annotated[
        Path,
        typer.Argument(
            metavar="SERIES",
            help="Folder or zip with the DICOM files of a CT series; or NIfTI, NRRD, MetaImage.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where the case folders go, one for each nodule.")],
    overwrite: OverwriteOption = False,
    lidc_xml: Annotated[
        Path | None,
        typer.Option(
            help="LIDC-IDRI annotations: explain the nodules in them.", rich_help_panel=WHAT
        ),
    ] = None,
    min_readers: Annotated[
        int,
        typer.Option(
            min=1, help="Take nodules that so many readers outlined.", rich_help_panel=WHAT
        ),
    ] = 3,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,Z", help="Or this point in mm; needs --frame.", rich_help_panel=WHAT
        ),
    ] = None,
    frame: Annotated[
        Frame | None,
        typer.Option(
            help="Of the point: ras as in NIfTI and 3D Slicer, lps as in DICOM.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    targets: Annotated[
        str,
        typer.Option(metavar="all|NAME,...", help="Outputs of the model.", rich_help_panel=WHAT),
    ] = "all",
    concept: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Also a concept of 'cdam-med concept make'; may be given several times.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(help="'demo', or the folder of a trained model.", rich_help_panel=HOW),
    ] = "demo",
    method: Annotated[
        str,
        typer.Option(
            help="A name that 'cdam-med estimators' lists, with its default settings.",
            rich_help_panel=HOW,
        ),
    ] = "cdam",
    views: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Planes to explain besides those that the model was trained on: axial, coronal, "
            "sagittal.",
            rich_help_panel=HOW,
        ),
    ] = "",
    series_uid: Annotated[
        str | None,
        typer.Option(help="Which series, where there are several.", rich_help_panel=INPUT),
    ] = None,
    stack: Annotated[
        int | None,
        typer.Option(
            min=1, help="Which stack of the series; see 'cdam-med check'.", rich_help_panel=INPUT
        ),
    ] = None,
    repair: RepairOption = "",
    refuse: RefuseOption = "",
    device: DeviceOption = "auto",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Slices per forward pass.", rich_help_panel=RUNNING)
    ] = 32,
    as_json: JsonOption = False,
) -> None:
    """Explain the nodules of a CT series that its readers outlined, or any point of it."""
    from data_prep.problems import Policy

    point = _point(at, frame, lidc_xml)
    asked_targets, asked_views = names(targets), names(views)
    _check_names(asked_targets, asked_views, method)
    Policy(repair=names(repair), refuse=names(refuse))  # refuses a name that isn't one
    _check_files(series, lidc_xml, concept or (), out)
    with working("Loading the model"):
        from cdam_med.cli.cases import explain_nodules
        from cdam_med.models.store import load_concept, load_model
        from cdam_med.targets import TARGET_NAMES

        concepts = [load_concept(path) for path in concept or ()]
        loaded = load_model(model, device=choose_device(device))
    with working("Reading the series"):
        from cdam_med.cli.annotations import check_cases, read_annotations
        from data_prep import nodule_at, read_volume

        with without_series_warnings():
            volume = read_volume(
                series,
                series_uid=series_uid,
                stack=stack,
                repair=names(repair),
                refuse=names(refuse),
            )
        print_problems(volume)
        annotation_sha256: str | None = None
        left_out: "list[LeftOutFinding]" = []
        if point is not None and frame is not None:
            nodules = [nodule_at(point, volume, frame=frame.value)]
        elif lidc_xml is not None:
            nodules, annotation_sha256, left_out = read_annotations(lidc_xml, volume, min_readers)
        check_cases(out, nodules, overwrite=overwrite)
    explain_nodules(
        volume,
        nodules,
        loaded,
        out=out,
        overwrite=overwrite,
        annotation_sha256=annotation_sha256,
        unexplained=left_out,
        targets=(*(TARGET_NAMES if targets == "all" else asked_targets), *concepts),
        method=method,
        views=asked_views,
        batch_size=batch_size,
        as_json=as_json,
    )


def _check_names(targets: Sequence[str], views: Sequence[str], method: str) -> None:
    """Refuse a name that isn't one, before libraries are loaded."""
    from cdam_med.attribution.registry import check_estimator
    from cdam_med.data.views import check_views
    from cdam_med.targets import choose_targets

    choose_targets("all" if targets == ("all",) else targets)
    if views:
        check_views(views)
    check_estimator(method)


def _check_files(series: Path, lidc_xml: Path | None, concepts: Sequence[Path], out: Path) -> None:
    """Refuse files that aren't there or can't be written, before libraries are loaded."""
    from data_prep.errors import InputError
    from data_prep.written import check_parent

    check_parent(out / "case")
    if not series.exists():
        raise InputError(f"There is no {series}: give the folder or file of a CT series.")
    if lidc_xml is not None and not lidc_xml.is_file():
        raise InputError(f"There is no file {lidc_xml}: --lidc-xml takes the readers' XML.")
    for file in concepts:
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "doesn't exist"
            raise InputError(
                f"{file} {what}: --concept takes a file that 'cdam-med concept make' wrote; "
                "'cdam-med concept list COHORT' shows those of a cohort."
            )


def _point(
    at: str | None, frame: Frame | None, lidc_xml: Path | None
) -> tuple[float, float, float] | None:
    """Read the point, None where there is an annotation file in its place."""
    from data_prep.errors import InputError

    if (lidc_xml is None) == (at is None):
        raise InputError(
            "Say what to explain: either the nodules of an annotation file by --lidc-xml FILE, "
            "or one point by --at X,Y,Z and --frame."
        )
    if (at is None) != (frame is None):
        raise InputError(
            "A point is given by --at X,Y,Z and --frame ras or --frame lps together, so that "
            "left and right can't be mixed up."
        )
    if at is None:
        return None
    try:
        x, y, z = (float(number) for number in at.split(","))
    except ValueError:
        raise InputError(
            f"--at takes three numbers in mm with commas between, such as -72.5,40,190.2, "
            f"not {at!r}."
        ) from None
    return x, y, z
