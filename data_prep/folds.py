"""Folds that keep all nodules of a patient together."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, Num
from sklearn.model_selection import StratifiedGroupKFold

from data_prep.errors import InputError


def patient_folds(
    strata: Num[np.ndarray, "nodule"],
    patient_ids: Sequence[str],
    *,
    n_folds: int = 5,
    seed: int = 0,
) -> list[tuple[Int64[np.ndarray, "train"], Int64[np.ndarray, "test"]]]:
    """Split nodules into folds; no patient is in more than one test fold.

    Parameters
    ----------
    strata
        Class of each nodule, at least one; the folds hold about equal shares of each.
    patient_ids
        Patient of each nodule.
    n_folds, seed
        Number of folds, and the seed of the shuffle.

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
    most = min(n_patients, int(np.unique(strata, return_counts=True)[1].max()))
    if not 2 <= n_folds <= most:
        raise InputError(
            f"{n_folds} folds can't be made of {len(patient_ids)} nodules of {n_patients} "
            f"patients; give 2 to {most} folds, or more patients."
        )
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    return list(splitter.split(strata, strata, patient_ids))
