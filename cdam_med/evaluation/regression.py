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
        Correlation; NaN where the predictions or the ratings don't vary.
    relative_squared_error
        Mean squared error as a share of that of the mean (1 = no better than the mean); NaN where
        the ratings don't vary.
    """

    mean_absolute_error: float
    pearson: float
    relative_squared_error: float


def regression(
    predicted: Float[np.ndarray, "nodule"], rated: Float[np.ndarray, "nodule"]
) -> Regression:
    """Judge predictions of one biomarker.

    Parameters
    ----------
    predicted
        The model's, in the biomarker's unit.
    rated
        The readers' mean, in the same unit.
    """
    error = predicted - rated
    rated_varies, predicted_varies = np.ptp(rated) > 0, np.ptp(predicted) > 0
    return Regression(
        mean_absolute_error=float(np.abs(error).mean()),
        pearson=(
            float(np.corrcoef(predicted, rated)[0, 1])
            if rated_varies and predicted_varies
            else np.nan
        ),
        relative_squared_error=(float((error**2).mean() / rated.var()) if rated_varies else np.nan),
    )
