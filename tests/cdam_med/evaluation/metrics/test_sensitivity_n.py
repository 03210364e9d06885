"""Sensitivity-n: perfect maps, controls, loops."""

from functools import partial

import numpy as np
import pytest
import torch
from oracles import patch_models, slow_perturbation, slow_statistics

from cdam_med.attribution.combinations import PerImage
from cdam_med.evaluation.metrics.perturbation import blurred, constant, mean_colour, perturbing
from cdam_med.evaluation.metrics.removal import subset_drops

normal, WEIGHTS, IMAGES = patch_models.normal, patch_models.WEIGHTS, patch_models.IMAGES


@pytest.fixture
def linear():
    with perturbing(patch_models.linear_model(WEIGHTS), IMAGES, targets=PerImage((0, 1))) as opened:
        yield opened


@pytest.mark.parametrize("n", [1, 8, 23])
@pytest.mark.parametrize("replacement", [partial(constant, value=(0.5,)), mean_colour])
def test_the_true_map_correlates_perfectly(linear, n, replacement):
    worth = (WEIGHTS * (IMAGES - replacement(IMAGES))).sum(1)
    patches = worth.reshape(2, 4, 4, 6, 4).sum((2, 4))
    found = subset_drops(linear, n=n, replacement=replacement)
    np.testing.assert_allclose(found.correlation(patches), [1, -1], atol=1e-12)
    np.testing.assert_allclose(found.correlation(worth), [1, -1], atol=1e-12)  # pooled
    np.testing.assert_allclose(found.importance(patches) * [[1], [-2]], found.drops, atol=1e-9)


def test_random_maps_are_around_zero(linear):
    found = subset_drops(linear, n=6, replacement=constant)
    values = np.array([found.correlation(normal(2, 4, 6, seed=s)) for s in range(300)])
    assert (np.abs(values.mean(0)) < 4 * values.std(0) / np.sqrt(300)).all()
    assert (np.abs(values) < 0.99).all()


def test_importance_and_drops_are_those_of_loops():
    vit, maps = patch_models.small_vit(), normal(2, 4, 6, seed=3)
    with perturbing(vit, IMAGES, targets=PerImage((2, 0))) as opened:
        found = subset_drops(
            opened, n=5, subsets=6, replacement=partial(blurred, radius=3.0), seed=2
        )
    for index, column in enumerate((2, 0)):
        softened, drops, sums = partial(blurred, radius=3.0)(IMAGES)[index], [], []
        for subset in found.parts[index].tolist():
            parts = [divmod(patch, 6) for patch, chosen in enumerate(subset) if chosen]
            assert len(parts) == 5
            pixels = [
                p
                for part in parts
                for p in slow_perturbation.pixels_of(part, IMAGES[index], (4, 4))
            ]
            drops.append(slow_perturbation.drop(vit, IMAGES[index], softened, pixels, column))
            sums.append(sum(maps[index, row, column].item() for row, column in parts))
        np.testing.assert_allclose(found.drops[index], drops, rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(found.importance(maps)[index], sums, atol=1e-12)
        expected = slow_statistics.pearson(sums, drops)
        assert found.correlation(maps)[index] == pytest.approx(expected, abs=1e-8)


def test_every_patch_is_as_likely(linear):
    found = subset_drops(linear, n=6, subsets=800)
    times = found.parts.sum(1)  # 200 expected of each, standard deviation 12
    assert times.min() > 150
    assert times.max() < 250


def test_subsets_depend_on_seed_and_image(linear):
    one, again, other = (subset_drops(linear, n=6, subsets=9, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.parts, again.parts)
    assert (one.parts != other.parts).any()
    assert (one.parts[0] != one.parts[1]).any()
    with perturbing(patch_models.linear_model(WEIGHTS), IMAGES[[1]], targets=1) as alone:
        single = subset_drops(alone, n=6, subsets=9, seed=1)
    np.testing.assert_array_equal(single.parts[0], one.parts[1])
    np.testing.assert_allclose(single.drops[0], one.drops[1], atol=1e-10)


def test_what_has_no_correlation_is_nan(linear):
    found = subset_drops(linear, n=4, subsets=9)
    assert np.isnan(found.correlation(torch.full((2, 4, 6), 0.1))).all()
    maps = normal(2, 16, 24)
    maps[0, 3, 3] = torch.inf
    values = found.correlation(maps)
    assert np.isnan(values[0])
    assert np.isfinite(values[1])
