"""Folds: no patient on both sides, every nodule tested once, classes spread."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.errors import InputError
from data_prep.folds import patient_folds, ungrouped_folds


@settings(max_examples=30, deadline=None)
@given(
    nodules_of_patients=st.lists(st.integers(1, 5), min_size=12, max_size=40),
    n_folds=st.integers(2, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_patients_stay_together_and_nodules_are_tested_once(
    nodules_of_patients: list[int], n_folds: int, seed: int
) -> None:
    patients = [
        f"p{patient}" for patient, count in enumerate(nodules_of_patients) for _ in range(count)
    ]
    patient_of = np.random.default_rng(seed).permutation(patients)
    strata = np.arange(len(patients)) % 2
    folds = patient_folds(strata, patient_of.tolist(), n_folds=n_folds, seed=seed)
    assert len(folds) == n_folds
    for train, test in folds:
        assert not set(patient_of[train]) & set(patient_of[test])
        np.testing.assert_array_equal(np.sort(np.r_[train, test]), np.arange(len(patients)))
    tested = np.concatenate([test for _, test in folds])
    np.testing.assert_array_equal(np.sort(tested), np.arange(len(patients)))


def test_each_fold_has_its_share_of_each_class() -> None:
    strata = np.repeat([-1.0, 0.0, 1.0], [100, 60, 40])
    patients = [f"p{index // 2}" for index in range(200)]
    for _, test in patient_folds(strata, patients, n_folds=5):
        for stratum, share in ((-1, 20), (0, 12), (1, 8)):
            assert abs(np.sum(strata[test] == stratum) - share) <= 2


def test_the_seed_shuffles() -> None:
    strata = np.arange(60) % 2
    patients = [f"p{index}" for index in range(60)]

    def tested(seed: int) -> list[list[int]]:
        return [test.tolist() for _, test in patient_folds(strata, patients, seed=seed)]

    assert tested(0) == tested(0)
    assert tested(0) != tested(1)


@pytest.mark.parametrize("n_folds", [-1, 0, 1, 4, 7])
def test_folds_that_cannot_be_made_are_refused(n_folds: int) -> None:
    strata = np.array([0, 0, 0, 1, 1, 1])
    patients = ["a", "a", "b", "b", "c", "c"]
    with pytest.raises(InputError, match=rf"^{n_folds} folds .* 3 patients; give 2 to 3"):
        patient_folds(strata, patients, n_folds=n_folds)


def test_folds_by_nodule_are_those_of_the_published_split() -> None:
    # the published class counts and fold sizes, StratifiedKFold(5, shuffle, random_state=44)
    strata = np.random.default_rng(0).permutation(np.repeat([0, 1], [443, 411]))
    folds = ungrouped_folds(strata, n_folds=5, seed=44)
    assert [len(test) for _, test in folds] == [171, 171, 171, 171, 170]
    train, test = folds[0]
    assert np.bincount(strata[train]).tolist() == [355, 328]
    assert np.bincount(strata[test]).tolist() == [88, 83]
    tested = np.concatenate([test for _, test in folds])
    np.testing.assert_array_equal(np.sort(tested), np.arange(len(strata)))


def test_a_class_of_fewer_nodules_than_folds_is_split_as_far_as_it_goes() -> None:
    strata = np.array([0] * 20 + [1] * 2)
    patients = [f"p{index}" for index in range(22)]
    for folds in (patient_folds(strata, patients), ungrouped_folds(strata)):
        assert sorted(np.sum(strata[test]) for _, test in folds) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("n_folds", [1, 4])
def test_folds_by_nodule_that_cannot_be_made_are_refused(n_folds: int) -> None:
    with pytest.raises(InputError, match=rf"^{n_folds} folds .* 5 nodules; give 2 to 3"):
        ungrouped_folds(np.array([0, 0, 0, 1, 1]), n_folds=n_folds)
