"""SmoothGrad: gradients of the pixels, averaged over noisy copies, each by captum."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from captum import attr as captum_attr
from jaxtyping import Float
from torch import Tensor

from cdam_med.attribution.estimator import Attribution, Resolution
from cdam_med.attribution.methods.pixel_maps import model_outputs, pixel_attribution
from cdam_med.attribution.numerics import image_generator
from cdam_med.attribution.subject import Method, Subject


@dataclass(frozen=True)
class SmoothGrad(Method):
    """Mean of ``df/dx`` over copies of the image with noise, mean over colours.

    Gradients keep their sign and aren't multiplied by the image. The noise is normal, with a
    standard deviation of `noise` times the image's own range, in the image as the ViT takes it.
    Copy `k` of an image has the `k`-th draw of ``torch.randn(channel, height, width)`` from the
    image's own generator (`cdam_med.attribution.numerics.image_generator`), the same for each
    target. captum's own `NoiseTunnel` draws from the generator that everybody shares, and other
    numbers in other portions. Smilkov et al., "SmoothGrad: removing noise by adding noise", arXiv
    1706.03825.

    Parameters
    ----------
    samples : int
        Noisy copies.
    noise : float
        Standard deviation as a share of the image's maximum minus minimum.
    samples_at_once : int
        How many copies share a pass; bounds memory, and doesn't change the maps.
    """

    samples: int = 50
    noise: float = 0.15
    samples_at_once: int = 10

    name: ClassVar[str] = "smoothgrad"
    title: ClassVar[str] = "SmoothGrad"
    meaning: ClassVar[str] = (
        "How fast the output rises (above zero) or falls (below zero) as a pixel gets "
        "brighter, mean over noisy copies. It is a slope, not a share of the output."
    )
    reference: ClassVar[str] = "Smilkov et al., 2017"
    resolution: ClassVar[Resolution] = "pixel"
    cost: ClassVar[str] = "a forward and a backward pass for each sample and target"

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return smoothed gradients."""
        gradient = captum_attr.Saliency(model_outputs(subject)).attribute

        def scores(image: Tensor, column: int) -> Tensor:
            return self._mean(gradient, image, column, seed)

        return pixel_attribution(self, subject, scores)

    def _mean(
        self,
        gradient: Callable[..., Tensor],
        image: Float[Tensor, "1 channel height width"],
        column: int,
        seed: int,
    ) -> Float[Tensor, "1 channel height width"]:
        """Return the mean gradient of one output over noisy copies of one image."""
        generator = image_generator(image[0], seed, device=image.device)
        spread = self.noise * (image.max() - image.min())
        total = torch.zeros_like(image)
        for start in range(0, self.samples, self.samples_at_once):
            copies = image.repeat(min(self.samples_at_once, self.samples - start), 1, 1, 1)
            for each in copies:  # one draw a copy, so that the portion doesn't matter
                each.add_(spread * torch.empty_like(each).normal_(generator=generator))
            total += gradient(copies.requires_grad_(), target=column, abs=False).sum(0)
        return total / self.samples
