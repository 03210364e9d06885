"""Integrated CDAM as of the time of the paper: a path at the entry of the last block.

Version `k` of the tokens that enter the last block is ``k / steps`` times them, for `k` from 1 to
``steps - 1``; the score is the mean over versions of CDAM, each of its own normalised tokens. The
norm that follows undoes the scaling almost wholly, so what shrinks is only the residual stream, and
the scores add up to nothing in particular: in spite of its name this is close to plain CDAM. It is
here to reproduce published maps; the default is `cdam_med.attribution.integrated`.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cdam_med.attribution.combinations import Targets
from cdam_med.attribution.estimator import Attribution, Resolution, explaining
from cdam_med.attribution.perturbed import check_samples, mean_scores


@dataclass(frozen=True)
class IntegratedCdamBlockInput:
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
        If there are too few steps, or the noise is negative.
    """

    steps: int = 50
    noise: float = 0.0

    name: ClassVar[str] = "integrated_cdam_block_input"
    title: ClassVar[str] = "Integrated CDAM (block input)"
    reference: ClassVar[str] = "Brocki, Binda, Chung 2024, arXiv 2312.02364v3"
    resolution: ClassVar[Resolution] = "patch"
    is_signed: ClassVar[bool] = True
    cost: ClassVar[str] = "about two forward passes for all targets, with fifty steps"

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        check_samples(self.steps, self.noise, at_least=2)

    def __call__(
        self, model: object, images: Tensor, targets: Targets = None, *, seed: int = 0
    ) -> Attribution:
        """Return this form of Integrated CDAM of a batch of images. See `Estimator`.

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
            scales = [k / self.steps for k in range(1, self.steps)]
            found = mean_scores(subject, "block input", scales, noise=self.noise, seed=seed)
            return subject.attribution(self, *found)
