"""Biomarkers in their own units: mean absolute error, correlation, share of variance left."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Regression:
    """How close predictions of one biomarker are to the readers' mean.

    Parameters
    ----------
    mean_absolute_error
        In the biomarker's unit.
    pearson
        Correlation.
    relative_squared_error
        Mean squared error as a share of that of the mean (1 = no better than the mean).
    """

    mean_absolute_error: float
    pearson: float
    relative_squared_error: float


def regression(
    predicted: Float[np.ndarray, "nodule"], rated: Float[np.ndarray, "nodule"]
) -> Regression:
    """Judge predictions of one biomarker."""
    error = predicted - rated
    return Regression(
        mean_absolute_error=float(np.abs(error).mean()),
        pearson=float(np.corrcoef(predicted, rated)[0, 1]),
        relative_squared_error=float((error**2).mean() / rated.var()),
    )
