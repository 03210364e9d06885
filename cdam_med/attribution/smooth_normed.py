"""Smooth CDAM of the authors' later software: noise behind the norm, the residual held fixed.

The default is `cdam_med.attribution.smooth`, the definition of the time of the paper. Two details
of this one are left out. There each noisy map was clipped to its own 1 and 99 per cent quantiles
before the mean, which makes scores that no longer add up; and its noise level was taken from the
whole batch, so that a map depended on what other images it was computed with. Here maps are never
clipped, and the noise level is each image's own.
"""

from dataclasses import dataclass
from typing import ClassVar

from cdam_med.attribution.perturbed import Place
from cdam_med.attribution.smooth import SmoothCdam


@dataclass(frozen=True)
class SmoothCdamNormed(SmoothCdam):
    """Smooth CDAM with noise on the normalised tokens, the residual stream held fixed.

    Parameters and errors are those of `SmoothCdam`.
    """

    name: ClassVar[str] = "smooth_cdam_normed"
    title: ClassVar[str] = "Smooth CDAM (normalised tokens)"
    reference: ClassVar[str] = "obzai 0.1.2, 2025, without its clipping"
    place: ClassVar[Place] = "normed tokens"
