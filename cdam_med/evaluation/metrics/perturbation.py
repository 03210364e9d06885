"""A model that is asked what it says of images with parts taken away, and what takes their place.

Every replacement leaves the model something to see: a constant draws edges, a blur keeps what is
larger than its width. So faithfulness is to be shown for more than one.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cdam_med.attribution.class_token import class_token_model
from cdam_med.attribution.combinations import PerImage, Targets
from cdam_med.attribution.numerics import image_seed
from cdam_med.attribution.subject import Subject, explaining
from cdam_med.data.image_folder import data_config
from cdam_med.errors import TargetError
from cdam_med.evaluation.experiment import Experiment
from cdam_med.evaluation.maps import PatchGrid, patch_grid_of_prepared

PUBLISHED_RADIUS, PUBLISHED_EDGE = 14.0, 224
"""Radius of the published blur, in pixels, and edge of the images that it is for."""

Images: TypeAlias = Float[Tensor, "image channel height width"]
Replacement: TypeAlias = Callable[[Images], Images]
"""Images as the ViT takes them -> what takes the place of their pixels."""


def blurred(images: Images, radius: float = PUBLISHED_RADIUS) -> Images:
    """Return images under a Gaussian filter, their edge repeated beyond it.

    The radius is the standard deviation in pixels. PIL, which the published function uses, calls it
    radius too, and puts three box filters in the place of the Gaussian, each of which repeats the
    edge anew: the same inside to within three grey levels, but not close to an edge.
    """
    height, width = images.shape[-2:]
    return _blur(height, radius, images) @ images @ _blur(width, radius, images).T


def _blur(count: int, radius: float, like: Tensor) -> Float[Tensor, "count count"]:
    """Return what each pixel along an axis takes of each, so that edges cost nothing extra."""
    reach = int(4 * radius + 0.5)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets.double() / radius) ** 2)
    sources = (torch.arange(count)[:, None] + offsets).clamp(0, count - 1)
    matrix = torch.zeros(count, count, dtype=torch.float64)
    matrix.scatter_add_(1, sources, (weights / weights.sum()).repeat(count, 1))
    return matrix.to(like)


def constant(images: Images, value: tuple[float, ...] = (0.0,)) -> Images:
    """Return images with one value for all channels, or one for each."""
    return images.new_tensor(value).reshape(-1, 1, 1).expand_as(images)


def mean_colour(images: Images) -> Images:
    """Return images of the mean of each of their channels."""
    return images.mean((-2, -1), keepdim=True).expand_as(images)


def replacements(experiment: Experiment) -> dict[str, Replacement]:
    """Return what takes the place of parts, by name: the published choices for this image size."""
    radius = PUBLISHED_RADIUS * min(experiment.grid.image_size) / PUBLISHED_EDGE
    black = partial(constant, value=black_of(experiment))
    return {"blur": partial(blurred, radius=radius), "constant": black, "mean": mean_colour}


def black_of(experiment: Experiment) -> tuple[float, ...]:
    """Return what black is in each channel of an image as the ViT takes it."""
    model = experiment.model
    if isinstance(model, VisionTransformer | Eva | Beit):
        config = data_config(model)
        return tuple(-m / s for m, s in zip(config["mean"], config["std"], strict=True))
    dark = torch.zeros_like(experiment.examples.images[:1])
    return tuple(class_token_model(model).check_images(dark)[0, :, 0, 0].tolist())


@dataclass(frozen=True, eq=False)
class Perturbable:
    """A model in evaluation mode, images, and the column of the output explained for each.

    `images_at_once` versions of an image share a pass.
    """

    subject: Subject
    columns: tuple[int, ...]
    grid: PatchGrid
    images_at_once: int

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.columns)

    @property
    def images(self) -> Images:
        """The images as the ViT takes them."""
        return self.subject.images

    def outputs(
        self, index: int, hidden: Bool[Tensor, "version height width"], substitutes: Images
    ) -> Float[np.ndarray, " version"]:
        """Return the raw explained output for versions of one image.

        Parameters
        ----------
        index : int
            Which image.
        hidden : Tensor
            Pixels that are taken away in each version.
        substitutes : Tensor
            What takes their place, for every image.
        """
        image, substitute = self.images[index], substitutes[index]
        versions = (
            torch.where(some.to(image.device)[:, None], substitute, image)
            for some in torch.split(hidden, self.images_at_once)
        )
        outputs = self.subject.model.outputs
        found = torch.cat([outputs(some)[:, self.columns[index]] for some in versions])
        values: np.ndarray = found.cpu().double().numpy()
        return values

    def generator(self, index: int, seed: int) -> np.random.Generator:
        """Return the source of whatever is random for one image.

        It depends on the seed and on the image's own values: an image is treated the same alone
        and in any batch and for every method, and two images are treated independently.
        """
        return np.random.default_rng(image_seed(self.images[index], seed))


def perturbing_examples(experiment: Experiment) -> AbstractContextManager[Perturbable]:
    """Open the model to see the examples with parts taken away, each for its own target."""
    targets = PerImage(experiment.targets)
    return perturbing(experiment.model, experiment.examples.images, targets=targets)


@contextmanager
def perturbing(
    model: object, images: Tensor, *, targets: Targets, images_at_once: int = 32
) -> Iterator[Perturbable]:
    """Open a model to see images with parts taken away; it is left as it was, also after an error.

    Raises
    ------
    ModelError
        If the model can't be described, or takes volumes.
    TargetError
        If the model has no such target, or there is more than one for an image.
    """
    with explaining(model, images, targets) as subject:
        if len(subject.targets) != 1:
            raise TargetError(
                f"Images are perturbed for one target each, not for {len(subject.targets)}: give "
                "one, or one of its own for each image as PerImage([...])."
            )
        yield Perturbable(
            subject=subject,
            columns=tuple(subject.columns_of(image)[0] for image in range(len(subject.images))),
            grid=patch_grid_of_prepared(subject.model, subject.images),
            images_at_once=images_at_once,
        )
