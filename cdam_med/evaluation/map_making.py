"""Maps of one target an image, and of several targets for each, made in batches."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cdam_med.attribution.combinations import Target
from cdam_med.attribution.estimator import Attribution, Estimator
from cdam_med.attribution.subject import explaining
from cdam_med.errors import MethodError
from cdam_med.evaluation.metrics.map_pooling import PatchGrid

IMAGES_AT_ONCE = 8
"""Images of a batch; bounds memory."""


@dataclass(frozen=True, eq=False)
class ExplainedImages:
    """A map of each image for its own target.

    Parameters
    ----------
    maps : Tensor
        Scores at the estimator's resolution, on the CPU.
    seconds : ndarray
        Wall-clock time of each image's map: its batch's, shared evenly.
    """

    maps: Float[Tensor, "image rows columns"]
    seconds: Float[np.ndarray, " image"]


def explain_each(
    estimator: Estimator,
    model: object,
    images: Float[Tensor, "image channel height width"],
    targets: Sequence[Target],
    *,
    seed: int = 0,
) -> ExplainedImages:
    """Return one map for each image.

    Parameters
    ----------
    estimator : Estimator
        What makes the maps.
    model : VisionTransformer or object with `class_token_model`
        What is explained.
    images : Tensor
        Images as the model takes them.
    targets : sequence of target
        The target of each image. Images in a row with the same target share a batch.
    seed : int
        Seed of the estimator.

    Raises
    ------
    InputError
        If the estimator or the model refuses, or a map holds a value that isn't finite.
    """
    maps, seconds = [], []
    for first, last in _batches(targets):
        start = time.perf_counter()
        found = estimator(model, images[first:last], targets[first], seed=seed)
        seconds += [(time.perf_counter() - start) / (last - first)] * (last - first)
        maps.append(_checked(found)[:, 0])
    return ExplainedImages(torch.cat(maps), np.array(seconds))


def explain_several(
    estimator: Estimator,
    model: object,
    images: Float[Tensor, "image channel height width"],
    targets: Sequence[Target],
    *,
    grid: PatchGrid,
    seed: int = 0,
) -> Float[Tensor, "image target rows columns"]:
    """Return maps of each image for the same several targets, at the patch grid.

    Parameters
    ----------
    estimator, model, images, seed
        As in `explain_each`.
    targets : sequence of target
        Targets that all images are explained for.
    grid : PatchGrid
        Where the patches lie; pixel maps are pooled batch by batch.

    Raises
    ------
    InputError
        If the estimator or the model refuses, or a map holds a value that isn't finite.
    """
    asked = tuple(targets)
    return torch.cat(
        [
            grid.pooled(
                _checked(estimator(model, images[start : start + IMAGES_AT_ONCE], asked, seed=seed))
            )
            for start in range(0, len(images), IMAGES_AT_ONCE)
        ]
    )


def raw_outputs(
    model: object, images: Float[Tensor, "image channel height width"]
) -> tuple[Float[Tensor, "image output"], tuple[str | int, ...]]:
    """Return every raw output of the model for each image, and the outputs' names or columns.

    Parameters
    ----------
    model : VisionTransformer or object with `class_token_model`
        The model.
    images : Tensor
        Images as the model takes them.

    Raises
    ------
    InputError
        If the model can't be described, or the images aren't what it takes.
    """
    found = []
    for start in range(0, len(images), IMAGES_AT_ONCE):
        with explaining(model, images[start : start + IMAGES_AT_ONCE], None) as subject:
            found.append(subject.model.outputs(subject.images).cpu())
            names = subject.targets
    return torch.cat(found), names


def _batches(targets: Sequence[Target]) -> list[tuple[int, int]]:
    """Return first and last positions of runs of one target, none longer than a batch."""
    batches: list[tuple[int, int]] = []
    for index, target in enumerate(targets):
        first, last = batches[-1] if batches else (0, 0)
        if batches and last - first < IMAGES_AT_ONCE and targets[first] == target:
            batches[-1] = (first, index + 1)
        else:
            batches.append((index, index + 1))
    return batches


def _checked(found: Attribution) -> Float[Tensor, "batch target rows columns"]:
    scores = found.scores.detach().cpu()
    if not torch.isfinite(scores).all():
        raise MethodError(
            f"Maps of {found.estimator} hold values that aren't finite: try it in float64."
        )
    return scores
