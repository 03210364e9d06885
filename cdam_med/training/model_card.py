"""The model card: what a model is, how good it is, and what it is not for."""

import shlex
from collections.abc import Sequence

from cdam_med.evaluation.classification import Classification
from cdam_med.evaluation.intervals import BootstrapInterval
from cdam_med.models.nodule_vit import NoduleViT
from cdam_med.targets import BIOMARKERS
from cdam_med.training.config import DEMO_RANK, Recipe
from cdam_med.training.cross_validation import CrossValidation

_INTENSITY_LIMIT = """\
- Intensities are stretched slice by slice, so densities in HU (calcification, fat) are known to
  it only relative to their surroundings.
"""


def model_card(
    model: NoduleViT,
    recipe: Recipe,
    figures: CrossValidation | None,
    excluded_patients: Sequence[str],
    *,
    n_training_nodules: int,
) -> str:
    """Return the model card as Markdown (with the header that model hubs read).

    Parameters
    ----------
    model, recipe
        The model, and how it was made.
    figures
        Of the recipe's cross-validation; None where there was none.
    excluded_patients, n_training_nodules
        What the model was trained without, and on how many nodules.
    """
    spec, backbone = recipe.model.input, recipe.model.backbone
    patch_mm = spec.field_of_view_mm / model.backbone.patch_embed.grid_size[0]
    without = ", ".join(excluded_patients) or "nobody"
    rank = f", block matrices of rank {backbone.rank} stored as factors" if backbone.rank else ""
    return f"""---
library_name: cdam-med
license: apache-2.0
tags: [medical-imaging, computed-tomography, lung-nodule, explainable-ai]
---

# {recipe.model.name}: malignancy and eight biomarkers of a lung nodule from one slice of CT

**Research only, not for diagnosis.** The labels are opinions of radiologists on CT, not biopsies
or outcomes: the malignancy output says how radiologists would have rated a nodule.

## What it is

- {backbone.architecture} of timm at {backbone.image_size} x {backbone.image_size} pixels{rank};
  a linear malignancy head and a Linear-ReLU-Linear biomarker head on the class token.
- Input: {", ".join(recipe.model.views)} slice through the nodule's centre, a square of
  {spec.field_of_view_mm:g} mm at {spec.spacing_mm:g} mm, intensity mode `{spec.intensity}`; one
  patch is {patch_mm:.3g} mm of tissue.
- Output: the malignancy logit, then
  {", ".join(target.name for target in BIOMARKERS)}
  in rating points and millimetres.

## Data and licence

Trained on {n_training_nodules} nodules of LIDC-IDRI that three or four radiologists outlined
(Armato et al., Data From LIDC-IDRI, The Cancer Imaging Archive, 2015,
doi 10.7937/K9/TCIA.2015.LO9QL9SX; CC BY 3.0), without the patients: {without}.
Malignancy is the readers' median, nodules with a median of 3 have no class and train the
biomarkers only; biomarkers are the readers' means. The backbone started from pretrained weights
of the DINOv2 layout (Apache-2.0 and MIT). The weights of this model are under Apache-2.0.

## How good it is

{_figures(figures)}

## What it is not for

{_limits(recipe)}

## How to make it again

```
{_command(recipe, figures, excluded_patients)}
```

Settings: `recipe.json` beside this file, seed {recipe.seed}.
"""


def _limits(recipe: Recipe) -> str:
    """Return what the model is not for."""
    spec = recipe.model.input
    return f"""\
- Not for diagnosis, triage or any decision about a patient.
- Not for finding nodules: it rates a point that somebody names, and gives numbers for any point.
{_INTENSITY_LIMIT if spec.intensity == "slice_stretch" else ""}\
- It was trained on axial slices; its maps in coronal and sagittal planes are an extrapolation,
  and its predictions come from {" and ".join(recipe.model.views)} slices alone.
- An explanation shows what the model used. It does not show that the model is right."""


def _command(
    recipe: Recipe, figures: CrossValidation | None, excluded_patients: Sequence[str]
) -> str:
    """Return the command that makes the model, for a shell."""
    options = ["--folds", str(figures.n_folds if figures else 0)]
    options += ["--epochs", str(recipe.fine_tuning.epochs)]
    if recipe.model.backbone.rank != DEMO_RANK:
        options += ["--rank", str(recipe.model.backbone.rank or 0)]
    for patient in excluded_patients:
        options += ["--exclude-patient", patient]
    files = "SLICES_DIR --weights BACKBONE.safetensors --out MODEL_DIR"
    return f"cdam-med train {files} {shlex.join(options)}"


def _figures(figures: CrossValidation | None) -> str:
    """Return the tables of a cross-validation."""
    if figures is None:
        return "Not cross-validated: nothing is known of how good it is."
    rows = [
        _row("this recipe", figures.model),
        _row("diameter alone (logistic regression)", figures.diameter),
    ]
    biomarkers = [
        f"| {target.name} ({target.unit}) | {errors.mean_absolute_error:.2f} "
        f"| {errors.pearson:.2f} | {errors.relative_squared_error:.2f} |"
        for target in BIOMARKERS
        for errors in [figures.biomarkers[target.name]]
    ]
    return f"""{figures.n_folds}-fold cross-validation, folds grouped by patient, each nodule
predicted once from its middle slice by a model that never saw its patient. Malignancy on
{figures.n_nodules} nodules ({figures.n_malignant} malignant, {figures.n_benign} benign) of
{figures.n_patients} patients; intervals are 95 % bootstrap intervals over patients.

| malignancy | AUC | accuracy | sensitivity | specificity |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}

The diameter is the radiologists' own, measured on their outlines. The model sees only the image.

| biomarker | mean absolute error | correlation | squared error / variance |
| --- | --- | --- | --- |
{chr(10).join(biomarkers)}

These figures are of the recipe; the model in this folder is the recipe applied once to all
training nodules."""


def _row(name: str, result: Classification) -> str:
    cells = [result.auc, result.accuracy, result.sensitivity, result.specificity]
    return f"| {name} | " + " | ".join(_interval(cell) for cell in cells) + " |"


def _interval(interval: BootstrapInterval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
