"""SmoothGrad: gradients of the pixels, averaged over noisy copies, with captum."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from captum import attr as captum_attr
from torch import Tensor

from cdam_med.attribution.combinations import Targets
from cdam_med.attribution.estimator import Attribution, Resolution, explaining
from cdam_med.attribution.estimators.pixel_maps import model_outputs, pixel_attribution
from cdam_med.attribution.estimators.settings import check_count
from cdam_med.errors import MethodError


@dataclass(frozen=True)
class SmoothGrad:
    """Mean of ``df/dx`` over copies of the image with noise, mean over colours.

    Gradients keep their sign and aren't multiplied by the image. The noise is normal, with a
    standard deviation of `noise` times the image's own range, in the image as the ViT takes it.
    Each image and each target draws the same noise from the seed. Smilkov et al., "SmoothGrad:
    removing noise by adding noise", arXiv 1706.03825.

    Parameters
    ----------
    samples : int
        Noisy copies.
    noise : float
        Standard deviation as a share of the image's maximum minus minimum.
    samples_at_once : int
        How many copies share a pass; bounds memory. Noise is drawn in such portions.
    """

    samples: int = 50
    noise: float = 0.15
    samples_at_once: int = 10

    name: ClassVar[str] = "smoothgrad"
    title: ClassVar[str] = "SmoothGrad"
    reference: ClassVar[str] = "Smilkov et al., 2017"
    resolution: ClassVar[Resolution] = "pixel"
    is_signed: ClassVar[bool] = True
    cost: ClassVar[str] = "a forward and a backward pass for each sample and target"

    def __post_init__(self) -> None:
        """Refuse settings that can't be."""
        check_count(self.name, "samples", self.samples)
        check_count(self.name, "samples_at_once", self.samples_at_once)
        if not 0 <= self.noise < float("inf"):
            raise MethodError(
                f"noise of smoothgrad must be 0 or more, not {self.noise}: it is a share of the "
                "image's range, such as 0.15."
            )

    def __call__(
        self, model: object, images: Tensor, targets: Targets = None, *, seed: int = 0
    ) -> Attribution:
        """Return smoothed gradients; see `cdam_med.attribution.estimator.Estimator`."""
        with explaining(model, images, targets) as subject:
            method = captum_attr.NoiseTunnel(captum_attr.Saliency(model_outputs(subject)))
            device = subject.images.device
            others = [device] if device.type == "cuda" else []

            def scores(image: Tensor, column: int) -> Tensor:
                # captum draws from the global generator, which is put back afterwards
                with torch.random.fork_rng(others):
                    torch.manual_seed(seed)
                    found: Tensor = method.attribute(
                        image,
                        nt_type="smoothgrad",
                        nt_samples=self.samples,
                        nt_samples_batch_size=self.samples_at_once,
                        stdevs=self.noise * float(image.max() - image.min()),
                        target=column,
                        abs=False,
                    )
                return found

            return pixel_attribution(self, subject, scores)
