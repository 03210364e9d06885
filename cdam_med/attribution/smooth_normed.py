"""Smooth CDAM of the authors' later software: noise behind the norm, the residual held fixed.

The default is `cdam_med.attribution.smooth`, the definition of the time of the paper. Two details
of this one are left out. There each noisy map was clipped to its own 1 and 99 per cent quantiles
before the mean, which makes scores that no longer add up; and its noise level was taken from the
whole batch, so that a map depended on what other images it was computed with. Here maps are never
clipped, and the noise level is each image's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cdam_med.attribution.estimators.settings import check_count, check_noise
from cdam_med.attribution.perturbed import AveragedCdam, Place


@dataclass(frozen=True)
class SmoothCdamNormed(AveragedCdam):
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
        If there are no samples, or the noise is negative or not finite.
    """

    samples: int = 50
    noise: float = 0.05

    name: ClassVar[str] = "smooth_cdam_normed"
    title: ClassVar[str] = "Smooth CDAM (normalised tokens)"
    reference: ClassVar[str] = "obzai 0.1.2, 2025, without its clipping"
    place: ClassVar[Place] = "normed tokens"
    cost: ClassVar[str] = "about two forward passes for all targets, with fifty samples"

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        check_count(self.name, "samples", self.samples)
        check_noise(self.name, self.noise, usual=0.05)

    @property
    def noise_level(self) -> float:
        """The noise."""
        return self.noise

    @property
    def scales(self) -> Sequence[float]:
        """Factor of the tokens in each version."""
        return (1.0,) * self.samples
