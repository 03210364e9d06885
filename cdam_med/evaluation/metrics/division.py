"""Division with NaN where there is nothing to divide by: figures that have no value."""

import numpy as np
from jaxtyping import Bool, Float, Shaped


def divided(
    above: Shaped[np.ndarray, " image"],
    below: Shaped[np.ndarray, " image"],
    *,
    where: Bool[np.ndarray, " image"],
) -> Float[np.ndarray, " image"]:
    """Return the quotients where they are asked for, and NaN elsewhere.

    Parameters
    ----------
    above, below : ndarray
        Numbers.
    where : ndarray
        Which images have a value.
    """
    quotients: np.ndarray = np.full(len(above), np.nan)
    np.divide(above, below, out=quotients, where=where)
    return quotients
