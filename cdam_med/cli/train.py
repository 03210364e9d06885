"""``cdam-med train``: a nodule model from labelled slices and a pretrained backbone."""

from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdam_med.cli.command import (
    RUNNING,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    as_command,
    choose_device,
)
from cdam_med.cli.terminal import line_printer, print_json, print_result, working

if TYPE_CHECKING:
    from cdam_med.data.nodule_slices import NoduleSlices
    from cdam_med.models.nodule_vit import NoduleViT
    from cdam_med.training.cross_validation import CrossValidation, Predictions
    from cdam_med.training.trainer import Recipe


@as_command
def train(
    slices_dir: Annotated[Path, typer.Argument(help="Folder with nodules.csv and slices.npz.")],
    weights: Annotated[
        str,
        typer.Option(help="'hub' (timm's own, downloaded) or a .safetensors file to start from."),
    ],
    out: Annotated[Path, typer.Option(help="Where the model folder goes; a new folder.")],
    overwrite: OverwriteOption = False,
    folds: Annotated[
        int, typer.Option(min=0, help="Folds of the cross-validation, by patient; 0 for none.")
    ] = 5,
    exclude_patient: Annotated[
        list[str] | None,
        typer.Option(help="Keep this patient out of the final model; may be given several times."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning.")] = 7,
    rank: Annotated[
        int,
        typer.Option(min=0, help="Rank that the blocks' matrices are cut to; 0: they stay whole."),
    ] = 72,
    fold_models: Annotated[
        Path | None,
        typer.Option(help="Keep each fold's model here, with the names of its test nodules."),
    ] = None,
    device: DeviceOption = "auto",
    jobs: Annotated[
        int, typer.Option(min=1, help="Models trained at a time.", rich_help_panel=RUNNING)
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Train the malignancy and biomarker heads and their backbone on LIDC-IDRI slices.

    Makes a model by the recipe of the demonstration model and judges the recipe by
    cross-validation, beside the radiologists' own diameter. On two CPU cores: about an hour.
    """
    with working("Reading the slices"):
        from cdam_med.data.nodule_slices import read_nodule_slices
        from cdam_med.data.transforms import AUGMENTATION_MARGIN_MM
        from cdam_med.models.backbone import FROM_HUB, check_safetensors
        from cdam_med.training.cross_validation import figures_of, folds_of_patients
        from cdam_med.training.model_folder import predictions_csv, write_model_folder
        from cdam_med.training.trainer import demo_recipe
        from data_prep.written import check_folder

        check_folder(out, "model", overwrite=overwrite)
        device = choose_device(device)
        if fold_models is not None:
            _check_fold_models(fold_models, out, folds, overwrite=overwrite)
        if weights != FROM_HUB:
            check_safetensors(Path(weights))
        recipe = demo_recipe(fine_tuning_epochs=epochs, rank=rank or None)
        nodules = read_nodule_slices(
            slices_dir, recipe.model.input, margin_mm=AUGMENTATION_MARGIN_MM
        )
    excluded = tuple(exclude_patient or ())
    training_nodules = nodules.without_patients(excluded)
    if folds:
        folds_of_patients(nodules, n_folds=folds, seed=recipe.seed)  # refuse before hours are spent
    with working("Training"), _processes(jobs) as executor:
        predictions, model = _train(
            recipe,
            nodules,
            training_nodules,
            executor,
            weights=weights,
            folds=folds,
            fold_models=fold_models,
            overwrite=overwrite,
            device=device,
        )
    figures = None if predictions is None else figures_of(predictions, nodules)
    write_model_folder(
        out,
        model,
        recipe,
        figures=figures,
        excluded_patients=excluded,
        n_training_nodules=len(training_nodules),
        predictions=None if predictions is None else predictions_csv(predictions, nodules),
        overwrite=overwrite,
    )
    if as_json:
        print_json({"model": str(out), "auc": None if figures is None else _aucs(figures)})
        return
    if figures is not None:
        auc, ruler = figures.model.auc, figures.diameter.auc
        print_result(
            f"AUC {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f}); diameter alone "
            f"{ruler.value:.3f} ({ruler.low:.3f} to {ruler.high:.3f})"
        )
    print_result(f"Model: {out}. Research only, not for diagnosis.")


def _aucs(figures: "CrossValidation") -> dict[str, dict[str, float]]:
    """Return the areas under the curves, each with its interval."""
    return {
        name: {"value": auc.value, "low": auc.low, "high": auc.high}
        for name, auc in (("model", figures.model.auc), ("diameter", figures.diameter.auc))
    }


def _check_fold_models(folder: Path, out: Path, folds: int, *, overwrite: bool) -> None:
    """Refuse before hours are spent on models that couldn't be kept."""
    from data_prep.errors import InputError
    from data_prep.text import printable
    from data_prep.written import check_folder

    if not folds:
        raise InputError("--fold-models keeps the models of folds: give --folds 2 or more.")
    if out.absolute() in (folder.absolute(), *folder.absolute().parents):
        raise InputError(
            f"--fold-models {printable(str(folder))} lies in the model folder, which is "
            "written last and whole; choose another place."
        )
    for fold in range(1, folds + 1):
        check_folder(folder / str(fold), "model", overwrite=overwrite)
    known = {str(fold) for fold in range(1, folds + 1)}
    if folder.is_dir() and any(path.name not in known for path in folder.iterdir()):
        raise InputError(
            f"--fold-models {printable(str(folder))} holds something else; choose another place."
        )


def _processes(jobs: int) -> Executor:
    """Return an executor with a fresh process for each job: a GPU doesn't survive a fork."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from torch import get_num_threads, set_num_threads

    threads = max(1, get_num_threads() // jobs)  # which OMP_NUM_THREADS may limit
    return ProcessPoolExecutor(jobs, get_context("spawn"), set_num_threads, (threads,))


def _train(
    recipe: "Recipe",
    nodules: "NoduleSlices",
    training_nodules: "NoduleSlices",
    executor: Executor,
    *,
    weights: str,
    folds: int,
    fold_models: Path | None,
    overwrite: bool,
    device: str,
) -> "tuple[Predictions | None, NoduleViT]":
    """Return the predictions of a cross-validation (None without folds), and the final model."""
    from cdam_med.training.cross_validation import cross_validate
    from cdam_med.training.trainer import build_model

    final = executor.submit(
        build_model,
        recipe,
        training_nodules,
        backbone_weights=weights,
        device=device,
        report=line_printer(),
    )
    predictions = None
    if folds:
        predictions = cross_validate(
            recipe,
            nodules,
            backbone_weights=weights,
            n_folds=folds,
            device=device,
            executor=executor,
            report=line_printer(),
            models_dir=fold_models,
            overwrite=overwrite,
        )
    return predictions, final.result()
