"""Correlations of rows, against loops and scipy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import slow_statistics
from scipy import stats

from cdam_med.evaluation.maps import pearson, spearman, unit_rows


@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-170, 1e-9, 1.0, 1e150]))
def test_both_are_those_of_loops_and_scipy(seed, scale):
    one, other = np.random.default_rng(seed).normal(size=(2, 4, 9)).round(1)  # with ties
    found = pearson(scale * one, other), spearman(scale * one, other)
    for row in range(4):
        a, b = one[row].tolist(), other[row].tolist()
        assert found[0][row] == pytest.approx(slow_statistics.pearson(a, b), abs=1e-12)
        ranked = slow_statistics.pearson(slow_statistics.ranks(a), slow_statistics.ranks(b))
        assert found[1][row] == pytest.approx(ranked, abs=1e-12)
        assert found[1][row] == pytest.approx(stats.spearmanr(a, b)[0], abs=1e-12)


def test_what_has_no_correlation_is_nan():
    varying = np.arange(4.0)
    rows = np.array([varying, [2.0, 2, 2, 2], [0.0, 0, 0, 0], [1, np.nan, 2, 3], [1, np.inf, 2, 3]])
    for correlation in (pearson, spearman):
        found = correlation(rows, np.tile(varying, (5, 1)))
        assert found[0] == pytest.approx(1)
        assert np.isnan(found[1:]).all()
        assert np.isnan(correlation(np.tile(varying, (5, 1)), rows)[1:]).all()


def test_rounding_is_no_variation():
    same = np.array([[0.1 + 0.2, 0.3, 0.3, 0.3]])
    assert np.ptp(same) > 0
    assert np.isnan(pearson(same, np.array([[1.0, 0, 0, 0]]))).all()


def test_unit_rows_have_mean_zero_and_length_one():
    rows = unit_rows(np.random.default_rng(0).normal(3, 2, (2, 5, 7)))
    np.testing.assert_allclose(rows.mean(-1), 0, atol=1e-15)
    np.testing.assert_allclose((rows**2).sum(-1), 1)


def test_never_beyond_one():
    rows = np.random.default_rng(0).normal(size=(200, 11))
    assert (pearson(rows, 3 * rows) <= 1).all()
    assert (pearson(rows, -3 * rows) >= -1).all()
