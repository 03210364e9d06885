"""Bootstrap intervals over groups: against loops and scipy, NaN, pairs, speed."""

import numpy as np
import pytest
from oracles import slow_statistics
from scipy.stats import bootstrap

from cdam_med.evaluation import intervals
from cdam_med.evaluation.intervals import (
    interval_of_sums,
    interval_of_weights,
    mean_intervals,
    paired_differences,
)

GROUPS = [f"patient {index % 11}" for index in range(31)]
VALUES = np.random.default_rng(0).normal(1, 2, 31)


def mean_interval(values, groups, **options):
    """Return the interval of a single figure."""
    return mean_intervals(values[:, None], groups, **options)[0]


def paired_difference(one, other, groups, **options):
    """Return the difference of two methods."""
    return paired_differences(np.stack((one, other), axis=1), groups, **options)[0]


def test_mean_and_ends_are_those_of_loops():
    found = mean_interval(VALUES, GROUPS, seed=4, draws=200)
    drawn = slow_statistics.bootstrap(lambda images: np.mean(VALUES[images]), GROUPS, 4, 200)
    assert found.value == pytest.approx(VALUES.mean())
    assert found.low == pytest.approx(np.quantile(drawn, 0.025))
    assert found.high == pytest.approx(np.quantile(drawn, 0.975))
    assert (found.images, found.groups) == (31, 11)


def test_interval_is_that_of_scipy_where_every_group_has_one_image():
    expected = bootstrap(
        (VALUES,), np.mean, method="percentile", n_resamples=9000, rng=np.random.default_rng(1)
    ).confidence_interval
    found = mean_interval(VALUES, [str(i) for i in range(31)], draws=9000)
    assert found.low == pytest.approx(expected.low, abs=0.05)
    assert found.high == pytest.approx(expected.high, abs=0.05)


def test_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(2)
    groups = [str(i // 3) for i in range(180)]
    held = 0
    for trial in range(200):
        values = random.normal(size=60).repeat(3) + random.normal(size=180)
        found = mean_interval(values, groups, seed=trial, draws=300)
        held += found.low <= 0 <= found.high
    assert 0.89 < held / 200 < 0.99


def test_an_image_told_four_times_says_no_more_than_once():
    once = mean_interval(VALUES, [str(i) for i in range(31)])
    four = mean_interval(VALUES.repeat(4), [str(i) for i in range(31) for _ in range(4)])
    assert (four.low, four.high) == pytest.approx((once.low, once.high))
    assert (four.images, four.groups) == (124, 31)


def test_images_without_a_value_are_left_out():
    values = VALUES.copy()
    values[[0, 11, 22, 5]] = np.nan  # all of patient 0, one of patient 5
    found = mean_interval(values, GROUPS, seed=4, draws=200)
    present = ~np.isnan(values)
    assert found.value == pytest.approx(values[present].mean())
    assert (found.images, found.groups) == (27, 10)
    drawn = slow_statistics.bootstrap(
        lambda images: np.mean([values[i] for i in images if present[i]]), GROUPS, 4, 200
    )
    assert found.low == pytest.approx(np.quantile(drawn, 0.025))
    assert found.high == pytest.approx(np.quantile(drawn, 0.975))


def test_draws_without_a_value_are_passed_over():
    values = np.full(31, np.nan)
    values[[0, 1]] = [2.0, 4.0]
    found = mean_interval(values, GROUPS)
    assert (found.value, found.low, found.high) == (3.0, 2.0, 4.0)
    assert (found.images, found.groups) == (2, 2)


def test_nothing_and_a_single_group_have_no_interval():
    none = mean_interval(np.full(31, np.nan), GROUPS)
    assert np.isnan([none.value, none.low, none.high]).all()
    assert (none.images, none.groups) == (0, 0)
    single = mean_interval(VALUES, ["the only one"] * 31)
    assert single.value == pytest.approx(VALUES.mean())
    assert np.isnan([single.low, single.high]).all()
    assert np.isnan(paired_difference(VALUES, 2 * VALUES, ["one"] * 31).other_side)
    empty = mean_interval(np.empty(0), [])
    assert np.isnan(empty.value)
    assert (empty.images, empty.groups) == (0, 0)


def test_several_figures_are_each_as_alone():
    values = np.random.default_rng(1).normal(size=(31, 3))
    values[4, 1] = np.nan
    together = mean_intervals(values, GROUPS, seed=3)
    for column, found in zip(values.T, together, strict=True):
        alone = mean_interval(column, GROUPS, seed=3)
        assert (found.images, found.groups) == (alone.images, alone.groups)
        for end in ("value", "low", "high"):
            assert getattr(found, end) == pytest.approx(getattr(alone, end))


def test_paired_difference_is_of_the_same_images():
    one = VALUES + np.random.default_rng(3).normal(0.1, 0.1, 31)
    other = VALUES.copy()
    one[3], other[7] = np.nan, np.nan
    found = paired_difference(one, other, GROUPS, seed=4, draws=400)
    both = [i for i in range(31) if i not in (3, 7)]
    assert found.value == pytest.approx(np.mean(one[both] - other[both]))
    drawn = slow_statistics.bootstrap(
        lambda images: np.mean([one[i] - other[i] for i in images if i in both]), GROUPS, 4, 400
    )
    assert found.low == pytest.approx(np.quantile(drawn, 0.025))
    assert found.high == pytest.approx(np.quantile(drawn, 0.975))
    assert found.other_side == np.mean(np.array(drawn) <= 0)
    assert (found.images, found.groups) == (29, 11)
    # what images share cancels: far narrower than either mean's own
    alone = mean_interval(VALUES, GROUPS)
    assert found.high - found.low < 0.2 * (alone.high - alone.low)
    turned = paired_difference(other, one, GROUPS, seed=4, draws=400)
    assert turned.value == -found.value
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert turned.other_side == found.other_side


def test_rounding_is_no_difference():
    values = np.random.default_rng(0).normal(size=30)
    groups = [f"p{index % 7}" for index in range(30)]
    rounded = values * (1 + 4e-16)
    assert (rounded != values).any()
    found = paired_difference(rounded, values, groups)
    assert (found.value, found.low, found.high, found.other_side) == (0, 0, 0, 1)
    assert paired_difference(values * (1 + 1e-6), values, groups).value != 0


def test_other_side():
    groups = [str(i) for i in range(4)]
    zeros = np.zeros(4)
    same = paired_difference(VALUES[:4], VALUES[:4], groups)
    assert (same.value, same.low, same.high, same.other_side) == (0, 0, 0, 1)
    assert paired_difference(np.ones(4), zeros, groups).other_side == 0
    # below 0 only if the one bad image is drawn often: P(at least 2 of 4 with p = 1/4)
    found = paired_difference(np.array([1.0, 1, 1, -1.1]), zeros, groups, draws=20_000)
    assert found.other_side == pytest.approx(1 - 0.75**4 - 4 * 0.25 * 0.75**3, abs=0.01)


def test_figure_of_sums():
    terms = np.stack((VALUES, VALUES**2, np.ones(31)), axis=1)
    terms[2, 1] = np.nan
    kept = [i for i in range(31) if i != 2]

    def variance(sums):
        total, squares, count = sums.T
        return squares / count - (total / count) ** 2

    found = interval_of_sums(terms, variance, GROUPS, seed=4, draws=200)
    assert found.value == pytest.approx(VALUES[kept].var())
    drawn = slow_statistics.bootstrap(
        lambda images: np.var([VALUES[i] for i in images if i in kept]), GROUPS, 4, 200
    )
    assert found.low == pytest.approx(np.quantile(drawn, 0.025))
    assert found.high == pytest.approx(np.quantile(drawn, 0.975))
    assert (found.images, found.groups) == (30, 11)


def test_figure_of_weights():
    """A median, which no sums give: of the images as often as they are drawn."""

    def median(weights):
        drawn = [np.repeat(VALUES, row.astype(int)) for row in weights]
        return np.array([np.median(each) if len(each) > 20 else np.nan for each in drawn])

    found = interval_of_weights(median, GROUPS, seed=4, draws=200)
    assert found.value == pytest.approx(np.median(VALUES))
    drawn = slow_statistics.bootstrap(
        lambda images: np.median(VALUES[images]) if len(images) > 20 else np.nan, GROUPS, 4, 200
    )
    assert (found.low, found.high) == pytest.approx(tuple(np.nanquantile(drawn, [0.025, 0.975])))
    assert (found.images, found.groups) == (31, 11)


def test_the_seed_says_all():
    first = mean_interval(VALUES, GROUPS, seed=3)
    assert first == mean_interval(VALUES, GROUPS, seed=3)
    assert first != mean_interval(VALUES, GROUPS, seed=4)


def test_memory_is_bounded_in_parts(monkeypatch):
    whole = mean_interval(VALUES, GROUPS)
    monkeypatch.setattr(intervals, "WEIGHTS_AT_ONCE", 50)
    parts = mean_interval(VALUES, GROUPS)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="30 groups for 31 images"):
        mean_interval(VALUES, GROUPS[:30])
    bad = VALUES.copy()
    bad[2] = np.inf
    with pytest.raises(ValueError, match="must be finite"):
        mean_interval(bad, GROUPS)
    with pytest.raises(ValueError, match="must be finite"):
        paired_difference(bad, bad, GROUPS)
    with pytest.raises(ValueError, match="must be finite"):
        interval_of_sums(bad[:, None], lambda sums: sums[:, 0], GROUPS)
