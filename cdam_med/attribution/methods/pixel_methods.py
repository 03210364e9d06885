"""Methods that change or differentiate the pixels, through captum, one image at a time.

So memory is bounded by the samples of one image, and a batch gives what its images give alone.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from captum import attr as captum_attr
from jaxtyping import Float
from torch import Tensor

from cdam_med.attribution.method import Attribution
from cdam_med.attribution.numerics import image_generator, wide
from cdam_med.attribution.subject import MethodBase, Subject
from cdam_med.errors import MethodError

_Outputs: TypeAlias = Callable[[Tensor], Tensor]
"""The model as captum calls it, with pixels that may be in a wider type than its weights."""


class _PixelMethod(MethodBase):
    """Maps of pixels whose scores are means over the colour channels."""

    resolution = "pixel"
    needs_pixels = True

    @abstractmethod
    def scores(
        self,
        outputs: _Outputs,
        image: Float[Tensor, "1 channel height width"],
        column: int,
        seed: int,
    ) -> Float[Tensor, "1 channel height width"]:
        """Return the scores of one image for one column of the outputs."""

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return maps, each image's for its own targets alone, as each costs passes of its own."""
        dtype = subject.images.dtype

        def outputs(pixels: Float[Tensor, "batch channel height width"]) -> Tensor:
            return subject.model.outputs(pixels.to(dtype))

        scores = [
            torch.stack(
                [
                    self.scores(outputs, image[None].clone(), column, seed)[0].mean(0)
                    for column in subject.columns_of(index)
                ]
            )
            for index, image in enumerate(wide(subject.images.detach()))
        ]
        return Attribution(
            scores=torch.stack(scores).detach(),
            outputs=subject.of_targets(subject.outputs()),
            targets=subject.targets,
            method=self.name,
            resolution=self.resolution,
            is_signed=self.is_signed,
            prefix_scores=None,
            path="autograd",
        )


@dataclass(frozen=True)
class InputXGradient(_PixelMethod):
    """``x * df/dx`` in the image as the ViT takes it, mean over colours.

    Shrikumar et al., "Not Just a Black Box: Learning Important Features Through Propagating
    Activation Differences", arXiv 1605.01713.
    """

    name = "input_x_gradient"
    title = "Input x gradient"
    meaning = (
        "A pixel's brightness times the slope of the output there, a first-order score: above "
        "zero it pushes the output up, below zero down."
    )
    reference = "Shrikumar et al., 2016"
    cost = "a forward and a backward pass for each target"

    def scores(self, outputs: _Outputs, image: Tensor, column: int, seed: int) -> Tensor:
        """Return input times gradient."""
        method = captum_attr.InputXGradient(outputs)
        found: Tensor = method.attribute(image.requires_grad_(), target=column)
        return found


@dataclass(frozen=True)
class IntegratedGradients(_PixelMethod):
    """``x * mean_k df/dx(k x / m)``, k = 1 to m, mean over colours.

    The baseline is zero in the image as the ViT takes it, which is the mean colour that images are
    standardised with; the path is a right Riemann sum. Sundararajan, Taly and Yan, "Axiomatic
    Attribution for Deep Networks", ICML 2017, eq. 3. `steps_at_once`, how many points on the path
    share a pass, bounds memory and doesn't change the maps.
    """

    steps: int = 50
    steps_at_once: int = 10

    name = "integrated_gradients"
    title = "Integrated gradients"
    meaning = (
        "Share of a pixel in the difference between the output and that of an even grey "
        "image: above zero it raises the output, below zero it lowers it."
    )
    reference = "Sundararajan et al., ICML 2017"
    cost = "a forward and a backward pass for each step and target"

    def scores(self, outputs: _Outputs, image: Tensor, column: int, seed: int) -> Tensor:
        """Return integrated gradients."""
        found: Tensor = captum_attr.IntegratedGradients(outputs).attribute(
            image,
            baselines=0,
            target=column,
            n_steps=self.steps,
            method="riemann_right",
            internal_batch_size=self.steps_at_once,
        )
        return found


@dataclass(frozen=True)
class SmoothGrad(_PixelMethod):
    """Mean of ``df/dx`` over copies of the image with noise, mean over colours.

    Gradients keep their sign and aren't multiplied by the image. The noise is normal, with a
    standard deviation of `noise` times the image's own range, in the image as the ViT takes it.
    Copy `k` of an image has the `k`-th draw of ``torch.randn(channel, height, width)`` from the
    image's own generator (`cdam_med.attribution.numerics.image_generator`), the same for each
    target. captum's own `NoiseTunnel` draws from the generator that everybody shares, and other
    numbers in other portions. Smilkov et al., "SmoothGrad: removing noise by adding noise", arXiv
    1706.03825. `samples_at_once` bounds memory and doesn't change the maps.
    """

    samples: int = 50
    noise: float = 0.15
    samples_at_once: int = 10

    name = "smoothgrad"
    title = "SmoothGrad"
    meaning = (
        "How fast the output rises (above zero) or falls (below zero) as a pixel gets "
        "brighter, mean over noisy copies. It is a slope, not a share of the output."
    )
    reference = "Smilkov et al., 2017"
    cost = "a forward and a backward pass for each sample and target"

    def scores(self, outputs: _Outputs, image: Tensor, column: int, seed: int) -> Tensor:
        """Return the mean gradient over noisy copies."""
        gradient = captum_attr.Saliency(outputs).attribute
        generator = image_generator(image[0], seed, device=image.device)
        spread = self.noise * (image.max() - image.min())
        total = torch.zeros_like(image)
        every = image.expand(self.samples, -1, -1, -1)
        for copies in torch.split(every, self.samples_at_once):
            noisy = copies.clone()
            for each in noisy:  # one draw a copy, so that the portion doesn't matter
                each.add_(spread * torch.empty_like(each).normal_(generator=generator))
            total += gradient(noisy.requires_grad_(), target=column, abs=False).sum(0)
        return total / self.samples


@dataclass(frozen=True)
class Occlusion(MethodBase):
    """``f(image) - f(image with a square replaced)``, one square a patch, without overlap.

    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section
    4.2. The square is filled with one colour, so that the patch stays, but shows nothing; compare
    `token_ablation`, which takes the token away. All targets come from the same passes. captum
    sees the grid of squares as its features (`FeatureAblation`), which is its `Occlusion` with
    window and stride of a patch, but in the memory of the grid instead of the pixels.

    `fill` is a value in the image as the ViT takes it, ``None`` for the image's own mean colour;
    `squares_at_once`, how many squares share a pass, bounds memory.
    """

    fill: float | None = None
    squares_at_once: int = 16

    name = "occlusion"
    title = "Occlusion"
    meaning = (
        "How far the output falls (above zero) or rises (below zero) when the patch is "
        "painted over in one colour."
    )
    reference = "Zeiler and Fergus, ECCV 2014"
    needs_pixels = True
    cost = "one forward pass for each patch"

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
        scores = torch.stack([self._map(subject, image) for image in subject.images])
        return subject.attribution_of_maps(self, scores, subject.outputs(), "perturbation")

    def _map(
        self, subject: Subject, image: Float[Tensor, "channel height width"]
    ) -> Float[Tensor, "target rows columns"]:
        grid = subject.model.grid_size(image[None])
        of_row, of_column = (
            torch.arange(pixels, device=image.device) // side  # the last may be partly padding
            for pixels, side in zip(
                image.shape[-2:], subject.model.adapter.patches.sides, strict=True
            )
        )
        colour = image.mean((1, 2), keepdim=True) if self.fill is None else self.fill

        def outputs_seeing(visible: Float[Tensor, "batch rows columns"]) -> Tensor:
            seen = visible[:, None, of_row[:, None], of_column]
            covered = (seen * image + (1 - seen) * colour).to(image.dtype)
            return wide(subject.outputs(covered))

        scores: Tensor = captum_attr.FeatureAblation(outputs_seeing).attribute(
            wide(image.new_ones(1, *grid)),
            baselines=0,
            perturbations_per_eval=self.squares_at_once,
        )
        return scores
