"""``cdam-med evaluate`` and ``benchmark``: how good explanations are, and what they cost."""

from collections.abc import Sequence
from dataclasses import asdict
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
    names,
    option,
)
from cdam_med.cli.terminal import (
    print_line,
    print_outcome,
    print_result,
    print_warning,
    progress_bar,
    working,
)

if TYPE_CHECKING:
    from cdam_med.evaluation.examples import Examples
    from cdam_med.evaluation.speed import PeakMemory, Timing

evaluate = typer.Typer(
    name="evaluate", no_args_is_help=True, help="Measure how good explanations are."
)
benchmark = typer.Typer(
    name="benchmark", no_args_is_help=True, help="Measure what maps cost on this computer."
)


@evaluate.callback()
@benchmark.callback()
def _group() -> None:
    """Keep what is evaluated a word of the command, though there is only one."""


@evaluate.command(
    "explanations",
    epilog="Example: cdam-med evaluate explanations cohort --methods cdam,random --limit 20 "
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
    out: Annotated[Path, option("Where the report goes.")],
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    model: Annotated[str, option("'demo', a trained model's folder, or a linear head's.")] = "demo",
    methods: Annotated[
        str,
        option(
            "See 'cdam-med methods'.",
            None,
            "--methods",
            "--estimators",
            metavar="all|NAME,...",
        ),
    ] = "all",
    metrics: Annotated[
        str,
        option(
            "What is computed; see the docs.",
            None,
            "--metrics",
            "--measures",
            metavar="all|NAME,...",
        ),
    ] = "all",
    only: Annotated[
        Path | None, option("File with the nodules or images to take, a name a line.")
    ] = None,
    limit: Annotated[int | None, option("So many images at most, drawn at random.", min=1)] = None,
    shift_mm: Annotated[
        float, option("How far nodules are moved out of the centre, at most.")
    ] = 12.0,
    seed: Annotated[int, option("For everything that is drawn at random.", min=0)] = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure correctness, compactness, class sensitivity, localisation and sanity of maps.

    Every figure has a bootstrap interval over patients (or images), and the difference to CDAM.
    What is broken off goes on where it was, method by method, with --resume.
    """
    from cdam_med.attribution.registry import check_method

    holds_nodules = _holds_nodules(source)
    asked = None if methods == "all" else names(methods)
    for name in asked or ():  # before libraries are loaded
        check_method(name)
    wanted = None if only is None else _names_in(only)
    with working("Reading model and images"):
        from cdam_med.evaluation.evaluate import evaluate as evaluate_methods
        from cdam_med.evaluation.metrics import choose_metrics
        from cdam_med.evaluation.report import write_report
        from cdam_med.evaluation.store import Store
        from data_prep.disk import check_folder
        from data_prep.statements import RESEARCH_ONLY

        check_folder(out, "report", overwrite=overwrite)
        store = Store.beside(out, resume=resume)
        device = choose_device(device)
        kinds = None if metrics == "all" else names(metrics)
        choose_metrics(kinds)
        asked_for = (source, model, device, wanted, limit, seed)
        found = _nodules(*asked_for, shift_mm) if holds_nodules else _images(*asked_for)
    with progress_bar("Measuring") as advance:
        results = evaluate_methods(
            found.model,
            found.examples,
            asked,
            metrics=kinds,
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
        print_warning(f"{left_out.method}, {left_out.metric}: {left_out.reason}")
    print_outcome(
        {"report": str(folder)},
        f"Report: {folder / 'summary.md'}. {RESEARCH_ONLY}",
        as_json=as_json,
    )


class _Found(NamedTuple):
    model: object
    model_name: str
    weights_sha256: str
    examples: "Examples"
    shifted: "Examples | None" = None
    neighbours: "Examples | None" = None


def _about(found: _Found, source: Path, shift_mm: float) -> dict[str, str]:
    """Say what was evaluated, by names: no paths of this computer in what may be passed on."""
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


def _nodules(
    source: Path,
    model: str,
    device: str,
    only: Sequence[str] | None,
    limit: int | None,
    seed: int,
    shift_mm: float,
) -> _Found:
    """Read nodules of a cohort folder, or of a folder of labelled slices."""
    from functools import partial

    import numpy as np

    from cdam_med.evaluation.examples import examples_from_cohort, examples_from_slices
    from cdam_med.models.store import load_model
    from data_prep.cohort.folder import RECORD_NAME, read_cohort
    from data_prep.errors import InputError

    loaded = load_model(model, device=device)
    if (source / RECORD_NAME).is_file():
        read = partial(examples_from_cohort, read_cohort(source), loaded, seed=seed)
    else:
        read = partial(examples_from_slices, source, loaded, seed=seed)
    centred = read(nodules=only)
    if limit is not None and limit < len(centred):
        drawn = np.random.default_rng(seed).choice(len(centred), limit, replace=False)
        centred = centred.select(sorted(drawn.tolist()))
        only = list(centred.ids)
    try:
        neighbours = read(nodules=only, slice_offset=1)
    except InputError:  # no nodule has a slice above its middle one
        neighbours = None
    moved = read(nodules=only, shift_mm=shift_mm)
    has_room = moved.shifts_mm is not None and bool(moved.shifts_mm.any())
    return _Found(
        model=loaded,
        model_name=" of folder ".join(dict.fromkeys((loaded.config.name, Path(model).name))),
        weights_sha256=loaded.weights_sha256,
        examples=centred,
        shifted=moved if has_room else None,
        neighbours=neighbours,
    )


def _images(
    source: Path, model: str, device: str, only: Sequence[str] | None, limit: int | None, seed: int
) -> _Found:
    """Read a folder of images by class, and a model with a linear head."""
    from cdam_med.attribution.verification import weights_sha256
    from cdam_med.data.image_folder import read_image_folder
    from cdam_med.evaluation.examples import examples_from_image_folder
    from cdam_med.training.linear_head import load_linear_classifier

    images = read_image_folder(source)
    if only is not None:
        images = images.select(only)
    if limit is not None:
        images = images.sample(limit, seed=seed)
    loaded = load_linear_classifier(Path(model)).to(device)
    found = examples_from_image_folder(images, loaded)
    return _Found(loaded, Path(model).name, weights_sha256(loaded), found)


@benchmark.command(
    "speed", epilog="Example: cdam-med benchmark speed --models vit_small_patch16_224 --turns 5"
)
@as_command
def benchmark_speed(
    models: Annotated[
        str, option("timm's names; ViT-S/8, S/16, B/16, B/14 else.", metavar="NAME,...")
    ] = "",
    turns: Annotated[int, option("Times that each is run.", min=1)] = 10,
    slow_turns: Annotated[
        int, option("Times for what takes tens of forward passes; 0: not.", min=0)
    ] = 3,
    threads: Annotated[int | None, option("Threads; torch's own else.", min=1)] = None,
    bfloat16: Annotated[
        bool, option("All of it under autocast to bfloat16.", None, "--bfloat16")
    ] = False,
    compiled: Annotated[
        bool, option("The models' blocks through torch.compile.", None, "--compile")
    ] = False,
    memory: Annotated[bool, option("Also measure peak memory.", None, "--memory")] = False,
    as_json: JsonOption = False,
) -> None:
    """Time CDAM of nine targets, and other ways to it, against the plain forward pass.

    Everything runs by turns in one process. Maps by pytorch-grad-cam are among them where it is
    installed.
    """
    with working("Loading the models' library"):
        import torch

        from cdam_med.evaluation import speed
        from cdam_med.models.backbone import timm_name

    if threads is not None:
        torch.set_num_threads(threads)
    asked = [timm_name(name) for name in names(models)]
    sizes = {name: speed.SIZES.get(name, 1) for name in asked} or dict(speed.SIZES)
    machine = speed.describe_machine()
    found: list[Timing | PeakMemory] = []
    if not as_json:
        print_result(", ".join(f"{name} {value}" for name, value in machine.items()))
    for name, batch in sizes.items():
        print_line(f"{name}, batch {batch}")
        rows: list[Timing | PeakMemory] = [
            *speed.time_model(
                name,
                batch,
                turns=turns,
                slow_turns=slow_turns,
                bfloat16=bfloat16,
                compiled=compiled,
            )
        ]
        if slow_turns and name == "vit_small_patch16_224":
            rows.append(speed.time_token_ablation(name, turns=slow_turns))
        if memory:
            rows.append(speed.measure_memory(name, batch))
        found += rows
        if not as_json:
            print_result(*map(_line, rows))
    if as_json:
        print_outcome({"machine": machine, "rows": [asdict(row) for row in found]}, as_json=True)


def _line(row: "Timing | PeakMemory") -> str:
    from cdam_med.evaluation.speed import PeakMemory

    if isinstance(row, PeakMemory):
        return (
            f"{row.model:30s} b{row.batch} peak memory: one target {row.one_target_mb:.0f} MB, "
            f"nine {row.nine_targets_mb:.0f} MB, ratio {row.ratio:.3f}"
        )
    return (
        f"{row.model:30s} b{row.batch} {row.what:45s} {1e3 * row.median_s:9.1f} ms "
        f"({1e3 * row.low_s:.1f} to {1e3 * row.high_s:.1f})  x {row.ratio:.3f}"
    )
