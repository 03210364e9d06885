"""Targets that are made of a model's outputs: differences, sums, and any function of them.

CDAM is linear in the output it explains, so the map of "malignant minus benign" is the difference
of two maps. Rather than adding maps, the combination becomes one more output of the model: then
every estimator explains it, also those that are not linear in the output.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, SupportsIndex, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from cdam_med.errors import TargetError
from cdam_med.models.class_token import ClassTokenModel, ReadoutFunction


@runtime_checkable
class DerivedTarget(Protocol):
    """A target that is no output of the model, but is computed from what the model reads."""

    @property
    def label(self) -> str:
        """How maps of the target are named."""

    def bind(self, model: ClassTokenModel) -> ReadoutFunction:
        """Return what computes the target in this model, or refuse the model by name.

        Parameters
        ----------
        model : ClassTokenModel
            The model to explain.
        """


Target: TypeAlias = str | int | DerivedTarget
"""A name or column of an output, or something derived from outputs or from the class token."""

Targets: TypeAlias = Target | SupportsIndex | Sequence[Target | SupportsIndex] | None
"""What is asked for, columns also as numpy or torch has them; ``None`` for every output."""


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
        if not all(math.isfinite(weight) for weight in self.weights.values()):
            raise TargetError(
                f"The combination {self.label!r} has weights {list(self.weights.values())}: give "
                "finite ones."
            )
        weights: dict[str | int, float] = {}  # not the caller's to change
        for key, weight in self.weights.items():
            output = _name_or_column(key)
            weights[output] = weights.get(output, 0.0) + weight
        object.__setattr__(self, "weights", weights)

    def bind(self, model: ClassTokenModel) -> ReadoutFunction:
        """Return the sum as a function of the outputs.

        Parameters
        ----------
        model : ClassTokenModel
            The model to explain.

        Raises
        ------
        TargetError
            If the model lacks one of the outputs, or the weights of each add up to zero.
        """
        columns = list(model.target_columns(tuple(map(_name_or_column, self.weights))))
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
    one, other = _name_or_column(one), _name_or_column(other)
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
    output = _name_or_column(output)
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
        """Return the function, its result checked each time.

        Parameters
        ----------
        model : ClassTokenModel
            The model to explain.

        Raises
        ------
        TargetError
            When called, if the result isn't one number an image, or has no gradient where one is
            wanted.
        """

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
                    "choose an estimator that takes no gradients, such as token_ablation."
                )
            return values

        return checked


def derive(
    model: ClassTokenModel, targets: Targets
) -> tuple[ClassTokenModel, tuple[int, ...], tuple[str | int, ...]]:
    """Return a model that has every target as an output, their columns and their labels.

    Parameters
    ----------
    model : ClassTokenModel
        The model to explain.
    targets : target, sequence of targets, or None
        Names, columns and derived targets in any order; ``None`` for every output.

    Returns
    -------
    ClassTokenModel
        The model itself where no target is derived.
    tuple of int
        Column of each target in the outputs of that model.
    tuple of str or int
        Label of each target: its name, or its column where the model has no names.

    Raises
    ------
    TargetError
        If the model has no such target.
    """
    asked = None if targets is None else _each(targets)
    derived = [t for t in asked or () if isinstance(t, DerivedTarget)]
    if asked is None or not derived:
        columns = model.target_columns(None if asked is None else _plain(asked))
        return model, columns, tuple(_label(model, column) for column in columns)
    plain = _plain(asked)
    own = iter(model.target_columns(plain) if plain else ())
    added = iter(range(first := model.output_count, first + len(derived)))
    columns = tuple(next(added if isinstance(t, DerivedTarget) else own) for t in asked)
    labels = tuple(
        t.label if isinstance(t, DerivedTarget) else _label(model, column)
        for t, column in zip(asked, columns, strict=True)
    )
    return model.with_outputs([t.bind(model) for t in derived]), columns, labels


def _each(
    targets: Target | SupportsIndex | Sequence[Target | SupportsIndex],
) -> tuple[Target, ...]:
    """Return targets one by one; whole numbers of numpy and torch, as of an argmax, are columns."""
    single = isinstance(targets, str | int | DerivedTarget) or getattr(targets, "ndim", None) == 0
    several = not single and isinstance(targets, Iterable)
    return tuple(
        target if isinstance(target, DerivedTarget) else _name_or_column(target)
        for target in (targets if several else (targets,))  # type: ignore[union-attr]
    )


def _name_or_column(target: object) -> str | int:
    """Return a name as it is, and a column as Python's own whole number."""
    if isinstance(target, str):
        return target
    try:
        return operator.index(target)  # type: ignore[arg-type]
    except TypeError as error:
        remedy = "name an output, or pass None for all"
        if callable(target):
            remedy = "give a function of the outputs as OutputFunction(function, 'its name')"
        raise TargetError(
            f"A target is a name, a column, a combination or a concept, not {target!r}: {remedy}."
        ) from error


def _plain(asked: Sequence[Target]) -> tuple[str | int, ...]:
    return tuple(t for t in asked if not isinstance(t, DerivedTarget))


def _label(model: ClassTokenModel, column: int) -> str | int:
    return model.target_names[column] if model.target_names else column
