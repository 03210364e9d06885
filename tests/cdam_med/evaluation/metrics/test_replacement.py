"""What takes the place of pixels: blur against loops, scipy and PIL; colours by hand."""

from functools import partial

import numpy as np
import pytest
import torch
from oracles import slow_perturbation
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter
from torch.testing import assert_close

from cdam_med.evaluation.metrics.perturbation import blurred, constant, mean_colour


def images(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("radius", [0.3, 1.0, 14.0])
def test_blur_is_that_of_loops_and_scipy(radius):
    given = images(2, 3, 9, 13)
    found = partial(blurred, radius=radius)(given)
    slow = slow_perturbation.gaussian_blur(given[1, 2].tolist(), radius)
    assert_close(found[1, 2], torch.tensor(slow, dtype=torch.float64))
    expected = gaussian_filter(given.numpy(), radius, mode="nearest", axes=(2, 3), truncate=4.0)
    assert_close(found, torch.from_numpy(expected))


def test_published_blur_is_pils():
    # PIL puts three boxes for the filter, rounds to whole grey levels, and differs at the edges
    grey = np.random.default_rng(0).integers(0, 256, (224, 224)).astype(np.uint8)
    grey[60:120, 90:200] = 255
    found = blurred(torch.from_numpy(grey).double()[None, None])[0, 0]
    pil = np.asarray(Image.fromarray(grey).filter(ImageFilter.GaussianBlur(14)), dtype=float)
    inside = slice(42, -42)
    assert np.abs(found.numpy() - pil)[inside, inside].max() < 3


def test_blur_leaves_a_constant_and_keeps_the_type():
    flat = torch.full((1, 1, 6, 8), 0.7)
    found = partial(blurred, radius=3.0)(flat)
    assert found.dtype == torch.float32
    assert_close(found, flat)


def test_constant_and_mean_colour():
    given = images(2, 3, 4, 5)
    assert_close(partial(constant, value=(-0.5,))(given), torch.full_like(given, -0.5))
    each = partial(constant, value=(1.0, 2.0, 3.0))(given)
    assert each.shape == given.shape
    assert_close(each[0, :, 2, 3], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    mean = mean_colour(given)
    assert mean.shape == given.shape
    assert_close(
        mean[1, 2, 0, 4], sum(given[1, 2].flatten().tolist()) / torch.tensor(20.0).double()
    )
