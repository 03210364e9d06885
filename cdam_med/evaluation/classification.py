"""Malignant or benign: AUC and accuracy with bootstrap intervals over patients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from cdam_med.evaluation.intervals import CONFIDENCE, DRAWS
from data_prep.errors import InputError


@dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap percentile interval.

    Parameters
    ----------
    value
        On the nodules as they are.
    low, high
        Ends of the interval that holds `CONFIDENCE` of the draws.
    """

    value: float
    low: float
    high: float


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

    auc: Interval
    accuracy: Interval
    sensitivity: Interval
    specificity: Interval


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
    samples = _patient_samples(patient_ids, seed)
    called = logits > 0

    def interval(figure: Callable[[Int64[np.ndarray, "drawn"]], float]) -> Interval:
        low, high = np.nanquantile(
            [figure(drawn) for drawn in samples], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
        )
        return Interval(figure(np.arange(len(logits))), float(low), float(high))

    return Classification(
        auc=interval(lambda drawn: _auc(logits[drawn], malignant[drawn])),
        accuracy=interval(lambda drawn: float(np.mean(called[drawn] == malignant[drawn]))),
        sensitivity=interval(lambda drawn: _share(called[drawn][malignant[drawn]])),
        specificity=interval(lambda drawn: _share(~called[drawn][~malignant[drawn]])),
    )


def _auc(logits: Float[np.ndarray, "nodule"], malignant: Bool[np.ndarray, "nodule"]) -> float:
    """Return the share of pairs in the right order, ties counting half (Mann-Whitney)."""
    n_malignant, n_benign = int(malignant.sum()), int((~malignant).sum())
    if n_malignant == 0 or n_benign == 0:
        return float("nan")  # a sample of one class has no AUC
    right_pairs = rankdata(logits)[malignant].sum() - n_malignant * (n_malignant + 1) / 2
    return float(right_pairs / (n_malignant * n_benign))


def _share(right: Bool[np.ndarray, "nodule"]) -> float:
    return float(right.mean()) if len(right) else float("nan")


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


def _patient_samples(patient_ids: Sequence[str], seed: int) -> list[Int64[np.ndarray, "drawn"]]:
    """Return, per bootstrap sample, the nodules of as many patients drawn with replacement."""
    patients, patient_of = np.unique(np.asarray(patient_ids), return_inverse=True)
    nodules_of = [np.flatnonzero(patient_of == patient) for patient in range(len(patients))]
    random = np.random.default_rng(seed)
    return [
        np.concatenate([nodules_of[p] for p in random.integers(len(patients), size=len(patients))])
        for _ in range(DRAWS)
    ]
