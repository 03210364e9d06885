"""Compactness by hand, against loops, and where it isn't defined."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import slow_statistics

from cdam_med.evaluation.metrics.compactness import entropy, gini, small_share


def one(values):
    return torch.tensor(values, dtype=torch.float64)[None, None]


def test_both_rules_by_hand():
    # 5 % of the largest score is 0.5, of the largest size 1
    map_ = one([10.0, -20.0, 0.5, -0.5, 0.4, 1.0, -0.99, 3.0])
    assert small_share(map_)[0] == 5 / 8
    assert small_share(map_, rule="signed maximum")[0] == 1 / 8
    assert small_share(map_, threshold=0.5)[0] == 7 / 8
    assert small_share(map_, rule="signed maximum", threshold=0.5)[0] == 6 / 8
    unsigned = one([10.0, 0.5, 0.4, 2.0])  # differ in what lies at the limit
    assert small_share(unsigned)[0] == 2 / 4
    assert small_share(unsigned, rule="signed maximum")[0] == 1 / 4


def test_a_map_that_speaks_only_against_has_no_share_by_the_first_rule():
    map_ = one([-10.0, -0.1, 0.0])
    assert small_share(map_, rule="signed maximum")[0] == 0
    assert small_share(map_)[0] == 2 / 3


@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-200, 1.0, 1e300]))
def test_all_are_those_of_loops(seed, scale):
    scores = np.random.default_rng(seed).normal(size=(3, 12)) ** 3
    scores[0, :5] = 0
    maps = torch.from_numpy(scores.reshape(3, 3, 4)) * scale
    shares = small_share(maps), small_share(maps, rule="signed maximum", threshold=0.1)
    for index, row in enumerate(scores.tolist()):
        largest = max(abs(s) for s in row)
        expected = slow_statistics.small_share(row, largest, 0.05, or_equal=True)
        assert shares[0][index] == pytest.approx(expected)
        expected = slow_statistics.small_share(row, max(row), 0.1, or_equal=False)
        assert shares[1][index] == pytest.approx(expected)
        assert gini(maps)[index] == pytest.approx(slow_statistics.gini(row), abs=1e-12)
        assert entropy(maps)[index] == pytest.approx(slow_statistics.entropy(row), abs=1e-12)


def test_ends_of_the_scales():
    spike = torch.zeros(1, 4, 5)
    spike[0, 2, 2] = -3
    even = torch.full((1, 4, 5), 0.2) * torch.randn(4, 5).sign()
    assert gini(spike)[0] == pytest.approx(1 - 1 / 20)
    assert gini(even)[0] == pytest.approx(0)
    assert entropy(spike)[0] == 0
    assert entropy(even)[0] == pytest.approx(1)
    assert small_share(spike)[0] == 19 / 20
    assert small_share(even)[0] == 0


def test_a_spike_is_rewarded_by_the_share_alone_as_the_module_says():
    broad = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(0)) + 0.5
    spiked = broad.clone()
    spiked[0, 3, 3] = 40
    assert small_share(broad)[0] == 0
    assert small_share(spiked)[0] > 0.99
    assert gini(spiked)[0] - gini(broad)[0] < 0.1
    assert entropy(broad)[0] - entropy(spiked)[0] < 0.05


def test_scale_and_order_do_not_count():
    maps = torch.randn(2, 3, 5, dtype=torch.float64)
    shuffled = (7 * maps).flatten(1)[:, torch.randperm(15)].reshape(2, 5, 3)
    for figure in (small_share, gini, entropy):
        np.testing.assert_allclose(figure(maps), figure(shuffled))
        np.testing.assert_allclose(figure(maps), figure(-maps))


def test_what_has_no_compactness_is_nan():
    maps = torch.rand(4, 3, 3)
    maps[1] = 0
    maps[2, 0, 0] = torch.nan
    maps[3, 0, 0] = -torch.inf
    first_rule = small_share(maps, rule="signed maximum")
    for values in (small_share(maps), first_rule, gini(maps), entropy(maps)):
        assert np.isfinite(values[0])
        assert np.isnan(values[1:]).all()
    assert np.isnan(entropy(torch.ones(1, 1, 1))[0])
    assert gini(torch.ones(1, 1, 1))[0] == 0
