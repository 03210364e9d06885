"""What CDAM leaves behind: nothing, after success and after an error, in every mode."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cdam_med.attribution.cdam import cdam_scores
from cdam_med.attribution.class_token import ClassTokenModel
from cdam_med.attribution.combinations import OutputFunction
from cdam_med.attribution.vit import Pooling
from cdam_med.errors import ModelError, TargetError

PATHS = {"closed form": {}, "autograd": {"qk_norm": True}}


@pytest.fixture(params=PATHS, ids=lambda path: path)
def model(request, toy_vit):
    """Part trained, part frozen, in training mode but for one part, with a gradient kept."""
    model = toy_vit(**PATHS[request.param], drop_rate=0.3, drop_path_rate=0.3)
    model.train()
    model.blocks[0].eval()
    model.patch_embed.requires_grad_(False)
    model.head.weight.grad = torch.full_like(model.head.weight, 7.0)
    return model


def state_of(model: nn.Module) -> dict[str, object]:
    """Everything about a model that an attribution has no business changing."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "training": [module.training for module in model.modules()],
        "hooks": [len(getattr(module, kind)) for module in model.modules() for kind in hooks],
        "modules": [id(module) for module in model.modules()],
        "trainable": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [id(p.grad) if p.grad is not None else None for p in model.parameters()],
        "versions": [parameter._version for parameter in model.parameters()],
        "gradient": model.head.weight.grad.clone().tolist(),
        "grad mode": torch.is_grad_enabled(),
    }


class RaisesOnBatches(nn.Linear):
    """A head that fails inside the pass, but not when asked how many outputs it has."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if len(features) > 1:
            raise RuntimeError("out of memory")
        return super().forward(features)


def test_nothing_is_left_behind(model, toy_images):
    before = state_of(model)
    found = cdam_scores(model, toy_images)
    assert state_of(model) == before
    assert not any(t.requires_grad for t in (found.scores, found.prefix_scores, found.outputs))


def test_nothing_is_left_behind_after_an_error_inside(model, toy_images):
    gradient = model.head.weight.grad
    model.head = RaisesOnBatches(24, 3).double()
    model.head.weight.grad = gradient
    before = state_of(model)
    with pytest.raises(ModelError, match=r"VisionTransformer failed .*out of memory"):
        cdam_scores(model, toy_images)
    assert state_of(model) == before


def test_nothing_is_left_behind_after_a_refusal(model, toy_images):
    before = state_of(model)
    with pytest.raises(TargetError):
        cdam_scores(model, toy_images, targets=99)
    assert state_of(model) == before


def test_dropout_is_off(model, toy_images):
    first, second = cdam_scores(model, toy_images), cdam_scores(model.eval(), toy_images)
    assert torch.equal(first.scores, second.scores)


def test_works_whatever_the_grad_mode(model, toy_images):
    expected = cdam_scores(model, toy_images).scores
    model.requires_grad_(False)
    assert torch.equal(cdam_scores(model, toy_images).scores, expected)
    with torch.no_grad():
        assert torch.equal(cdam_scores(model, toy_images).scores, expected)
    with torch.inference_mode():
        assert torch.equal(cdam_scores(model, toy_images.clone()).scores, expected)
    assert torch.equal(cdam_scores(model, toy_images.clone().requires_grad_()).scores, expected)


@pytest.mark.parametrize(
    ("dtype", "share_of_largest"),
    [(torch.float32, 5e-6), (torch.bfloat16, 5e-2), (torch.float16, 5e-3)],
)
def test_weights_of_lower_precision(model, toy_images, dtype, share_of_largest):
    exact = cdam_scores(model, toy_images).scores.float()
    found = cdam_scores(model.to(dtype), toy_images)
    assert found.scores.dtype == torch.float32
    assert found.outputs.dtype == dtype
    assert_close(found.scores, exact, atol=share_of_largest * exact.abs().amax().item(), rtol=0)


HEAD = nn.Sequential(nn.Dropout(0.5), nn.Linear(24, 3).double())


class Holder:
    """An object that is no module and has one."""

    def __init__(self, head):
        self.head = head

    def read(self, token):
        return self.head(token)


@pytest.mark.parametrize(
    "readout",
    [
        lambda head: lambda token: head(token),
        lambda head: partial(lambda part, token: part(token), head),
        lambda head: Holder(head).read,
        lambda _: lambda token: [HEAD(each) for each in (token,)][0],  # noqa: RUF015
    ],
    ids=["variable", "partial", "object", "global"],
)
@pytest.mark.parametrize("place", ["readout", "pooling", "target"])
def test_dropout_behind_functions_is_found_by_what_it_does(toy_vit, toy_images, readout, place):
    """Wherever the random layer is hidden, also where the model was explained before."""
    vit, function, head = toy_vit(num_classes=0), readout(HEAD), HEAD.eval()
    if place == "readout":
        model, targets = ClassTokenModel(vit, lambda x: x, function), None
    elif place == "pooling":
        pooling = Pooling("own", lambda tokens: function(tokens.mean(1)))
        model, targets = ClassTokenModel(vit, lambda x: x, nn.Identity(), pooling=pooling), None
    else:
        model, targets = vit, OutputFunction(lambda outputs: function(outputs)[:, 0], "own")
    first = cdam_scores(model, toy_images, targets)
    head.train()
    try:
        with pytest.raises(ModelError, match=r"run twice .* random.*with .eval\(\), dropout"):
            cdam_scores(model, toy_images, targets)
    finally:
        head.eval()
    assert torch.equal(first.scores, cdam_scores(model, toy_images, targets).scores)


class Described(nn.Module):
    """A head of one's own, a method of which is the readout."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.linear = nn.Dropout(0.5), nn.Linear(24, 3).double()

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        return self.linear(self.dropout(token))


@pytest.mark.parametrize("readout", [lambda head: head, lambda head: head.forward])
def test_dropout_is_off_in_a_readout_of_ones_own_too(toy_vit, toy_images, readout):
    vit, head = toy_vit(num_classes=0), Described().train()
    found = cdam_scores(ClassTokenModel(vit, lambda x: x, readout(head)), toy_images)
    with torch.no_grad():
        assert_close(found.outputs, head.linear(vit(toy_images)), atol=1e-12, rtol=0)
    assert head.dropout.training


def test_a_model_made_in_inference_mode_is_refused_in_our_words(toy_vit, toy_images):
    with torch.inference_mode():
        model = copy.deepcopy(toy_vit())
    with pytest.raises(ModelError, match="VisionTransformer was made or moved within"):
        cdam_scores(model, toy_images)
