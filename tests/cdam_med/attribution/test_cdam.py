"""The closed form of CDAM against gradients computed in other ways."""

import math

import pytest
import timm
import torch
from captum.attr import LayerGradientXActivation
from timm.layers import RmsNorm, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch.testing import assert_close

from cdam_med.attribution.cdam import CdamScores, cdam_scores
from cdam_med.attribution.class_token import ClassTokenModel, class_token_model

KNOWN_FORMS = {
    "three heads": {},
    "one head": {"num_heads": 1},
    "no qkv bias": {"qkv_bias": False},
    "one block": {"depth": 1},
    "LayerScale": {"init_values": 0.5},
    "patches that aren't square": {"patch_size": (8, 4)},
    "registers": {"reg_tokens": 4},
    "registers without position": {"reg_tokens": 4, "no_embed_class": True},
    "norm after pooling": {"fc_norm": True},
    "no final norm": {"final_norm": False},
    "norm before the blocks": {"pre_norm": True},
    "gated MLP, RMS norm": {"mlp_layer": SwiGLUPacked, "norm_layer": RmsNorm},
    "dropout everywhere": {
        name: 0.4
        for name in (
            "drop_rate",
            "pos_drop_rate",
            "patch_drop_rate",
            "proj_drop_rate",
            "attn_drop_rate",
            "drop_path_rate",
        )
    },
    "features for outputs": {"num_classes": 0},
    "distilled": {"model_class": VisionTransformerDistilled},
    "distilled, no qkv bias": {"model_class": VisionTransformerDistilled, "qkv_bias": False},
}

SEVERAL_PREFIX_TOKENS = [{"reg_tokens": 2}, {"model_class": VisionTransformerDistilled}]


@pytest.fixture(params=KNOWN_FORMS.values(), ids=KNOWN_FORMS.keys())
def model(request, toy_vit):
    return toy_vit(**request.param)


def all_tokens(found: CdamScores) -> torch.Tensor:
    return torch.cat((found.prefix_scores, found.scores.flatten(2)), dim=-1)


def test_equals_the_papers_full_backward_pass(model, toy_images, slow_cdam):
    expected = slow_cdam.by_full_backward(model, toy_images)
    found = cdam_scores(model.train(), toy_images)
    rows, columns = model.patch_embed.grid_size
    assert found.path == "closed form"
    assert found.scores.shape[2:] == (rows, columns)
    assert found.prefix_scores.shape[2] == model.num_prefix_tokens
    assert_close(all_tokens(found), expected, atol=1e-12, rtol=1e-12)
    assert expected.abs().min() > 1e-9  # every token counts, so every token was compared
    with torch.no_grad():
        assert_close(found.outputs, model.eval()(toy_images), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "options", [{"reg_tokens": 2}, {"model_class": VisionTransformerDistilled}]
)
def test_equals_finite_differences(toy_vit, toy_images, slow_cdam, options):
    model = toy_vit(**options)
    expected = slow_cdam.by_finite_differences(model, toy_images)
    assert_close(all_tokens(cdam_scores(model, toy_images)), expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{"reg_tokens": 2}, {"model_class": VisionTransformerDistilled}]
)
def test_equals_captum(toy_vit, toy_images, options):
    model = toy_vit(**options)
    captum = LayerGradientXActivation(model, model.blocks[-1].norm1)
    expected = torch.stack(
        [captum.attribute(toy_images, target=target).sum(-1) for target in range(3)], dim=1
    )
    found = all_tokens(cdam_scores(model, toy_images))
    assert_close(found, expected.detach(), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("size", [(24, 8), (12, 32)])
def test_any_image_size_of_a_dynamic_model(toy_vit, slow_cdam, size):
    model = toy_vit(dynamic_img_size=True)
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    found = cdam_scores(model, images)
    assert found.scores.shape[2:] == (size[0] // 4, size[1] // 4)
    assert_close(all_tokens(found), slow_cdam.by_full_backward(model, images), atol=1e-12, rtol=0)


def test_padded_images_have_patches_for_the_padding(toy_vit, slow_cdam):
    model = toy_vit(dynamic_img_size=True, dynamic_img_pad=True)
    images = torch.randn(1, 3, 10, 15, dtype=torch.float64)
    found = cdam_scores(model, images)
    assert found.scores.shape[2:] == (3, 4)
    assert_close(all_tokens(found), slow_cdam.by_full_backward(model, images), atol=1e-12, rtol=0)


def test_token_without_attention_scores_exactly_zero(toy_vit, toy_images, slow_cdam):
    """One key so far from the query that its attention underflows, as if masked by -inf."""
    model = toy_vit(depth=1, num_heads=2)
    masked = 7
    with torch.no_grad():
        # Channels 0 and 1 are equal for every token but one, so each head's first key component,
        # their difference, is zero for all but that one.
        for weight in (model.patch_embed.proj.weight, model.patch_embed.proj.bias):
            weight[1] = weight[0]
        for token in (model.cls_token, model.pos_embed):
            token[..., 1] = token[..., 0]
        model.pos_embed[0, 1 + masked, 0] += 10
        norm, qkv = model.blocks[0].norm1, model.blocks[0].attn.qkv
        norm.weight[:2], norm.bias[:2] = 1, 0
        query, key = torch.unflatten(qkv.weight, 0, (3, 2, 12))[:2]
        query[:, 0], key[:, 0] = 0, 0
        key[:, 0, 0], key[:, 0, 1] = -1, 1
        torch.unflatten(qkv.bias, 0, (3, 2, 12))[0, :, 0] = 1e3
    scores = cdam_scores(model, toy_images).scores.flatten(2)
    others = torch.arange(scores.shape[2]) != masked
    assert (scores[..., masked] == 0).all()
    assert (scores[..., others] != 0).all()
    expected = slow_cdam.by_full_backward(model, toy_images)[..., 1:]
    assert_close(scores, expected, atol=1e-12, rtol=0)


def test_batch_equals_single_images(toy_vit):
    model = toy_vit(reg_tokens=1)
    images = torch.randn(5, 3, 16, 24, dtype=torch.float64)
    together = cdam_scores(model, images)
    for index, image in enumerate(images):
        alone = cdam_scores(model, image[None])
        assert_close(together.scores[index], alone.scores[0], atol=1e-13, rtol=0)
        assert_close(together.prefix_scores[index], alone.prefix_scores[0], atol=1e-13, rtol=0)


def test_linear_in_the_weights_of_the_head(toy_vit, toy_images):
    model = toy_vit()
    weights = torch.tensor([0.7, -1.3, 2.1], dtype=torch.float64)
    plain = class_token_model(model)
    combined = ClassTokenModel(
        plain.vit, plain.prepare, lambda token: plain.readout(token) @ weights[:, None]
    )
    expected = torch.einsum("c,bcxy->bxy", weights, cdam_scores(model, toy_images).scores)
    assert_close(cdam_scores(combined, toy_images).scores[:, 0], expected, atol=1e-13, rtol=0)


def test_benign_map_is_minus_the_malignant_map(toy_vit, toy_images):
    model = toy_vit(num_classes=1)
    malignant = cdam_scores(model, toy_images)
    with torch.no_grad():
        model.head.weight.neg_()
        model.head.bias.neg_()
    benign = cdam_scores(model, toy_images)
    assert torch.equal(benign.scores, -malignant.scores)
    assert torch.equal(benign.prefix_scores, -malignant.prefix_scores)


def test_more_targets_than_are_computed_at_once(toy_vit, toy_images):
    model = toy_vit(num_classes=150)
    every = cdam_scores(model, toy_images)
    assert every.scores.shape == (2, 150, 4, 6)
    assert every.targets == tuple(range(150))
    some = cdam_scores(model, toy_images, targets=[149, 3, 70])
    assert some.targets == (149, 3, 70)
    for field in ("scores", "prefix_scores", "outputs"):
        expected = getattr(every, field)[:, [149, 3, 70]]
        assert_close(getattr(some, field), expected, atol=1e-13, rtol=0)


def test_targets_by_name(toy_vit, toy_images):
    class Described:
        def class_token_model(self):
            plain = class_token_model(toy_vit())
            names = ("malignancy", "texture", "diameter")
            return ClassTokenModel(plain.vit, lambda x: x.flip(-1), plain.readout, names)

    found = cdam_scores(Described(), toy_images, targets=("diameter", 0))
    assert found.targets == ("diameter", "malignancy")
    plain = cdam_scores(toy_vit(), toy_images.flip(-1), targets=[2, 0])
    assert_close(found.scores, plain.scores, atol=0, rtol=0)
    assert cdam_scores(Described(), toy_images, targets="texture").targets == ("texture",)


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_float32_of_a_real_size(name):
    """Compared in float64, the float32 map is off by rounding alone."""
    torch.manual_seed(0)
    model: VisionTransformer = timm.create_model(name, num_classes=9, img_size=(112, 140))
    if "patch16" in name:
        model.set_input_size((112, 144))
    images = torch.randn(1, 3, *model.patch_embed.img_size)
    found = all_tokens(cdam_scores(model, images)).double()
    expected = all_tokens(cdam_scores(model.double(), images.double()))
    captum = LayerGradientXActivation(model.eval(), model.blocks[-1].norm1)
    exact = captum.attribute(images.double(), target=4).sum(-1).detach()
    largest = expected.abs().amax()
    assert math.isfinite(largest)
    assert (found - expected).abs().amax() < 5e-6 * largest
    assert (expected[:, 4] - exact).abs().amax() < 1e-12 * largest
