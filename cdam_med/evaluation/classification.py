"""Malignant or benign: AUC and accuracy with bootstrap intervals over patients."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression

from cdam_med.evaluation.intervals import BootstrapInterval, interval_of_weights, mean_intervals
from cdam_med.evaluation.metrics.division import divided
from data_prep.errors import InputError


@dataclass(frozen=True)
class Classification:
    """How well logits tell malignant from benign nodules.

    Parameters
    ----------
    auc
        Area under the receiver operating characteristic.
    accuracy, sensitivity, specificity
        At the threshold of even odds.
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
    """Judge logits against the readers' classes.

    Patients, not nodules, are drawn with replacement, since nodules of a patient are alike.

    Parameters
    ----------
    logits
        Positive for malignant.
    malignant
        The class by the readers' median.
    patient_ids
        Patient of each nodule.
    seed
        Of the bootstrap.

    Raises
    ------
    InputError
        If a class is missing or a logit isn't finite.
    """
    if len(patient_ids) != len(logits):
        raise ValueError(f"{len(patient_ids)} patient ids for {len(logits)} nodules")
    if not malignant.any() or malignant.all():
        raise InputError(
            "All nodules to be judged are of one class; add benign and malignant nodules."
        )
    if not np.isfinite(logits).all():
        raise InputError(
            "There are malignancy logits that aren't finite: the training diverged; lower its "
            "learning rate."
        )
    right = ((logits > 0) == malignant).astype(np.float64)
    accuracy, sensitivity, specificity = mean_intervals(
        np.stack([right, *(np.where(kind, right, np.nan) for kind in (malignant, ~malignant))], 1),
        patient_ids,
        seed=seed,
    )
    auc = interval_of_weights(partial(_auc, logits, malignant), patient_ids, seed=seed)
    return Classification(auc, accuracy, sensitivity, specificity)


def _auc(
    logits: Float[np.ndarray, "nodule"],
    malignant: Bool[np.ndarray, "nodule"],
    weights: Float[np.ndarray, "draw nodule"],
) -> Float[np.ndarray, "draw"]:
    """Return the share of pairs in the right order, ties counting half (Mann-Whitney).

    Each nodule counts by its weight; NaN where those of a class are all 0.
    """
    order = np.argsort(logits, kind="stable")
    first = np.flatnonzero(np.diff(logits[order], prepend=-np.inf))  # of those that tie
    of_malignant, of_benign = (
        np.add.reduceat(weights[:, order] * kind[order], first, axis=1)
        for kind in (malignant, ~malignant)
    )
    below = of_benign.cumsum(1) - of_benign / 2
    pairs = of_malignant.sum(1) * of_benign.sum(1)
    return divided((of_malignant * below).sum(1), pairs, where=pairs > 0)


def diameter_logits(
    train_diameter_mm: Float[np.ndarray, "train"],
    train_malignant: Bool[np.ndarray, "train"],
    test_diameter_mm: Float[np.ndarray, "test"],
) -> Float[np.ndarray, "test"]:
    """Return the baseline that every model is shown beside: logistic regression on diameter.

    Parameters
    ----------
    train_diameter_mm, train_malignant
        Diameters in millimetres and classes to fit.
    test_diameter_mm
        Diameters to judge.

    Raises
    ------
    InputError
        If the nodules to fit are all of one class.
    """
    if not train_malignant.any() or train_malignant.all():
        raise InputError(
            "All nodules to train on are of one class; add benign and malignant nodules of more "
            "patients."
        )
    regression = LogisticRegression().fit(train_diameter_mm[:, None], train_malignant)
    logits: np.ndarray = regression.decision_function(test_diameter_mm[:, None])
    return logits
