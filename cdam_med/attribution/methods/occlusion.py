"""Occlusion: what each patch's square of the image is worth, with captum."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from captum import attr as captum_attr
from jaxtyping import Float
from torch import Tensor

from cdam_med.attribution.estimator import Attribution
from cdam_med.attribution.methods.pixel_maps import check_pixels
from cdam_med.attribution.numerics import wide
from cdam_med.attribution.subject import Method, Subject
from cdam_med.errors import MethodError


@dataclass(frozen=True)
class Occlusion(Method):
    """``f(image) - f(image with a square replaced)``, one square a patch, without overlap.

    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section
    4.2. The square is filled with one colour, so that the patch stays, but shows nothing; compare
    `token_ablation`, which takes the token away. All targets come from the same passes. captum
    sees the grid of squares as its features (`FeatureAblation`), which is its `Occlusion` with
    window and stride of a patch, but in the memory of the grid instead of the pixels.

    Parameters
    ----------
    fill : float or None
        Value to fill a square with, in the image as the ViT takes it; ``None`` for the image's
        own mean colour.
    squares_at_once : int
        How many squares share a pass; bounds memory.
    """

    fill: float | None = None
    squares_at_once: int = 16

    name: ClassVar[str] = "occlusion"
    title: ClassVar[str] = "Occlusion"
    meaning: ClassVar[str] = (
        "How far the output falls (above zero) or rises (below zero) when the patch is "
        "painted over in one colour."
    )
    reference: ClassVar[str] = "Zeiler and Fergus, ECCV 2014"
    cost: ClassVar[str] = "one forward pass for each patch"

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        super().__post_init__()
        if self.fill is not None and not math.isfinite(self.fill):
            raise MethodError(
                f"fill of occlusion must be finite, not {self.fill}: give a value of the image as "
                "the ViT takes it, or None for the image's mean colour."
            )

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return occlusion maps."""
        check_pixels(self, subject)
        scores = torch.stack([self._map(subject, image) for image in subject.images])
        outputs = subject.model.outputs(subject.images)[:, list(subject.columns)]
        return subject.attribution_of_maps(self, scores, outputs, "perturbation")

    def _map(
        self, subject: Subject, image: Float[Tensor, "channel height width"]
    ) -> Float[Tensor, "target rows columns"]:
        rows, columns = subject.model.grid_size(image[None])
        sides = subject.model.adapter.patches.sides
        of_row, of_column = (
            torch.arange(pixels, device=image.device) // side  # the last may be partly padding
            for pixels, side in zip(image.shape[-2:], sides, strict=True)
        )
        colour = image.mean((1, 2), keepdim=True) if self.fill is None else self.fill

        def outputs_seeing(
            visible: Float[Tensor, "batch rows columns"],
        ) -> Float[Tensor, "batch target"]:
            seen = visible[:, None, of_row[:, None], of_column]
            covered = (seen * image + (1 - seen) * colour).to(image.dtype)
            return wide(subject.model.outputs(covered)[:, list(subject.columns)])

        scores: Tensor = captum_attr.FeatureAblation(outputs_seeing).attribute(
            wide(image.new_ones(1, rows, columns)),
            baselines=0,
            perturbations_per_eval=self.squares_at_once,
        )
        return scores
