"""``cdam-med train``: a nodule model from labelled slices and a pretrained backbone."""

from pathlib import Path
from typing import Annotated

import typer

from cdam_med.cli.terminal import print_line, working


def train(
    slices_dir: Annotated[Path, typer.Argument(help="Folder with nodules.csv and slices.npz.")],
    weights: Annotated[
        str,
        typer.Option(help="'hub' (timm's own, downloaded) or a .safetensors file to start from."),
    ],
    out: Annotated[Path, typer.Option(help="Where the model folder goes; must not exist.")],
    folds: Annotated[
        int, typer.Option(min=0, help="Folds of the cross-validation, by patient; 0 for none.")
    ] = 5,
    exclude_patient: Annotated[
        list[str] | None,
        typer.Option(help="Keep this patient out of the final model; may be given several times."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning.")] = 7,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    jobs: Annotated[int, typer.Option(min=1, help="Models trained at a time.")] = 1,
) -> None:
    """Train the malignancy and biomarker heads and their backbone on LIDC-IDRI slices.

    Makes a model by the recipe of the demonstration model and judges the recipe by
    cross-validation, beside the radiologists' own diameter. On two CPU cores: about an hour.
    """
    with working("Reading the slices"):
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        from torch import get_num_threads, set_num_threads

        from cdam_med.data.augmentation import AUGMENTATION_MARGIN_MM
        from cdam_med.data.nodule_slices import read_nodule_slices
        from cdam_med.models.backbone import FROM_HUB, check_safetensors
        from cdam_med.training.build import build_model
        from cdam_med.training.config import demo_recipe
        from cdam_med.training.cross_validation import cross_validate, judge, nodule_folds
        from cdam_med.training.model_folder import (
            check_new_folder,
            write_model_folder,
            write_predictions,
        )

        check_new_folder(out)
        if weights != FROM_HUB:
            check_safetensors(Path(weights))
        recipe = demo_recipe(fine_tuning_epochs=epochs)
        nodules = read_nodule_slices(
            slices_dir, recipe.model.input, margin_mm=AUGMENTATION_MARGIN_MM
        )
    excluded = tuple(exclude_patient or ())
    training_nodules = nodules.without_patients(excluded)
    if folds:
        nodule_folds(nodules, n_folds=folds, seed=recipe.seed)  # refuse before hours are spent
    figures = None
    # a fresh process each: threads and a GPU don't survive a fork
    threads = max(1, get_num_threads() // jobs)  # which OMP_NUM_THREADS may limit
    workers = ProcessPoolExecutor(jobs, get_context("spawn"), set_num_threads, (threads,))
    with workers as executor:
        final = executor.submit(
            build_model,
            recipe,
            training_nodules,
            backbone_weights=weights,
            device=device,
            report=print_line,
        )
        if folds:
            predictions = cross_validate(
                recipe,
                nodules,
                backbone_weights=weights,
                n_folds=folds,
                device=device,
                executor=executor,
                report=print_line,
            )
            figures = judge(predictions, nodules)
        model = final.result()
    write_model_folder(
        out,
        model,
        recipe,
        figures=figures,
        excluded_patients=excluded,
        n_training_nodules=len(training_nodules),
    )
    if figures is not None:
        write_predictions(out / "predictions.csv", predictions, nodules)
        auc, ruler = figures.model.auc, figures.diameter.auc
        typer.echo(
            f"AUC {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f}); diameter alone "
            f"{ruler.value:.3f} ({ruler.low:.3f} to {ruler.high:.3f})"
        )
    typer.echo(f"Model: {out}. Research only, not for diagnosis.")
