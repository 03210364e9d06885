"""A model opened to be asked what it says of images with parts taken away."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdam_med.attribution.combinations import Targets
from cdam_med.attribution.methods.settings import check_count
from cdam_med.attribution.numerics import image_seed
from cdam_med.attribution.subject import Subject, explaining
from cdam_med.errors import TargetError
from cdam_med.evaluation.metrics.map_pooling import PatchGrid, patch_grid_of_prepared


@dataclass(frozen=True, eq=False)
class Perturbable:
    """A model in evaluation mode, images, and the output that is explained for each.

    Parameters
    ----------
    subject : Subject
        The model, and the images as its ViT takes them.
    columns : tuple of int
        Column of the explained output, one for each image.
    grid : PatchGrid
        Where the patches lie.
    images_at_once : int
        How many versions of an image share a pass; bounds memory.
    """

    subject: Subject
    columns: tuple[int, ...]
    grid: PatchGrid
    images_at_once: int

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.columns)

    @property
    def images(self) -> Float[Tensor, "image channel height width"]:
        """The images as the ViT takes them."""
        return self.subject.images

    def outputs(
        self,
        index: int,
        hidden: Bool[Tensor, "version height width"],
        substitutes: Float[Tensor, "image channel height width"],
    ) -> Float[np.ndarray, " version"]:
        """Return the raw explained output for versions of one image.

        Parameters
        ----------
        index : int
            Which image.
        hidden : Tensor
            Pixels that are taken away in each version.
        substitutes : Tensor
            What takes their place, for every image; see `cdam_med.evaluation.metrics.replacement`.
        """
        image, substitute = self.images[index], substitutes[index]
        found = [
            self.subject.model.outputs(
                torch.where(some.to(image.device)[:, None], substitute, image)
            )[:, self.columns[index]]
            for some in torch.split(hidden, self.images_at_once)
        ]
        values: np.ndarray = torch.cat(found).cpu().double().numpy()
        return values

    def generator(self, index: int, seed: int) -> np.random.Generator:
        """Return the source of whatever is random for one image.

        It depends on the seed and on the image's own values: an image is treated the same alone
        and in any batch and for every estimator, and two images are treated independently.

        Parameters
        ----------
        index : int
            Which image.
        seed : int
            Seed.
        """
        return np.random.default_rng(image_seed(self.images[index], seed))


@contextmanager
def perturbing(
    model: object,
    images: Tensor,
    *,
    targets: Targets,
    images_at_once: int = 32,
) -> Iterator[Perturbable]:
    """Open a model to see images with parts taken away; it is left as it was, also after an error.

    Parameters
    ----------
    model : VisionTransformer or object with `class_token_model`
        What `cdam_med.attribution.class_token.class_token_model` takes.
    images : Tensor
        ``(image, channel, height, width)`` as the model takes them.
    targets : target
        The output that is explained: one target for all images, or a `PerImage`.
    images_at_once : int
        How many versions of an image share a pass; bounds memory.

    Raises
    ------
    ModelError
        If the model can't be described, or takes volumes.
    TargetError
        If the model has no such target, or there is more than one for an image.
    InputError
        If the images aren't what the model takes.
    """
    check_count("perturbing", "images_at_once", images_at_once)
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
