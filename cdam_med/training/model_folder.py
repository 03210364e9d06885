"""The folder of a trained model: weights, configuration, recipe, figures and a model card."""

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cdam_med.data.nodule_slices import NoduleSlices
from cdam_med.models.nodule_vit import NoduleViT
from cdam_med.targets import TARGET_NAMES
from cdam_med.training.config import Recipe
from cdam_med.training.cross_validation import CrossValidation, Predictions
from cdam_med.training.model_card import model_card
from data_prep.errors import InputError


def check_new_folder(folder: Path) -> None:
    """Refuse a place that is taken before hours are spent on what is to go there.

    Raises
    ------
    InputError
        If it exists.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already; choose another folder for the model.")


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
    """
    check_new_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cdam-med-", dir=folder.parent) as aside:
        staged = Path(aside) / "model"
        model.half().save_pretrained(staged)
        (staged / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n")
        if figures is not None:
            text = figures.model_dump_json(indent=2) + "\n"
            (staged / "cross_validation.json").write_text(text)
        card = model_card(
            model, recipe, figures, excluded_patients, n_training_nodules=n_training_nodules
        )
        (staged / "README.md").write_text(card, encoding="utf-8")
        staged.chmod(0o755)
        staged.rename(folder)


def write_predictions(path: Path, predictions: Predictions, nodules: NoduleSlices) -> None:
    """Write the predictions of a cross-validation as CSV, one row a nodule."""
    header = ["nodule_id", "patient_id", "fold", "median_malignancy", "diameter_logit"]
    rated = [f"rated_{name}" for name in TARGET_NAMES[1:]]
    aside = path.with_name(f".{path.name}.part")
    with aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*header, *TARGET_NAMES, *rated])
        for index, nodule_id in enumerate(nodules.nodule_ids):
            numbers = [predictions.diameter_logits[index], *predictions.outputs[index]]
            numbers += list(nodules.biomarkers[index])
            texts = [np.format_float_positional(number, precision=5) for number in numbers]
            writer.writerow(
                [
                    nodule_id,
                    nodules.patient_ids[index],
                    predictions.fold[index],
                    nodules.malignancy[index],
                    *texts,
                ]
            )
    aside.replace(path)
