"""``cdam-med explain``: case folders for the nodules of a CT series, or for a point in it."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cdam_med.cli.repairs import (
    OverwriteOption,
    RefuseOption,
    RepairOption,
    names,
    print_problems,
    without_series_warnings,
)
from cdam_med.cli.terminal import working


class Frame(StrEnum):
    """Frames of patient coordinates, by where x, y and z grow to."""

    RAS = "ras"
    LPS = "lps"


def explain(  # noqa: PLR0913  a command's options are its parameters
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
        Path | None, typer.Option(help="LIDC-IDRI annotations: explain the nodules in them.")
    ] = None,
    min_readers: Annotated[
        int, typer.Option(min=1, help="Take nodules that at least so many readers outlined.")
    ] = 3,
    at: Annotated[
        str | None,
        typer.Option(metavar="X,Y,Z", help="Explain this point (mm) instead; needs --frame."),
    ] = None,
    frame: Annotated[
        Frame | None,
        typer.Option(help="Frame of the point: ras as in NIfTI and 3D Slicer, lps as in DICOM."),
    ] = None,
    model: Annotated[str, typer.Option(help="'demo', or the folder of a trained model.")] = "demo",
    targets: Annotated[str, typer.Option(metavar="all|NAME,...", help="What to explain.")] = "all",
    concept: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Explain a concept as well: a file of 'cdam-med concept make'; may be given "
            "several times.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="How maps are made: a name that 'cdam-med estimators' lists. It has its default "
            "settings; others are given in Python."
        ),
    ] = "cdam",
    views: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Planes to explain besides those that the model was trained on: axial, coronal, "
            "sagittal.",
        ),
    ] = "",
    series_uid: Annotated[
        str | None, typer.Option(help="Which series, where the folder holds several.")
    ] = None,
    stack: Annotated[
        int | None, typer.Option(min=1, help="Which stack of the series; see 'cdam-med check'.")
    ] = None,
    repair: RepairOption = "",
    refuse: RefuseOption = "",
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, mps.")] = "cpu",
    batch_size: Annotated[int, typer.Option(min=1, help="Slices per forward pass.")] = 32,
) -> None:
    """Explain the nodules of a CT series that its readers outlined, or any point of it."""
    point = _point(at, frame, lidc_xml)
    _check_concepts(concept or ())
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
        annotation_sha256 = None
        if point is not None and frame is not None:
            nodules = [nodule_at(point, volume, frame=frame.value)]
        elif lidc_xml is not None:
            nodules, annotation_sha256 = read_annotations(lidc_xml, volume, min_readers)
        check_cases(out, nodules, overwrite=overwrite)
    with working("Loading the model"):
        from cdam_med.attribution.concept import load_concept
        from cdam_med.cli.cases import check_device, explain_nodules
        from cdam_med.models.checkpoint import load_model
        from cdam_med.targets import TARGET_NAMES

        concepts = [load_concept(path) for path in concept or ()]
        loaded = load_model(model, device=check_device(device))
    explain_nodules(
        volume,
        nodules,
        loaded,
        out=out,
        overwrite=overwrite,
        annotation_sha256=annotation_sha256,
        targets=(*(TARGET_NAMES if targets == "all" else names(targets)), *concepts),
        method=method,
        views=names(views),
        batch_size=batch_size,
    )


def _check_concepts(files: Sequence[Path]) -> None:
    """Refuse what can't be the file of a concept, before the series is read."""
    from data_prep.errors import InputError

    for file in files:
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
