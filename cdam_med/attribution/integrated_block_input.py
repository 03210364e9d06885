"""Integrated CDAM as of the time of the paper: a path at the entry of the last block.

Version `k` of the tokens that enter the last block is ``k / steps`` times them, for `k` from 1 to
``steps - 1``; the score is the mean over versions of CDAM, each of its own normalised tokens. The
norm that follows undoes the scaling almost wholly, so what shrinks is only the residual stream, and
the scores add up to nothing in particular: in spite of its name this is close to plain CDAM. It is
here to reproduce published maps; the default is `cdam_med.attribution.integrated`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cdam_med.attribution.methods.settings import check_count, check_noise
from cdam_med.attribution.perturbed import AveragedCdam, Place


@dataclass(frozen=True)
class IntegratedCdamBlockInput(AveragedCdam):
    """Integrated CDAM with its path at the entry of the last block, the published form.

    Parameters
    ----------
    steps : int
        The path is cut into this many equal parts; neither of its ends is used.
    noise : float
        Standard deviation of the noise, as a share of the range of the image's tokens.

    Raises
    ------
    MethodError
        If there are too few steps, or the noise is negative or not finite.
    """

    steps: int = 50
    noise: float = 0.0

    name: ClassVar[str] = "integrated_cdam_block_input"
    title: ClassVar[str] = "Integrated CDAM (block input)"
    meaning: ClassVar[str] = (
        "CDAM's first-order score, mean over a path from empty tokens to those of the image: "
        "above zero it pushes the output up, below zero down. It isn't how the output changes "
        "when the patch is removed."
    )
    reference: ClassVar[str] = "Brocki, Binda, Chung 2024, arXiv 2312.02364v3"
    place: ClassVar[Place] = "block input"
    cost: ClassVar[str] = "about two forward passes for all targets, with fifty steps"

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        check_count(self.name, "steps", self.steps, at_least=2)
        check_noise(self.name, self.noise, usual=0.05)

    @property
    def scales(self) -> Sequence[float]:
        """Factor of the tokens in each version."""
        return [k / self.steps for k in range(1, self.steps)]
