"""Controls: what they are, and that they know nothing of the model."""

import pytest
import torch
from torch.testing import assert_close

from cdam_med.attribution.registry import estimator


def test_random_maps_differ_between_images_and_seeds(toy_vit, toy_images):
    model = toy_vit()
    found = estimator("random")(model, toy_images).scores
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found, estimator("random")(model, toy_images, seed=1).scores)
    assert torch.equal(found[:, 0], found[:, 2])
    same = estimator("random")(model, torch.cat([toy_images[1:]] * 2)).scores
    assert torch.equal(same[0], found[1])
    assert torch.equal(same[1], found[1])


def test_random_maps_are_standard_normal(toy_vit):
    model = toy_vit(img_size=128, num_classes=1)
    images = torch.randn(3, 3, 128, 128, dtype=torch.float64)
    found = estimator("random")(model, images).scores
    assert abs(found.mean()) < 0.1
    assert abs(found.std() - 1) < 0.1


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
@pytest.mark.parametrize("name", ["random", "centre_prior"])
def test_the_default_type_does_not_matter(toy_vit, toy_images, name, default):
    model = toy_vit()
    expected = estimator(name)(model, toy_images).scores
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        found = estimator(name)(model, toy_images).scores
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)


def test_centre_prior_is_a_gaussian_on_the_grid(toy_vit, toy_images):
    found = estimator("centre_prior", width=0.5)(toy_vit(), toy_images).scores
    assert found.shape == (2, 3, 4, 6)
    expected = [
        [
            torch.exp(
                torch.tensor(
                    -0.5 * (((row - 1.5) / 4 / 0.5) ** 2 + ((column - 2.5) / 6 / 0.5) ** 2)
                )
            )
            for column in range(6)
        ]
        for row in range(4)
    ]
    assert_close(found[0, 0].float(), torch.tensor(expected))
    assert_close(found, found.flip(2, 3))


def test_intensity_is_the_image_about_its_mean(toy_vit, toy_images):
    found = estimator("intensity")(toy_vit(), toy_images).scores
    grey = toy_images.mean(1)
    assert_close(found[:, 1], grey - grey.mean((1, 2))[:, None, None])


def test_controls_know_nothing_of_the_weights(toy_vit, toy_images):
    model, other = toy_vit(), toy_vit()
    with torch.no_grad():
        other.head.weight.neg_()
    for name in ("random", "centre_prior", "intensity"):
        one, two = estimator(name)(model, toy_images), estimator(name)(other, toy_images)
        assert torch.equal(one.scores, two.scores)
        assert not torch.equal(one.outputs, two.outputs)
