"""What every estimator in the registry promises, whichever it is."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cdam_med.attribution.combinations import difference
from cdam_med.attribution.estimator import Attribution, Estimator
from cdam_med.attribution.registry import ESTIMATORS, estimator
from cdam_med.errors import MethodError, TargetError
from cdam_med.models.class_token import ClassTokenModel, class_token_model
from data_prep.errors import InputError

FEW = {"samples": 2, "steps": 2}
"""Instead of fifty, to be quick."""

ROWS, COLUMNS = 4, 6
HEIGHT, WIDTH = 16, 24


@pytest.fixture(params=ESTIMATORS)
def explain(request) -> Estimator:
    fields = {field.name for field in dataclasses.fields(ESTIMATORS[request.param])}
    return estimator(request.param, **{k: v for k, v in FEW.items() if k in fields})


@pytest.fixture
def model(toy_vit):
    """Part trained, part frozen, in training mode but for one part, with a gradient kept."""
    model = toy_vit(reg_tokens=2, drop_rate=0.3, drop_path_rate=0.3).train()
    model.blocks[0].eval()
    model.patch_embed.requires_grad_(False)
    model.head.weight.grad = torch.full_like(model.head.weight, 7.0)
    return model


class RaisesOnBatches(nn.Linear):
    """A head that fails inside the pass, but not when asked how many outputs it has."""

    def forward(self, features):
        if len(features) > 1:
            raise RuntimeError("out of memory")
        return super().forward(features)


def state_of(model: nn.Module) -> dict[str, object]:
    """Everything about a model that an attribution has no business changing."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "training": [module.training for module in model.modules()],
        "hooks": [len(getattr(module, kind)) for module in model.modules() for kind in hooks],
        "modules": [id(module) for module in model.modules()],
        "forwards": ["forward" in vars(module) for module in model.modules()],
        "fused": [getattr(module, "fused_attn", None) for module in model.modules()],
        "trainable": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [id(p.grad) if p.grad is not None else None for p in model.parameters()],
        "versions": [parameter._version for parameter in model.parameters()],
        "gradient": model.head.weight.grad.clone().tolist(),
        "grad mode": torch.is_grad_enabled(),
    }


def test_attribution_is_what_it_says(explain, model, toy_images):
    found = explain(model, toy_images, [2, 0])
    size = (ROWS, COLUMNS) if explain.resolution == "patch" else (HEIGHT, WIDTH)
    assert isinstance(found, Attribution)
    assert found.scores.shape == (2, 2, *size)
    assert found.scores.isfinite().all()
    assert (found.scores != 0).any()
    assert found.targets == (2, 0)
    assert (found.estimator, found.resolution) == (explain.name, explain.resolution)
    assert found.is_signed == explain.is_signed
    assert explain.is_signed or (found.scores >= 0).all()
    if found.prefix_scores is not None:
        assert found.prefix_scores.shape == (2, 2, 3)
    assert found.path
    assert not found.scores.requires_grad
    with torch.no_grad():
        assert_close(found.outputs, model.eval()(toy_images)[:, [2, 0]], atol=1e-10, rtol=0)


def test_words_about_it_are_there(explain):
    assert isinstance(explain, Estimator)
    assert ESTIMATORS[explain.name] is type(explain)
    assert explain.title
    assert explain.reference
    assert explain.cost
    assert explain == type(explain)(**dataclasses.asdict(explain))
    with pytest.raises(dataclasses.FrozenInstanceError):
        explain.samples = 3


def test_all_targets_unless_some_are_named(explain, toy_vit, toy_images):
    plain = class_token_model(toy_vit())
    named = ClassTokenModel(plain.vit, plain.prepare, plain.readout, ("a", "b", "c"))
    every = explain(named, toy_images)
    assert every.targets == ("a", "b", "c")
    one = explain(named, toy_images, "b")
    assert one.targets == ("b",)
    assert_close(one.scores[:, 0], every.scores[:, 1], atol=1e-11, rtol=0)


def test_combination_is_a_target_like_any_other(explain, toy_vit, toy_images):
    model = toy_vit()
    found = explain(model, toy_images, [difference(0, 1), 2])
    assert found.targets == ("0 - 1", 2)
    with torch.no_grad():
        outputs = model(toy_images)
    assert_close(found.outputs[:, 0], outputs[:, 0] - outputs[:, 1], atol=1e-10, rtol=0)
    assert_close(found.scores[:, 1], explain(model, toy_images, 2).scores[:, 0], atol=1e-11, rtol=0)


def test_same_seed_same_maps(explain, toy_vit, toy_images):
    model = toy_vit()
    before = torch.random.get_rng_state()
    first, second = (explain(model, toy_images, seed=3) for _ in range(2))
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's numbers are used


def test_a_batch_gives_what_its_images_give_alone(explain, toy_vit, toy_images):
    model, images = toy_vit(), torch.cat((2 * toy_images, toy_images))
    together = explain(model, images, seed=1)
    for index, image in enumerate(images):
        alone = explain(model, image[None], seed=1)
        assert_close(together.scores[index], alone.scores[0], atol=1e-11, rtol=0)
        assert_close(together.outputs[index], alone.outputs[0], atol=1e-11, rtol=0)


def test_nothing_is_left_behind(explain, model, toy_images):
    before = state_of(model)
    explain(model, toy_images)
    assert state_of(model) == before


def test_nothing_is_left_behind_after_an_error(explain, model, toy_images):
    gradient = model.head.weight.grad
    model.head = RaisesOnBatches(24, 3).double()
    model.head.weight.grad = gradient
    before = state_of(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        explain(model, toy_images)
    assert state_of(model) == before


def test_nothing_is_left_behind_after_a_refusal(explain, model, toy_images):
    before = state_of(model)
    with pytest.raises(TargetError):
        explain(model, toy_images, 99)
    with pytest.raises(InputError):
        explain(model, toy_images[0])
    assert state_of(model) == before


def test_works_whatever_the_grad_mode(explain, toy_vit, toy_images):
    model = toy_vit()
    expected = explain(model, toy_images).scores
    model.requires_grad_(False)
    with torch.inference_mode():
        assert torch.equal(explain(model, toy_images.clone()).scores, expected)
    with torch.no_grad():
        assert torch.equal(explain(model, toy_images).scores, expected)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if "cdam" in name])
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["closed form", "autograd"])
def test_autocast_rounds_blocks_but_not_sums(name, options, toy_vit, toy_images):
    model, explain = toy_vit(**options).float(), estimator(name)
    exact = explain(model, toy_images).scores
    with torch.autocast("cpu", torch.bfloat16):
        found = explain(model, toy_images)
    assert found.scores.dtype == torch.float32
    assert_close(found.scores, exact, atol=5e-2 * exact.abs().amax().item(), rtol=0)
    if not options:
        assert found.outputs.dtype == torch.float32


def test_estimator_by_name():
    assert estimator("smooth_cdam", samples=7).samples == 7
    with pytest.raises(MethodError, match="did you mean 'smooth_cdam'"):
        estimator("smoothcdam")
    with pytest.raises(MethodError, match="no estimator 'xyz': The estimators are cdam"):
        estimator("xyz")
    with pytest.raises(MethodError, match="no setting 'sampels': it has noise, samples"):
        estimator("smooth_cdam", sampels=7)
    with pytest.raises(MethodError, match="no setting 'noise': it has none"):
        estimator("cdam", noise=1)
