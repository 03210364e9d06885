"""What decimal digits round away: of numbers as a header writes them, and of direction cosines."""

from collections.abc import Iterable
from decimal import Context

import numpy as np
from jaxtyping import Float64

from data_prep.geometry import ORIENTATION_TOLERANCE

MAX_COSINE_ROUNDING = 5e-4
"""Of direction cosines written with three decimals; fewer can't place a slice."""

_MAX_ROUNDINGS = 3.5
"""So many roundings of components add up in the dot product of two unit vectors (2 sqrt 3)."""

_LENIENT = Context(traps=[])  # any text becomes a number, or NaN


def last_place(text: str) -> float:
    """Return the unit of the last digit that a decimal number is written with.

    The number is off by up to half of it, if it was rounded. What is no number counts as 1.

    Examples
    --------
    >>> last_place("-30.60"), last_place("7"), last_place("1.25e1")
    (0.01, 1.0, 0.1)
    """
    exponent = _LENIENT.create_decimal(text).as_tuple().exponent
    return float(10.0 ** max(-30, min(exponent, 30))) if isinstance(exponent, int) else 1.0


def cosine_rounding(numbers: Iterable[str], shortest: float = 1.0) -> float:
    """Return how far direction cosines may be off by the digits that they are written with.

    Parameters
    ----------
    numbers
        Components of the vectors as the file writes them.
    shortest
        Length of the shortest vector.
    """
    return min(map(last_place, numbers), default=1.0) / 2 / shortest


def largest_angle(rounding: float) -> float:
    """Return by how many radians rounded direction cosines may turn a vector, or a right angle.

    Parameters
    ----------
    rounding
        How far each cosine may be off; above `MAX_COSINE_ROUNDING` it counts as none, since then
        nothing is known.
    """
    return float(_MAX_ROUNDINGS * rounding) if rounding <= MAX_COSINE_ROUNDING else 0.0


def without_rounding(
    axes: Float64[np.ndarray, "3 n"], rounding: float
) -> Float64[np.ndarray, "3 n"]:
    """Return the orthonormal vectors nearest to rounded ones (polar decomposition).

    Parameters
    ----------
    axes
        Two or three unit vectors at right angles, one a column, as they were written.
    rounding
        How far each component may be off by its written digits.

    Returns
    -------
    ndarray
        What was given, where the rounding can't explain how far it is from orthonormal, or where
        that is less than `ORIENTATION_TOLERANCE`.

    Examples
    --------
    >>> axes = np.array([[0.985, -0.174], [0.174, 0.985], [0.0, 0.0]])
    >>> bool(abs(np.linalg.norm(axes[:, 0]) - 1) > ORIENTATION_TOLERANCE)
    True
    >>> np.linalg.norm(without_rounding(axes, 0.0005), axis=0)
    array([1., 1.])
    """
    if not np.isfinite(axes).all():
        return axes
    error = float(np.abs(axes.T @ axes - np.eye(axes.shape[1])).max())
    if error < ORIENTATION_TOLERANCE or error > largest_angle(rounding):
        return axes
    left, _, right = np.linalg.svd(axes, full_matrices=False)
    return np.asarray(left @ right, dtype=np.float64)
