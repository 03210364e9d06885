"""Smooth CDAM as of the time of the paper: the mean of CDAM over slightly noisy tokens.

Two definitions have been published under this name. This is the default, because it is the one
that was public when the paper was: noise on the residual stream that enters the last block, so
that it goes through the norm, and the class token's own residual is noisy too. The other one is
`cdam_med.attribution.smooth_normed`.

The noise level is a share of the range (largest minus smallest number) of all tokens of one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cdam_med.attribution.methods.settings import check_count, check_noise
from cdam_med.attribution.perturbed import AveragedCdam, Place


@dataclass(frozen=True)
class SmoothCdam(AveragedCdam):
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
        If there are no samples, or the noise is negative or not finite.
    """

    samples: int = 50
    noise: float = 0.05

    name: ClassVar[str] = "smooth_cdam"
    title: ClassVar[str] = "Smooth CDAM"
    meaning: ClassVar[str] = (
        "CDAM's first-order score, mean over copies with noise: above zero it pushes the "
        "output up, below zero down. It isn't how the output changes when the patch is "
        "removed."
    )
    reference: ClassVar[str] = "Brocki, Binda, Chung 2024, arXiv 2312.02364v3"
    place: ClassVar[Place] = "block input"
    cost: ClassVar[str] = "about two forward passes for all targets, with fifty samples"

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        check_count(self.name, "samples", self.samples)
        check_noise(self.name, self.noise, usual=0.05)

    @property
    def scales(self) -> Sequence[float]:
        """Factor of the tokens in each version."""
        return (1.0,) * self.samples
