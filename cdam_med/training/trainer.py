"""From a pretrained backbone to a trained model by a recipe: fine-tune, cut the rank, recover.

The training loop is on Lightning Fabric: the same code for a CPU and a GPU.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from lightning_fabric import Fabric
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from timm.optim import param_groups_layer_decay
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from cdam_med.attribution.hooks import set_aside
from cdam_med.data.nodule_slices import NoduleSlices
from cdam_med.data.transforms import SliceAugmentation
from cdam_med.models.low_rank import factored, reduce_rank
from cdam_med.models.nodule_vit import ModelConfig, NoduleViT
from data_prep.errors import InputError

DEMO_RANK = 72
"""Rank of the block matrices that makes a file of under 12 MB in half precision."""

LABEL_SMOOTHING = 0.1
"""The label is a median of opinions: 0 and 1 are called 0.05 and 0.95."""

GRADIENT_NORM = 1.0
"""Longer gradients are shortened to this."""

WARM_UP_SHARE = 0.2
"""Share of the steps over which the learning rate rises."""

CENTRAL_SLICES = 1
"""Slices taken on each side of a nodule's middle one."""

Report = Callable[[str], None]
"""Is given a line of progress for a person."""


class FitConfig(BaseModel):
    """One run of AdamW over the training nodules, one slice of each an epoch.

    `learning_rate` is the peak of the one-cycle schedule, for the heads; the rate of each block is
    `layer_decay` times that of the block behind it. The patch embedding and the first
    `frozen_blocks` blocks stay as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: PositiveInt
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 1e-4
    layer_decay: PositiveFloat = Field(0.75, le=1)
    weight_decay: float = Field(0.05, ge=0)
    frozen_blocks: int = Field(0, ge=0)


class Recipe(BaseModel):
    """How a model is made; `recovery` trains the factors where its backbone has a rank."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    fine_tuning: FitConfig
    recovery: FitConfig
    seed: int = Field(0, ge=0)


def demo_recipe(*, fine_tuning_epochs: int = 7, rank: int | None = DEMO_RANK) -> Recipe:
    """Return the recipe of the model that ships with the package.

    A ViT-S/14 (DINOv2 layout) on a 48 mm field of view, 12 x 12 patches of 4 mm, with block
    matrices of low rank.
    """
    backbone = {"architecture": "vit_small_patch14_dinov2", "image_size": 168, "rank": rank}
    input_spec = {"field_of_view_mm": 48, "image_size": 168, "intensity": "slice_stretch"}
    name = "demo" if rank else "fine-tuned ViT-S/14"
    return Recipe.model_validate(
        {
            "model": {"name": name, "backbone": backbone, "input": input_spec, "views": ["axial"]},
            # the first half would hardly move at these rates, and costs a third of the time
            "fine_tuning": {"epochs": fine_tuning_epochs, "frozen_blocks": 6},
            "recovery": {"epochs": 1, "learning_rate": 5e-5, "layer_decay": 0.9},
        }
    )


def build_model(
    recipe: Recipe,
    nodules: NoduleSlices,
    *,
    backbone_weights: str | Path,
    device: str = "cpu",
    report: Report,
) -> NoduleViT:
    """Return a model made by a recipe from ``"hub"`` or a file, on the CPU, to be used.

    Nodules are read with the augmentation's margin. A `ModelError` says if the backbone can't be
    built, an `InputError` if the labels of a biomarker don't vary or the device isn't there.
    """
    torch.manual_seed(recipe.seed)
    model = NoduleViT.from_backbone(recipe.model, backbone_weights)
    biomarkers = torch.from_numpy(nodules.biomarkers)
    model.heads.set_biomarker_scale(biomarkers.mean(0), biomarkers.std(0))

    def fit_stage(stage: str, config: FitConfig) -> None:
        def tell(epoch: int, loss: float) -> None:
            report(f"{stage} epoch {epoch}/{config.epochs}: loss {loss:.3f}")

        fit(model, nodules, config, seed=recipe.seed, device=device, on_epoch=tell)

    fit_stage("fine-tuning", recipe.fine_tuning)
    if (rank := recipe.model.backbone.rank) is not None:
        # one varied image of each nodule: what the reduced model must keep
        augment = SliceAugmentation(recipe.model.input, seed=recipe.seed)
        images = augment(torch.from_numpy(nodules.middle_slices()))
        reduce_rank(model.backbone, model.prepare(images).to(device), rank)
        with factored(model.backbone, rank):
            fit_stage("recovery", recipe.recovery)
    return model.cpu().eval()


def fit(
    model: NoduleViT,
    nodules: NoduleSlices,
    config: FitConfig,
    *,
    seed: int,
    device: str = "cpu",
    on_epoch: Callable[[int, float], None],
) -> None:
    """Train a model in place and put it in evaluation mode.

    Its heads hold the scales of the biomarkers already. `seed` is of order, slices and
    augmentation; `on_epoch` is told each epoch's number, from 1, and mean loss.
    """
    torch.manual_seed(seed)
    fabric, random = start_fabric(device), np.random.default_rng(seed)
    augment = SliceAugmentation(model.config.input, seed=seed)
    with set_aside(_frozen(model, config.frozen_blocks), "requires_grad", False):
        groups = _parameter_groups(model, config)
        optimizer = AdamW(groups, lr=config.learning_rate, weight_decay=0.0)
        steps = config.epochs * -(-len(nodules) // config.batch_size)
        # where the rise would be a single step, PyTorch's schedule divides by zero
        rise = 0.0 if steps * WARM_UP_SHARE == 1 else WARM_UP_SHARE
        peaks = [group["lr"] for group in groups]
        schedule = OneCycleLR(optimizer, peaks, total_steps=steps, pct_start=rise)
        wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
        model.train()
        for epoch in range(1, config.epochs + 1):
            total, order = 0.0, random.permutation(len(nodules))
            for start in range(0, len(nodules), config.batch_size):
                indices = order[start : start + config.batch_size]
                images = augment(_random_slices(nodules, indices, random))
                outputs = wrapped(images.to(fabric.device)).float()
                loss = _loss(model, outputs, nodules, indices)
                wrapped_optimizer.zero_grad()
                fabric.backward(loss)
                fabric.clip_gradients(wrapped, wrapped_optimizer, max_norm=GRADIENT_NORM)
                wrapped_optimizer.step()
                schedule.step()
                total += loss.item() * len(indices)
            on_epoch(epoch, total / len(nodules))
    model.eval()


def start_fabric(device: str) -> Fabric:
    """Return Lightning Fabric on a device such as ``"cpu"`` or ``"cuda"``, in bfloat16 autocast."""
    try:
        return Fabric(accelerator=device, devices=1, precision="bf16-mixed")
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"Models can't be trained on the device {device!r} here ({error}); use 'cpu'."
        ) from error


def malignancy_loss(
    logits: Float[Tensor, "batch"],
    malignant: Bool[Tensor, "batch"],
    has_class: Bool[Tensor, "batch"],
) -> Float[Tensor, ""]:
    """Return the mean binary cross-entropy of the nodules with a class; 0 where none has one."""
    labels = malignant.float() * (1 - LABEL_SMOOTHING) + LABEL_SMOOTHING / 2
    losses = binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (losses * has_class).sum() / has_class.sum().clamp(min=1)


def _loss(
    model: NoduleViT, outputs: Tensor, nodules: NoduleSlices, indices: Int64[np.ndarray, "batch"]
) -> Tensor:
    """Return the sum of both heads' losses."""
    malignant, has_class, biomarkers = (
        torch.from_numpy(labels[indices]).to(outputs.device)
        for labels in (nodules.malignant, nodules.has_class, nodules.biomarkers)
    )
    standardise = model.heads.standardise
    of_biomarkers: Tensor = huber_loss(standardise(outputs[:, 1:]), standardise(biomarkers))
    return malignancy_loss(outputs[:, 0], malignant, has_class) + of_biomarkers


def _frozen(model: NoduleViT, n_blocks: int) -> list[torch.nn.Parameter]:
    """Return the weights of all that comes before the first block that is trained."""
    if n_blocks == 0:
        return []
    trained = [model.heads, model.backbone.norm, model.backbone.blocks[n_blocks:]]
    kept = {id(parameter) for part in trained for parameter in part.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in kept]


def _parameter_groups(model: NoduleViT, config: FitConfig) -> list[dict[str, Any]]:
    """Return parameters with their peak rates: lower towards the images, the heads at full."""
    groups = param_groups_layer_decay(
        model.backbone,
        weight_decay=config.weight_decay,
        no_weight_decay_list=model.backbone.no_weight_decay(),
        layer_decay=config.layer_decay,
    )
    heads = list(model.heads.parameters())
    groups.append({"params": heads, "weight_decay": config.weight_decay, "lr_scale": 1.0})
    return [
        {
            "params": group["params"],
            "weight_decay": group["weight_decay"],
            "lr": config.learning_rate * group["lr_scale"],
        }
        for group in groups
    ]


def _random_slices(
    nodules: NoduleSlices, indices: Int64[np.ndarray, "batch"], random: np.random.Generator
) -> Tensor:
    """Return, for each nodule, its middle slice or a neighbour of that."""
    n_slices = nodules.n_slices[indices]
    first = np.maximum(0, n_slices // 2 - CENTRAL_SLICES)
    last = np.minimum(n_slices, n_slices // 2 + CENTRAL_SLICES + 1)
    return torch.from_numpy(nodules.slices[indices, random.integers(first, last)])
