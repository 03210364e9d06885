"""Token ablation against whole forward passes of a model from which a hook removes a token."""

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch.testing import assert_close

from cdam_med.attribution.registry import estimator

SHARING = {
    "plain": {},
    "three blocks": {"depth": 3},
    "no bias": {"qkv_bias": False},
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "layer scale": {"init_values": 0.5},
    "norm before": {"pre_norm": True},
    "distilled": {"model_class": VisionTransformerDistilled},
}
WHOLE = {
    "one block": {"depth": 1},
    "q/k norm": {"qk_norm": True},
    "normed heads": {"scale_attn_norm": True},
    "parallel": {"block_fn": ParallelScalingBlock},
}
EVA = {
    "rotary": {"use_rot_pos_emb": True},
    "rotary with registers": {"use_rot_pos_emb": True, "num_reg_tokens": 2, "no_embed_class": True},
    "rotary by head": {"use_rot_pos_emb": True, "rope_type": "mixed"},
    "absolute": {},
}


@pytest.mark.parametrize("options", [*SHARING.values(), *WHOLE.values()], ids=[*SHARING, *WHOLE])
@pytest.mark.parametrize("at_once", [1, 7, 64])
def test_equals_whole_forward_passes(options, at_once, toy_vit, toy_images, oracle):
    model = toy_vit(**options)
    expected = oracle("slow_token_ablation").token_ablation(model, toy_images)
    found = estimator("token_ablation", tokens_at_once=at_once)(model, toy_images)
    assert_close(found.scores.flatten(2), expected, rtol=0, atol=1e-11)
    with torch.no_grad():
        assert_close(found.outputs, model(toy_images), rtol=0, atol=1e-11)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("options", EVA.values(), ids=EVA)
def test_positions_stay_where_they_were(options, toy_vit, toy_images, oracle):
    """Rotary positions belong to tokens: without one, the others keep theirs."""
    model = toy_vit(Eva, global_pool="token", **options)
    expected = oracle("slow_token_ablation").token_ablation_by_masking(model, toy_images)
    found = estimator("token_ablation")(model, toy_images)
    assert_close(found.scores.flatten(2), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("block", [0, -1])
def test_attention_of_another_scale(block, toy_vit, toy_images, oracle):
    model = toy_vit()
    model.blocks[block].attn.scale *= 2
    model.blocks[block].attn.fused_attn = False  # torch's fused attention has the usual scale
    expected = oracle("slow_token_ablation").token_ablation(model, toy_images)
    found = estimator("token_ablation")(model, toy_images)
    assert_close(found.scores.flatten(2), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("name", ["", "attn", "attn.qkv", "attn.q_norm", "attn.norm", "drop_path1"])
def test_hooks_of_others_are_respected(place, name, toy_vit, toy_images, oracle):
    """A model whose first or last block somebody changed by a hook is explained as changed."""
    model = toy_vit(VisionTransformer)
    plain = estimator("token_ablation")(model, toy_images).scores
    part = model.blocks[place].get_submodule(name)
    part.register_forward_hook(lambda _, __, output: output.sin())
    changed = estimator("token_ablation")(model, toy_images)
    expected = oracle("slow_token_ablation").token_ablation(model, toy_images)
    assert_close(changed.scores.flatten(2), expected, rtol=0, atol=1e-11)
    assert not torch.allclose(changed.scores, plain)


def test_token_that_is_not_looked_at_is_worth_nothing(toy_vit, toy_images):
    """With attention a function of position alone, a token the others never see changes nothing."""
    model = toy_vit(VisionTransformer)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight.zero_()
    found = estimator("token_ablation")(model, toy_images)
    assert_close(found.scores, torch.zeros_like(found.scores), rtol=0, atol=1e-12)
