"""Malignant or benign: figures by counting, intervals over patients, the diameter alone."""

import numpy as np
import pytest
from oracles import slow_statistics
from scipy.optimize import minimize
from scipy.stats import bootstrap
from sklearn.metrics import roc_auc_score

from cdam_med.evaluation.predictions import classification, diameter_logits
from data_prep.errors import InputError

FIGURES = ("auc", "accuracy", "sensitivity", "specificity")


def nodules(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (with ties) that say something about the classes, but not all."""
    random = np.random.default_rng(seed)
    malignant = random.random(count) < 0.4
    return np.round(malignant + random.normal(0, 1, count) - 0.3, 1), malignant


def names(count: int, *, per_patient: int = 1) -> list[str]:
    return [f"patient {index // per_patient}" for index in range(count)]


def test_figures_by_counting() -> None:
    logits, malignant = nodules(150)
    found = classification(logits, malignant, names(150))
    pairs = [
        (high > low) + 0.5 * (high == low)
        for high in logits[malignant]
        for low in logits[~malignant]
    ]
    assert found.auc.value == pytest.approx(np.mean(pairs))
    right = [(logit > 0) == label for logit, label in zip(logits, malignant, strict=True)]
    assert found.accuracy.value == pytest.approx(sum(right) / 150)
    assert found.sensitivity.value == pytest.approx(np.mean(logits[malignant] > 0))
    assert found.specificity.value == pytest.approx(np.mean(logits[~malignant] <= 0))


def test_intervals_hold_the_value_and_shrink_with_more_patients() -> None:
    widths = []
    for count in (60, 600):
        logits, malignant = nodules(count)
        result = classification(logits, malignant, names(count))
        for name in FIGURES:
            figure = getattr(result, name)
            assert 0 <= figure.low < figure.value < figure.high <= 1
        assert (result.sensitivity.images, result.specificity.images) == (
            malignant.sum(),
            (~malignant).sum(),
        )
        widths.append(result.auc.high - result.auc.low)
    assert widths[1] < widths[0] / 2


def test_interval_is_that_of_scipy_where_every_patient_has_one_nodule() -> None:
    logits, malignant = nodules(200)
    right = (logits > 0) == malignant
    expected = bootstrap(
        (right,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    ).confidence_interval
    found = classification(logits, malignant, names(200)).accuracy
    assert found.low == pytest.approx(expected.low, abs=0.015)
    assert found.high == pytest.approx(expected.high, abs=0.015)


def test_patients_are_drawn_not_nodules() -> None:
    # a nodule told four times over says no more than once
    logits, malignant = nodules(80)
    once = classification(logits, malignant, names(80))
    four = classification(logits.repeat(4), malignant.repeat(4), names(320, per_patient=4))
    for figure in FIGURES:
        one, other = getattr(once, figure), getattr(four, figure)
        assert (other.value, other.low, other.high) == pytest.approx((one.value, one.low, one.high))
        assert other.groups == one.groups
    as_if_apart = classification(logits.repeat(4), malignant.repeat(4), names(320))
    assert as_if_apart.auc.high - as_if_apart.auc.low < 0.7 * (once.auc.high - once.auc.low)


def test_auc_and_its_interval_are_those_of_loops() -> None:
    logits, malignant = nodules(40)
    patients = [f"patient {index % 13}" for index in range(40)]

    def auc(drawn: list[int]) -> float:
        labels, values = malignant[drawn], logits[drawn]
        if labels.all() or not labels.any():
            return np.nan
        gaps = values[labels][:, None] - values[~labels]
        return float(np.mean((np.sign(gaps) + 1) / 2))

    found = classification(logits, malignant, patients, seed=5).auc
    assert found.value == pytest.approx(roc_auc_score(malignant, logits))
    ends = np.nanquantile(slow_statistics.bootstrap(auc, patients, 5, 2000), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(tuple(ends))
    assert (found.images, found.groups) == (40, 13)


def test_one_patient_does_not_say_how_patients_differ() -> None:
    logits, malignant = nodules(30)
    result = classification(logits, malignant, ["the only one"] * 30)
    for name in FIGURES:
        assert np.isnan([getattr(result, name).low, getattr(result, name).high]).all()
        assert np.isfinite(getattr(result, name).value)


def test_draws_without_one_class_are_passed_over() -> None:
    logits = np.array([2.0, 1.0, -1.0, 0.5])
    result = classification(logits, np.array([True, False, False, False]), names(4))
    assert result.sensitivity.value == 1
    assert np.isnan(result.sensitivity.low)  # one malignant nodule alone
    # every draw that holds it, and another
    assert (result.auc.value, result.auc.low, result.auc.high) == (1, 1, 1)
    assert result.specificity.value == pytest.approx(1 / 3)
    assert (result.specificity.low, result.specificity.high) == (0, 1)


def test_the_seed_says_all() -> None:
    logits, malignant = nodules(50)
    first = classification(logits, malignant, names(50), seed=3)
    assert first == classification(logits, malignant, names(50), seed=3)
    assert first != classification(logits, malignant, names(50), seed=4)


@pytest.mark.parametrize(
    ("logits", "malignant", "named"),
    [
        ([1.0, 2.0], [True, True], "one class"),
        ([1.0, 2.0], [False, False], "one class"),
        ([np.nan, 2.0], [False, True], "diverged"),
        ([], [], "one class"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    logits: list[float], malignant: list[bool], named: str
) -> None:
    labels = np.array(malignant, dtype=bool)
    with pytest.raises(InputError, match=named):
        classification(np.array(logits), labels, names(len(logits)))


def test_each_nodule_needs_a_patient() -> None:
    with pytest.raises(ValueError, match="3 patient ids for 2 nodules"):
        classification(np.array([1.0, -1.0]), np.array([True, False]), names(3))


def test_diameter_baseline_minimises_the_penalised_likelihood() -> None:
    random = np.random.default_rng(0)
    diameter_mm = random.gamma(4, 3, 300)
    malignant = random.random(300) < 1 / (1 + np.exp(-(diameter_mm - 13) / 3))
    sign = np.where(malignant, 1, -1)

    def cost(parameters: np.ndarray) -> float:
        slope, offset = parameters
        losses = np.logaddexp(0, -sign * (slope * diameter_mm + offset))
        return losses.sum() + 0.5 * slope**2

    slope, offset = minimize(cost, [0.0, 0.0], method="BFGS").x
    test_mm = np.array([3.0, 10.0, 25.0])
    found = diameter_logits(diameter_mm, malignant, test_mm)
    np.testing.assert_allclose(found, slope * test_mm + offset, atol=0.01)
    assert np.all(np.diff(found) > 0)


def test_diameter_baseline_needs_both_classes() -> None:
    with pytest.raises(InputError, match="one class"):
        diameter_logits(np.array([3.0, 9.0]), np.array([True, True]), np.array([4.0]))
