"""Both forms of Smooth CDAM against full backward passes with the same noise."""

import runpy
from pathlib import Path

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelThingsBlock
from torch.testing import assert_close

from cdam_med.attribution import averaged
from cdam_med.attribution.averaged import SmoothCdam, SmoothCdamNormed
from cdam_med.attribution.cdam import cdam_scores
from cdam_med.attribution.class_token import ClassTokenModel
from cdam_med.attribution.vit import Pooling
from cdam_med.errors import MethodError

ORACLES = Path(__file__).resolve().parents[2] / "oracles"
mean_over_versions = runpy.run_path(str(ORACLES / "slow_smooth.py"))["mean_over_versions"]
image_noise = runpy.run_path(str(ORACLES / "image_noise.py"))["image_noise"]

FORMS = [(SmoothCdam, "input"), (SmoothCdamNormed, "normed")]

MODELS = {
    "plain": ({}, "closed form"),
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


def all_tokens(found):
    return torch.cat((found.prefix_scores, found.scores.flatten(2)), dim=-1)


@pytest.mark.parametrize(("form", "place"), FORMS)
@pytest.mark.parametrize(("options", "path"), MODELS.values(), ids=MODELS)
def test_equals_full_backward_passes(toy_vit, toy_images, form, place, options, path):
    model = toy_vit(**options)
    tokens = (model.num_prefix_tokens + model.patch_embed.num_patches, model.embed_dim)
    versions = [
        [(1.0, noise) for noise in image_noise(image, 5, tokens, 3)] for image in toy_images
    ]
    found = form(samples=3, noise=0.1)(model, toy_images, seed=5)
    expected = mean_over_versions(model, toy_images, versions, 0.1, place)
    assert found.path == path
    assert_close(all_tokens(found), expected, atol=1e-12, rtol=1e-12)
    with torch.no_grad():
        assert_close(found.outputs, model(toy_images), atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", [SmoothCdam, SmoothCdamNormed])
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["closed form", "autograd"])
def test_without_noise_it_is_plain_cdam(toy_vit, toy_images, form, options):
    model = toy_vit(**options)
    plain = cdam_scores(model, toy_images)
    for seed in (0, 1):
        found = form(samples=4, noise=0.0)(model, toy_images, seed=seed)
        assert_close(all_tokens(found), all_tokens(plain), atol=1e-13, rtol=0)


@pytest.mark.parametrize("form", [SmoothCdam, SmoothCdamNormed])
def test_a_batch_gives_what_its_images_give_alone(toy_vit, toy_images, form):
    model, images = toy_vit(), torch.cat((toy_images, 3 * toy_images))
    together = form(samples=3)(model, images, seed=2)
    for index, image in enumerate(images):
        alone = form(samples=3)(model, image[None], seed=2)
        assert_close(together.scores[index], alone.scores[0], atol=1e-13, rtol=0)


@pytest.mark.parametrize("form", [SmoothCdam, SmoothCdamNormed])
def test_two_images_have_noise_of_their_own(toy_vit, toy_images, form):
    """Noise that all images shared would be a pattern that every slice of a volume shows."""
    model, image = toy_vit(), toy_images[:1]
    images = torch.cat((image, image + 1e-9))
    plain = cdam_scores(model, images).scores
    assert_close(plain[0], plain[1], atol=1e-6, rtol=0)
    first, second = (form(samples=3)(model, images, seed=2).scores - plain)[:, 0].flatten(1)
    assert (first - second).norm() > 0.5 * first.norm()


@pytest.mark.parametrize("form", [SmoothCdam, SmoothCdamNormed])
def test_portions_of_the_work_change_nothing(toy_vit, toy_images, form, monkeypatch):
    model = toy_vit()
    expected = form(samples=5)(model, toy_images, seed=2)
    for numbers in (1, 3 * 25 * 24):  # a sample and an image at once, then three samples
        monkeypatch.setattr(averaged, "NUMBERS_AT_ONCE", numbers)
        found = form(samples=5)(model, toy_images, seed=2)
        assert_close(found.scores, expected.scores, atol=1e-13, rtol=0)


def test_more_targets_than_are_computed_at_once(toy_vit, toy_images):
    model = toy_vit(num_classes=150)
    smooth = SmoothCdam(samples=2)
    every = smooth(model, toy_images)
    some = smooth(model, toy_images, targets=[149, 3, 70])
    assert_close(some.scores, every.scores[:, [149, 3, 70]], atol=1e-13, rtol=0)


def test_branches_in_parallel_take_the_general_path(toy_vit, toy_images):
    model = toy_vit(block_fn=ParallelThingsBlock)
    plain = cdam_scores(model, toy_images)
    for form in (SmoothCdam, SmoothCdamNormed):
        found = form(samples=2, noise=0.0)(model, toy_images)
        assert_close(found.scores, plain.scores, atol=1e-13, rtol=0)
        assert not torch.equal(form(samples=2)(model, toy_images).scores, plain.scores)


def test_the_general_path_of_a_known_block_agrees(toy_vit, toy_images):
    """A pooling, even of the class token alone, sends a known block the general way."""
    model = toy_vit(reg_tokens=1)
    first = Pooling("first", lambda tokens: tokens[:, 0])
    pooled = ClassTokenModel(model, lambda images: images, model.head, pooling=first)
    for form in (SmoothCdam, SmoothCdamNormed):
        closed = form(samples=3)(model, toy_images, seed=4)
        general = form(samples=3)(pooled, toy_images, seed=4)
        assert (closed.path, general.path) == ("closed form", "autograd")
        assert_close(all_tokens(closed), all_tokens(general), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "share_of_largest"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)]
)
def test_weights_of_lower_precision(toy_vit, toy_images, dtype, share_of_largest):
    """Without noise, which is drawn in the type of the sums and so differs from type to type."""
    model = toy_vit()
    exact = SmoothCdam(samples=2, noise=0.0)(model, toy_images).scores.float()
    found = SmoothCdam(samples=2, noise=0.0)(model.to(dtype), toy_images)
    assert found.scores.dtype == torch.float32
    largest = exact.abs().amax().item()
    assert_close(found.scores, exact, atol=share_of_largest * largest, rtol=0)


@pytest.mark.parametrize("form", [SmoothCdam, SmoothCdamNormed])
@pytest.mark.parametrize(
    "settings", [{"samples": 0}, {"noise": -0.1}, {"noise": float("nan")}], ids=str
)
def test_settings_without_meaning_are_refused(form, settings):
    (setting,) = settings
    with pytest.raises(MethodError, match=f"^{setting} of {form.name} must be .*, not "):
        form(**settings)
