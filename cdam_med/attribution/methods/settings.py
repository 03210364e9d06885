"""Checks of what estimators are set to."""

import math
import operator
from numbers import Real

from cdam_med.errors import MethodError


def check_count(estimator: str, setting: str, value: object, *, at_least: int = 1) -> None:
    """Refuse a number of samples, steps or the like that is too small or isn't whole.

    Parameters
    ----------
    estimator, setting : str
        What is named in the message.
    value : int
        The number.
    at_least : int
        The smallest that makes sense.

    Raises
    ------
    MethodError
        If it is smaller, or no whole number.
    """
    try:
        is_enough = operator.index(value) >= at_least  # type: ignore[arg-type]
    except TypeError:
        raise MethodError(
            f"{setting} of {estimator} must be a whole number, not {value!r}: give an integer, "
            f"at least {at_least}."
        ) from None
    if not is_enough:
        raise MethodError(
            f"{setting} of {estimator} must be at least {at_least}, not {value}: give a larger "
            "number."
        )


def check_noise(estimator: str, noise: object, *, usual: float) -> None:
    """Refuse noise that is negative, infinite or no number.

    Parameters
    ----------
    estimator : str
        What is named in the message.
    noise : float
        Standard deviation, as a share of a range.
    usual : float
        A value to try instead.

    Raises
    ------
    MethodError
        If it has no meaning.
    """
    if not (isinstance(noise, Real) and 0 <= float(noise) < math.inf):
        raise MethodError(
            f"noise of {estimator} must be 0 or more and finite, not {noise!r}: it is a share of a "
            f"range, such as {usual}."
        )
