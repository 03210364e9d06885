"""The folder of a trained model: weights, configuration, recipe, figures and a model card."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cdam_med.data.nodule_slices import NoduleSlices
from cdam_med.models.nodule_vit import NoduleViT
from cdam_med.targets import TARGET_NAMES
from cdam_med.training.config import Recipe
from cdam_med.training.cross_validation import CrossValidation, Predictions
from cdam_med.training.model_card import model_card
from cdam_med.training.saved_model import save_model_folder

CSV_DECIMALS = 5
"""Digits after the point in ``predictions.csv``."""


def write_model_folder(
    folder: Path,
    model: NoduleViT,
    recipe: Recipe,
    *,
    figures: CrossValidation | None,
    excluded_patients: Sequence[str],
    n_training_nodules: int,
    predictions: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a trained model in half precision; the folder appears whole or not at all.

    Parameters
    ----------
    folder
        Where; nothing or an empty folder may be there.
    model, recipe
        The model, which is left in half precision, and how it was made.
    figures
        Of the recipe's cross-validation; None where there was none.
    excluded_patients, n_training_nodules
        What the model was trained without, and on how many nodules.
    predictions
        Of the cross-validation, from `predictions_csv`.
    overwrite
        Replace a model folder. One that holds anything else, or a file that was changed since, is
        refused.

    Raises
    ------
    OutputError
        If the place is taken or can't be written to.
    """
    texts = {
        "recipe.json": recipe.model_dump_json(indent=2) + "\n",
        "README.md": model_card(
            model, recipe, figures, excluded_patients, n_training_nodules=n_training_nodules
        ),
    }
    if figures is not None:
        texts["cross_validation.json"] = figures.model_dump_json(indent=2) + "\n"
    if predictions is not None:
        texts["predictions.csv"] = predictions
    save_model_folder(folder, model, texts, overwrite=overwrite)


def predictions_csv(predictions: Predictions, nodules: NoduleSlices) -> str:
    """Return the predictions of a cross-validation as CSV, one row a nodule.

    Parameters
    ----------
    predictions
        Of `cdam_med.training.cross_validation.cross_validate`.
    nodules
        That were predicted.
    """
    header = ["nodule_id", "patient_id", "fold", "median_malignancy", "diameter_logit"]
    rated = [f"rated_{name}" for name in TARGET_NAMES[1:]]
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow([*header, *TARGET_NAMES, *rated])
    for index, nodule_id in enumerate(nodules.nodule_ids):
        numbers = [predictions.diameter_logits[index], *predictions.outputs[index]]
        numbers += list(nodules.biomarkers[index])
        texts = [np.format_float_positional(number, CSV_DECIMALS) for number in numbers]
        patient_id, fold = nodules.patient_ids[index], predictions.fold[index]
        writer.writerow([nodule_id, patient_id, fold, nodules.malignancy[index], *texts])
    return table.getvalue()
