"""``cdam-med evaluate``: how good explanations are, with intervals and controls."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from cdam_med.cli.command import (
    DeviceOption,
    JsonOption,
    OverwriteOption,
    ResumeOption,
    as_command,
    choose_device,
)
from cdam_med.cli.repairs import names
from cdam_med.cli.terminal import (
    print_json,
    print_line,
    print_result,
    print_warning,
    progress_bar,
    working,
)

if TYPE_CHECKING:
    from cdam_med.evaluation.examples import Examples

evaluate = typer.Typer(
    name="evaluate", no_args_is_help=True, help="Measure how good explanations are."
)


@evaluate.callback()
def _group() -> None:
    """Keep what is evaluated a word of the command, though there is only one."""


@evaluate.command(
    "explanations",
    epilog="Example: cdam-med evaluate explanations cohort --estimators cdam,random --limit 20 "
    "--out report",
)
@as_command
def explanations(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="Cohort folder, folder of labelled slices, or image folder."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where the report goes.")],
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    model: Annotated[
        str, typer.Option(help="'demo', a trained model's folder, or a linear head's.")
    ] = "demo",
    estimators: Annotated[
        str, typer.Option(metavar="all|NAME,...", help="See 'cdam-med estimators'.")
    ] = "all",
    measures: Annotated[
        str, typer.Option(metavar="all|NAME,...", help="What is measured; see the docs.")
    ] = "all",
    only: Annotated[
        Path | None,
        typer.Option(help="File with the nodules or images to take, a name a line."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many images at most, drawn at random.")
    ] = None,
    shift_mm: Annotated[
        float, typer.Option(help="How far nodules are moved out of the centre, at most.")
    ] = 12.0,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure correctness, compactness, class sensitivity, localisation and sanity of maps.

    Every figure has a bootstrap interval over patients (or images), and the difference to CDAM.
    What is broken off goes on where it was, estimator by estimator, with --resume.
    """
    read = _nodules if _holds_nodules(source) else _images
    asked = None if estimators == "all" else names(estimators)
    _check_estimators(asked)
    wanted = None if only is None else _names_in(only)
    with working("Reading model and images"):
        from cdam_med.evaluation.explanations import evaluate_explanations
        from cdam_med.evaluation.judgement_store import JudgementStore
        from cdam_med.evaluation.measures import choose_measures
        from cdam_med.evaluation.report.folder import write_report
        from data_prep.written import check_folder

        check_folder(out, "report", overwrite=overwrite)
        store = JudgementStore.beside(out, resume=resume)
        device = choose_device(device)
        kinds = None if measures == "all" else names(measures)
        choose_measures(kinds)
        found = read(source, model, device, only=wanted, limit=limit, shift_mm=shift_mm, seed=seed)
    with progress_bar("Measuring") as advance:
        results = evaluate_explanations(
            found.model,
            found.examples,
            asked,
            measures=kinds,
            shifted=found.shifted,
            neighbours=found.neighbours,
            seed=seed,
            store=store,
            progress=lambda done, total, _: advance(done, total),
        )
    if store.found:
        print_line(f"Taken from the run that was broken off: {', '.join(store.found)}.")
    folder = write_report(out, results, about=_about(found, source, shift_mm), overwrite=overwrite)
    store.clear()
    for left_out in results.left_out:
        print_warning(f"{left_out.estimator}, {left_out.measure}: {left_out.reason}")
    if as_json:
        print_json({"report": str(folder)})
    else:
        print_result(f"Report: {folder / 'summary.md'}. Research only, not for diagnosis.")


def _check_estimators(asked: Sequence[str] | None) -> None:
    """Refuse a name that isn't one, before libraries are loaded."""
    from cdam_med.attribution.registry import check_estimator

    for name in asked or ():
        check_estimator(name)


class _Found(NamedTuple):
    model: object
    model_name: str
    weights_sha256: str
    examples: "Examples"
    shifted: "Examples | None"
    neighbours: "Examples | None"


def _about(found: _Found, source: Path, shift_mm: float) -> dict[str, str]:
    """Say what was judged, by names: no paths of this computer in what may be passed on."""
    import numpy as np

    about = {
        "model": found.model_name,
        "weights": f"sha256 {found.weights_sha256}",
        "images": f"{len(found.examples)} of {source.resolve().name}",
    }
    if found.shifted is not None and found.shifted.shifts_mm is not None:
        far = np.hypot(*found.shifted.shifts_mm.T)
        about["shifted"] = (
            f"by up to {shift_mm:g} mm along each axis, as far as there is image around a nodule: "
            f"{np.median(far):.1f} mm in the median, {far.min():.1f} to {far.max():.1f}"
        )
    return about


def _holds_nodules(source: Path) -> bool:
    from data_prep.cohort.folder import RECORD_NAME
    from data_prep.errors import InputError

    if not source.is_dir():
        raise InputError(
            f"There is no folder {source}; give a cohort, labelled slices, or images by class."
        )
    return (source / RECORD_NAME).is_file() or (source / "nodules.csv").is_file()


def _nodules(
    source: Path,
    model: str,
    device: str,
    *,
    only: Sequence[str] | None,
    limit: int | None,
    shift_mm: float,
    seed: int,
) -> _Found:
    """Read nodules of a cohort folder, or of a folder of labelled slices."""
    import numpy as np

    from cdam_med.evaluation.example_sources import examples_from_cohort, examples_from_slices
    from cdam_med.models.store import load_model
    from data_prep.cohort.folder import RECORD_NAME, read_cohort
    from data_prep.errors import InputError

    loaded = load_model(model, device=device)
    wanted = only

    def examples(*, shift_mm: float = 0.0, slice_offset: int = 0) -> "Examples":
        if (source / RECORD_NAME).is_file():
            return examples_from_cohort(
                read_cohort(source),
                loaded,
                nodules=wanted,
                shift_mm=shift_mm,
                slice_offset=slice_offset,
                seed=seed,
            )
        return examples_from_slices(
            source,
            loaded,
            nodules=wanted,
            shift_mm=shift_mm,
            slice_offset=slice_offset,
            seed=seed,
        )

    centred = examples()
    if limit is not None and limit < len(centred):
        drawn = np.random.default_rng(seed).choice(len(centred), limit, replace=False)
        centred = centred.select(sorted(drawn.tolist()))
        wanted = list(centred.ids)
    try:
        neighbours = examples(slice_offset=1)
    except InputError:  # no nodule has a slice above its middle one
        neighbours = None
    moved = examples(shift_mm=shift_mm)
    has_room = moved.shifts_mm is not None and bool(moved.shifts_mm.any())
    return _Found(
        model=loaded,
        model_name=" of folder ".join(dict.fromkeys((loaded.config.name, Path(model).name))),
        weights_sha256=loaded.weights_sha256,
        examples=centred,
        shifted=moved if has_room else None,
        neighbours=neighbours,
    )


def _names_in(file: Path) -> list[str]:
    """Return the names in a file, one a line."""
    from data_prep.errors import InputError

    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The names in {file} can't be read ({error}): give a text file with one name a line."
        ) from error
    if not (found := [line.strip() for line in lines if line.strip()]):
        raise InputError(f"{file} holds no name: give the images to take, one a line.")
    return found


def _images(
    source: Path,
    model: str,
    device: str,
    *,
    only: Sequence[str] | None,
    limit: int | None,
    shift_mm: float,
    seed: int,
) -> _Found:
    """Read a folder of images by class, and a model with a linear head."""
    from cdam_med.attribution.fingerprint import weights_sha256
    from cdam_med.data.image_folder import read_image_folder
    from cdam_med.evaluation.example_sources import examples_from_image_folder
    from cdam_med.training.linear_head import load_linear_classifier

    images = read_image_folder(source)
    if only is not None:
        images = images.select(only)
    if limit is not None:
        images = images.sample(limit, seed=seed)
    loaded = load_linear_classifier(Path(model)).to(device)
    found = examples_from_image_folder(images, loaded)
    return _Found(loaded, Path(model).name, weights_sha256(loaded), found, None, None)
