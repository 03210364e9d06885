"""Smooth CDAM as of the time of the paper: the mean of CDAM over slightly noisy tokens.

Two definitions have been published under this name. This is the default, because it is the one
that was public when the paper was: noise on the residual stream that enters the last block, so
that it goes through the norm, and the class token's own residual is noisy too. The other one is
`cdam_med.attribution.smooth_normed`.

The noise level is a share of the range (largest minus smallest number) of all tokens of one image.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cdam_med.attribution.combinations import Targets
from cdam_med.attribution.estimator import Attribution, Resolution, explaining
from cdam_med.attribution.perturbed import check_samples, mean_scores


@dataclass(frozen=True)
class SmoothCdam:
    """Smooth CDAM with noise on the tokens that enter the last block: the default.

    Parameters
    ----------
    samples : int
        Number of noisy versions.
    noise : float
        Standard deviation of the noise, as a share of the range of the image's tokens.

    Raises
    ------
    MethodError
        If there are no samples, or the noise is negative.
    """

    samples: int = 50
    noise: float = 0.05

    name: ClassVar[str] = "smooth_cdam"
    title: ClassVar[str] = "Smooth CDAM"
    reference: ClassVar[str] = "Brocki, Binda, Chung 2024, arXiv 2312.02364v3"
    resolution: ClassVar[Resolution] = "patch"
    is_signed: ClassVar[bool] = True
    cost: ClassVar[str] = "about two forward passes for all targets, with fifty samples"

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        check_samples(self.samples, self.noise)

    def __call__(
        self, model: object, images: Tensor, targets: Targets = None, *, seed: int = 0
    ) -> Attribution:
        """Return Smooth CDAM of a batch of images. See `Estimator`.

        Parameters
        ----------
        model : VisionTransformer or object with `class_token_model`
            The model to explain.
        images : Tensor
            ``(batch, channel, height, width)`` as the model takes them.
        targets : target, sequence of targets, or None
            What to explain; ``None`` for every output.
        seed : int
            Seed of the noise.
        """
        with explaining(model, images, targets) as subject:
            scales = (1.0,) * self.samples
            found = mean_scores(subject, "block input", scales, noise=self.noise, seed=seed)
            return subject.attribution(self, *found)
