"""``cdam-med train`` and ``train-head``: a nodule model, or a linear head on a frozen backbone."""

from concurrent.futures import Executor
from pathlib import Path
from typing import Annotated, Any

import typer

from cdam_med.cli.command import (
    RUNNING,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    as_command,
    choose_device,
    option,
)
from cdam_med.cli.terminal import line_printer, print_line, print_outcome, working

WeightsOption = Annotated[
    str, option("'hub' (timm's own, downloaded) or a .safetensors file to start from.")
]


@as_command
def train(
    slices_dir: Annotated[Path, typer.Argument(help="Folder with nodules.csv and slices.npz.")],
    weights: WeightsOption,
    out: Annotated[Path, option("Where the model folder goes; a new folder.")],
    overwrite: OverwriteOption = False,
    folds: Annotated[
        int, option("Folds of the cross-validation, by patient; 0 for none.", min=0)
    ] = 5,
    exclude_patient: Annotated[
        list[str] | None,
        option("Keep this patient out of the final model; may be given several times."),
    ] = None,
    epochs: Annotated[int, option("Epochs of fine-tuning.", min=1)] = 7,
    rank: Annotated[
        int, option("Rank that the blocks' matrices are cut to; 0: they stay whole.", min=0)
    ] = 72,
    fold_models: Annotated[
        Path | None, option("Keep each fold's model here, with the names of its test nodules.")
    ] = None,
    device: DeviceOption = "auto",
    jobs: Annotated[int, option("Models trained at a time.", RUNNING, min=1)] = 1,
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
        from cdam_med.training.cross_validation import cross_validate, figures_of, folds_of_patients
        from cdam_med.training.model_folder import predictions_csv, write_model_folder
        from cdam_med.training.trainer import build_model, demo_recipe
        from data_prep.disk import check_folder
        from data_prep.statements import RESEARCH_ONLY

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
    figures = table = None
    with working("Training"), _processes(jobs) as executor:
        options: dict[str, Any] = {
            "backbone_weights": weights,
            "device": device,
            "report": line_printer(),
        }
        final = executor.submit(build_model, recipe, training_nodules, **options)
        if folds:
            predictions = cross_validate(
                recipe,
                nodules,
                n_folds=folds,
                executor=executor,
                models_dir=fold_models,
                overwrite=overwrite,
                **options,
            )
            figures, table = figures_of(predictions, nodules), predictions_csv(predictions, nodules)
        model = final.result()
    write_model_folder(
        out,
        model,
        recipe,
        figures=figures,
        excluded_patients=excluded,
        n_training_nodules=len(training_nodules),
        predictions=table,
        overwrite=overwrite,
    )
    lines, aucs = [], None
    if figures is not None:
        found = {"model": figures.model.auc, "diameter": figures.diameter.auc}
        aucs = {
            name: {"value": auc.value, "low": auc.low, "high": auc.high}
            for name, auc in found.items()
        }
        shown = (f"{auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})" for auc in found.values())
        lines.append(f"AUC {'; diameter alone '.join(shown)}")
    lines.append(f"Model: {out}. {RESEARCH_ONLY}")
    print_outcome({"model": str(out), "auc": aucs}, *lines, as_json=as_json)


def _check_fold_models(folder: Path, out: Path, folds: int, *, overwrite: bool) -> None:
    """Refuse before hours are spent on models that couldn't be kept."""
    from data_prep.disk import check_folder
    from data_prep.errors import InputError
    from data_prep.text import printable

    what = f"--fold-models {printable(str(folder))}"
    if not folds:
        raise InputError("--fold-models keeps the models of folds: give --folds 2 or more.")
    if out.absolute() in (folder.absolute(), *folder.absolute().parents):
        raise InputError(
            f"{what} lies in the model folder, which is written last and whole; choose another "
            "place."
        )
    known = {str(fold) for fold in range(1, folds + 1)}
    for name in sorted(known):
        check_folder(folder / name, "model", overwrite=overwrite)
    if folder.is_dir() and any(path.name not in known for path in folder.iterdir()):
        raise InputError(f"{what} holds something else; choose another place.")


def _processes(jobs: int) -> Executor:
    """Return an executor with a fresh process for each job: a GPU doesn't survive a fork."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from torch import get_num_threads, set_num_threads

    threads = max(1, get_num_threads() // jobs)  # which OMP_NUM_THREADS may limit
    return ProcessPoolExecutor(jobs, get_context("spawn"), set_num_threads, (threads,))


@as_command
def train_head(
    training: Annotated[
        Path, typer.Argument(metavar="TRAINING", help="Folder with a folder of images a class.")
    ],
    validation: Annotated[
        Path, typer.Argument(metavar="VALIDATION", help="The same classes, other images.")
    ],
    weights: WeightsOption,
    out: Annotated[Path, option("Where the classifier goes; a new folder.")],
    overwrite: OverwriteOption = False,
    architecture: Annotated[
        str, option("timm's name, or one of the paper's, e.g. dino_vits8.")
    ] = "dino_vits8",
    image_size: Annotated[int, option("Edge of an image in pixels.", min=1)] = 224,
    epochs: Annotated[int, option("Passes over the images.", min=1)] = 10,
    batch_size: Annotated[int, option("Images a step.", min=1)] = 128,
    workers: Annotated[int, option("Processes that read images.", min=0)] = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train one linear layer on a frozen ViT's class token; settings are the paper's.

    'cdam-med evaluate explanations' takes the result for a folder of images.
    """
    import logging

    with working("Reading the folders"):
        from cdam_med.data.image_folder import read_image_folder
        from cdam_med.models.backbone import BackboneSpec
        from cdam_med.training.linear_head import (
            Epoch,
            LinearHeadConfig,
            check_backbone,
            save_linear_classifier,
            train_linear_head,
        )
        from data_prep.disk import check_folder

        check_folder(out, "model", overwrite=overwrite)
        device = choose_device(device)
        backbone = BackboneSpec(architecture=architecture, image_size=image_size)
        check_backbone(backbone, weights)
        folders = read_image_folder(training), read_image_folder(validation)

    # Lightning would announce its precision
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

    def report(epoch: Epoch) -> None:
        print_line(
            f"epoch {epoch.number}/{epochs}: loss {epoch.training_loss:.3f}, validation "
            f"{epoch.validation_loss:.3f}, accuracy {epoch.validation_accuracy:.3f}"
        )

    with working("Training"):
        classifier = train_linear_head(
            *folders,
            backbone,
            weights=weights,
            config=LinearHeadConfig(epochs=epochs, batch_size=batch_size),
            device=device,
            workers=workers,
            on_epoch=report,
        )
    save_linear_classifier(out, classifier, overwrite=overwrite)
    kept = classifier.record.kept
    print_outcome(
        {"model": str(out), "accuracy": kept.validation_accuracy, "epoch": kept.number},
        f"Accuracy {kept.validation_accuracy:.3f} (epoch {kept.number}): {out}",
        as_json=as_json,
    )
