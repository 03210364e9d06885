"""Checks of what methods are set to."""

import math
import operator
from numbers import Real

from cdam_med.errors import MethodError


def check_count(method: str, setting: str, value: object, *, at_least: int = 1) -> None:
    """Refuse a number of samples, steps or the like that is too small or isn't whole."""
    try:
        is_enough = operator.index(value) >= at_least  # type: ignore[arg-type]
    except TypeError:
        is_enough = False
    if not is_enough:
        raise MethodError(
            f"{setting} of {method} must be at least {at_least}, and whole, not {value!r}."
        )


def check_noise(method: str, noise: object) -> None:
    """Refuse noise that is negative, infinite or no number; it is a share of a range."""
    if not (isinstance(noise, Real) and 0 <= float(noise) < math.inf):
        raise MethodError(
            f"noise of {method} must be 0 or more and finite, not {noise!r}: it is a share of a "
            "range, such as 0.05."
        )
