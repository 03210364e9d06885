"""A linear classifier on a frozen ViT's class token: what the ImageNet experiments explain.

Brocki, Binda and Chung, arXiv 2312.02364v1 section 4.1: DINO ViT-S/8, frozen; one linear layer on
the class token after the final norm; cross-entropy; Adam at a constant 3e-4; batches of 128; ten
epochs of random crops and flips; the epoch of lowest validation loss is kept. On ImageNet they
report an accuracy of 77.0 %. On disk a classifier is a model folder, backbone and all.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from safetensors.torch import save
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional
from torch.optim import Adam
from torch.utils.data import DataLoader

from cdam_med.attribution.class_token import class_token_model
from cdam_med.attribution.hooks import set_aside
from cdam_med.data.image_folder import ImageFolder, ImagePreparation
from cdam_med.errors import ModelError
from cdam_med.models.backbone import (
    FROM_HUB,
    BackboneSpec,
    build_backbone,
    check_safetensors,
    check_weights,
    class_token,
    load_weights,
)
from cdam_med.models.nodule_vit import CONFIG_FILE, WEIGHTS_FILE
from cdam_med.training.trainer import start_fabric
from data_prep.disk import write_file, written_folder
from data_prep.errors import InputError


class LinearHeadConfig(BaseModel):
    """Settings of the training with Adam at a constant rate; the defaults are the paper's.

    `seed` is of the layer's first weights, the order of images, crops and flips.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 3e-4
    seed: NonNegativeInt = 0


class Epoch(BaseModel):
    """What came of one pass over the training images: mean cross-entropies and an accuracy.

    The loss of training is that during the pass, on varied images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: PositiveInt
    training_loss: float
    validation_loss: float
    validation_accuracy: float


class LinearClassifierRecord(BaseModel):
    """What ``config.json`` says of a classifier; `classes` are names of the outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["cdam-med linear classifier"] = "cdam-med linear classifier"
    backbone: BackboneSpec
    classes: tuple[str, ...]
    training: LinearHeadConfig
    epochs: tuple[Epoch, ...]

    @property
    def kept(self) -> Epoch:
        """The epoch that the weights are of: that with the lowest validation loss."""
        return min(self.epochs, key=lambda epoch: epoch.validation_loss)


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """timm's model with the trained head, in evaluation mode, and how it came about."""

    vit: VisionTransformer
    record: LinearClassifierRecord


def add_head(vit: VisionTransformer, n_classes: int) -> None:
    """Give a ViT one linear layer on its class token."""
    if isinstance(vit, VisionTransformerDistilled):
        raise ModelError(
            "A distilled ViT reads its outputs from two tokens, and one layer on the class token "
            "is only half of that; choose the architecture without 'distilled'."
        )
    reset: Any = vit.reset_classifier
    reset(n_classes, global_pool="token")


def check_backbone(backbone: BackboneSpec, weights: str | Path) -> None:
    """Refuse what can't be trained or explained, before weights are downloaded or loaded."""
    with torch.device("meta"):  # shapes alone
        vit = build_backbone(backbone)
        with_head = copy.deepcopy(vit)
        add_head(with_head, n_classes=1)
    class_token_model(with_head)
    if weights != FROM_HUB:
        check_weights(check_safetensors(Path(weights)), vit, backbone.architecture)


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
    """Train one linear layer on the class token of a frozen backbone, on Lightning Fabric.

    Weights are ``"hub"`` or a file, the device is Fabric's. Crops and flips depend on the number
    of workers too. A `ModelError` says if the backbone can't be built, an `InputError` if there
    are fewer than two classes or others in the two sets, or an image can't be read.
    """
    settings = LinearHeadConfig() if config is None else config
    if len(training.classes) < 2 or training.classes != validation.classes:
        odd = sorted(set(training.classes) ^ set(validation.classes))
        raise InputError(
            f"{training.path} and {validation.path} must hold images of the same classes, two or "
            f"more; in one of them only: {', '.join(odd[:3]) or 'none'}."
        )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        vit = build_backbone(backbone, weights=weights).eval()
        add_head(vit, len(training.classes))
        fabric = start_fabric(device)
        vit.to(fabric.device)
        loaders = (
            _loader(training, ImagePreparation(vit, "training"), settings, workers),
            _loader(validation, ImagePreparation(vit), settings, workers),
        )
        head = {id(parameter) for parameter in vit.head.parameters()}
        backbone_weights = [each for each in vit.parameters() if id(each) not in head]
        with set_aside(backbone_weights, "requires_grad", False):
            epochs = []
            for epoch in _epochs(vit, *loaders, settings=settings, fabric=fabric):
                epochs.append(epoch)
                if on_epoch is not None:
                    on_epoch(epoch)
    record = LinearClassifierRecord(
        backbone=backbone, classes=training.classes, training=settings, epochs=tuple(epochs)
    )
    return LinearClassifier(vit.cpu().eval(), record)


def _loader(
    folder: ImageFolder, preparation: ImagePreparation, config: LinearHeadConfig, workers: int
) -> DataLoader[Any]:
    pairs: Any = list(zip(folder.files, folder.labels, strict=True))
    return DataLoader(
        pairs,
        batch_size=config.batch_size,
        shuffle=preparation.purpose == "training",
        num_workers=workers,
        collate_fn=partial(_batch, preparation),
    )


def _batch(
    preparation: ImagePreparation, pairs: Sequence[tuple[Path, int]]
) -> tuple[Tensor, Tensor]:
    """Return the images and labels of a batch of files."""
    images = torch.stack([preparation(file) for file, _ in pairs])
    return images, torch.tensor([label for _, label in pairs])


def _epochs(
    vit: VisionTransformer,
    training: DataLoader[Any],
    validation: DataLoader[Any],
    *,
    settings: LinearHeadConfig,
    fabric: Fabric,
) -> Iterator[Epoch]:
    """Train, and leave the weights of the epoch with the lowest validation loss."""
    head: Any = vit.head
    wrapped, optimizer = fabric.setup(head, Adam(head.parameters(), lr=settings.learning_rate))
    lowest, best_weights = float("inf"), copy.deepcopy(head.state_dict())
    for number in range(1, settings.epochs + 1):
        losses = []
        for images, labels in training:
            outputs = wrapped(_tokens(vit, images, fabric)).float()
            loss = functional.cross_entropy(outputs, labels.to(fabric.device))
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            losses += [loss.item()] * len(labels)
        loss_of_validation, accuracy = _evaluated(vit, validation, fabric)
        epoch = Epoch(
            number=number,
            training_loss=sum(losses) / len(losses),
            validation_loss=loss_of_validation,
            validation_accuracy=accuracy,
        )
        if loss_of_validation < lowest:
            lowest, best_weights = loss_of_validation, copy.deepcopy(head.state_dict())
        yield epoch
    head.load_state_dict(best_weights)


@torch.no_grad()
def _tokens(
    vit: VisionTransformer, images: Float[Tensor, "batch channel height width"], fabric: Fabric
) -> Float[Tensor, "batch dim"]:
    with fabric.autocast():
        return class_token(vit, images.to(fabric.device)).float()


@torch.no_grad()
def _evaluated(
    vit: VisionTransformer, loader: DataLoader[Any], fabric: Fabric
) -> tuple[float, float]:
    """Return the mean loss of the images, and the share whose highest output is their class."""
    losses, hits = [], []
    for images, labels in loader:
        outputs: Tensor = vit.head(_tokens(vit, images, fabric)).cpu()
        losses.append(functional.cross_entropy(outputs, labels, reduction="none"))
        hits.append((outputs.argmax(1) == labels).float())
    return float(torch.cat(losses).mean()), float(torch.cat(hits).mean())


def save_linear_classifier(
    folder: Path, classifier: LinearClassifier, *, overwrite: bool = False
) -> None:
    """Write a classifier; the folder appears whole or not at all.

    `overwrite` replaces a model folder that holds nothing else and wasn't changed.
    """
    weights = {name: each.contiguous() for name, each in classifier.vit.state_dict().items()}
    with written_folder(folder, "model", overwrite=overwrite) as staged:
        record = classifier.record.model_dump_json(indent=2)
        write_file(staged / CONFIG_FILE, f"{record}\n".encode())
        write_file(staged / WEIGHTS_FILE, save(weights))


def load_linear_classifier(folder: Path) -> VisionTransformer:
    """Load a classifier as timm's model with the trained head, in evaluation mode."""
    try:
        text = (folder / CONFIG_FILE).read_bytes()
        record = LinearClassifierRecord.model_validate_json(text)
    except (OSError, ValidationError) as error:
        raise ModelError(
            f"{folder} is no linear classifier, and images by class are explained with one: give "
            "the folder of one that 'cdam-med train-head' wrote, to commands as --model."
        ) from error
    file = check_safetensors(folder / WEIGHTS_FILE)
    vit = build_backbone(record.backbone)
    add_head(vit, len(record.classes))
    load_weights(vit, file)
    return vit.eval()
