"""The training loop, on Lightning Fabric: the same code for a CPU and a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from lightning_fabric import Fabric
from timm.optim import param_groups_layer_decay
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from cdam_med.data.augmentation import SliceAugmentation
from cdam_med.data.nodule_slices import NoduleSlices
from cdam_med.models.nodule_vit import NoduleViT
from cdam_med.training.config import FitConfig
from cdam_med.training.losses import biomarker_loss, malignancy_loss
from data_prep.errors import InputError

GRADIENT_NORM = 1.0
"""Longer gradients are shortened to this."""

WARM_UP_SHARE = 0.2
"""Share of the steps over which the learning rate rises."""

CENTRAL_SLICES = 1
"""Slices taken on each side of a nodule's middle one."""

EpochReport = Callable[[int, float], None]
"""Called after each epoch with its number (from 1) and the mean training loss."""


def fit(
    model: NoduleViT,
    nodules: NoduleSlices,
    config: FitConfig,
    *,
    seed: int,
    device: str = "cpu",
    on_epoch: EpochReport,
) -> None:
    """Train a model in place; it ends in evaluation mode.

    Parameters
    ----------
    model
        Its heads hold the means and scales of the biomarkers already.
    nodules
        Read with `cdam_med.data.augmentation.AUGMENTATION_MARGIN_MM`.
    config
        Settings.
    seed
        Of order, slices and augmentation.
    device
        Fabric's accelerator, e.g. ``"cpu"`` or ``"cuda"``; bfloat16 autocast on either.
    on_epoch
        Is told the progress.

    Raises
    ------
    InputError
        If the device isn't there.
    """
    torch.manual_seed(seed)
    try:
        fabric = Fabric(accelerator=device, devices=1, precision="bf16-mixed")
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"Models can't be trained on the device {device!r} here ({error}); use 'cpu'."
        ) from error
    with _frozen(model, config.frozen_blocks):
        _run_epochs(model, nodules, config, seed=seed, fabric=fabric, on_epoch=on_epoch)
    model.eval()


@contextmanager
def _frozen(model: NoduleViT, n_blocks: int) -> Iterator[None]:
    """Keep the patch embedding and the first blocks as they are; nothing if `n_blocks` is 0."""
    vit = model.backbone
    if n_blocks == 0:
        yield
        return
    heads_and_last_blocks = [model.heads, vit.norm, vit.blocks[n_blocks:]]
    trained = {id(p) for module in heads_and_last_blocks for p in module.parameters()}
    frozen = [parameter for parameter in model.parameters() if id(parameter) not in trained]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _run_epochs(
    model: NoduleViT,
    nodules: NoduleSlices,
    config: FitConfig,
    *,
    seed: int,
    fabric: Fabric,
    on_epoch: EpochReport,
) -> None:
    random = np.random.default_rng(seed)
    augment = SliceAugmentation(model.config.input, seed=seed)
    groups = _parameter_groups(model, config)
    optimizer = AdamW(groups, lr=config.learning_rate, weight_decay=0.0)
    steps = config.epochs * -(-len(nodules) // config.batch_size)
    peaks = [group["lr"] for group in groups]
    # where the rise would be a single step, PyTorch's schedule divides by zero
    rise = 0.0 if steps * WARM_UP_SHARE == 1 else WARM_UP_SHARE
    schedule = OneCycleLR(optimizer, peaks, total_steps=steps, pct_start=rise)
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    model.train()
    for epoch in range(1, config.epochs + 1):
        total = 0.0
        for indices in _batches(len(nodules), config.batch_size, random):
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


def _loss(
    model: NoduleViT, outputs: Tensor, nodules: NoduleSlices, indices: Int64[np.ndarray, "batch"]
) -> Tensor:
    """Return the sum of both heads' losses."""
    device = outputs.device
    malignant = torch.from_numpy(nodules.malignant[indices]).to(device)
    has_class = torch.from_numpy(nodules.has_class[indices]).to(device)
    biomarkers = torch.from_numpy(nodules.biomarkers[indices]).to(device)
    return malignancy_loss(outputs[:, 0], malignant, has_class) + biomarker_loss(
        model.heads.standardise(outputs[:, 1:]), model.heads.standardise(biomarkers)
    )


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


def _batches(
    count: int, batch_size: int, random: np.random.Generator
) -> Iterator[Int64[np.ndarray, "batch"]]:
    order = random.permutation(count)
    for start in range(0, count, batch_size):
        yield order[start : start + batch_size]


def _random_slices(
    nodules: NoduleSlices, indices: Int64[np.ndarray, "batch"], random: np.random.Generator
) -> Tensor:
    """Return, for each nodule, its middle slice or a neighbour of that."""
    n_slices = nodules.n_slices[indices]
    first = np.maximum(0, n_slices // 2 - CENTRAL_SLICES)
    last = np.minimum(n_slices, n_slices // 2 + CENTRAL_SLICES + 1)
    return torch.from_numpy(nodules.slices[indices, random.integers(first, last)])
