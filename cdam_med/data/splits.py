"""Folds that keep all nodules of a patient together."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, Num
from sklearn.model_selection import StratifiedGroupKFold


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
        Class of each nodule; the folds hold about equal shares of each.
    patient_ids
        Patient of each nodule.
    n_folds, seed
        Number of folds, and the seed of the shuffle.

    Returns
    -------
    list of (ndarray, ndarray)
        Indices for training and for testing, one pair a fold.
    """
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    return list(splitter.split(strata, strata, patient_ids))
