"""Integrated CDAM of the authors' later software: a noisy path at the normalised tokens.

Version `k` of the normalised tokens of the last block is ``k / steps`` times them plus noise, for
`k` from 0 to `steps`, with the residual stream held fixed; the score is the mean over versions of
CDAM, each of its own tokens. That weighs the gradient by the shrunken token rather than by the
token, so the scores don't add up to a difference of outputs. There each map was also clipped to its
own 1 and 99 per cent quantiles before the mean, and the noise level was that of the whole batch;
here maps are never clipped and the noise level is each image's own. It is here to reproduce
published maps; the default is `cdam_med.attribution.integrated`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cdam_med.attribution.methods.settings import check_count, check_noise
from cdam_med.attribution.perturbed import AveragedCdam, Place


@dataclass(frozen=True)
class IntegratedCdamNormed(AveragedCdam):
    """Integrated CDAM with a noisy path at the normalised tokens, the later published form.

    Parameters
    ----------
    steps : int
        The path is cut into this many equal parts; both of its ends are used.
    noise : float
        Standard deviation of the noise, as a share of the range of the image's tokens.

    Raises
    ------
    MethodError
        If there are too few steps, or the noise is negative or not finite.
    """

    steps: int = 50
    noise: float = 0.05

    name: ClassVar[str] = "integrated_cdam_normed"
    title: ClassVar[str] = "Integrated CDAM (noisy normalised tokens)"
    meaning: ClassVar[str] = (
        "CDAM's first-order score, mean over a noisy path from empty tokens to those of the "
        "image: above zero it pushes the output up, below zero down. It isn't how the output "
        "changes when the patch is removed."
    )
    reference: ClassVar[str] = "obzai, 2025, without its clipping"
    place: ClassVar[Place] = "normed tokens"
    cost: ClassVar[str] = "about two forward passes for all targets, with fifty steps"

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        check_count(self.name, "steps", self.steps)
        check_noise(self.name, self.noise, usual=0.05)

    @property
    def scales(self) -> Sequence[float]:
        """Factor of the tokens in each version."""
        return [k / self.steps for k in range(self.steps + 1)]
