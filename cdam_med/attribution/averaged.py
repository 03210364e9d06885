"""CDAM averaged over many versions of the tokens around the last block.

What Smooth CDAM and the published forms of Integrated CDAM share: the tokens are scaled or made
noisy at the entry of the last block, or behind its norm, CDAM is computed for each version, and
the mean is taken. All blocks but the last run once. Each version then costs the class token's row
of the last block, for all targets, by the closed form.

Two definitions of each have been published. Those of the time of the paper change the residual
stream that enters the last block, so that the change goes through the norm. Those of the authors'
later software change the normalised tokens, with the residual stream held fixed; there each noisy
map was also clipped to its own 1 and 99 per cent quantiles before the mean, and the noise level was
that of the whole batch, where here maps are never clipped and the noise level is each image's own.
Scores of the published forms of Integrated CDAM add up to nothing in particular: the first shrinks
hardly more than the residual stream, the second weighs the gradient by the shrunken token. They
are here to reproduce published maps; the default is `cdam_med.attribution.integrated`.

Sample `k` of an image's noise is the `k`-th draw of ``torch.randn(tokens, dim)`` from the image's
own generator (`cdam_med.attribution.numerics.image_generator`) on the model's device. So an image
has the same map alone and in any batch, and the slices of a volume don't share a pattern of noise.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from cdam_med.attribution.cdam import (
    Path,
    at_once,
    closed_form_of_all,
    closed_form_of_tokens,
    tokens_for_closed_form,
)
from cdam_med.attribution.last_block import norms_before_attention
from cdam_med.attribution.last_block_runs import LastBlockRuns
from cdam_med.attribution.method import Attribution
from cdam_med.attribution.numerics import image_generator, wide, without_autocast
from cdam_med.attribution.subject import MethodBase, Subject

Place: TypeAlias = Literal["block input", "normed tokens"]
"""Where tokens are changed: before `norm1` of the last block, or behind it."""

NUMBERS_AT_ONCE = 2**21
"""Numbers in the tokens that are worked on at once: few enough to stay in a processor's cache."""


def mean_scores(
    subject: Subject, place: Place, scales: Sequence[float], *, noise: float, seed: int
) -> tuple[Float[Tensor, "batch target token"], Float[Tensor, "batch target"], Path]:
    """Return the mean CDAM of every token over changed tokens; the outputs are of unchanged ones.

    Version `k` of an image's tokens ``P`` is ``scales[k] P + noise (max P - min P) e_k``, where
    the range is that of all tokens of the one image and ``e_k`` is standard normal. Where ``P`` are
    the normalised tokens, the residual stream is held fixed.
    """
    if (X := tokens_for_closed_form(subject)) is not None:
        with without_autocast(X):
            found = _by_closed_form(subject, X, place, scales, noise=noise, seed=seed)
        return *found, "closed form"
    return *_by_autograd(subject, place, scales, noise=noise, seed=seed), "autograd"


def _by_closed_form(
    subject: Subject,
    X: Float[Tensor, "batch token dim"],
    place: Place,
    scales: Sequence[float],
    *,
    noise: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    model, columns = subject.model, subject.columns
    (norm,) = norms_before_attention(model)
    _, outputs = closed_form_of_all(model, X, columns)
    P = wide(X if place == "block input" else norm(X))
    spread = _spread(P, noise)
    total = P.new_zeros(len(P), len(columns), P.shape[1])
    portion = max(1, NUMBERS_AT_ONCE // P[0].numel())
    for index, image in enumerate(subject.images):
        generator = image_generator(image, seed, device=P.device)
        for some in torch.split(torch.tensor(scales, dtype=P.dtype, device=P.device), portion):
            drawn = _drawn([generator] * len(some), P) if noise else None
            one, scale = P[index, None], some[:, None, None]
            changed = _changed(one, scale, drawn, spread[index], out=drawn)
            if place == "block input":
                changed = changed.to(X.dtype)
                T, residual = wide(norm(changed)), changed[:, : model.readout_tokens]
            else:
                T, residual = changed, X[index, : model.readout_tokens].expand(len(some), -1, -1)
            S = [closed_form_of_tokens(model, T, residual, each)[0] for each in at_once(columns)]
            total[index] += torch.cat(S, dim=1).sum(0)
    return total / len(scales), outputs


def _by_autograd(
    subject: Subject, place: Place, scales: Sequence[float], *, noise: float, seed: int
) -> tuple[Tensor, Tensor]:
    runs = LastBlockRuns(subject)
    X, total = wide(runs.tokens), torch.zeros_like(runs.scores)
    generators = [image_generator(image, seed, device=X.device) for image in subject.images]
    for scale in torch.tensor(scales, dtype=total.dtype, device=X.device):
        change = _change(scale, _drawn(generators, X) if noise else None, noise)
        if place == "block input":
            total += runs.scores_of(change_input=change)
        else:
            total += runs.scores_of(change=change)
    return total / len(scales), runs.outputs


def _change(scale: Tensor, drawn: Tensor | None, noise: float) -> Callable[[Tensor], Tensor]:
    def change(tokens: Tensor) -> Tensor:
        P = wide(tokens)
        return _changed(P, scale, drawn, _spread(P, noise)).to(tokens.dtype)

    return change


def _drawn(
    generators: Sequence[torch.Generator], like: Float[Tensor, "batch token dim"]
) -> Float[Tensor, "version token dim"]:
    """Return the next draw of each generator; one draw a version, so that portions don't matter."""
    drawn = like.new_empty(len(generators), *like.shape[1:])
    for each, generator in zip(drawn, generators, strict=True):
        each.normal_(generator=generator)
    return drawn


def _changed(
    P: Float[Tensor, "#version token dim"],
    scale: Float[Tensor, "*#version"],
    drawn: Float[Tensor, "version token dim"] | None,
    spread: Float[Tensor, "*#version 1 1"],
    *,
    out: Float[Tensor, "version token dim"] | None = None,
) -> Float[Tensor, "version token dim"]:
    if drawn is None:
        return P * scale
    scaled = P if bool((scale == 1).all()) else P * scale
    return torch.addcmul(scaled, drawn, spread, out=out)


def _spread(P: Float[Tensor, "batch token dim"], noise: float) -> Float[Tensor, "batch 1 1"]:
    return noise * (P.amax((1, 2), keepdim=True) - P.amin((1, 2), keepdim=True))


class AveragedCdam(MethodBase):
    """What the averaged forms share: `place` and `scales` say how tokens are changed.

    `noise` is the standard deviation of the noise, as a share of the range (largest minus smallest
    number) of all tokens of the image.
    """

    noise: float

    name: ClassVar[str]
    title: ClassVar[str]
    meaning: ClassVar[str]
    reference: ClassVar[str]
    cost: ClassVar[str]
    place: ClassVar[Place]
    least: ClassVar[int] = 1

    @property
    @abstractmethod
    def scales(self) -> Sequence[float]:
        """Factor of the tokens in each version."""

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return the mean CDAM of a batch of images; the seed is of the noise."""
        found = mean_scores(subject, self.place, self.scales, noise=self.noise, seed=seed)
        return subject.attribution(self, *found)


@dataclass(frozen=True)
class SmoothCdam(AveragedCdam):
    """Smooth CDAM with noise on the tokens that enter the last block: the default."""

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
    cost: ClassVar[str] = "about two forward passes for all targets, with fifty samples"
    place: ClassVar[Place] = "block input"

    @property
    def scales(self) -> Sequence[float]:
        """Factor of the tokens in each version."""
        return (1.0,) * self.samples


@dataclass(frozen=True)
class SmoothCdamNormed(SmoothCdam):
    """Smooth CDAM with noise on the normalised tokens, the residual stream held fixed."""

    name: ClassVar[str] = "smooth_cdam_normed"
    title: ClassVar[str] = "Smooth CDAM (normalised tokens)"
    reference: ClassVar[str] = "obzai 0.1.2, 2025, without its clipping"
    place: ClassVar[Place] = "normed tokens"


@dataclass(frozen=True)
class IntegratedCdamBlockInput(AveragedCdam):
    """Integrated CDAM with its path at the entry of the last block, the published form.

    The path is cut into `steps` equal parts; neither of its ends is used.
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
    cost: ClassVar[str] = "about two forward passes for all targets, with fifty steps"
    place: ClassVar[Place] = "block input"
    least: ClassVar[int] = 2

    @property
    def scales(self) -> Sequence[float]:
        """Factor of the tokens in each version."""
        return [k / self.steps for k in range(1, self.steps)]


@dataclass(frozen=True)
class IntegratedCdamNormed(AveragedCdam):
    """Integrated CDAM with a noisy path at the normalised tokens, the later published form.

    The path is cut into `steps` equal parts; both of its ends are used.
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
    cost: ClassVar[str] = "about two forward passes for all targets, with fifty steps"
    place: ClassVar[Place] = "normed tokens"

    @property
    def scales(self) -> Sequence[float]:
        """Factor of the tokens in each version."""
        return [k / self.steps for k in range(self.steps + 1)]
