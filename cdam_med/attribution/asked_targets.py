"""What may be asked for as a target: the one grammar, wherever targets are taken.

A target is a name or a column of an output, or what `cdam_med.attribution.combinations` makes of
outputs. Several are a list, a tuple, or an array with one axis. Nothing else is guessed at: a mask
of booleans would be read as columns 0 and 1, the letters of `bytes` as columns, a dict without its
weights, and a set in any order.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence

from cdam_med.errors import TargetError

_FORMS = "a name, a column, a combination or a concept"
_NOT_SEVERAL = (str, bytes, bytearray, memoryview)
"""What Python can go through one by one, though nobody means its letters or bytes."""


def each_target(targets: object) -> tuple[object, ...]:
    """Return what is asked for one by one, each as it was given.

    Parameters
    ----------
    targets : object
        One target, or a list, tuple or array with one axis of them.

    Raises
    ------
    TargetError
        If it is a collection of another kind, or holds nothing.
    """
    axes = getattr(targets, "ndim", None)
    if isinstance(targets, _NOT_SEVERAL) or axes == 0 or not isinstance(targets, Iterable):
        return (targets,)
    if axes == 1 or isinstance(targets, Sequence):
        found = tuple(targets)
        if not found:
            raise TargetError("No target is asked for: name one, or pass None for all.")
        return found
    what, remedy = f"a {type(targets).__name__}", "give a list, whose order maps can have"
    if isinstance(targets, Mapping):
        remedy = "give a sum of outputs with weights as Combination(weights, 'its name')"
    elif axes is not None:
        what = f"an array with {axes} axes"
        remedy = "give one axis, or PerImage([...]) for a target of its own for each image"
    raise TargetError(f"Targets are {_FORMS}, or a list of them, not {what}: {remedy}.")


def name_or_column(target: object) -> str | int:
    """Return a name as it is, and a column, also numpy's or torch's, as Python's whole number.

    Parameters
    ----------
    target : object
        One target.

    Raises
    ------
    TargetError
        If it is neither.
    """
    if isinstance(target, str):
        return target
    if isinstance(target, bool) or str(getattr(target, "dtype", "")).endswith("bool"):
        raise TargetError(
            f"A target is {_FORMS}, not {target!r}: give a mask's columns, such as "
            "[column for column, wanted in enumerate(mask) if wanted]."
        )
    try:
        if getattr(target, "ndim", 0) == 0:
            return operator.index(target)  # type: ignore[arg-type]
    except TypeError:
        pass
    remedy = "name an output, or pass None for all"
    if callable(target):
        remedy = "give a function of the outputs as OutputFunction(function, 'its name')"
    raise TargetError(f"A target is {_FORMS}, not {target!r}: {remedy}.")
