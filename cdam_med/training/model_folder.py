"""The folder of a trained model: weights, configuration, recipe, figures and a model card."""

import csv
import io
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cdam_med.data.nodule_slices import NoduleSlices
from cdam_med.evaluation.predictions import Classification
from cdam_med.models.nodule_vit import NoduleViT
from cdam_med.models.store import save_model
from cdam_med.targets import BIOMARKERS, TARGET_NAMES
from cdam_med.training.cross_validation import CrossValidation, Predictions
from cdam_med.training.trainer import DEMO_RANK, Recipe

CSV_DECIMALS = 5
"""Digits after the point in ``predictions.csv``."""

_INTENSITY_LIMIT = """\
- Intensities are stretched slice by slice, so densities in HU (calcification, fat) are known to
  it only relative to their surroundings.
"""


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
    """Write a trained model, which is left in half precision, and what is known of it.

    `predictions` is what `predictions_csv` gives. The folder appears whole or not at all;
    `overwrite` replaces a model folder that holds nothing else and wasn't changed.
    """
    card = _card(model, recipe, figures, excluded_patients, n_training_nodules)
    texts = {"recipe.json": f"{recipe.model_dump_json(indent=2)}\n", "README.md": card}
    if figures is not None:
        texts["cross_validation.json"] = f"{figures.model_dump_json(indent=2)}\n"
    if predictions is not None:
        texts["predictions.csv"] = predictions
    save_model(folder, model, texts, overwrite=overwrite)


def predictions_csv(predictions: Predictions, nodules: NoduleSlices) -> str:
    """Return the predictions of a cross-validation as CSV, one row a nodule."""
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


def _card(
    model: NoduleViT,
    recipe: Recipe,
    figures: CrossValidation | None,
    excluded_patients: Sequence[str],
    n_training_nodules: int,
) -> str:
    """Return the model card as Markdown, with the header that model hubs read."""
    spec, backbone = recipe.model.input, recipe.model.backbone
    found = "Not cross-validated: nothing is known of how good it is."
    if figures is not None:
        found = _filled("model_card_figures.md", figures=figures, **_tables(figures)).rstrip("\n")
    options = ["--folds", str(figures.n_folds if figures else 0)]
    options += ["--epochs", str(recipe.fine_tuning.epochs)]
    if backbone.rank != DEMO_RANK:
        options += ["--rank", str(backbone.rank or 0)]
    for patient in excluded_patients:
        options += ["--exclude-patient", patient]
    files = "SLICES_DIR --weights BACKBONE.safetensors --out MODEL_DIR"
    rank = f", block matrices of rank {backbone.rank} stored as factors" if backbone.rank else ""
    return _filled(
        "model_card.md",
        recipe=recipe,
        backbone=backbone,
        input=spec,
        rank=rank,
        views_listed=", ".join(recipe.model.views),
        views=" and ".join(recipe.model.views),
        patch_mm=spec.field_of_view_mm / model.backbone.patch_embed.grid_size[0],
        biomarkers=", ".join(target.name for target in BIOMARKERS),
        n_training_nodules=n_training_nodules,
        without=", ".join(excluded_patients) or "nobody",
        figures=found,
        intensity_limit=_INTENSITY_LIMIT if spec.intensity == "slice_stretch" else "",
        command=f"cdam-med train {files} {shlex.join(options)}",
    )


def _filled(name: str, **values: object) -> str:
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return text.format(**values)


def _tables(figures: CrossValidation) -> dict[str, str]:
    errors = [(target, figures.biomarkers[target.name]) for target in BIOMARKERS]
    rows = [
        f"| {target.name} ({target.unit}) | {found.mean_absolute_error:.2f} "
        f"| {found.pearson:.2f} | {found.relative_squared_error:.2f} |"
        for target, found in errors
    ]
    diameter = _row("diameter alone (logistic regression)", figures.diameter)
    malignancy = f"{_row('this recipe', figures.model)}\n{diameter}"
    return {"malignancy": malignancy, "biomarkers": "\n".join(rows)}


def _row(name: str, found: Classification) -> str:
    shares = (found.auc, found.accuracy, found.sensitivity, found.specificity)
    cells = [f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f})" for share in shares]
    return f"| {name} | {' | '.join(cells)} |"
