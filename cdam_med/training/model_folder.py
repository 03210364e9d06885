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
from cdam_med.training.saved_model import check_new_folder, save_model_folder, writing
from data_prep.disk import write_file

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
) -> None:
    """Write a trained model in half precision; the folder appears whole or not at all.

    Parameters
    ----------
    folder
        Must not exist.
    model, recipe
        The model, which is left in half precision, and how it was made.
    figures
        Of the recipe's cross-validation; None where there was none.
    excluded_patients, n_training_nodules
        What the model was trained without, and on how many nodules.

    Raises
    ------
    OutputError
        If the place is taken or can't be written to.
    """
    check_new_folder(folder)
    texts = {
        "recipe.json": recipe.model_dump_json(indent=2) + "\n",
        "README.md": model_card(
            model, recipe, figures, excluded_patients, n_training_nodules=n_training_nodules
        ),
    }
    if figures is not None:
        texts["cross_validation.json"] = figures.model_dump_json(indent=2) + "\n"
    save_model_folder(folder, model, texts)


def write_predictions(path: Path, predictions: Predictions, nodules: NoduleSlices) -> None:
    """Write the predictions of a cross-validation as CSV, one row a nodule.

    Parameters
    ----------
    path
        The file; its folder must exist.
    predictions
        Of `cdam_med.training.cross_validation.cross_validate`.
    nodules
        That were predicted.

    Raises
    ------
    OutputError
        If the file can't be written.
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
    with writing(path):
        write_file(path, table.getvalue().encode())
