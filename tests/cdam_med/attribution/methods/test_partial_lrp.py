"""Partial LRP against relevance handed down one number at a time."""

import pytest
import torch
from timm.layers.mlp import SwiGLU
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from cdam_med.attribution.class_token import ClassTokenModel
from cdam_med.attribution.registry import estimator
from cdam_med.errors import ModelError

MODELS = {
    "plain": {},
    "no bias": {"qkv_bias": False},
    "q/k norm": {"qk_norm": True},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
    "layer scale": {"init_values": 0.5},
    "scaled heads": {"qk_norm": True, "depth": 3},
}


LAYERS = ["attn.proj", "mlp.fc1", "mlp.fc2"]


class WrappingAdapter(nn.Module):
    """A low-rank adapter around a layer, which shows the weight of the layer within."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False).to(base.weight)
        self.up = nn.Linear(2, base.out_features, bias=False).to(base.weight)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class DoublingLinear(nn.Linear):
    """A linear layer whose weight isn't all that it does."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def doubling(layer: nn.Linear) -> nn.Linear:
    made = DoublingLinear(layer.in_features, layer.out_features).to(layer.weight)
    made.load_state_dict(layer.state_dict())
    return made


def with_hook(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda _, __, output: 2 * output)
    return layer


def with_hook_before(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].flip(-1),))
    return layer


def pruned_with_hook_before(layer: nn.Module) -> nn.Module:
    return with_hook_before(prune.l1_unstructured(layer, "weight", 0.5))


def with_forward_of_its_own(layer: nn.Module) -> nn.Module:
    forward = layer.forward
    layer.forward = lambda *inputs, **options: 2 * forward(*inputs, **options)
    return layer


CHANGES = [
    WrappingAdapter,
    doubling,
    with_hook,
    with_hook_before,
    pruned_with_hook_before,
    with_forward_of_its_own,
]


@pytest.fixture(params=MODELS, ids=lambda name: name)
def model(request, toy_vit):
    return toy_vit(**MODELS[request.param])


def test_equals_loops_over_single_numbers(model, toy_images, oracle):
    slow = oracle("slow_partial_lrp").partial_lrp
    expected = torch.stack(
        [
            torch.stack([slow(model, image, target)[0] for target in range(3)])
            for image in toy_images
        ]
    )
    found = estimator("partial_lrp")(model, toy_images)
    tokens = torch.cat((found.prefix_scores, found.scores.flatten(2)), dim=2)
    assert_close(tokens, expected, rtol=1e-5, atol=1e-9)
    assert (expected > 0).any()


def test_rules_conserve_relevance(model, toy_images, oracle):
    """All relevance is in the residual stream, the values, the attention, or was dropped."""
    _, sums = oracle("slow_partial_lrp").partial_lrp(model, toy_images[0], 0)
    ends = sums["residual"] + sums["attention"] + sums["values"] + sums["dropped"]
    assert ends == pytest.approx(1, abs=1e-9)
    assert sums["block"] == pytest.approx(1, abs=1e-12)
    assert sums["attention"] == pytest.approx(sums["values"], abs=1e-9)


def test_all_relevance_is_found_where_everything_is_positive(toy_vit, toy_images):
    """With nothing to clamp, the map's sum is what the attention branch got, half of it, a head."""
    model = toy_vit(num_heads=1, depth=1)
    block = model.blocks[-1]
    with torch.no_grad():
        nn.init.zeros_(block.mlp.fc2.weight)  # the other branch adds nothing
        nn.init.zeros_(block.mlp.fc2.bias)
        nn.init.zeros_(model.cls_token)
        nn.init.zeros_(model.pos_embed)  # the residual stream of the class token is zero
        nn.init.zeros_(block.attn.qkv.weight[48:])
        block.attn.qkv.bias[48:] = 1.0  # values are one, so that all of them are positive
        block.attn.proj.weight.abs_()
        nn.init.zeros_(block.attn.proj.bias)
    found = estimator("partial_lrp")(model, toy_images)
    assert_close(
        found.scores.sum((2, 3)) + found.prefix_scores.sum(2),
        torch.full((2, 3), 0.5, dtype=torch.float64),
        rtol=1e-6,
        atol=0,
    )


def test_head_without_bias_and_twice_its_size_gives_the_same_map(toy_vit, toy_images):
    model = toy_vit()
    expected = estimator("partial_lrp")(model, toy_images).scores
    with torch.no_grad():
        model.head.weight.mul_(2)
        model.head.bias.zero_()
    assert_close(estimator("partial_lrp")(model, toy_images).scores, expected)


def test_a_head_that_is_not_linear_is_taken_as_its_gradient(toy_vit, toy_images):
    """tanh scales every gradient by a positive number, and shares don't depend on a scale."""
    model = toy_vit()
    bent = ClassTokenModel(model, lambda images: images, lambda x: torch.tanh(model.head(x) / 50))
    expected = estimator("partial_lrp")(model, toy_images).scores
    assert_close(estimator("partial_lrp")(bent, toy_images).scores, expected)


def test_refuses_a_layer_without_a_rule(toy_vit, toy_images):
    with pytest.raises(ModelError, match=r"partial_lrp.*SwiGLU"):
        estimator("partial_lrp")(toy_vit(mlp_layer=SwiGLU), toy_images)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", LAYERS)
def test_refuses_a_layer_that_does_more_than_its_weight(toy_vit, toy_images, name, change):
    """An adapter's part would be left out, and the map be that of another model."""
    model = toy_vit()
    block = model.blocks[-1]
    block.set_submodule(name, change(block.get_submodule(name)))
    with pytest.raises(ModelError, match=rf"^partial_lrp .* what {name} does: merge the adapter"):
        estimator("partial_lrp")(model, toy_images)


@pytest.mark.parametrize("name", ["attn", "mlp"])
@pytest.mark.parametrize("change", [with_hook, with_forward_of_its_own])
def test_refuses_a_branch_that_somebody_has_changed(toy_vit, toy_images, name, change):
    model = toy_vit()
    change(model.blocks[-1].get_submodule(name))
    with pytest.raises(ModelError, match=r"^partial_lrp .* what (Attention|Mlp) does: merge"):
        estimator("partial_lrp")(model, toy_images)


@pytest.mark.parametrize("name", LAYERS)
def test_a_pruned_layer_is_its_weight(toy_vit, toy_images, name):
    model = toy_vit()
    whole = estimator("partial_lrp")(model, toy_images).scores
    layer = model.blocks[-1].get_submodule(name)
    prune.l1_unstructured(layer, "weight", 0.5)
    found = estimator("partial_lrp")(model, toy_images).scores
    prune.remove(layer, "weight")
    assert_close(found, estimator("partial_lrp")(model, toy_images).scores)
    assert not torch.allclose(found, whole)


@pytest.mark.parametrize("name", LAYERS)
def test_a_parametrised_layer_is_its_weight(toy_vit, toy_images, name):
    model, plain = toy_vit(), toy_vit()
    layer = parametrizations.weight_norm(model.blocks[-1].get_submodule(name))
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)
        plain.blocks[-1].get_submodule(name).weight.copy_(layer.weight)
    expected = estimator("partial_lrp")(plain, toy_images).scores
    assert_close(estimator("partial_lrp")(model, toy_images).scores, expected)


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_the_default_type_does_not_matter(toy_vit, toy_images, default):
    model, images = toy_vit().float(), toy_images.float()
    expected = estimator("partial_lrp")(model, images).scores
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        found = estimator("partial_lrp")(model, images).scores
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)
