"""Integrated CDAM: its scores add up, and all three forms equal full backward passes."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelThingsBlock
from torch.testing import assert_close

from cdam_med.attribution import integrated
from cdam_med.attribution.averaged import IntegratedCdamBlockInput, IntegratedCdamNormed
from cdam_med.attribution.combinations import OutputFunction
from cdam_med.attribution.integrated import IntegratedCdam
from cdam_med.errors import MethodError

ORACLES = Path(__file__).resolve().parents[2] / "oracles"
SLOW = SimpleNamespace(**runpy.run_path(str(ORACLES / "slow_integrated.py")))
mean_over_versions = runpy.run_path(str(ORACLES / "slow_smooth.py"))["mean_over_versions"]
image_noise = runpy.run_path(str(ORACLES / "image_noise.py"))["image_noise"]

MODELS = {
    "plain": ({}, "closed form"),
    "one head": ({"num_heads": 1}, "closed form"),
    "registers, LayerScale": ({"reg_tokens": 2, "init_values": 0.5}, "closed form"),
    "no qkv bias": ({"qkv_bias": False}, "closed form"),
    "distilled": ({"model_class": VisionTransformerDistilled}, "closed form"),
    "q/k norm": ({"qk_norm": True}, "autograd"),
    "rotary positions": (
        {
            "model_class": Eva,
            "global_pool": "token",
            "use_rot_pos_emb": True,
            "num_reg_tokens": 2,
            "embed_dim": 48,
        },
        "autograd",
    ),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model_and_path(request, toy_vit):
    options, path = request.param
    return toy_vit(**options), path


def all_tokens(found):
    return torch.cat((found.prefix_scores, found.scores.flatten(2)), dim=-1)


def test_equals_full_backward_passes(model_and_path, toy_images):
    model, path = model_and_path
    found = IntegratedCdam(steps=4)(model, toy_images)
    expected = SLOW.by_riemann_sum(model, toy_images, 4)
    assert found.path == path
    assert_close(all_tokens(found), expected, atol=1e-12, rtol=1e-12)
    with torch.no_grad():
        assert_close(found.outputs, model(toy_images), atol=1e-12, rtol=0)


def test_scores_of_all_tokens_add_up_to_the_difference_of_outputs(model_and_path, toy_images):
    """The rest is the midpoint rule's, which falls with the square of the number of steps."""
    model, path = model_and_path
    few, many = (50, 200) if path == "closed form" else (20, 60)  # which takes longer
    difference = SLOW.difference_of_outputs(model, toy_images)
    gaps = [
        (all_tokens(IntegratedCdam(steps)(model, toy_images)).sum(-1) - difference).abs().amax()
        for steps in (few, many)
    ]
    scale = difference.abs().amax()
    assert scale > 0.1
    assert gaps[0] < 1e-3 * (50 / few) ** 2 * scale
    assert gaps[1] < 1e-4 * (200 / many) ** 2 * scale
    assert gaps[1] < gaps[0] / 8


def test_equals_numerical_integration(toy_vit, toy_images):
    model = toy_vit(reg_tokens=1)
    found = IntegratedCdam(steps=400)(model, toy_images)
    expected = SLOW.by_simpson(model, toy_images, parts=40)
    assert_close(all_tokens(found), expected, atol=2e-4 * expected.abs().amax().item(), rtol=0)


def test_a_function_of_the_outputs_adds_up_too(toy_vit, toy_images):
    model = toy_vit()
    target = OutputFunction(lambda outputs: outputs.softmax(-1)[:, 1], "probability")
    found = IntegratedCdam(steps=800)(model, toy_images, target)
    difference = SLOW.difference_of_outputs(
        model, toy_images, lambda logits: logits.softmax(-1)[:, 1:2]
    )
    assert_close(all_tokens(found).sum(-1), difference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_path_at_the_block_input(toy_vit, toy_images, noise):
    for options in ({"reg_tokens": 2}, {"qk_norm": True}):
        model = toy_vit(**options)
        tokens = (model.num_prefix_tokens + model.patch_embed.num_patches, 24)
        scales = [k / 5 for k in (1, 2, 3, 4)]
        versions = [
            list(zip(scales, image_noise(image, 3, tokens, len(scales)), strict=True))
            for image in toy_images
        ]
        expected = mean_over_versions(model, toy_images, versions, noise, "input")
        found = IntegratedCdamBlockInput(steps=5, noise=noise)(model, toy_images, seed=3)
        assert_close(all_tokens(found), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_noisy_path_at_the_normed_tokens(toy_vit, toy_images, noise):
    for options in ({"reg_tokens": 2}, {"qk_norm": True}):
        model = toy_vit(**options)
        tokens = (model.num_prefix_tokens + model.patch_embed.num_patches, 24)
        scales = [k / 4 for k in (0, 1, 2, 3, 4)]
        versions = [
            list(zip(scales, image_noise(image, 3, tokens, len(scales)), strict=True))
            for image in toy_images
        ]
        expected = mean_over_versions(model, toy_images, versions, noise, "normed")
        found = IntegratedCdamNormed(steps=4, noise=noise)(model, toy_images, seed=3)
        assert_close(all_tokens(found), expected, atol=1e-12, rtol=1e-12)


def test_the_published_forms_do_not_add_up(toy_vit, toy_images):
    """Why neither is the default."""
    model = toy_vit()
    difference = SLOW.difference_of_outputs(model, toy_images)
    for form in (IntegratedCdamBlockInput(noise=0.0), IntegratedCdamNormed(noise=0.0)):
        gap = all_tokens(form(model, toy_images)).sum(-1) - difference
        assert gap.abs().amax() > 0.05 * difference.abs().amax()


@pytest.mark.slow
def test_branches_in_parallel_add_up(toy_vit, toy_images):
    """Each branch has a norm of its own; without what any of them gives nothing attends."""
    model = toy_vit(block_fn=ParallelThingsBlock)
    found = IntegratedCdam(steps=200)(model, toy_images)
    assert found.path == "autograd"
    with torch.no_grad():
        difference = model(toy_images)
        for branch in model.blocks[-1].attns:
            branch.norm.register_forward_hook(lambda _, __, output: 0 * output)
        difference -= model(toy_images)
    scale = difference.abs().max().item()
    assert scale > 0.1
    assert_close(all_tokens(found).sum(-1), difference, atol=1e-4 * scale, rtol=0)


@pytest.mark.parametrize("at_once", [1, 5, 14])
def test_portions_of_the_work_change_nothing(toy_vit, toy_images, monkeypatch, at_once):
    model = toy_vit(reg_tokens=1)
    expected = IntegratedCdam(steps=7)(model, toy_images)
    monkeypatch.setattr(integrated, "GRADIENTS_AT_ONCE", at_once)
    found = IntegratedCdam(steps=7)(model, toy_images)
    assert_close(found.scores, expected.scores, atol=1e-13, rtol=0)
    assert_close(found.prefix_scores, expected.prefix_scores, atol=1e-13, rtol=0)


def test_more_targets_than_are_computed_at_once(toy_vit, toy_images):
    model = toy_vit(num_classes=150)
    every = IntegratedCdam(steps=3)(model, toy_images)
    some = IntegratedCdam(steps=3)(model, toy_images, targets=[149, 3, 70])
    for field in ("scores", "prefix_scores", "outputs"):
        expected = getattr(every, field)[:, [149, 3, 70]]
        assert_close(getattr(some, field), expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "share_of_largest"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)]
)
def test_weights_of_lower_precision(toy_vit, toy_images, dtype, share_of_largest):
    model = toy_vit()
    exact = IntegratedCdam()(model, toy_images).scores.float()
    found = IntegratedCdam()(model.to(dtype), toy_images)
    assert found.scores.dtype == torch.float32
    largest = exact.abs().amax().item()
    assert_close(found.scores, exact, atol=share_of_largest * largest, rtol=0)


def test_settings_without_meaning_are_refused():
    with pytest.raises(MethodError, match="steps of integrated_cdam must be at least 1"):
        IntegratedCdam(steps=0)
    with pytest.raises(MethodError, match="integrated_cdam_block_input must be at least 2"):
        IntegratedCdamBlockInput(steps=1)
    with pytest.raises(MethodError, match="noise of integrated_cdam_normed must be 0 or more"):
        IntegratedCdamNormed(noise=-1.0)
