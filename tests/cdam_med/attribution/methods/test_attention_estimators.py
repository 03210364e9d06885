"""Estimators made of attention matrices, against the plain transformer of the slow oracles."""

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch.testing import assert_close

from cdam_med.attribution.registry import estimator
from cdam_med.errors import ModelError

MODELS = {
    "plain": {},
    "three blocks": {"depth": 3},
    "no bias": {"qkv_bias": False},
    "q/k norm": {"qk_norm": True},
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "layer scale": {"init_values": 0.5},
    "norm before": {"pre_norm": True},
    "distilled": {"model_class": VisionTransformerDistilled},
    "patches averaged": {"global_pool": "avg", "reg_tokens": 2},
}
ORACLES = {
    "attention_map": "attention_map",
    "attention_rollout": "rollout",
    "relevance_propagation": "relevance_propagation",
    "legrad": "legrad",
}


@pytest.fixture(params=MODELS, ids=lambda name: name)
def model(request, toy_vit):
    return toy_vit(**MODELS[request.param])


def all_tokens(found):
    return torch.cat((found.prefix_scores, found.scores.flatten(2)), dim=2)


def test_plain_transformer_is_the_model(model, toy_images, oracle):
    with torch.no_grad():
        found = torch.stack([oracle("slow_vit").run(model, image).outputs for image in toy_images])
        assert_close(found, model(toy_images), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ORACLES)
def test_equals_the_slow_way(name, model, toy_images, oracle):
    expected = getattr(oracle("slow_attention"), ORACLES[name])(model, toy_images)
    found = estimator(name)(model, toy_images)
    assert found.scores.shape == (2, 3, 4, 6)
    assert_close(all_tokens(found), expected.expand(-1, 3, -1), rtol=1e-9, atol=1e-13)
    assert expected.std() > 0


def test_grad_cam_equals_the_slow_way(model, toy_images, oracle):
    expected = oracle("slow_attention").grad_cam(model, toy_images)
    found = estimator("grad_cam")(model, toy_images)
    assert_close(found.scores.flatten(2), expected, rtol=1e-9, atol=1e-13)
    assert (expected > 0).any()
    assert (expected == 0).any()


@pytest.mark.parametrize("name", ["attention_rollout", "relevance_propagation"])
def test_portions_of_a_batch_do_not_matter(name, toy_vit):
    images = torch.randn(5, 3, 16, 24, dtype=torch.float64)
    model = toy_vit()
    expected = estimator(name, images_at_once=5)(model, images)
    found = estimator(name, images_at_once=2)(model, images)
    assert_close(all_tokens(found), all_tokens(expected), rtol=0, atol=1e-14)
    assert_close(found.outputs, expected.outputs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [*ORACLES, "partial_lrp"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
def test_neither_freezing_nor_checkpointing_matters(name, frozen, toy_vit, toy_images):
    expected = estimator(name)(toy_vit(), toy_images)
    model = toy_vit().requires_grad_(not frozen)
    model.set_grad_checkpointing()
    found = estimator(name)(model, toy_images)
    assert_close(all_tokens(found), all_tokens(expected), rtol=0, atol=1e-14)
    assert model.grad_checkpointing


@pytest.mark.parametrize("name", [*ORACLES, "grad_cam", "partial_lrp", "token_ablation"])
def test_distribution_of_relevance_over_rotary_positions(name, toy_images):
    """Attention with rotary positions is timm's own, so rows are still distributions."""
    torch.manual_seed(0)
    model = Eva(
        img_size=(16, 24),
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_classes=3,
        global_pool="token",
        use_rot_pos_emb=True,
        num_reg_tokens=2,
    )
    found = estimator(name)(model.double().eval(), toy_images)
    assert found.scores.shape == (2, 3, 4, 6)
    assert torch.isfinite(found.scores).all()
    if name in ("attention_map", "attention_rollout"):
        assert found.prefix_scores.shape == (2, 3, 3)
        total = found.scores.sum((2, 3)) + found.prefix_scores.sum(2)
        assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("name", ORACLES)
def test_parallel_branches_with_one_attention(name, toy_vit, toy_images):
    found = estimator(name)(toy_vit(block_fn=ParallelScalingBlock), toy_images)
    assert (found.scores >= 0).all()
    assert found.scores.any()


@pytest.mark.parametrize("name", [*ORACLES, "partial_lrp"])
@pytest.mark.parametrize("block", [ParallelThingsBlock, DiffParallelScalingBlock])
def test_no_single_matrix_is_refused_by_name(name, block, toy_vit, toy_images):
    with pytest.raises(ModelError, match=f"{name}.*{block.__name__}"):
        estimator(name)(toy_vit(block_fn=block), toy_images)


def test_grad_cam_needs_one_norm_before_attention(toy_vit, toy_images):
    several = toy_vit(block_fn=ParallelThingsBlock)
    with pytest.raises(ModelError, match=r"grad_cam .* VisionTransformer has several"):
        estimator("grad_cam")(several, toy_images)
    none = toy_vit(block_fn=ResPostBlock)
    with pytest.raises(ModelError, match="ResPostBlock, which has no norm before"):
        estimator("grad_cam")(none, toy_images)
    one = estimator("grad_cam")(toy_vit(block_fn=ParallelScalingBlock), toy_images)
    assert (one.scores > 0).any()


def test_fused_attention_is_what_is_recorded(toy_vit, toy_images):
    """The model runs fused attention before and after; the outputs are those of the fused way."""
    model = toy_vit(VisionTransformer)
    assert all(block.attn.fused_attn for block in model.blocks)
    with torch.no_grad():
        expected = model(toy_images)
    assert_close(estimator("attention_map")(model, toy_images).outputs, expected)
    assert all(block.attn.fused_attn for block in model.blocks)
