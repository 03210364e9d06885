"""How good a model's predictions are: malignancy, the diameter alone, and biomarkers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression

from cdam_med.evaluation.intervals import BootstrapInterval, interval_of_weights, mean_intervals
from data_prep.errors import InputError


@dataclass(frozen=True)
class Classification:
    """How well logits tell malignant from benign nodules.

    Accuracy, sensitivity and specificity are at the threshold of even odds.
    """

    auc: BootstrapInterval
    accuracy: BootstrapInterval
    sensitivity: BootstrapInterval
    specificity: BootstrapInterval


def classification(
    logits: Float[np.ndarray, "nodule"],
    malignant: Bool[np.ndarray, "nodule"],
    patient_ids: Sequence[str],
    *,
    seed: int = 0,
) -> Classification:
    """Hold logits, positive for malignant, against the readers' classes.

    Patients, not nodules, are drawn with replacement, since nodules of a patient are alike.

    Raises
    ------
    InputError
        If a class is missing or a logit isn't finite.
    """
    if len(patient_ids) != len(logits):
        raise ValueError(f"{len(patient_ids)} patient ids for {len(logits)} nodules")
    if not malignant.any() or malignant.all():
        raise InputError("All nodules to test on are of one class; add nodules of the other.")
    if not np.isfinite(logits).all():
        raise InputError(
            "There are malignancy logits that aren't finite: the training diverged; lower its "
            "learning rate."
        )
    right = ((logits > 0) == malignant).astype(np.float64)
    of_class = (np.where(kind, right, np.nan) for kind in (malignant, ~malignant))
    rates = mean_intervals(np.stack([right, *of_class], axis=1), patient_ids, seed=seed)
    auc = interval_of_weights(partial(_auc, logits, malignant), patient_ids, seed=seed)
    return Classification(auc, *rates)


def _auc(
    logits: Float[np.ndarray, "nodule"],
    malignant: Bool[np.ndarray, "nodule"],
    weights: Float[np.ndarray, "draw nodule"],
) -> Float[np.ndarray, "draw"]:
    """Return the share of pairs in the right order, ties counting half (Mann-Whitney).

    Each nodule counts by its weight; NaN where those of a class are all 0. For all draws at once:
    scikit-learn's would take a call for each.
    """
    order = np.argsort(logits, kind="stable")
    first = np.flatnonzero(np.diff(logits[order], prepend=-np.inf))  # of those that tie
    of_malignant, of_benign = (
        np.add.reduceat(weights[:, order] * kind[order], first, axis=1)
        for kind in (malignant, ~malignant)
    )
    below = of_benign.cumsum(1) - of_benign / 2
    pairs = of_malignant.sum(1) * of_benign.sum(1)
    found = np.full(len(pairs), np.nan)
    np.divide((of_malignant * below).sum(1), pairs, out=found, where=pairs > 0)
    return found


def diameter_logits(
    train_diameter_mm: Float[np.ndarray, "train"],
    train_malignant: Bool[np.ndarray, "train"],
    test_diameter_mm: Float[np.ndarray, "test"],
) -> Float[np.ndarray, "test"]:
    """Return the baseline that every model is shown beside: logistic regression on diameter.

    Raises
    ------
    InputError
        If the nodules to train on are all of one class.
    """
    if not train_malignant.any() or train_malignant.all():
        raise InputError(
            "All nodules to train on are of one class; add benign and malignant nodules of more "
            "patients."
        )
    regression = LogisticRegression().fit(train_diameter_mm[:, None], train_malignant)
    logits: np.ndarray = regression.decision_function(test_diameter_mm[:, None])
    return logits


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
    """Hold predictions of one biomarker against the readers' mean, in the same unit."""
    error = predicted - rated
    pearson = squared = np.nan
    if np.ptp(rated) > 0:
        squared = float((error**2).mean() / rated.var())
        if np.ptp(predicted) > 0:
            pearson = float(np.corrcoef(predicted, rated)[0, 1])
    return Regression(float(np.abs(error).mean()), pearson, squared)
