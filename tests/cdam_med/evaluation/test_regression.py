"""Biomarkers in their units, against scipy and by hand."""

import math

import numpy as np
import pytest
from scipy.stats import pearsonr

from cdam_med.evaluation.predictions import regression


def test_figures_by_hand() -> None:
    result = regression(np.array([1.0, 3.0, 2.0, 6.0]), np.array([2.0, 3.0, 4.0, 5.0]))
    assert result.mean_absolute_error == pytest.approx((1 + 0 + 2 + 1) / 4)
    assert result.relative_squared_error == pytest.approx((1 + 0 + 4 + 1) / 4 / 1.25)


def test_correlation_is_that_of_scipy() -> None:
    predicted, rated = np.random.default_rng(0).normal(size=(2, 40))
    assert regression(predicted, rated).pearson == pytest.approx(pearsonr(predicted, rated)[0])


def test_the_mean_alone_leaves_all_of_the_variance() -> None:
    rated = np.random.default_rng(1).normal(4, 1, 50).astype(np.float32)
    result = regression(np.full_like(rated, rated.mean()), rated)
    assert result.relative_squared_error == pytest.approx(1, rel=1e-5)
    assert math.isnan(result.pearson)


def test_ratings_that_do_not_vary_have_no_correlation() -> None:
    result = regression(np.array([1.0, 2.0]), np.array([3.0, 3.0]))
    assert result.mean_absolute_error == pytest.approx(1.5)
    assert math.isnan(result.pearson)
    assert math.isnan(result.relative_squared_error)
