"""Targets that are made of a model's outputs: differences, sums, and any function of them.

CDAM is linear in the output it explains, so the map of "malignant minus benign" is the difference
of two maps. Rather than adding maps, the combination becomes one more output of the model: then
every method explains it, also those that are not linear in the output.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, SupportsIndex, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cdam_med.attribution.asked_targets import each_target, name_or_column
from cdam_med.attribution.class_token import ClassTokenModel, ReadoutFunction
from cdam_med.errors import TargetError


@runtime_checkable
class DerivedTarget(Protocol):
    """A target that is no output of the model, but is computed from what the model reads."""

    @property
    def label(self) -> str:
        """How maps of the target are named."""

    def bind(self, model: ClassTokenModel) -> ReadoutFunction:
        """Return what computes the target in this model, or refuse the model by name."""


Target: TypeAlias = str | int | DerivedTarget
"""A name or column of an output, or something derived from outputs or from the class token."""


@dataclass(frozen=True, eq=False)
class PerImage:
    """A target of its own for each image of a batch, where a list is several targets for all.

    It is one target among others: its map of each image is that of the image's own target. What
    it costs is what as many targets cost as there are different ones in the batch.

    Parameters
    ----------
    targets : sequence of target
        The target of each image: names, columns (also as an array), combinations, concepts.
    label : str
        How maps of it are named.

    Raises
    ------
    TargetError
        If one of them is no target.
    """

    targets: Sequence[Target | SupportsIndex] | np.ndarray | Tensor
    label: str = "each image's own"

    def __post_init__(self) -> None:
        """Refuse what is no target."""
        object.__setattr__(self, "targets", tuple(map(_target, each_target(self.targets))))

    def of(self, images: int) -> tuple[Target, ...]:
        """Return the target of each image; refuse another number of images."""
        if len(self.targets) != images:
            raise TargetError(
                f"PerImage holds {len(self.targets)} target(s) for {images} image(s): give one "
                "for each, in the order of the batch."
            )
        return tuple(self.targets)


Targets: TypeAlias = (
    Target | SupportsIndex | PerImage | Sequence[Target | SupportsIndex | PerImage] | None
)
"""What is asked for, columns also as numpy or torch has them; ``None`` for every output."""

Own: TypeAlias = Int[Tensor, "image target"]
"""Which of the wanted columns is each image's for each target."""


@dataclass(frozen=True, eq=False)
class Combination:
    """A weighted sum of outputs.

    Parameters
    ----------
    weights : mapping of str or int to float
        Weight of each output, by name or column, also as numpy or torch has columns.
    label : str
        How maps of it are named.

    Raises
    ------
    TargetError
        If there is no output in it, or what is neither name nor column, or a weight isn't finite.
    """

    weights: Mapping[str | SupportsIndex, float]
    label: str

    def __post_init__(self) -> None:
        """Refuse a sum of nothing, or of what would make every score NaN."""
        if not self.weights:
            raise TargetError(
                f"The combination {self.label!r} has no outputs: give at least one with its weight."
            )
        if not all(map(_is_finite, self.weights.values())):
            raise TargetError(
                f"The combination {self.label!r} has weights {list(self.weights.values())}: give "
                "finite numbers."
            )
        weights: dict[str | int, float] = {}  # not the caller's to change
        for key, weight in self.weights.items():
            output = name_or_column(key)
            weights[output] = weights.get(output, 0.0) + weight
        object.__setattr__(self, "weights", weights)

    def bind(self, model: ClassTokenModel) -> ReadoutFunction:
        """Return the sum as a function of the outputs; refuse a sum that is zero everywhere."""
        columns = list(model.target_columns(tuple(map(name_or_column, self.weights))))
        weights = tuple(self.weights.values())
        totals = dict.fromkeys(columns, 0.0)
        for column, weight in zip(columns, weights, strict=True):
            totals[column] += weight
        if not any(totals.values()):
            raise TargetError(
                f"The combination {self.label!r} is zero everywhere: name different outputs, or "
                "give weights other than zero."
            )

        def combined(
            _: Float[Tensor, "batch feature"], outputs: Float[Tensor, "batch output"]
        ) -> Float[Tensor, " batch"]:
            return outputs[:, columns] @ outputs.new_tensor(weights)

        return combined


def difference(
    one: str | SupportsIndex, other: str | SupportsIndex, *, label: str | None = None
) -> Combination:
    """Return the target ``one - other``: what speaks for the first and against the second.

    Parameters
    ----------
    one, other : str or int
        Names or columns of two outputs.
    label : str, optional
        How maps of it are named; ``"one - other"`` unless given.

    Raises
    ------
    TargetError
        If the two are the same.
    """
    one, other = name_or_column(one), name_or_column(other)
    if one == other:
        raise TargetError(f"{one!r} minus itself is zero everywhere: name two different outputs.")
    return Combination({one: 1.0, other: -1.0}, f"{one} - {other}" if label is None else label)


def opposite(output: str | SupportsIndex, *, label: str | None = None) -> Combination:
    """Return the target ``-output``: benign, where a model has one output for malignant.

    Parameters
    ----------
    output : str or int
        Name or column of an output.
    label : str, optional
        How maps of it are named; ``"-output"`` unless given.
    """
    output = name_or_column(output)
    return Combination({output: -1.0}, f"-{output}" if label is None else label)


@dataclass(frozen=True)
class OutputFunction:
    """Any differentiable function of the outputs.

    Parameters
    ----------
    function : callable
        Outputs ``(batch, output)`` -> ``(batch,)``. Each image must be treated alone.
    label : str
        How maps of it are named.
    """

    function: Callable[[Tensor], Tensor]
    label: str

    def bind(self, model: ClassTokenModel) -> ReadoutFunction:
        """Return the function; it refuses results without a gradient, or not one an image."""

        def checked(
            _: Float[Tensor, "batch feature"], outputs: Float[Tensor, "batch output"]
        ) -> Float[Tensor, " batch"]:
            values = self.function(outputs)
            if not isinstance(values, Tensor) or values.shape != outputs.shape[:1]:
                found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise TargetError(
                    f"The function of the target {self.label!r} must turn outputs (batch, output) "
                    f"into a tensor (batch,), not {found}: reduce over the last axis."
                )
            if outputs.requires_grad and not values.requires_grad:
                raise TargetError(
                    f"The function of the target {self.label!r} can't be differentiated, so that "
                    "each map would be zero: leave out detach, argmax, comparisons and numpy, or "
                    "choose a method that takes no gradients, such as token_ablation."
                )
            return values

        return checked


def derive(
    model: ClassTokenModel, targets: Targets, images: int
) -> tuple[ClassTokenModel, tuple[int, ...], tuple[str | int, ...], Own | None]:
    """Return a model that has every target as an output, the columns wanted, and their labels.

    Last comes which of the columns is whose, ``(image, target)``, or None where no image has a
    target of its own. ``None`` as targets are all outputs; a label is the name of an output, or
    its column where the model has no names.
    """
    if targets is None:
        columns = model.target_columns(None)
        return model, columns, tuple(_label(model, column) for column in columns), None
    asked = [t if isinstance(t, PerImage) else _target(t) for t in each_target(targets)]
    for_all = [target for target in asked if not isinstance(target, PerImage)]
    if len(for_all) == len(asked):
        return *_derived(model, for_all), None
    of_each = [t.of(images) if isinstance(t, PerImage) else (t,) * images for t in asked]
    distinct = tuple(dict.fromkeys(target for row in of_each for target in row))
    model, columns, labels = _derived(model, distinct)
    place = {target: index for index, target in enumerate(distinct)}
    own = torch.tensor([[place[target] for target in row] for row in of_each]).T
    names = tuple(t.label if isinstance(t, PerImage) else labels[place[t]] for t in asked)
    return model, columns, names, own


def _derived(
    model: ClassTokenModel, asked: Sequence[Target]
) -> tuple[ClassTokenModel, tuple[int, ...], tuple[str | int, ...]]:
    derived = [t for t in asked if isinstance(t, DerivedTarget)]
    plain = [t for t in asked if not isinstance(t, DerivedTarget)]
    own = iter(model.target_columns(plain) if plain else ())
    added = iter(range(model.output_count, model.output_count + len(derived)))
    columns = tuple(next(added if isinstance(t, DerivedTarget) else own) for t in asked)
    labels = tuple(
        t.label if isinstance(t, DerivedTarget) else _label(model, column)
        for t, column in zip(asked, columns, strict=True)
    )
    if derived:
        model = model.with_outputs([t.bind(model) for t in derived])
    return model, columns, labels


def _is_finite(weight: object) -> bool:
    try:
        return math.isfinite(weight)  # type: ignore[arg-type]
    except TypeError:  # not a number
        return False


def _target(target: object) -> Target:
    return target if isinstance(target, DerivedTarget) else name_or_column(target)


def _label(model: ClassTokenModel, column: int) -> str | int:
    return model.target_names[column] if model.target_names else column
