"""From a pretrained backbone to a trained model: fine-tune, reduce the rank, recover."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cdam_med.data.augmentation import SliceAugmentation
from cdam_med.data.nodule_slices import NoduleSlices
from cdam_med.models.low_rank import factored, reduce_rank
from cdam_med.models.nodule_vit import NoduleViT
from cdam_med.training.config import FitConfig, Recipe
from cdam_med.training.trainer import fit

Report = Callable[[str], None]
"""Is given a line of progress for a person."""


def build_model(
    recipe: Recipe,
    nodules: NoduleSlices,
    *,
    backbone_weights: str | Path,
    device: str = "cpu",
    report: Report,
) -> NoduleViT:
    """Make a model by a recipe.

    Parameters
    ----------
    recipe
        Architecture and settings.
    nodules
        For training, read with the augmentation's margin.
    backbone_weights
        ``"hub"`` or a ``.safetensors`` file.
    device
        Where to train.
    report
        Is told the progress.

    Returns
    -------
    NoduleViT
        On the CPU, in evaluation mode.

    Raises
    ------
    ModelError
        If the backbone can't be built.
    InputError
        If the labels of a biomarker don't vary, or the device isn't there.
    """
    torch.manual_seed(recipe.seed)
    model = NoduleViT.from_backbone(recipe.model, backbone_weights)
    biomarkers = torch.from_numpy(nodules.biomarkers)
    model.heads.set_biomarker_scale(biomarkers.mean(0), biomarkers.std(0))

    def fit_stage(stage: str, config: FitConfig) -> None:
        fit(
            model,
            nodules,
            config,
            seed=recipe.seed,
            device=device,
            on_epoch=lambda epoch, loss: report(
                f"{stage} epoch {epoch}/{config.epochs}: loss {loss:.3f}"
            ),
        )

    fit_stage("fine-tuning", recipe.fine_tuning)
    rank = recipe.model.backbone.rank
    if rank is not None:
        reduce_rank(model.backbone, model.prepare(_images(nodules, recipe)).to(device), rank)
        with factored(model.backbone, rank):
            fit_stage("recovery", recipe.recovery)
    return model.cpu().eval()


def _images(nodules: NoduleSlices, recipe: Recipe) -> Tensor:
    """Return one varied image of each training nodule: what the reduced model must keep."""
    augment = SliceAugmentation(recipe.model.input, seed=recipe.seed)
    return augment(torch.from_numpy(nodules.middle_slices()))
