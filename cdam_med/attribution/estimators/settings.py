"""Checks of what estimators are set to."""

import math

from cdam_med.errors import MethodError


def check_count(estimator: str, setting: str, value: int, *, at_least: int = 1) -> None:
    """Refuse too small a number of samples, steps or the like.

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
        If it is smaller.
    """
    if value < at_least:
        raise MethodError(
            f"{setting} of {estimator} must be at least {at_least}, not {value}: give a larger "
            "number."
        )


def check_noise(estimator: str, noise: float, *, usual: float) -> None:
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
    if not 0 <= noise < math.inf:
        raise MethodError(
            f"noise of {estimator} must be 0 or more and finite, not {noise}: it is a share of a "
            f"range, such as {usual}."
        )
