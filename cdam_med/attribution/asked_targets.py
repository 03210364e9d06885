"""What may be asked for as a target: the one grammar, wherever targets are taken.

A target is a name or a column of an output, or what `cdam_med.attribution.combinations` makes of
outputs. Several are a list, a tuple, or an array with one axis. Nothing else is guessed at: a mask
of booleans would be read as columns 0 and 1, a dict without its weights, a set in any order.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from cdam_med.errors import TargetError

_FORMS = "a name, a column, a combination or a concept"


def each_target(targets: Any) -> tuple[object, ...]:
    """Return what is asked for one by one: one target, or a list, tuple or array of them."""
    axes = getattr(targets, "ndim", None)
    is_list = isinstance(targets, Sequence) and not isinstance(targets, str | bytes)
    if axes == 1 or is_list:
        if len(targets) == 0:
            raise TargetError("No target is asked for: name one, or pass None for all.")
        return tuple(targets)
    if axes == 0 or isinstance(targets, str) or not isinstance(targets, Iterable):
        return (targets,)
    raise TargetError(
        f"Targets are {_FORMS}, or a list of them, not a {type(targets).__name__}: give a list, a "
        "sum of outputs as Combination(weights, 'its name'), or a target of its own for each image "
        "as PerImage([...])."
    )


def name_or_column(target: Any) -> str | int:
    """Return a name as it is, and a column, also numpy's or torch's, as Python's whole number."""
    if isinstance(target, str):
        return target
    is_flag = isinstance(target, bool) or str(getattr(target, "dtype", "")).endswith("bool")
    try:
        if not is_flag and getattr(target, "ndim", 0) == 0:
            return operator.index(target)
    except TypeError:
        pass
    raise TargetError(
        f"A target is {_FORMS}, not {target!r}: give the columns of a mask as numbers, and a "
        "function of the outputs as OutputFunction(function, 'its name')."
    )
