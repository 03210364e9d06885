"""What takes the place of pixels: blur against loops, scipy and PIL; colours by hand."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter
from torch.testing import assert_close

from cdam_med.errors import MethodError
from cdam_med.evaluation.metrics.replacement import Blur, Constant, MeanColour

SLOW = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).resolve().parents[3] / "oracles" / "slow_perturbation.py"))
)


def images(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("radius", [0.3, 1.0, 14.0])
def test_blur_is_that_of_loops_and_scipy(radius):
    given = images(2, 3, 9, 13)
    found = Blur(radius)(given)
    slow = SLOW.gaussian_blur(given[1, 2].tolist(), radius)
    assert_close(found[1, 2], torch.tensor(slow, dtype=torch.float64))
    expected = gaussian_filter(given.numpy(), radius, mode="nearest", axes=(2, 3), truncate=4.0)
    assert_close(found, torch.from_numpy(expected))


def test_published_blur_is_pils():
    # PIL puts three boxes for the filter, rounds to whole grey levels, and differs at the edges
    assert Blur().radius == 14
    grey = np.random.default_rng(0).integers(0, 256, (224, 224)).astype(np.uint8)
    grey[60:120, 90:200] = 255
    found = Blur()(torch.from_numpy(grey).double()[None, None])[0, 0]
    pil = np.asarray(Image.fromarray(grey).filter(ImageFilter.GaussianBlur(14)), dtype=float)
    inside = slice(42, -42)
    assert np.abs(found.numpy() - pil)[inside, inside].max() < 3


def test_blur_leaves_a_constant_and_keeps_the_type():
    flat = torch.full((1, 1, 6, 8), 0.7)
    found = Blur(3.0)(flat)
    assert found.dtype == torch.float32
    assert_close(found, flat)


def test_constant_and_mean_colour():
    given = images(2, 3, 4, 5)
    assert_close(Constant(-0.5)(given), torch.full_like(given, -0.5))
    each = Constant((1.0, 2.0, 3.0))(given)
    assert each.shape == given.shape
    assert_close(each[0, :, 2, 3], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    mean = MeanColour()(given)
    assert mean.shape == given.shape
    assert_close(
        mean[1, 2, 0, 4], sum(given[1, 2].flatten().tolist()) / torch.tensor(20.0).double()
    )


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), float("inf")])
def test_a_blur_that_cannot_be_is_refused(radius):
    with pytest.raises(MethodError, match="radius of blur must be above 0"):
        Blur(radius)


def test_a_constant_for_other_channels_is_refused():
    with pytest.raises(MethodError, match="one for each of 3 channels, not 2"):
        Constant((0.0, 1.0))(images(1, 3, 4, 4))


def test_names():
    assert (Blur.name, Constant.name, MeanColour.name) == ("blur", "constant", "mean")
