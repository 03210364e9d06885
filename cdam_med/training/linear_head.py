"""A linear classifier on a frozen ViT's class token: what the ImageNet experiments explain.

Trained by `cdam_med.training.linear_head_training`. On disk it is a folder with ``config.json`` and
``model.safetensors``, backbone and all.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from safetensors.torch import load_file, save
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from cdam_med.attribution.class_token import class_token_model
from cdam_med.errors import ModelError
from cdam_med.models.backbone import (
    FROM_HUB,
    BackboneSpec,
    build_backbone,
    check_safetensors,
    check_weights,
    in_one_line,
)
from cdam_med.models.nodule_vit import CONFIG_FILE, WEIGHTS_FILE
from data_prep.disk import write_file
from data_prep.written import written_folder


class LinearHeadConfig(BaseModel):
    """Settings of the training; the defaults are the paper's.

    Parameters
    ----------
    epochs, batch_size
        Passes over the images, and images a step.
    learning_rate
        Of Adam, constant.
    seed
        Of the layer's first weights, the order of images, crops and flips.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 3e-4
    seed: NonNegativeInt = 0


class Epoch(BaseModel):
    """What came of one pass over the training images.

    Parameters
    ----------
    number
        From 1.
    training_loss, validation_loss
        Mean cross-entropy; that of training during the pass, on varied images.
    validation_accuracy
        Share of validation images whose highest output is their class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: PositiveInt
    training_loss: float
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """A trained classifier and how it came about.

    Parameters
    ----------
    vit : VisionTransformer
        timm's model with the trained head, in evaluation mode.
    backbone : BackboneSpec
        Its shape.
    classes : tuple of str
        Names of the outputs.
    config : LinearHeadConfig
        Settings of the training.
    epochs : tuple of Epoch
        All of them; the weights are those of the one with the lowest validation loss.
    """

    vit: VisionTransformer
    backbone: BackboneSpec
    classes: tuple[str, ...]
    config: LinearHeadConfig
    epochs: tuple[Epoch, ...]

    @property
    def kept(self) -> Epoch:
        """The epoch that the weights are of."""
        return min(self.epochs, key=lambda epoch: epoch.validation_loss)


def add_head(vit: VisionTransformer, n_classes: int) -> None:
    """Give a ViT one linear layer on its class token.

    Parameters
    ----------
    vit : VisionTransformer
        Changed in place.
    n_classes : int
        Number of outputs.

    Raises
    ------
    ModelError
        If its outputs are read from two tokens, each through a layer of its own.
    """
    if isinstance(vit, VisionTransformerDistilled):
        raise ModelError(
            "A distilled ViT reads its outputs from two tokens, and one layer on the class token "
            "is only half of that; choose the architecture without 'distilled'."
        )
    reset: Any = vit.reset_classifier
    reset(n_classes, global_pool="token")


def check_backbone(backbone: BackboneSpec, weights: str | Path) -> None:
    """Refuse what can't be trained or explained, before weights are downloaded or loaded.

    Parameters
    ----------
    backbone : BackboneSpec
        The ViT.
    weights : str or Path
        ``"hub"``, of which nothing is asked yet, or a ``.safetensors`` file.

    Raises
    ------
    ModelError
        If the architecture is unknown, has no class token or can't be explained, or if the file
        is none or of another architecture.
    """
    with torch.device("meta"):  # shapes alone
        vit = build_backbone(backbone)
        with_head = copy.deepcopy(vit)
        add_head(with_head, n_classes=1)
    class_token_model(with_head)
    if weights != FROM_HUB:
        check_weights(check_safetensors(Path(weights)), vit, backbone.architecture)


class LinearClassifierRecord(BaseModel):
    """What ``config.json`` says of a classifier.

    Parameters
    ----------
    format
        Marks a folder as a linear classifier.
    backbone
        Shape of the ViT.
    classes
        Names of the outputs.
    training
        Settings of the training.
    epochs
        What came of each epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["cdam-med linear classifier"] = "cdam-med linear classifier"
    backbone: BackboneSpec
    classes: tuple[str, ...]
    training: LinearHeadConfig
    epochs: tuple[Epoch, ...]


def save_linear_classifier(
    folder: Path, classifier: LinearClassifier, *, overwrite: bool = False
) -> None:
    """Write a classifier, backbone and all; the folder appears whole or not at all.

    Parameters
    ----------
    folder : Path
        Where; nothing or an empty folder may be there.
    classifier : LinearClassifier
        What to write.
    overwrite : bool
        Replace a model folder. One that holds anything else, or a file that was changed since, is
        refused.

    Raises
    ------
    OutputError
        If the place is taken or can't be written to.
    """
    record = LinearClassifierRecord(
        backbone=classifier.backbone,
        classes=classifier.classes,
        training=classifier.config,
        epochs=classifier.epochs,
    )
    weights = {name: each.contiguous() for name, each in classifier.vit.state_dict().items()}
    with written_folder(folder, "model", overwrite=overwrite) as staged:
        write_file(staged / CONFIG_FILE, f"{record.model_dump_json(indent=2)}\n".encode())
        write_file(staged / WEIGHTS_FILE, save(weights))


def read_linear_classifier_record(folder: Path) -> LinearClassifierRecord | None:
    """Return what a folder says of a linear classifier; None where it is none.

    Parameters
    ----------
    folder : Path
        Any folder.
    """
    try:
        return LinearClassifierRecord.model_validate_json((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def load_linear_classifier(folder: Path) -> VisionTransformer:
    """Load a classifier as timm's model with the trained head, in evaluation mode.

    Parameters
    ----------
    folder : Path
        Written by `save_linear_classifier`.

    Raises
    ------
    ModelError
        If there is no such classifier, or its weights aren't in safetensors or don't fit.
    """
    record = read_linear_classifier_record(folder)
    if record is None:
        raise ModelError(
            f"{folder} is no linear classifier, and images by class are explained with one: give "
            "the folder of one that 'cdam-med train-head' wrote, to commands as --model."
        )
    file = check_safetensors(folder / WEIGHTS_FILE)
    vit = build_backbone(record.backbone)
    add_head(vit, len(record.classes))
    try:
        vit.load_state_dict(load_file(file))
    except RuntimeError as error:
        raise ModelError(
            f"The weights in {file} don't fit the configuration beside them "
            f"({in_one_line(error)}); take both files from the same folder."
        ) from error
    return vit.eval()
