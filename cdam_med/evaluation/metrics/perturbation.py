"""A model opened to be asked what it says of images with parts taken away."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdam_med.attribution.combinations import DerivedTarget, Target
from cdam_med.attribution.estimator import Subject, explaining
from cdam_med.attribution.estimators.settings import check_count
from cdam_med.attribution.image_seed import image_seed
from cdam_med.evaluation.metrics.map_pooling import PatchGrid, patch_grid_of_prepared
from data_prep.errors import InputError


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
    targets: Target | Sequence[Target],
    images_at_once: int = 32,
) -> Iterator[Perturbable]:
    """Open a model to see images with parts taken away; it is left as it was, also after an error.

    Parameters
    ----------
    model : VisionTransformer or object with `class_token_model`
        What `cdam_med.models.class_token.class_token_model` takes.
    images : Tensor
        ``(image, channel, height, width)`` as the model takes them.
    targets : target or sequence of targets
        The output that is explained: one for all images, or one for each.
    images_at_once : int
        How many versions of an image share a pass; bounds memory.

    Raises
    ------
    ModelError
        If the model can't be described, or takes volumes.
    TargetError
        If the model has no such target.
    InputError
        If the images aren't what the model takes, or there aren't as many targets as images.
    """
    check_count("perturbing", "images_at_once", images_at_once)
    if isinstance(targets, str | int | DerivedTarget):
        targets = (targets,) * len(images)
    if len(targets) != len(images):
        raise InputError(
            f"There must be one target for each of {len(images)} images, not {len(targets)}: give "
            "one for each, or a single one for all."
        )
    distinct = tuple(dict.fromkeys(targets))
    with explaining(model, images, distinct) as subject:
        column = dict(zip(distinct, subject.columns, strict=True))
        yield Perturbable(
            subject=subject,
            columns=tuple(column[target] for target in targets),
            grid=patch_grid_of_prepared(subject.model, subject.images),
            images_at_once=images_at_once,
        )
