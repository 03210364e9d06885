"""Integrated CDAM of the authors' later software: a noisy path at the normalised tokens.

Version `k` of the normalised tokens of the last block is ``k / steps`` times them plus noise, for
`k` from 0 to `steps`, with the residual stream held fixed; the score is the mean over versions of
CDAM, each of its own tokens. That weighs the gradient by the shrunken token rather than by the
token, so the scores don't add up to a difference of outputs. There each map was also clipped to its
own 1 and 99 per cent quantiles before the mean, and the noise level was that of the whole batch;
here maps are never clipped and the noise level is each image's own. It is here to reproduce
published maps; the default is `cdam_med.attribution.integrated`.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cdam_med.attribution.combinations import Targets
from cdam_med.attribution.estimator import Attribution, Resolution, explaining
from cdam_med.attribution.perturbed import check_samples, mean_scores


@dataclass(frozen=True)
class IntegratedCdamNormed:
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
        If there are too few steps, or the noise is negative.
    """

    steps: int = 50
    noise: float = 0.05

    name: ClassVar[str] = "integrated_cdam_normed"
    title: ClassVar[str] = "Integrated CDAM (noisy normalised tokens)"
    reference: ClassVar[str] = "obzai, 2025, without its clipping"
    resolution: ClassVar[Resolution] = "patch"
    is_signed: ClassVar[bool] = True
    cost: ClassVar[str] = "about two forward passes for all targets, with fifty steps"

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        check_samples(self.steps, self.noise)

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
            scales = [k / self.steps for k in range(self.steps + 1)]
            found = mean_scores(subject, "normed tokens", scales, noise=self.noise, seed=seed)
            return subject.attribution(self, *found)
