"""MONAI's ViT under timm's names: images, volumes, grids, and what is refused."""

import pytest
import torch
from monai.networks.nets import UNet, ViT
from monai.networks.nets.swin_unetr import SwinTransformer
from torch.testing import assert_close

from cdam_med.attribution.cdam import cdam_scores
from cdam_med.attribution.class_token import class_token_model
from cdam_med.attribution.concept import concept_from_images
from cdam_med.attribution.registry import estimator
from cdam_med.errors import CdamError, ModelError, TargetError

pytest.importorskip("einops", reason="MONAI's ViT needs einops")


def monai_vit(size, patch, kind=ViT, **options):
    settings = {
        "hidden_size": 24,
        "mlp_dim": 32,
        "num_layers": 2,
        "num_heads": 3,
        "classification": True,
        "num_classes": 2,
        "spatial_dims": len(size),
    } | options
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(1, size, patch, **settings).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def numbers(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [{}, {"proj_type": "perceptron"}, {"post_activation": None}])
@pytest.mark.parametrize(
    ("size", "patch"), [((8, 12), (4, 4)), ((8, 12), (4, 6)), ((4, 8, 12), (4, 4, 6))]
)
def test_outputs_are_the_models_own(size, patch, options):
    model, images = monai_vit(size, patch, **options), numbers(2, 1, *size)
    described = class_token_model(model)
    prepared = described.check_images(images)
    with torch.no_grad():
        expected = model(images)[0]
        assert torch.equal(described.outputs(prepared), expected)
    assert described.output_count == 2
    assert described.patch_grid(prepared) == tuple(
        side // length for side, length in zip(size, patch, strict=True)
    )
    found = cdam_scores(model, images)
    assert_close(found.outputs, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("projection", ["conv", "perceptron"])
def test_scores_lie_along_the_axes_of_the_volume(projection):
    """The token that a patch becomes is where the grid says, by what its embedding depends on."""
    model = monai_vit((4, 6, 8), (2, 2, 2), proj_type=projection)
    volume = numbers(1, 1, 4, 6, 8).requires_grad_()
    grid = class_token_model(model).patch_grid(volume)
    assert grid == (2, 3, 4)
    tokens = model.patch_embedding(volume)
    place = torch.arange(24).reshape(grid)
    for i, j, k in [(0, 0, 0), (0, 1, 2), (1, 0, 3), (1, 2, 1)]:
        (gradient,) = torch.autograd.grad(
            tokens[0, place[i, j, k]].sum(), volume, retain_graph=True
        )
        seen = torch.zeros(4, 6, 8, dtype=torch.bool)
        seen[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, 2 * k : 2 * k + 2] = True
        assert torch.equal(gradient[0, 0] != 0, seen)


@pytest.mark.parametrize(
    ("size", "shape"), [((4, 8, 12), (2, 3)), ((8, 4, 12), (2, 3)), ((4, 4, 12), (1, 3))]
)
def test_an_axis_of_one_patch_is_left_out_of_maps(size, shape):
    model, volumes = monai_vit(size, (4, 4, 4)), numbers(1, 1, *size)
    whole = cdam_scores(model, volumes)
    assert whole.scores.shape[2:] == tuple(side // 4 for side in size)
    found = estimator("cdam")(model, volumes)
    assert found.scores.shape == (1, 2, *shape)
    assert torch.equal(found.scores.flatten(2), whole.scores.flatten(2))


@pytest.mark.parametrize("name", ["cdam", "attention_map", "token_ablation", "random", "occlusion"])
def test_patches_in_depth_are_refused_before_anything_is_computed(name):
    model, volumes = monai_vit((8, 8, 12), (4, 4, 4)), numbers(1, 1, 8, 8, 12)
    passes = []
    model.norm.register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(ModelError, match=r"2 x 2 x 3 patches.*use cdam_scores"):
        estimator(name)(model, volumes)
    assert not passes


@pytest.mark.parametrize("name", ["input_x_gradient", "occlusion", "intensity"])
def test_estimators_of_pixels_refuse_volumes(name):
    model, volumes = monai_vit((4, 8, 12), (4, 4, 4)), numbers(1, 1, 4, 8, 12)
    with pytest.raises(ModelError, match=f"{name} is about pixels.*MONAI's ViT takes volumes"):
        estimator(name)(model, volumes)


@pytest.mark.parametrize("flash", [False, True])
def test_attention_is_what_monai_saves(flash):
    model, images = monai_vit((8, 12), (4, 4), save_attn=True), numbers(2, 1, 8, 12)
    with torch.no_grad():
        model(images)
    expected = model.blocks[-1].attn.att_mat.mean(1)[:, 0]
    for block in model.blocks:
        block.attn.save_attn = False
        block.attn.use_flash_attention = flash
    found = estimator("attention_map")(model, images)
    everything = torch.cat((found.prefix_scores, found.scores.flatten(2)), dim=2)
    assert_close(everything, expected[:, None].expand(-1, 2, -1), rtol=0, atol=1e-13)
    assert all(block.attn.use_flash_attention == flash for block in model.blocks)
    assert not any(block.attn.drop_weights._forward_pre_hooks for block in model.blocks)


def test_a_concept_is_made_of_its_class_token():
    model, images = monai_vit((8, 12), (4, 4)), numbers(3, 1, 8, 12)
    concept = concept_from_images(model, images, label="three")
    with torch.no_grad():
        tokens = torch.cat(
            (model.cls_token.expand(3, -1, -1), model.patch_embedding(images)), dim=1
        )
        for block in model.blocks:
            tokens = block(tokens)
        expected = model.norm(tokens)[:, 0]
    assert_close(concept.vector, expected.mean(0))
    found = estimator("cdam")(model, images, [concept, 0])
    assert_close(found.outputs[:, 0], expected @ concept.vector)


def test_a_concept_outlives_the_head():
    model, images = monai_vit((8, 12), (4, 4)), numbers(3, 1, 8, 12)
    concept = concept_from_images(model, images, label="three")
    expected = estimator("cdam")(model, images, concept).scores
    with torch.no_grad():
        model.classification_head[0].weight.mul_(2)
    assert torch.equal(estimator("cdam")(model, images, concept).scores, expected)
    with torch.no_grad():
        model.norm.weight.mul_(2)
    with pytest.raises(TargetError, match="made with other weights"):
        estimator("cdam")(model, images, concept)


class OwnForward(ViT):
    def forward(self, x):
        return 2 * super().forward(x)[0]


class Derived(ViT):
    """Only its name is its own."""


def test_subclasses():
    images = numbers(1, 1, 8, 12)
    plain = cdam_scores(monai_vit((8, 12), (4, 4)), images)
    derived = cdam_scores(monai_vit((8, 12), (4, 4), kind=Derived), images)
    assert torch.equal(plain.scores, derived.scores)
    own = cdam_scores(monai_vit((8, 12), (4, 4), kind=OwnForward), images)
    assert torch.equal(own.outputs, 2 * plain.outputs)
    assert_close(own.scores, 2 * plain.scores)


def test_models_without_a_class_token_are_refused():
    model = monai_vit((8, 12), (4, 4), classification=False)
    with pytest.raises(ModelError, match="create it with classification=True"):
        class_token_model(model)
    unet = UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,))
    with pytest.raises(ModelError, match="UNet is not a vision transformer"):
        class_token_model(unet)
    swin = SwinTransformer(1, 12, (2, 2), (2, 2), (1, 1), (1, 1), spatial_dims=2)
    with pytest.raises(ModelError, match="SwinTransformer is not a vision transformer"):
        class_token_model(swin)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((1, 1, 8, 12), r"and three sides of a volume\).* not \(1, 1, 8, 12\)"),
        ((1, 1, 4, 8, 13), "12 whole patches of 2 x 4 x 4 pixels with 1 .* not 4 x 8 x 13 with 1"),
        ((1, 1, 4, 8, 8), "12 whole patches .* not 4 x 8 x 8"),
        ((1, 2, 4, 8, 12), "with 1 channel.* not 4 x 8 x 12 with 2"),
    ],
)
def test_volumes_that_the_model_does_not_take(shape, reason):
    model = monai_vit((4, 8, 12), (2, 4, 4))
    with pytest.raises(CdamError, match=reason):
        cdam_scores(model, numbers(*shape))
