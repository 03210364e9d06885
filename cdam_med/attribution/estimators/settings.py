"""Checks of what estimators are set to."""

from cdam_med.errors import MethodError


def check_count(estimator: str, setting: str, value: int) -> None:
    """Refuse a number of samples, steps or the like that is below one.

    Parameters
    ----------
    estimator, setting : str
        What is named in the message.
    value : int
        The number.

    Raises
    ------
    MethodError
        If it is below one.
    """
    if value < 1:
        raise MethodError(
            f"{setting} of {estimator} must be at least 1, not {value}: give a positive number."
        )
