"""The seed of an image: by the documented recipe, and the same however its parts are written."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from cdam_med.attribution.numerics import image_generator, image_seed
from cdam_med.errors import MethodError

ORACLES = Path(__file__).resolve().parents[2] / "oracles"
image_noise = runpy.run_path(str(ORACLES / "image_noise.py"))["image_noise"]


@pytest.fixture
def image(toy_images):
    return toy_images[0]


@pytest.mark.parametrize("seed", [0, 5, -1, 2**200])
def test_stream_is_the_documented_one(image, seed):
    generator = image_generator(image, seed, device="cpu")
    for expected in image_noise(image, seed, (4, 5), 2):
        found = torch.randn((4, 5), generator=generator, dtype=torch.float64)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("seed", [True, np.int64(1), np.uint8(1), torch.tensor(1)], ids=repr)
def test_a_whole_number_of_any_type_is_the_same_seed(image, seed):
    assert image_seed(image, seed) == image_seed(image, 1)


@pytest.mark.parametrize("seed", [1.0, None, "1", torch.tensor(1.0)], ids=repr)
def test_a_seed_that_is_not_whole_is_refused(image, seed):
    with pytest.raises(MethodError, match=r"^The seed must be a whole number, not .*: "):
        image_seed(image, seed)


def test_the_sign_of_a_zero_does_not_count(image):
    """Two images that are equal are one image: a normalised zero may come with either sign."""
    image = torch.where(image > 0, image, 0.0)
    negative = torch.where(image > 0, image, -0.0)
    assert torch.equal(image, negative)
    assert image_seed(image, 3) == image_seed(negative, 3)


def test_other_images_and_seeds_have_other_seeds(image):
    found = {image_seed(each, seed) for each in (image, image + 1e-9, -image) for seed in (0, 1)}
    assert len(found) == 6
