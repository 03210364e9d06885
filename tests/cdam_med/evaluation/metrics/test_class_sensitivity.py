"""Class sensitivity: which targets, correlations of pairs, the full matrix with intervals."""

import numpy as np
import pytest
import torch
from oracles import patch_models, slow_statistics

from cdam_med.attribution.registry import estimator
from cdam_med.evaluation.intervals import mean_intervals
from cdam_med.evaluation.maps import agreement
from cdam_med.evaluation.metrics.class_sensitivity import (
    contrast_columns,
    correlations_of_targets,
)
from cdam_med.evaluation.results import with_intervals
from data_prep.errors import InputError


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_contrasts_by_hand():
    outputs = torch.tensor([[0.1, -3.0, 2.0, 1.0], [5.0, 5.0, 4.0, 4.0]])
    np.testing.assert_array_equal(contrast_columns(outputs, "top and bottom"), [[2, 1], [0, 3]])
    np.testing.assert_array_equal(contrast_columns(outputs, "top and second"), [[2, 3], [0, 1]])
    two = contrast_columns(outputs[:, :2], "top and second")
    np.testing.assert_array_equal(two, contrast_columns(outputs[:, :2], "top and bottom"))


def test_one_output_has_no_contrast():
    with pytest.raises(InputError, match="The model has one"):
        contrast_columns(torch.zeros(3, 1), "top and bottom")


def test_correlations_are_those_of_loops():
    scores = normal(3, 4, 2, 5)
    found = correlations_of_targets(scores)
    assert found.shape == (3, 4, 4)
    for image in range(3):
        rows = scores[image].flatten(1).tolist()
        expected = [[slow_statistics.pearson(a, b) for b in rows] for a in rows]
        np.testing.assert_allclose(found[image], expected, atol=1e-12)
    pairs = agreement(scores[:, 1], scores[:, 3])
    np.testing.assert_allclose(pairs, found[:, 1, 3], atol=1e-12)
    np.testing.assert_allclose(agreement(scores[:, 1], 2 - scores[:, 1]), -1)


def test_maps_that_know_no_target_correlate_perfectly_and_cdam_does_not():
    vit, images = patch_models.small_vit(), normal(4, 3, 16, 24)
    for name, blind in (("attention_map", True), ("centre_prior", True), ("cdam", False)):
        found = correlations_of_targets(estimator(name)(vit, images).scores)
        assert np.allclose(found, 1) == blind


def test_matrix_is_that_of_each_pair_alone():
    correlations = correlations_of_targets(normal(12, 3, 4, 6))
    correlations[2, 0, 1] = correlations[2, 1, 0] = np.nan
    groups = [str(index // 2) for index in range(12)]
    flat = with_intervals(correlations.reshape(12, 9), groups, seed=3)
    found = {key: each.reshape(3, 3) for key, each in flat.items()}
    for row in range(3):
        for column in range(3):
            (alone,) = mean_intervals(correlations[:, [row], column], groups, seed=3)
            assert found["mean"][row, column] == pytest.approx(alone.value)
            assert found["low"][row, column] == pytest.approx(alone.low)
            assert found["high"][row, column] == pytest.approx(alone.high)
            assert found["images"][row, column] == alone.images
    assert found["images"][0, 1] == 11
    np.testing.assert_allclose(np.diag(found["mean"]), 1)
    np.testing.assert_allclose(found["mean"], found["mean"].T)


def test_a_constant_map_has_no_correlation():
    scores = normal(2, 3, 4, 6)
    scores[0, 1] = 0
    found = correlations_of_targets(scores)
    assert np.isnan(found[0, 1]).all()
    assert np.isnan(found[0, :, 1]).all()
    assert np.isfinite(found[0, 0, 2])
    assert np.isfinite(found[1]).all()


def test_maps_of_unlike_form_are_refused():
    with pytest.raises(InputError, match="can't be compared"):
        agreement(normal(2, 4, 6), normal(2, 16, 24))
