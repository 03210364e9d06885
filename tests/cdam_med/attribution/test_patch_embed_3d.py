"""The paper's 3-D patch embedding: what it must equal in the 2-D model it comes from."""

import jaxtyping
import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional
from torch.testing import assert_close

from cdam_med.attribution.cdam import cdam_scores
from cdam_med.attribution.class_token import class_token_model
from cdam_med.attribution.patch_embed_3d import PatchEmbed3d, inflate_patch_embed
from cdam_med.attribution.registry import METHODS, estimator
from cdam_med.errors import CdamError, ModelError

SMALL = {
    "img_size": (16, 24),
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 2,
}


def flat_model(kind=VisionTransformer, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(**SMALL | options).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def slices(depth, images=2):
    generator = torch.Generator().manual_seed(depth)
    return torch.randn(images, depth, 16, 24, dtype=torch.float64, generator=generator)


def in_colour(grey):
    return grey[:, None].expand(-1, 3, -1, -1)


@pytest.mark.parametrize("how", ["inflation", "centering"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_pool": "avg"},
        {"pre_norm": True},  # no bias in its patch embedding
        {"dynamic_img_size": True},
        {"kind": Eva},
        {"kind": Beit, "use_rel_pos_bias": True},
    ],
    ids=str,
)
def test_one_slice_is_the_flat_model_on_grey_images(options, how):
    flat = flat_model(**options)
    stacked, stack = inflate_patch_embed(flat, 1, how), slices(1)
    assert type(stacked) is type(flat)
    colour = in_colour(stack[:, 0])
    with torch.no_grad():
        assert_close(stacked(stack), flat(colour), rtol=0, atol=1e-12)
    found, expected = cdam_scores(stacked, stack), cdam_scores(flat, colour)
    assert_close(found.scores, expected.scores, rtol=0, atol=1e-12)
    assert found.path == expected.path


@pytest.mark.parametrize("depth", [2, 5, 21])
def test_equal_slices_averaged_are_the_flat_model_on_one(depth):
    flat, grey = flat_model(), slices(1)[:, 0]
    stacked = inflate_patch_embed(flat, depth, "inflation")
    same = grey[:, None].expand(-1, depth, -1, -1)
    with torch.no_grad():
        assert_close(stacked(same), flat(in_colour(grey)), rtol=0, atol=1e-12)


def test_averaged_slices_are_the_flat_model_on_their_mean():
    flat, stack = flat_model(), slices(5)
    with torch.no_grad():
        found = inflate_patch_embed(flat, 5)(stack)
        assert_close(found, flat(in_colour(stack.mean(1))), rtol=0, atol=1e-12)


def test_centred_slices_are_the_flat_model_on_the_middle_one():
    flat, stack = flat_model(), slices(5)
    stacked = inflate_patch_embed(flat, 5, "centering")
    with torch.no_grad():
        expected = flat(in_colour(stack[:, 2]))
        assert_close(stacked(stack), expected, rtol=0, atol=1e-12)
        changed = stack + torch.tensor([9.0, 9, 0, 9, 9])[:, None, None]
        assert_close(stacked(changed), expected, rtol=0, atol=1e-12)


def test_kernel_is_that_of_a_3d_convolution_of_one_channel():
    flat = flat_model()
    stacked, stack = inflate_patch_embed(flat, 3), slices(3)
    kernel = stacked.patch_embed.proj.weight
    assert kernel.shape == (24, 1, 3, 8, 8)
    expected = functional.conv3d(
        stack[:, None], kernel, stacked.patch_embed.proj.bias, stride=(3, 8, 8)
    )
    with torch.no_grad():
        found = stacked.patch_embed(stack)
    assert_close(found, expected.flatten(2).transpose(1, 2), rtol=0, atol=1e-12)


def test_one_channel_is_enough_to_begin_with():
    flat, grey = flat_model(in_chans=1), slices(1)
    with torch.no_grad():
        found = inflate_patch_embed(flat, 3)(grey.expand(-1, 3, -1, -1))
        assert_close(found, flat(grey), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_every_estimator_explains_a_stack(name):
    few = {"smooth_cdam": "samples", "smooth_cdam_normed": "samples", "smoothgrad": "samples"}
    explain = estimator(name, **({few[name]: 2} if name in few else {}))
    found = explain(inflate_patch_embed(flat_model(), 3), slices(3))
    assert found.scores.shape == (2, 2, *((2, 3) if found.resolution == "patch" else (16, 24)))
    assert torch.isfinite(found.scores).all()


def test_the_flat_model_is_not_changed_and_the_stack_keeps_its_settings():
    flat = flat_model()
    flat.patch_embed.proj.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in flat.state_dict().items()}
    stacked = inflate_patch_embed(flat.train(), 3)
    assert {name for name, _ in stacked.named_parameters()} == set(before)
    assert all(torch.equal(before[name], value) for name, value in flat.state_dict().items())
    assert type(flat.patch_embed) is not PatchEmbed3d
    assert stacked.patch_embed.training
    assert not stacked.patch_embed.proj.weight.requires_grad
    assert stacked.patch_embed.proj.bias.requires_grad
    assert all(
        one is not other for one, other in zip(flat.parameters(), stacked.parameters(), strict=True)
    )


def test_a_stack_can_be_trained():
    stacked = inflate_patch_embed(flat_model(), 3, "centering")
    stacked(slices(3)).sum().backward()
    gradient = stacked.patch_embed.proj.weight.grad
    assert (gradient.flatten(2).abs().sum((0, 1)) > 0).all()  # also where the kernel is zero


def test_random_weights_by_timms_own_option():
    model = VisionTransformer(embed_layer=PatchEmbed3d, in_chans=5, **SMALL).double().eval()
    found = cdam_scores(model, slices(5))
    assert found.path == "closed form"
    assert found.scores.shape == (2, 2, 2, 3)


def test_timms_other_ways_with_an_image_size():
    stacked = inflate_patch_embed(flat_model(), 3)
    stacked.set_input_size((32, 24))
    assert class_token_model(stacked).grid_size(torch.zeros(1, 3, 32, 24)) == (4, 3)
    with torch.no_grad():
        assert stacked(torch.zeros(1, 3, 32, 24, dtype=torch.float64)).shape == (1, 2)


@pytest.mark.parametrize(
    ("depth", "how", "reason"),
    [
        (0, "inflation", "at least 1, not 0"),
        (4, "centering", "odd, so that there is a middle slice, not 4"),
    ],
)
def test_depths_without_meaning_are_refused(depth, how, reason):
    with pytest.raises(ModelError, match=reason):
        inflate_patch_embed(flat_model(), depth, how)


def test_another_word_is_refused_where_nobody_checks_types():
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ModelError, match="no inflation 'random': choose 'inflation' or"):
            inflate_patch_embed(flat_model(), 3, "random")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_other_patch_embeddings_are_refused():
    hybrid = timm.create_model("vit_tiny_r_s16_p8_224", depth=1, img_size=32)
    with pytest.raises(ModelError, match="embeds its patches by HybridEmbed"):
        inflate_patch_embed(hybrid, 3)
    with pytest.raises(ModelError, match="embeds its patches by PatchEmbed3d"):
        inflate_patch_embed(inflate_patch_embed(flat_model(), 3), 3)


def test_another_number_of_slices_is_refused():
    with pytest.raises(CdamError, match=r"5 slice.* in place of channels, not 16 x 24 with 3"):
        cdam_scores(inflate_patch_embed(flat_model(), 5), slices(3))
