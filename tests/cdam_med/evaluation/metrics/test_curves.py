"""Perturbation curves: by hand on a linear model, against loops on a real one, invariances."""

from functools import partial

import numpy as np
import pytest
import torch
from oracles import patch_models, slow_perturbation

from cdam_med.attribution.combinations import PerImage
from cdam_med.evaluation.metrics.curves import perturbation_curves
from cdam_med.evaluation.metrics.perturbation import blurred, constant, mean_colour, perturbing


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


WEIGHTS, IMAGES = normal(3, 16, 24, seed=5), normal(2, 3, 16, 24, seed=1)


def shares_of_patches(substitutes):
    """What each patch of the linear model's first output is worth, (image, 4, 6)."""
    worth = (WEIGHTS * (IMAGES - substitutes)).sum(1)
    return worth.reshape(2, 4, 4, 6, 4).sum((2, 4))


@pytest.fixture
def linear():
    with perturbing(patch_models.linear_model(WEIGHTS), IMAGES, targets=0) as opened:
        yield opened


@pytest.mark.parametrize(
    "replacement", [constant, partial(constant, value=(1.0, -1.0, 0.5)), mean_colour]
)
def test_area_of_the_true_map_is_known(linear, replacement):
    """With n parts of worth a, sorted down, the area is sum a_r (n + 1 - 2 r) / n."""
    worth = shares_of_patches(replacement(IMAGES))
    curves = perturbation_curves(linear, worth, replacement=replacement)
    falling = worth.flatten(1).sort(dim=1, descending=True).values
    rank = torch.arange(1, 25)
    expected = (falling * (25 - 2 * rank)).sum(1) / 24
    np.testing.assert_allclose(curves.area, expected.numpy(), rtol=1e-9)
    np.testing.assert_allclose(curves.shares, np.arange(25) / 24)
    whole = (WEIGHTS * IMAGES).sum((1, 2, 3))[:, None]
    gone = torch.cat((torch.zeros(2, 1).double(), falling.cumsum(1)), dim=1)
    np.testing.assert_allclose(curves.most_first, (whole - gone).numpy(), atol=1e-9)
    rising = torch.cat((torch.zeros(2, 1).double(), falling.flip(1).cumsum(1)), dim=1)
    np.testing.assert_allclose(curves.least_first, (whole - rising).numpy(), atol=1e-9)


def test_no_map_does_better_than_the_true_one_and_the_reverse_does_worst(linear):
    settings = {"replacement": constant}
    worth = shares_of_patches(torch.zeros_like(IMAGES))
    best = perturbation_curves(linear, worth, **settings).area
    np.testing.assert_allclose(perturbation_curves(linear, -worth, **settings).area, -best)
    areas = np.array(
        [
            perturbation_curves(linear, normal(2, 4, 6, seed=seed), **settings).area
            for seed in range(100)
        ]
    )
    assert (np.abs(areas) < best).all()
    # 100 random maps: their mean is within three standard errors of 0
    assert (np.abs(areas.mean(0)) < 3 * areas.std(0) / 10).all()


@pytest.mark.parametrize(
    ("resolution", "steps", "kept"),
    [("patch", 7, 7), ("patch", 40, 40), ("pixel", 1, 1), ("pixel", 7, 7)],
)
def test_curves_are_those_of_loops(resolution, steps, kept):
    vit = patch_models.small_vit()
    maps = normal(2, 4, 6, seed=3) if resolution == "patch" else normal(2, 16, 24, seed=4)
    sides = (4, 4) if resolution == "patch" else (1, 1)
    kept = min(kept, 24) if resolution == "patch" else kept
    with perturbing(vit, IMAGES, targets=PerImage((2, 1))) as opened:
        found = perturbation_curves(
            opened, maps, steps=steps, replacement=partial(blurred, radius=2.0)
        )
    for index, column in enumerate((2, 1)):
        softened = partial(blurred, radius=2.0)(IMAGES)[index]
        most, least = (
            slow_perturbation.curve(
                vit,
                IMAGES[index],
                softened,
                maps[index].tolist(),
                sides,
                column=column,
                steps=kept,
                most_first=first,
            )
            for first in (True, False)
        )
        np.testing.assert_allclose(found.shares, most[0])
        np.testing.assert_allclose(found.most_first[index], most[1], rtol=1e-9)
        np.testing.assert_allclose(found.least_first[index], least[1], rtol=1e-9)
        area = slow_perturbation.area(most[0], least[1], most[1])
        assert found.area[index] == pytest.approx(area, abs=1e-10)
        whole = most[1][0]
        moved = [[abs(y - whole) for y in curve[1]] for curve in (most, least)]
        change = slow_perturbation.area(most[0], moved[0], moved[1])
        assert found.change_area[index] == pytest.approx(change, abs=1e-10)


@pytest.mark.parametrize("change", [lambda s: 7 * s - 3, torch.exp, lambda s: s**3])
def test_only_the_order_of_scores_counts(linear, change):
    maps = normal(2, 4, 6, seed=2).round(decimals=1)  # with ties
    one, other = (perturbation_curves(linear, these) for these in (maps, change(maps)))
    np.testing.assert_array_equal(one.most_first, other.most_first)
    np.testing.assert_array_equal(one.least_first, other.least_first)


def test_a_map_without_differences_has_no_area(linear):
    for maps in (torch.zeros(2, 4, 6), torch.full((2, 16, 24), 0.3)):
        np.testing.assert_allclose(perturbation_curves(linear, maps).area, 0, atol=1e-9)


def test_ties_are_broken_by_the_seed_alone(linear):
    maps = torch.zeros(2, 4, 6)
    maps[:, 1, 2] = 1
    first, again, other = (perturbation_curves(linear, maps, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(first.most_first, again.most_first)
    assert (first.most_first != other.most_first).any()
    without_ties = normal(2, 4, 6)
    one, two = (perturbation_curves(linear, without_ties, seed=s) for s in (3, 4))
    np.testing.assert_array_equal(one.most_first, two.most_first)


def test_positive_and_negative_zero_are_tied(linear):
    zeros = torch.zeros(2, 4, 6)
    mixed = zeros * torch.where(normal(2, 4, 6) > 0, 1.0, -1.0)
    one, two = (perturbation_curves(linear, maps) for maps in (zeros, mixed))
    np.testing.assert_array_equal(one.most_first, two.most_first)


def test_rankings(linear):
    maps = normal(2, 4, 6, seed=2)
    for ranking, ranked in (("absolute", maps.abs()), ("positive", maps.clamp(min=0))):
        found = perturbation_curves(linear, maps, ranking=ranking)
        expected = perturbation_curves(linear, ranked)
        np.testing.assert_array_equal(found.most_first, expected.most_first)
        np.testing.assert_array_equal(found.least_first, expected.least_first)
    unsigned = maps.abs()
    areas = [
        perturbation_curves(linear, unsigned, ranking=r).area
        for r in ("signed", "absolute", "positive")
    ]
    np.testing.assert_array_equal(areas[0], areas[1])
    np.testing.assert_array_equal(areas[0], areas[2])


def test_change_area_credits_counter_evidence():
    """One patch speaks against the output as loudly as any speaks for it; nothing else speaks."""
    weights, images = torch.zeros(3, 16, 24).double(), torch.ones(1, 3, 16, 24).double()
    weights[:, 4:8, 8:12] = -1
    worth = torch.zeros(1, 4, 6).double()
    worth[0, 1, 2] = -48
    with perturbing(patch_models.linear_model(weights), images, targets=0) as opened:
        found = perturbation_curves(opened, worth, ranking="absolute", replacement=constant)
    # found at once instead of last: moved at 23 of 24 steps, and the output has risen
    assert found.change_area[0] == pytest.approx(48 * 23 / 24)
    assert found.area[0] == pytest.approx(-48 * 23 / 24)


def test_an_image_has_the_same_curves_alone_and_in_a_batch(linear):
    vit = patch_models.small_vit()
    maps = normal(2, 4, 6).round(decimals=0)
    with perturbing(vit, IMAGES, targets=PerImage((0, 2))) as opened:
        together = perturbation_curves(opened, maps, seed=9)
    for index, target in enumerate((0, 2)):
        some = slice(index, index + 1)
        with perturbing(vit, IMAGES[some], targets=target, images_at_once=5) as opened:
            alone = perturbation_curves(opened, maps[some], seed=9)
        np.testing.assert_allclose(alone.most_first[0], together.most_first[index], rtol=1e-9)
        np.testing.assert_allclose(alone.least_first[0], together.least_first[index], rtol=1e-9)


def test_targets_of_opposite_sign_have_opposite_areas():
    model, maps = patch_models.linear_model(WEIGHTS), normal(2, 4, 6)
    with perturbing(model, IMAGES, targets=PerImage((0, 1))) as opened:
        found = perturbation_curves(opened, maps).area
    with perturbing(model, IMAGES, targets=PerImage((1, 0))) as opened:
        other = perturbation_curves(opened, maps).area
    np.testing.assert_allclose(found * [-2, 1], other * [1, -2])


def test_a_map_that_is_not_finite_has_no_curve(linear):
    maps = normal(2, 4, 6)
    maps[0, 1, 1] = torch.nan
    found = perturbation_curves(linear, maps)
    assert np.isnan(found.most_first[0]).all()
    assert np.isnan(found.area[0])
    assert np.isnan(found.change_area[0])
    expected = perturbation_curves(linear, torch.nan_to_num(maps))
    np.testing.assert_array_equal(found.least_first[1], expected.least_first[1])
