"""Folds that keep all nodules of a patient together, and the published ones that don't."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Int64, Num
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from data_prep.errors import InputError

Folds = list[tuple[Int64[np.ndarray, "train"], Int64[np.ndarray, "test"]]]


def patient_folds(
    strata: Num[np.ndarray, "nodule"],
    patient_ids: Sequence[str],
    *,
    n_folds: int = 5,
    seed: int = 0,
) -> Folds:
    """Split nodules into folds; no patient is in more than one test fold.

    The folds hold about equal shares of each stratum; one of fewer nodules than folds is missing
    in some of them. They depend on the order of the nodules.

    Returns
    -------
    list of (ndarray, ndarray)
        Indices for training and for testing, one pair a fold.

    Raises
    ------
    InputError
        If there are fewer than two folds, or more folds than patients or than nodules of the
        largest class.
    """
    n_patients = len(set(patient_ids))
    _check(strata, n_folds, n_patients, f"nodules of {n_patients} patients", "patients")
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with _small_classes():
        return list(splitter.split(strata, strata, patient_ids))


def ungrouped_folds(strata: Num[np.ndarray, "nodule"], *, n_folds: int = 5, seed: int = 0) -> Folds:
    """Split nodules into folds one by one, as the published experiments do.

    Nodules of a patient come to lie on both sides: a model is tested on patients it was trained
    on, and looks better than it is. Only for comparison with figures that were made that way.
    """
    _check(strata, n_folds, len(strata), "nodules", "nodules")
    splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    with _small_classes():
        return list(splitter.split(strata, strata))


def _check(strata: np.ndarray, n_folds: int, n_groups: int, of_what: str, more: str) -> None:
    most = min(n_groups, int(np.unique(strata, return_counts=True)[1].max()))
    if not 2 <= n_folds <= most:
        remedy = f"give 2 to {most} folds, or more {more}" if most > 1 else f"give more {more}"
        raise InputError(f"{n_folds} folds can't be made of {len(strata)} {of_what}; {remedy}.")


@contextmanager
def _small_classes() -> Iterator[None]:
    """Let a class of fewer nodules than folds pass: it is split as far as it goes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        yield
