"""Estimators at pixel resolution, and occlusion, against one pass at a time."""

import pytest
import torch
from captum.attr import Occlusion
from torch.testing import assert_close

from cdam_med.attribution.registry import estimator


@pytest.fixture
def model(toy_vit):
    return toy_vit()


def test_input_x_gradient(model, toy_images, oracle):
    found = estimator("input_x_gradient")(model, toy_images)
    assert found.scores.shape == (2, 3, 16, 24)
    expected = oracle("slow_pixels").input_x_gradient(model, toy_images)
    assert_close(found.scores, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("at_once", [1, 4, 50])
def test_integrated_gradients(at_once, model, toy_images, oracle):
    found = estimator("integrated_gradients", steps=10, steps_at_once=at_once)(model, toy_images)
    expected = oracle("slow_pixels").integrated_gradients(model, toy_images, 10)
    # captum keeps its step sizes in float32
    assert_close(found.scores, expected, rtol=0, atol=1e-7 * expected.abs().max().item())


def test_integrated_gradients_are_complete(model, toy_images):
    """The sum over pixels and colours nears f(image) - f(mean colour), as steps grow."""
    images = toy_images[:1] * 0.3
    with torch.no_grad():
        rise = model(images) - model(torch.zeros_like(images))
    errors = []
    for steps in (10, 160):
        scores = estimator("integrated_gradients", steps=steps)(model, images).scores
        errors.append((3 * scores.sum((2, 3)) - rise).abs().max())
    assert errors[1] < errors[0] / 8
    assert errors[1] < 0.05 * rise.abs().max()


def test_defaults_are_those_of_the_paper():
    assert estimator("integrated_gradients").steps == 50
    assert estimator("smoothgrad").samples == 50
    assert estimator("smoothgrad").noise == 0.15


@pytest.mark.parametrize("at_once", [1, 4, 64])
def test_smoothgrad(at_once, model, toy_images, oracle):
    """With the documented stream: copy k of an image has its k-th draw."""
    found = estimator("smoothgrad", samples=6, samples_at_once=at_once)(model, toy_images, seed=5)
    draws = oracle("image_noise").image_noise
    noises = torch.stack([torch.stack(draws(image, 5, (3, 16, 24), 6)) for image in toy_images])
    expected = oracle("slow_pixels").smoothgrad(model, toy_images, noises, 0.15)
    assert_close(found.scores, expected, rtol=1e-10, atol=1e-13)


def test_smoothgrad_without_noise_is_the_gradient(model, toy_images, oracle):
    found = estimator("smoothgrad", samples=3, noise=0.0)(model, toy_images)
    gradients = oracle("slow_pixels").gradients
    expected = torch.stack([gradients(model, image).mean(1) for image in toy_images])
    assert_close(found.scores, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("at_once", [1, 5, 64])
@pytest.mark.parametrize("fill", [None, 0.0, -0.7])
def test_occlusion(at_once, fill, model, toy_images, oracle):
    found = estimator("occlusion", fill=fill, squares_at_once=at_once)(model, toy_images)
    expected = oracle("slow_pixels").occlusion(model, toy_images, 4, fill)
    assert_close(found.scores, expected, rtol=0, atol=1e-11)


def test_occlusion_is_captums(model, toy_images):
    expected = Occlusion(model).attribute(
        toy_images, sliding_window_shapes=(3, 4, 4), strides=(3, 4, 4), baselines=0.0, target=1
    )
    found = estimator("occlusion", fill=0.0)(model, toy_images, 1)
    assert_close(found.scores[:, 0].float(), expected[:, 0, ::4, ::4].float(), rtol=1e-5, atol=1e-6)


def test_occlusion_where_the_last_patches_are_partly_padding(toy_vit):
    model = toy_vit(dynamic_img_size=True, dynamic_img_pad=True)
    images = torch.randn(1, 3, 18, 21, dtype=torch.float64)
    found = estimator("occlusion", fill=0.0)(model, images)
    assert found.scores.shape == (1, 3, 5, 6)
    cut = images.clone()
    cut[:, :, 16:, 20:] = 0
    with torch.no_grad():
        assert_close(found.scores[:, :, 4, 5], model(images) - model(cut), rtol=0, atol=1e-11)
