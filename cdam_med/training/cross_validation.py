"""Patient-grouped cross-validation of a recipe, with the diameter baseline beside it."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict

from cdam_med.data.nodule_slices import UNDECIDED, NoduleSlices
from cdam_med.data.transforms import AUGMENTATION_MARGIN_MM, slices_to_images
from cdam_med.evaluation.predictions import (
    Classification,
    Regression,
    classification,
    diameter_logits,
    regression,
)
from cdam_med.models.nodule_vit import NoduleViT
from cdam_med.models.store import save_model
from cdam_med.targets import BIOMARKERS
from cdam_med.training.trainer import Recipe, Report, build_model
from data_prep.errors import InputError
from data_prep.folds import patient_folds

PREDICTION_BATCH = 64
"""Images that go through a trained model at a time."""

TEST_NODULES = "test_nodules.txt"
"""File of a fold's model: names of the nodules of patients that it never saw, one a line."""

_FOLD_CARD = f"""\
# Model of one fold of a cross-validation

It was trained without the patients of the nodules named in {TEST_NODULES}; evaluate it on these.
Malignancy is the opinion of radiologists, not a cancer outcome. Research only, not for diagnosis.
"""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for nodules of patients that the predicting model never saw.

    `outputs` are in the units of the targets, `diameter_logits` those of the diameter baseline on
    the same folds, `fold` is the one in which a nodule was tested, counted from 1.
    """

    outputs: Float[np.ndarray, "nodule target"]
    diameter_logits: Float[np.ndarray, "nodule"]
    fold: Int64[np.ndarray, "nodule"]


class CrossValidation(BaseModel):
    """Figures of a cross-validation: the model, and the diameter alone, on the same nodules.

    Counts are of the nodules with a class, on which malignancy is evaluated; `biomarkers` are of
    all nodules, by name.
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
    """Build a model for each fold, and return predictions for the nodules of the fold's patients.

    No patient is both in training and in testing, and nothing is chosen on the test nodules. The
    executor runs the folds; where it uses processes, `report` must be picklable. Each fold's model
    is kept below `models_dir`, in a folder of the fold's number.
    """
    folds = folds_of_patients(nodules, n_folds=n_folds, seed=recipe.seed)
    outputs = np.zeros((len(nodules), 1 + len(BIOMARKERS)), dtype=np.float32)
    baseline = np.zeros(len(nodules))
    fold_of = np.zeros(len(nodules), dtype=np.int64)
    jobs = [
        executor.submit(
            _fold_outputs,
            partial(build_model, recipe, backbone_weights=backbone_weights, device=device),
            nodules.select(train),
            nodules.select(test),
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


def folds_of_patients(
    nodules: NoduleSlices, *, n_folds: int, seed: int
) -> list[tuple[Int64[np.ndarray, "train"], Int64[np.ndarray, "test"]]]:
    """Split nodules by patient, with equal shares of benign, undecided and malignant ones.

    An `InputError` says if so many folds can't be made, or a fold leaves only one class, or only
    one value of a biomarker, to train on.
    """
    # three strata: the undecided train the biomarkers and must be spread as well
    strata = np.sign(nodules.malignancy - UNDECIDED)
    folds = patient_folds(strata, nodules.patient_ids, n_folds=n_folds, seed=seed)
    for fold, (train, _) in enumerate(folds, start=1):
        malignant = nodules.malignant[train[nodules.has_class[train]]]
        spread = np.ptp(nodules.biomarkers[train], axis=0)
        constant = [t.name for t, found in zip(BIOMARKERS, spread, strict=True) if found == 0]
        lacks = f"a single value of {', '.join(constant)}" if constant else ""
        if not malignant.any() or malignant.all():
            lacks = "no benign or no malignant nodules"
        if lacks:
            raise InputError(
                f"Fold {fold} of {n_folds} leaves {lacks} to train on; add nodules of more "
                "patients."
            )
    return folds


def _fold_outputs(
    build: Callable[..., NoduleViT],
    training_nodules: NoduleSlices,
    test_nodules: NoduleSlices,
    *,
    report: Report,
    folder: Path | None,
    overwrite: bool,
) -> Float[np.ndarray, "nodule target"]:
    """Build a model on some nodules, keep it if asked, and return its outputs for others."""
    model = build(training_nodules, report=report)
    outputs = middle_slice_outputs(model, test_nodules)
    if folder is not None:
        names = "".join(f"{name}\n" for name in test_nodules.nodule_ids)
        texts = {"README.md": _FOLD_CARD, TEST_NODULES: names}
        save_model(folder, model, texts, overwrite=overwrite)
    return outputs


def _report_fold(report: Report, fold: str, line: str) -> None:
    report(f"{fold}: {line}")


def figures_of(predictions: Predictions, nodules: NoduleSlices) -> CrossValidation:
    """Return the figures of predictions: malignancy of the decided nodules, biomarkers of all.

    An `InputError` says if the nodules are of one class, or a logit isn't finite.
    """
    decided = np.flatnonzero(nodules.has_class)
    malignant = nodules.malignant[decided]
    patients = [nodules.patient_ids[index] for index in decided]
    columns = enumerate(BIOMARKERS)
    return CrossValidation(
        n_folds=int(predictions.fold.max()),
        n_patients=len(set(patients)),
        n_nodules=len(decided),
        n_malignant=int(malignant.sum()),
        n_benign=int((~malignant).sum()),
        model=classification(predictions.outputs[decided, 0], malignant, patients),
        diameter=classification(predictions.diameter_logits[decided], malignant, patients),
        biomarkers={
            target.name: regression(predictions.outputs[:, 1 + c], nodules.biomarkers[:, c])
            for c, target in columns
        },
    )


@torch.inference_mode()
def middle_slice_outputs(
    model: NoduleViT, nodules: NoduleSlices
) -> Float[np.ndarray, "nodule target"]:
    """Return a model's outputs for the middle slice of each nodule, without its margin."""
    spec = model.config.input
    margin = round(AUGMENTATION_MARGIN_MM / spec.spacing_mm)
    slices = torch.from_numpy(nodules.middle_slices())[:, margin:-margin, margin:-margin]
    batches = torch.split(slices, PREDICTION_BATCH)
    return np.concatenate([model(slices_to_images(batch, spec)).numpy() for batch in batches])
