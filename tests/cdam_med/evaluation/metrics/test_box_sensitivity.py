"""Box sensitivity: perfect maps, controls, loops."""

from functools import partial

import numpy as np
import pytest
import torch
from oracles import patch_models, slow_perturbation, slow_statistics

from cdam_med.attribution.combinations import PerImage
from cdam_med.evaluation.metrics.perturbation import blurred, constant, perturbing
from cdam_med.evaluation.metrics.removal import box_drops

normal, WEIGHTS, IMAGES = patch_models.normal, patch_models.WEIGHTS, patch_models.IMAGES


@pytest.fixture
def linear():
    with perturbing(patch_models.linear_model(WEIGHTS), IMAGES, targets=PerImage((0, 1))) as opened:
        yield opened


def test_the_true_map_correlates_perfectly(linear):
    worth = (WEIGHTS * IMAGES).sum(1)
    found = box_drops(linear, side=5, replacement=constant)
    assert found.drops.shape == (2, 100)
    # the second image's target is minus twice the first output
    np.testing.assert_allclose(found.correlation(worth), [1, -1], atol=1e-12)
    np.testing.assert_allclose(found.correlation(3 * worth.float() + 2), [1, -1], atol=1e-5)
    np.testing.assert_allclose(found.importance(worth) * [[1], [-2]], found.drops, atol=1e-9)


def test_random_maps_are_around_zero(linear):
    found = box_drops(linear, side=5, replacement=constant)
    values = np.array([found.correlation(normal(2, 4, 6, seed=s)) for s in range(300)])
    assert (np.abs(values.mean(0)) < 4 * values.std(0) / np.sqrt(300)).all()
    assert (np.abs(values) < 0.99).all()


@pytest.mark.parametrize("resolution", ["patch", "pixel"])
def test_importance_and_drops_are_those_of_loops(resolution):
    vit = patch_models.small_vit()
    maps = normal(2, 4, 6, seed=3) if resolution == "patch" else normal(2, 16, 24, seed=3)
    side = 4 if resolution == "patch" else 1
    with perturbing(vit, IMAGES, targets=PerImage((2, 0))) as opened:
        found = box_drops(opened, side=7, boxes=6, replacement=partial(blurred, radius=3.0), seed=2)
    for index, column in enumerate((2, 0)):
        softened, drops, sums = partial(blurred, radius=3.0)(IMAGES)[index], [], []
        for corner in found.parts[index].tolist():
            pixels = slow_perturbation.box_pixels(corner, 7)
            drops.append(slow_perturbation.drop(vit, IMAGES[index], softened, pixels, column))
            sums.append(sum(maps[index, y // side, x // side].item() for y, x in pixels))
        np.testing.assert_allclose(found.drops[index], drops, rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(found.importance(maps)[index], sums, atol=1e-10)
        expected = slow_statistics.pearson(sums, drops)
        assert found.correlation(maps)[index] == pytest.approx(expected, abs=1e-8)


def test_boxes_lie_everywhere_in_the_image(linear):
    corners = box_drops(linear, side=15, boxes=400).parts
    assert set(corners[0, :, 0]) == {0, 1}
    assert set(corners[0, :, 1]) == set(range(10))
    counts = np.bincount(corners[0, :, 1])
    assert counts.min() > 20  # 40 expected of each
    whole = box_drops(linear, side=16, boxes=5).parts
    assert (whole[..., 0] == 0).all()


def test_boxes_depend_on_seed_and_image(linear):
    one, again, other = (box_drops(linear, side=4, boxes=9, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.parts, again.parts)
    np.testing.assert_array_equal(one.drops, again.drops)
    assert (one.parts != other.parts).any()
    assert (one.parts[0] != one.parts[1]).any()
    model = patch_models.linear_model(WEIGHTS)
    with perturbing(model, IMAGES[[1]], targets=1, images_at_once=4) as alone:
        single = box_drops(alone, side=4, boxes=9, seed=1)
    np.testing.assert_array_equal(single.parts[0], one.parts[1])
    np.testing.assert_allclose(single.drops[0], one.drops[1], atol=1e-10)


def test_what_has_no_correlation_is_nan(linear):
    found = box_drops(linear, side=4, boxes=9)
    maps = torch.full((2, 4, 6), 0.1)
    assert np.isnan(found.correlation(maps)).all()  # equal sums differ by rounding
    maps = normal(2, 16, 24)
    maps[0, 3, 3] = torch.inf
    values = found.correlation(maps)
    assert np.isnan(values[0])
    assert np.isfinite(values[1])
