"""``cdam-med train-head``: a linear classifier on a frozen backbone, as for the paper's images."""

from pathlib import Path
from typing import Annotated

import typer

from cdam_med.cli.command import (
    DeviceOption,
    JsonOption,
    OverwriteOption,
    as_command,
    choose_device,
)
from cdam_med.cli.terminal import print_json, print_line, print_result, working


@as_command
def train_head(
    training: Annotated[
        Path, typer.Argument(metavar="TRAINING", help="Folder with a folder of images a class.")
    ],
    validation: Annotated[
        Path, typer.Argument(metavar="VALIDATION", help="The same classes, other images.")
    ],
    weights: Annotated[
        str, typer.Option(help="'hub' for timm's own, downloaded; or a .safetensors file.")
    ],
    out: Annotated[Path, typer.Option(help="Where the classifier goes; a new folder.")],
    overwrite: OverwriteOption = False,
    architecture: Annotated[
        str, typer.Option(help="timm's name, or one of the paper's, e.g. dino_vits8.")
    ] = "dino_vits8",
    image_size: Annotated[int, typer.Option(min=1, help="Edge of an image in pixels.")] = 224,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 128,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train one linear layer on a frozen ViT's class token; settings are the paper's.

    'cdam-med evaluate explanations' takes the result for a folder of images.
    """
    import logging

    with working("Reading the folders"):
        from cdam_med.data.image_folder import read_image_folder
        from cdam_med.models.backbone import BackboneSpec
        from cdam_med.training.linear_head import (
            Epoch,
            LinearHeadConfig,
            check_backbone,
            save_linear_classifier,
            train_linear_head,
        )
        from data_prep.written import check_folder

        check_folder(out, "model", overwrite=overwrite)
        device = choose_device(device)
        backbone = BackboneSpec(architecture=architecture, image_size=image_size)
        check_backbone(backbone, weights)
        folders = read_image_folder(training), read_image_folder(validation)

    # Lightning would announce its precision
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

    def report(epoch: Epoch) -> None:
        print_line(
            f"epoch {epoch.number}/{epochs}: loss {epoch.training_loss:.3f}, validation "
            f"{epoch.validation_loss:.3f}, accuracy {epoch.validation_accuracy:.3f}"
        )

    with working("Training"):
        classifier = train_linear_head(
            *folders,
            backbone,
            weights=weights,
            config=LinearHeadConfig(epochs=epochs, batch_size=batch_size),
            device=device,
            workers=workers,
            on_epoch=report,
        )
    save_linear_classifier(out, classifier, overwrite=overwrite)
    kept = classifier.record.kept
    if as_json:
        print_json({"model": str(out), "accuracy": kept.validation_accuracy, "epoch": kept.number})
        return
    print_result(f"Accuracy {kept.validation_accuracy:.3f} (epoch {kept.number}): {out}")
