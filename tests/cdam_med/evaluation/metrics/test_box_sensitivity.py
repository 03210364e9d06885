"""Box sensitivity: perfect maps, controls, loops."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cdam_med.attribution.combinations import PerImage
from cdam_med.errors import MethodError
from cdam_med.evaluation.metrics.box_sensitivity import box_drops
from cdam_med.evaluation.metrics.perturbation import perturbing
from cdam_med.evaluation.metrics.replacement import Blur, Constant
from data_prep.errors import InputError

ORACLES = Path(__file__).resolve().parents[3] / "oracles"
MODELS = SimpleNamespace(**runpy.run_path(str(ORACLES / "patch_models.py")))
SLOW = SimpleNamespace(**runpy.run_path(str(ORACLES / "slow_perturbation.py")))
STATISTICS = SimpleNamespace(**runpy.run_path(str(ORACLES / "slow_statistics.py")))
normal, WEIGHTS, IMAGES = MODELS.normal, MODELS.WEIGHTS, MODELS.IMAGES


@pytest.fixture
def linear():
    with perturbing(MODELS.linear_model(WEIGHTS), IMAGES, targets=PerImage((0, 1))) as opened:
        yield opened


def test_the_true_map_correlates_perfectly(linear):
    worth = (WEIGHTS * IMAGES).sum(1)
    found = box_drops(linear, side=5, replacement=Constant(0.0))
    assert found.drops.shape == (2, 100)
    # the second image's target is minus twice the first output
    np.testing.assert_allclose(found.correlation(worth), [1, -1], atol=1e-12)
    np.testing.assert_allclose(found.correlation(3 * worth.float() + 2), [1, -1], atol=1e-5)
    np.testing.assert_allclose(found.importance(worth) * [[1], [-2]], found.drops, atol=1e-9)


def test_random_maps_are_around_zero(linear):
    found = box_drops(linear, side=5, replacement=Constant(0.0))
    values = np.array([found.correlation(normal(2, 4, 6, seed=s)) for s in range(300)])
    assert (np.abs(values.mean(0)) < 4 * values.std(0) / np.sqrt(300)).all()
    assert (np.abs(values) < 0.99).all()


@pytest.mark.parametrize("resolution", ["patch", "pixel"])
def test_importance_and_drops_are_those_of_loops(resolution):
    vit = MODELS.small_vit()
    maps = normal(2, 4, 6, seed=3) if resolution == "patch" else normal(2, 16, 24, seed=3)
    side = 4 if resolution == "patch" else 1
    with perturbing(vit, IMAGES, targets=PerImage((2, 0))) as opened:
        found = box_drops(opened, side=7, boxes=6, replacement=Blur(3.0), seed=2)
    for index, column in enumerate((2, 0)):
        blurred, drops, sums = Blur(3.0)(IMAGES)[index], [], []
        for corner in found.corners[index].tolist():
            pixels = SLOW.box_pixels(corner, 7)
            drops.append(SLOW.drop(vit, IMAGES[index], blurred, pixels, column))
            sums.append(sum(maps[index, y // side, x // side].item() for y, x in pixels))
        np.testing.assert_allclose(found.drops[index], drops, rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(found.importance(maps)[index], sums, atol=1e-10)
        expected = STATISTICS.pearson(sums, drops)
        assert found.correlation(maps)[index] == pytest.approx(expected, abs=1e-8)


def test_boxes_lie_everywhere_in_the_image(linear):
    corners = box_drops(linear, side=15, boxes=400).corners
    assert set(corners[0, :, 0]) == {0, 1}
    assert set(corners[0, :, 1]) == set(range(10))
    counts = np.bincount(corners[0, :, 1])
    assert counts.min() > 20  # 40 expected of each
    whole = box_drops(linear, side=16, boxes=5).corners
    assert (whole[..., 0] == 0).all()


def test_boxes_depend_on_seed_and_image(linear):
    one, again, other = (box_drops(linear, side=4, boxes=9, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.corners, again.corners)
    np.testing.assert_array_equal(one.drops, again.drops)
    assert (one.corners != other.corners).any()
    assert (one.corners[0] != one.corners[1]).any()
    model = MODELS.linear_model(WEIGHTS)
    with perturbing(model, IMAGES[[1]], targets=1, images_at_once=4) as alone:
        single = box_drops(alone, side=4, boxes=9, seed=1)
    np.testing.assert_array_equal(single.corners[0], one.corners[1])
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


def test_what_cannot_be_is_refused(linear):
    with pytest.raises(InputError, match="17 pixels doesn't fit into images of 16 x 24"):
        box_drops(linear, side=17)
    with pytest.raises(MethodError, match="side of box_drops must be at least 1"):
        box_drops(linear, side=0)
    with pytest.raises(MethodError, match="boxes of box_drops must be at least 2"):
        box_drops(linear, side=3, boxes=1)
    with pytest.raises(InputError, match="each patch"):
        box_drops(linear, side=3, boxes=2).correlation(torch.zeros(2, 4, 5))
    with pytest.raises(InputError, match="one map for each of 2 images, not 1"):
        box_drops(linear, side=3, boxes=2).correlation(torch.zeros(1, 4, 6))
