"""Patient-grouped cross-validation of a recipe, with the diameter baseline beside it."""

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict

from cdam_med.data.augmentation import AUGMENTATION_MARGIN_MM
from cdam_med.data.nodule_slices import UNDECIDED, NoduleSlices
from cdam_med.data.transforms import slices_to_images
from cdam_med.evaluation.classification import Classification, classification, diameter_logits
from cdam_med.evaluation.regression import Regression, regression
from cdam_med.models.nodule_vit import NoduleViT
from cdam_med.targets import BIOMARKERS
from cdam_med.training.build import Report, build_model
from cdam_med.training.config import Recipe
from cdam_med.training.saved_model import save_fold_model
from data_prep.errors import InputError
from data_prep.folds import patient_folds

PREDICTION_BATCH = 64
"""Images that go through a trained model at a time."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for nodules of patients that the predicting model never saw.

    Parameters
    ----------
    outputs
        Model outputs (nodule, target), in their units.
    diameter_logits
        Of the diameter baseline, trained on the same folds.
    fold
        Fold in which a nodule was tested.
    """

    outputs: Float[np.ndarray, "nodule target"]
    diameter_logits: Float[np.ndarray, "nodule"]
    fold: Int64[np.ndarray, "nodule"]


class CrossValidation(BaseModel):
    """Figures of a cross-validation: the model, and the diameter alone, on the same nodules.

    Parameters
    ----------
    n_folds
        Models that were trained.
    n_patients, n_nodules, n_malignant, n_benign
        Those with a class, which malignancy is judged on.
    model, diameter
        Malignancy by the model, and by the diameter baseline.
    biomarkers
        Of the model, by name, on all nodules.
    """

    model_config = ConfigDict(frozen=True)

    n_folds: int
    n_patients: int
    n_nodules: int
    n_malignant: int
    n_benign: int
    model: Classification
    diameter: Classification
    biomarkers: dict[str, Regression]


def cross_validate(  # noqa: PLR0913  what the command passes on
    recipe: Recipe,
    nodules: NoduleSlices,
    *,
    backbone_weights: str | Path,
    n_folds: int,
    device: str = "cpu",
    executor: Executor,
    report: Report,
    models_dir: Path | None = None,
    overwrite: bool = False,
) -> Predictions:
    """Build a model for each fold and predict the nodules of the fold's patients.

    No patient is both in training and in testing, and nothing is chosen on the test nodules.

    Parameters
    ----------
    recipe, nodules, backbone_weights, device
        As for `cdam_med.training.build.build_model`.
    n_folds
        Number of folds.
    executor
        Runs the folds, e.g. in several processes.
    report
        Is told the progress; must be picklable where `executor` uses processes.
    models_dir
        Where each fold's model is kept, in a folder of the fold's number, with the names of its
        test nodules; see `cdam_med.training.saved_model.save_fold_model`. None keeps none.
    overwrite
        Replace such models of an earlier run.

    Returns
    -------
    Predictions
        For all nodules, in their order.

    Raises
    ------
    InputError
        If the folds can't be made (see `nodule_folds`) or a model can't be trained.
    OutputError
        If a model can't be written.
    """
    folds = nodule_folds(nodules, n_folds=n_folds, seed=recipe.seed)
    outputs = np.zeros((len(nodules), 1 + len(BIOMARKERS)), dtype=np.float32)
    baseline = np.zeros(len(nodules))
    fold_of = np.zeros(len(nodules), dtype=np.int64)
    jobs = [
        executor.submit(
            _fold_outputs,
            recipe,
            nodules.select(train),
            nodules.select(test),
            backbone_weights=backbone_weights,
            device=device,
            report=partial(_report_fold, report, f"fold {fold}/{n_folds}"),
            folder=None if models_dir is None else models_dir / str(fold),
            overwrite=overwrite,
        )
        for fold, (train, test) in enumerate(folds, start=1)
    ]
    for fold, ((train, test), job) in enumerate(zip(folds, jobs, strict=True), start=1):
        decided = train[nodules.has_class[train]]
        baseline[test] = diameter_logits(
            nodules.diameter_mm[decided], nodules.malignant[decided], nodules.diameter_mm[test]
        )
        outputs[test] = job.result()
        fold_of[test] = fold
    return Predictions(outputs, baseline, fold_of)


def nodule_folds(
    nodules: NoduleSlices, *, n_folds: int, seed: int
) -> list[tuple[Int64[np.ndarray, "train"], Int64[np.ndarray, "test"]]]:
    """Split nodules by patient, with equal shares of benign, undecided and malignant ones.

    Parameters
    ----------
    nodules
        All nodules.
    n_folds, seed
        As for `data_prep.folds.patient_folds`.

    Raises
    ------
    InputError
        If so many folds can't be made, or a fold leaves only one class, or only one value of a
        biomarker, to train on.
    """
    # three strata: the undecided train the biomarkers and must be spread as well
    strata = np.sign(nodules.malignancy - UNDECIDED)
    folds = patient_folds(strata, nodules.patient_ids, n_folds=n_folds, seed=seed)
    for fold, (train, _) in enumerate(folds, start=1):
        malignant = nodules.malignant[train[nodules.has_class[train]]]
        if not malignant.any() or malignant.all():
            raise InputError(
                f"Fold {fold} of {n_folds} leaves no benign or no malignant nodules to train on; "
                "add nodules of more patients."
            )
        varies = np.ptp(nodules.biomarkers[train], axis=0) > 0
        constant = [target.name for target, ok in zip(BIOMARKERS, varies, strict=True) if not ok]
        if constant:
            raise InputError(
                f"Fold {fold} of {n_folds} leaves a single value of {', '.join(constant)} to train "
                "on; add nodules of more patients."
            )
    return folds


def _fold_outputs(
    recipe: Recipe,
    training_nodules: NoduleSlices,
    test_nodules: NoduleSlices,
    *,
    backbone_weights: str | Path,
    device: str,
    report: Report,
    folder: Path | None,
    overwrite: bool,
) -> Float[np.ndarray, "nodule target"]:
    """Build a model on some nodules, keep it if asked, and return its outputs for others."""
    model = build_model(
        recipe, training_nodules, backbone_weights=backbone_weights, device=device, report=report
    )
    outputs = middle_slice_outputs(model, test_nodules)
    if folder is not None:
        save_fold_model(folder, model, test_nodules.nodule_ids, overwrite=overwrite)
    return outputs


def _report_fold(report: Report, fold: str, line: str) -> None:
    report(f"{fold}: {line}")


def judge(predictions: Predictions, nodules: NoduleSlices) -> CrossValidation:
    """Turn predictions into figures: malignancy on the decided nodules, biomarkers on all.

    Parameters
    ----------
    predictions
        Of `cross_validate`.
    nodules
        That were predicted.

    Raises
    ------
    InputError
        If the nodules are of one class, or a logit isn't finite.
    """
    decided = np.flatnonzero(nodules.has_class)
    malignant = nodules.malignant[decided]
    patients = [nodules.patient_ids[index] for index in decided]
    return CrossValidation(
        n_folds=int(predictions.fold.max()),
        n_patients=len(set(patients)),
        n_nodules=len(decided),
        n_malignant=int(malignant.sum()),
        n_benign=int((~malignant).sum()),
        model=classification(predictions.outputs[decided, 0], malignant, patients),
        diameter=classification(predictions.diameter_logits[decided], malignant, patients),
        biomarkers={
            target.name: regression(
                predictions.outputs[:, 1 + column], nodules.biomarkers[:, column]
            )
            for column, target in enumerate(BIOMARKERS)
        },
    )


@torch.inference_mode()
def middle_slice_outputs(
    model: NoduleViT, nodules: NoduleSlices
) -> Float[np.ndarray, "nodule target"]:
    """Return the model's outputs for the middle slice of each nodule.

    Parameters
    ----------
    model
        On the CPU, in evaluation mode.
    nodules
        Read with `cdam_med.data.augmentation.AUGMENTATION_MARGIN_MM`, which is cut off.
    """
    return np.concatenate([model(images).numpy() for images in _middle_images(model, nodules)])


def _middle_images(model: NoduleViT, nodules: NoduleSlices) -> Iterator[torch.Tensor]:
    spec = model.config.input
    margin = round(AUGMENTATION_MARGIN_MM / spec.spacing_mm)
    slices = torch.from_numpy(nodules.middle_slices())[:, margin:-margin, margin:-margin]
    for batch in torch.split(slices, PREDICTION_BATCH):
        yield slices_to_images(batch, spec)
