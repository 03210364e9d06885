"""Training of a linear head on a frozen backbone, on Lightning Fabric.

Brocki, Binda and Chung, arXiv 2312.02364v1 section 4.1: DINO ViT-S/8, frozen; one linear layer on
the class token after the final norm; cross-entropy; Adam at a constant 3e-4; batches of 128; ten
epochs of random crops and flips; the epoch of lowest validation loss is kept. On ImageNet they
report an accuracy of 77.0 %.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from lightning_fabric import Fabric
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam
from torch.utils.data import DataLoader, Dataset

from cdam_med.data.image_folder import ImageFolder, ImagePreparation
from cdam_med.models.backbone import BackboneSpec, build_backbone, class_token
from cdam_med.training.linear_head import Epoch, LinearClassifier, LinearHeadConfig, add_head
from data_prep.errors import InputError


def train_linear_head(
    training: ImageFolder,
    validation: ImageFolder,
    backbone: BackboneSpec,
    *,
    weights: str | Path,
    config: LinearHeadConfig | None = None,
    device: str = "cpu",
    workers: int = 0,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> LinearClassifier:
    """Train one linear layer on the class token of a frozen backbone.

    Parameters
    ----------
    training, validation : ImageFolder
        Images of the same classes.
    backbone : BackboneSpec
        The ViT; the paper's is ``dino_vits8`` at 224 pixels.
    weights : str or Path
        ``"hub"`` or a ``.safetensors`` file, see `cdam_med.models.backbone.build_backbone`.
    config : LinearHeadConfig, optional
        Settings; the paper's unless given.
    device : str
        Fabric's accelerator, e.g. ``"cpu"`` or ``"cuda"``; bfloat16 autocast on either.
    workers : int
        Processes that read images. Crops and flips depend on their number too.
    on_epoch : callable, optional
        Is told each epoch's figures.

    Raises
    ------
    ModelError
        If the backbone can't be built.
    InputError
        If there are fewer than two classes, the two sets have others, an image can't be read, or
        the device isn't there.
    """
    settings = LinearHeadConfig() if config is None else config
    _check_classes(training, validation)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        vit = build_backbone(backbone, weights=weights).eval()
        add_head(vit, len(training.classes))
        fabric = _fabric(device)
        vit.to(fabric.device)
        loaders = (
            _loader(training, ImagePreparation(vit, "training"), settings, workers),
            _loader(validation, ImagePreparation(vit), settings, workers),
        )
        with _only_head_trains(vit):
            epochs = tuple(_epochs(vit, *loaders, settings=settings, fabric=fabric, tell=on_epoch))
    return LinearClassifier(vit.cpu().eval(), backbone, training.classes, settings, epochs)


class _Files(Dataset[tuple[Tensor, int]]):
    """Images and classes as a data loader takes them."""

    def __init__(self, folder: ImageFolder, preparation: ImagePreparation) -> None:
        self._folder = folder
        self._preparation = preparation

    def __len__(self) -> int:
        return len(self._folder)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._preparation(self._folder.files[index]), self._folder.labels[index]


def _loader(
    folder: ImageFolder, preparation: ImagePreparation, config: LinearHeadConfig, workers: int
) -> DataLoader[Any]:
    return DataLoader(
        _Files(folder, preparation),
        batch_size=config.batch_size,
        shuffle=preparation.purpose == "training",
        num_workers=workers,
    )


def _epochs(
    vit: VisionTransformer,
    training: DataLoader[Any],
    validation: DataLoader[Any],
    *,
    settings: LinearHeadConfig,
    fabric: Fabric,
    tell: Callable[[Epoch], None] | None,
) -> Iterator[Epoch]:
    """Train, and leave the weights of the epoch with the lowest validation loss."""
    head: nn.Module = vit.head
    wrapped, optimizer = fabric.setup(head, Adam(head.parameters(), lr=settings.learning_rate))
    best, best_weights = np.inf, copy.deepcopy(head.state_dict())
    for number in range(1, settings.epochs + 1):
        total, count = 0.0, 0
        for images, labels in training:
            tokens = _tokens(vit, images, fabric)
            loss = functional.cross_entropy(wrapped(tokens).float(), labels.to(fabric.device))
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            total, count = total + loss.item() * len(labels), count + len(labels)
        losses, hits = _judged(vit, validation, fabric)
        epoch = Epoch(
            number=number,
            training_loss=total / count,
            validation_loss=float(losses.mean()),
            validation_accuracy=float(hits.float().mean()),
        )
        if epoch.validation_loss < best:
            best, best_weights = epoch.validation_loss, copy.deepcopy(head.state_dict())
        if tell is not None:
            tell(epoch)
        yield epoch
    head.load_state_dict(best_weights)


@torch.no_grad()
def _tokens(
    vit: VisionTransformer, images: Float[Tensor, "batch channel height width"], fabric: Fabric
) -> Float[Tensor, "batch dim"]:
    with fabric.autocast():
        return class_token(vit, images.to(fabric.device)).float()


@torch.no_grad()
def _judged(
    vit: VisionTransformer, loader: DataLoader[Any], fabric: Fabric
) -> tuple[Float[Tensor, " image"], Int64[Tensor, " image"]]:
    """Return loss of each image, and whether its highest output is its class (1 or 0)."""
    losses, hits = [], []
    for images, labels in loader:
        outputs: Tensor = vit.head(_tokens(vit, images, fabric))
        labels = labels.to(fabric.device)
        losses.append(functional.cross_entropy(outputs, labels, reduction="none").cpu())
        hits.append((outputs.argmax(1) == labels).long().cpu())
    return torch.cat(losses), torch.cat(hits)


@contextmanager
def _only_head_trains(vit: VisionTransformer) -> Iterator[None]:
    """Freeze everything but the head, and let it all be trainable again at the end."""
    head = {id(parameter) for parameter in vit.head.parameters()}
    frozen = [parameter for parameter in vit.parameters() if id(parameter) not in head]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _fabric(device: str) -> Fabric:
    try:
        return Fabric(accelerator=device, devices=1, precision="bf16-mixed")
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"A head can't be trained on the device {device!r} here ({error}); use 'cpu'."
        ) from error


def _check_classes(training: ImageFolder, validation: ImageFolder) -> None:
    if len(training.classes) < 2:
        raise InputError(
            f"{training.path} holds images of one class; a classifier needs two or more."
        )
    if training.classes != validation.classes:
        odd = sorted(set(training.classes) ^ set(validation.classes))
        raise InputError(
            f"{training.path} and {validation.path} don't hold the same classes ({odd[0]} is in "
            "one only); give folders with the same names."
        )
