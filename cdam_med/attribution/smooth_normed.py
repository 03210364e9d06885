"""Smooth CDAM of the authors' later software: noise behind the norm, the residual held fixed.

The default is `cdam_med.attribution.smooth`, the definition of the time of the paper. Two details
of this one are left out. There each noisy map was clipped to its own 1 and 99 per cent quantiles
before the mean, which makes scores that no longer add up; and its noise level was taken from the
whole batch, so that a map depended on what other images it was computed with. Here maps are never
clipped, and the noise level is each image's own.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cdam_med.attribution.combinations import Targets
from cdam_med.attribution.estimator import Attribution, Resolution, explaining
from cdam_med.attribution.perturbed import check_samples, mean_scores


@dataclass(frozen=True)
class SmoothCdamNormed:
    """Smooth CDAM with noise on the normalised tokens, the residual stream held fixed.

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

    name: ClassVar[str] = "smooth_cdam_normed"
    title: ClassVar[str] = "Smooth CDAM (normalised tokens)"
    reference: ClassVar[str] = "obzai 0.1.2, 2025, without its clipping"
    resolution: ClassVar[Resolution] = "patch"
    is_signed: ClassVar[bool] = True
    cost: ClassVar[str] = "about two forward passes for all targets, with fifty samples"

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        check_samples(self.samples, self.noise)

    def __call__(
        self, model: object, images: Tensor, targets: Targets = None, *, seed: int = 0
    ) -> Attribution:
        """Return this form of Smooth CDAM of a batch of images. See `Estimator`.

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
            found = mean_scores(subject, "normed tokens", scales, noise=self.noise, seed=seed)
            return subject.attribution(self, *found)
