"""Images in folders by class, as ImageNet's are kept, prepared as timm's classifiers take them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from timm.data import resolve_data_config
from torch import Tensor, nn
from torchvision import transforms

from data_prep.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff")
"""Endings of the files that are taken, in any case; others are passed over."""

CROPPED_SHARE = 224 / 256
"""Share of the resized image that the centre crop keeps: 256 pixels, then 224."""


@dataclass(frozen=True)
class ImageFolder:
    """Files of images, sorted by class and name, with the class of each as a label.

    Each class is a folder in `path`; labels are positions in the sorted names of classes.
    """

    path: Path
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    @property
    def names(self) -> tuple[str, ...]:
        """Where each image lies below the folder, with ``/``."""
        return tuple(file.relative_to(self.path).as_posix() for file in self.files)

    def sample(self, count: int, *, seed: int = 0) -> "ImageFolder":
        """Return images drawn at random, in their order; all of them if there are no more."""
        if count >= len(self):
            return self
        if count < 1:
            raise InputError(
                f"{count} images can't be drawn from {self.path}; ask for one or more."
            )
        drawn = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        return self._at(drawn.tolist())

    def select(self, names: Collection[str]) -> "ImageFolder":
        """Return the images of these names, such as ``CLASS/NAME.jpg``, in the folder's order."""
        asked = set(names)
        if missing := sorted(asked - set(self.names)):
            raise InputError(
                f"There is no image {', '.join(missing[:3])} among the {len(self)} of {self.path}; "
                f"names are like {self.names[0]}."
            )
        return self._at([index for index, name in enumerate(self.names) if name in asked])

    def _at(self, indices: Sequence[int]) -> "ImageFolder":
        return ImageFolder(
            self.path,
            self.classes,
            tuple(self.files[index] for index in indices),
            tuple(self.labels[index] for index in indices),
        )


def read_image_folder(path: Path) -> ImageFolder:
    """List the images of a folder with one folder for each class; refuse one without any."""
    if not path.is_dir():
        raise InputError(f"There is no folder {path}; give one that holds a folder for each class.")
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    found = {
        folder.name: sorted(
            file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file()
        )
        for folder in folders
    }
    classes = tuple(name for name, files in found.items() if files)
    if not classes:
        raise InputError(
            f"{path} holds no images in folders of classes; put them in {path}/CLASS/NAME.jpg "
            f"(or {', '.join(SUFFIXES[1:])})."
        )
    pairs = [(file, label) for label, name in enumerate(classes) for file in found[name]]
    return ImageFolder(path, classes, tuple(f for f, _ in pairs), tuple(n for _, n in pairs))


class ImagePreparation:
    """Turn an image file into what a timm classifier takes.

    Parameters
    ----------
    model : Module
        timm's model: its data configuration gives the mean, the deviation and the interpolation,
        its patch embedding the size.
    purpose : {"use", "training"}
        ``"use"``: resized so that the short side is 256/224 of the size, centre crop.
        ``"training"``: a random crop resized to the size, and a random flip (the torch generator
        that is the default decides).
    """

    def __init__(self, model: nn.Module, purpose: Literal["use", "training"] = "use") -> None:
        self.purpose = purpose
        config = data_config(model)
        size = _image_size(model, config)
        interpolation = transforms.InterpolationMode(config["interpolation"])
        if purpose == "training":
            placed: list[Any] = [
                transforms.RandomResizedCrop(size),
                transforms.RandomHorizontalFlip(),
            ]
        else:
            resized = [round(edge / CROPPED_SHARE) for edge in size]
            short = resized[0] if size[0] == size[1] else resized
            placed = [
                transforms.Resize(short, interpolation=interpolation),
                transforms.CenterCrop(size),
            ]
        values = [transforms.ToTensor(), transforms.Normalize(config["mean"], config["std"])]
        self._transform = transforms.Compose(placed + values)

    def __call__(self, file: Path) -> Float[Tensor, "3 height width"]:
        """Return an image file, in any format that Pillow reads, as the model takes it."""
        try:
            with Image.open(file) as image:
                prepared: Tensor = self._transform(image.convert("RGB"))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise InputError(
                f"{file} can't be read as an image ({error}); repair it or take it away."
            ) from error
        return prepared


def load_images(
    folder: ImageFolder, preparation: ImagePreparation
) -> Float[Tensor, "image 3 height width"]:
    """Read all images of a folder into memory, 0.6 MB each at 224 pixels."""
    return torch.stack([preparation(file) for file in folder.files])


def data_config(model: nn.Module) -> dict[str, Any]:
    """Return timm's data configuration of a model, ImageNet's where it has none of its own.

    It has mean, deviation, interpolation and size.
    """
    config: dict[str, Any] = resolve_data_config({}, model=model)  # type: ignore[no-untyped-call]
    return config


def _image_size(model: nn.Module, config: dict[str, Any]) -> tuple[int, int]:
    """Return height and width: those of the model as it was built, else of its configuration."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    height, width = config["input_size"][-2:] if size is None else size
    return int(height), int(width)
