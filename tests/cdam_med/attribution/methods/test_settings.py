"""Settings without meaning are refused in a sentence, whatever their type."""

import math

import numpy as np
import pytest
import torch

from cdam_med.attribution.registry import estimator
from cdam_med.errors import MethodError


@pytest.mark.parametrize(
    "value", [2.0, math.nan, "5", None, [5], torch.tensor(2.0), 0, -1], ids=str
)
def test_a_count_that_is_not_whole_or_too_small_is_refused(value):
    expected = r"^samples of smoothgrad must be at least 1, and whole, not .*"
    with pytest.raises(MethodError, match=expected):
        estimator("smoothgrad", samples=value)


@pytest.mark.parametrize("value", [2, np.int64(2), np.uint8(2), torch.tensor(2)], ids=repr)
def test_whole_numbers_of_any_type_are_counts(value):
    assert estimator("smoothgrad", samples=value).samples == value


def test_two_steps_are_the_least_where_both_ends_are_left_out():
    with pytest.raises(MethodError, match=r"steps of integrated_cdam_block_input .* at least 2"):
        estimator("integrated_cdam_block_input", steps=1)


@pytest.mark.parametrize("value", ["a", None, 1j, -0.1, math.nan, math.inf], ids=str)
def test_noise_that_is_no_share_is_refused(value):
    with pytest.raises(MethodError, match=r"^noise of \w+ must be 0 or more and finite, not"):
        estimator("smoothgrad", noise=value)


@pytest.mark.parametrize("value", [0, 0.15, np.float32(0.15)], ids=repr)
def test_real_numbers_of_any_type_are_noise(value):
    assert estimator("smoothgrad", noise=value).noise == value


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("integrated_gradients", {"steps": 0}, "steps of integrated_gradients must be"),
        ("integrated_gradients", {"steps_at_once": 0}, "steps_at_once of integrated_gradients"),
        ("attention_rollout", {"images_at_once": 0}, "images_at_once of attention_rollout must be"),
        ("relevance_propagation", {"images_at_once": 0}, "images_at_once of relevance_propagation"),
        ("token_ablation", {"tokens_at_once": 0}, "tokens_at_once of token_ablation must be"),
        ("smoothgrad", {"samples_at_once": 0}, "samples_at_once of smoothgrad must be"),
        ("occlusion", {"fill": math.nan}, "fill of occlusion must be finite, not nan"),
        ("occlusion", {"squares_at_once": 0}, "squares_at_once of occlusion must be"),
        ("centre_prior", {"width": 0.0}, "width of centre_prior must be above 0"),
    ],
)
def test_every_setting_is_looked_at(name, settings, message):
    with pytest.raises(MethodError, match=message):
        estimator(name, **settings)
