"""The general path, for last blocks that the closed form doesn't know, and refusals."""

import types

import pytest
import torch
from timm.layers import Attention, Mlp
from timm.models.eva import Eva
from timm.models.vision_transformer import (
    Block,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
)
from torch import nn
from torch.testing import assert_close

from cdam_med.attribution.cdam import cdam_scores
from cdam_med.attribution.class_token import ClassTokenModel
from cdam_med.attribution.vit import Pooling
from cdam_med.errors import ModelError


class GatedAttention(Attention):
    def __init__(self, *args, **options):
        super().__init__(*args, gated=True, **options)


class LoraLinear(nn.Linear):
    """Stands for any layer put in the place of a plain linear one."""

    def forward(self, x):
        return super().forward(x) + x.mean(-1, keepdim=True)


class MixingMlp(Mlp):
    def forward(self, x):
        return super().forward(x) + x.mean(1, keepdim=True)


class OwnBlock(Block):
    def forward(self, x):
        return 2 * super().forward(x)


OTHER_FORMS = {
    "q/k norm": {"qk_norm": True},
    "norm before the output projection": {"scale_attn_norm": True},
    "gated attention": {"attn_layer": GatedAttention},
    "differential attention": {"attn_layer": "diff", "embed_dim": 48},
    "an MLP that mixes tokens": {"mlp_layer": MixingMlp},
    "a block of one's own": {"block_fn": OwnBlock},
    "rotary positions": {
        "model_class": Eva,
        "global_pool": "token",
        "use_rot_pos_emb": True,
        "num_reg_tokens": 2,
        "embed_dim": 48,
    },
}


def all_tokens(found):
    return torch.cat((found.prefix_scores, found.scores.flatten(2)), dim=-1)


@pytest.mark.parametrize("options", OTHER_FORMS.values(), ids=OTHER_FORMS.keys())
def test_equals_the_papers_full_backward_pass(toy_vit, toy_images, slow_cdam, options):
    model = toy_vit(**options)
    found = cdam_scores(model, toy_images)
    assert found.path == "autograd"
    expected = slow_cdam.by_full_backward(model, toy_images)
    assert_close(all_tokens(found), expected, atol=1e-12, rtol=1e-12)
    with torch.no_grad():
        assert_close(found.outputs, model(toy_images), atol=1e-12, rtol=0)


def test_attention_and_mlp_in_parallel(toy_vit, toy_images, slow_cdam):
    model = toy_vit(block_fn=ParallelScalingBlock)
    expected = slow_cdam.by_full_backward(model, toy_images, model.blocks[-1].in_norm)
    assert_close(all_tokens(cdam_scores(model, toy_images)), expected, atol=1e-12, rtol=1e-12)


def test_parallel_attention_branches_are_summed(toy_vit, toy_images, slow_cdam):
    model = toy_vit(block_fn=ParallelThingsBlock)
    expected = sum(
        slow_cdam.by_full_backward(model, toy_images, branch.norm)
        for branch in model.blocks[-1].attns
    )
    assert_close(all_tokens(cdam_scores(model, toy_images)), expected, atol=1e-12, rtol=1e-12)


def test_a_replaced_projection_is_not_passed_over(toy_vit, toy_images, slow_cdam):
    model = toy_vit()
    model.blocks[-1].attn.qkv = LoraLinear(24, 72).double()
    found = cdam_scores(model, toy_images)
    assert found.path == "autograd"
    expected = slow_cdam.by_full_backward(model, toy_images)
    assert_close(all_tokens(found), expected, atol=1e-12, rtol=1e-12)


def test_somebodys_hook_is_not_passed_over(toy_vit, toy_images, slow_cdam):
    model = toy_vit()
    plain = cdam_scores(model, toy_images)
    model.blocks[-1].attn.register_forward_hook(lambda _, __, output: 2 * output)
    found = cdam_scores(model, toy_images)
    assert (plain.path, found.path) == ("closed form", "autograd")
    expected = slow_cdam.by_full_backward(model, toy_images)
    assert_close(all_tokens(found), expected, atol=1e-12, rtol=1e-12)


def test_a_scale_of_attention_that_somebody_changed_is_not_passed_over(
    toy_vit, toy_images, slow_cdam
):
    model = toy_vit()
    model.blocks[-1].attn.scale = 2.0
    model.blocks[-1].attn.fused_attn = False
    found = cdam_scores(model, toy_images)
    expected = slow_cdam.by_full_backward(model, toy_images)
    assert_close(all_tokens(found), expected, atol=1e-12, rtol=1e-12)


def test_a_block_compiled_in_place_is_taken_and_one_in_a_wrapper_is_not(toy_vit, toy_images):
    model, plain = toy_vit(), toy_vit()
    model.blocks[0].compile(backend="eager")
    found, expected = cdam_scores(model, toy_images), cdam_scores(plain, toy_images)
    assert_close(found.scores, expected.scores, atol=1e-12, rtol=1e-12)
    model.blocks[-1] = torch.compile(model.blocks[-1], backend="eager")
    with pytest.raises(ModelError, match="ends in a OptimizedModule, which has no norm"):
        cdam_scores(model, toy_images)


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 3}, {"init_values": 0.2}])
def test_both_paths_agree(toy_vit, toy_images, options):
    """A mean over the class token alone is the same model, and no class token to the method."""
    vit = toy_vit(**options)
    pooled = ClassTokenModel(
        vit, lambda x: x, vit.head, pooling=Pooling("first", lambda tokens: tokens[:, 0])
    )
    exact, by_autograd = (cdam_scores(model, toy_images, (2, 0)) for model in (vit, pooled))
    assert (exact.path, by_autograd.path) == ("closed form", "autograd")
    assert_close(all_tokens(by_autograd), all_tokens(exact), atol=1e-12, rtol=0)
    assert_close(by_autograd.outputs, exact.outputs, atol=1e-12, rtol=0)


def test_gradient_checkpointing_changes_nothing(toy_vit, toy_images):
    model = toy_vit(qk_norm=True)
    expected = cdam_scores(model, toy_images)
    model.set_grad_checkpointing()
    assert torch.equal(cdam_scores(model, toy_images).scores, expected.scores)


def test_a_norm_after_attention_is_refused_by_name(toy_vit, toy_images):
    with pytest.raises(ModelError, match="ResPostBlock, which has no norm before"):
        cdam_scores(toy_vit(block_fn=ResPostBlock), toy_images)


@pytest.mark.parametrize(
    "name", ["attn.qkv", "attn.q_norm", "attn.norm", "attn.proj_drop", "drop_path1", "drop_path2"]
)
def test_somebodys_hook_on_a_part_that_the_closed_form_leaves_out(
    toy_vit, toy_images, slow_cdam, name
):
    model = toy_vit()
    plain = cdam_scores(model, toy_images)
    part = model.blocks[-1].get_submodule(name)
    part.register_forward_hook(lambda _, __, output: 2 * output)
    found = cdam_scores(model, toy_images)
    expected = slow_cdam.by_full_backward(model, toy_images)
    assert_close(all_tokens(found), expected, atol=1e-12, rtol=1e-12)
    assert not torch.allclose(found.scores, plain.scores)


@pytest.mark.parametrize("name", ["", "attn", "attn.qkv", "attn.proj", "norm1", "mlp"])
def test_a_forward_that_somebody_put_in_its_place_is_not_passed_over(
    toy_vit, toy_images, slow_cdam, name
):
    model = toy_vit()
    plain = cdam_scores(model, toy_images)
    part = model.blocks[-1].get_submodule(name)
    of_its_class = type(part).forward
    part.forward = types.MethodType(lambda self, x, **others: of_its_class(self, x).sin(), part)
    found = cdam_scores(model, toy_images)
    expected = slow_cdam.by_full_backward(model, toy_images)
    assert_close(all_tokens(found), expected, atol=1e-12, rtol=1e-12)
    assert not torch.allclose(found.scores, plain.scores)
