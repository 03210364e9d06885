"""What every estimator promises: what it gives, that it can be repeated, what it leaves behind."""

import copy
import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import nn
from torch.testing import assert_close

from cdam_med.attribution.class_token import ClassTokenModel, class_token_model
from cdam_med.attribution.combinations import OutputFunction, difference
from cdam_med.attribution.method import Method
from cdam_med.attribution.registry import METHODS, estimator
from cdam_med.errors import CdamError, MethodError, ModelError, TargetError

FEW = {"samples": 4, "steps": 4}
"""Settings that only cost time here."""

SEEDED = {
    "smooth_cdam",
    "smooth_cdam_normed",
    "integrated_cdam_normed",
    "smoothgrad",
    "random",
}
LINEAR = {
    "cdam",
    "smooth_cdam",
    "integrated_cdam",
    "integrated_gradients",
    "smoothgrad",
    "input_x_gradient",
    "token_ablation",
    "occlusion",
}
"""Estimators whose map of a difference is the difference of maps."""

OTHER_MAPS_WHEN_ROUNDED = {"partial_lrp"}
"""It divides by sums that nearly cancel."""


def with_few_samples(name):
    fields = {field.name for field in dataclasses.fields(METHODS[name])}
    return estimator(name, **{key: value for key, value in FEW.items() if key in fields})


@pytest.fixture(params=METHODS)
def method(request):
    return with_few_samples(request.param)


@pytest.fixture
def model(toy_vit):
    return toy_vit(reg_tokens=2, no_embed_class=True)


def state_of(model):
    """Everything about a model that an estimator has no business changing."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "training": [module.training for module in model.modules()],
        "hooks": [len(getattr(module, kind)) for module in model.modules() for kind in hooks],
        "modules": [id(module) for module in model.modules()],
        "forwards": ["forward" in vars(module) for module in model.modules()],
        "flags": [getattr(module, "fused_attn", None) for module in model.modules()],
        "checkpointing": model.grad_checkpointing,
        "trainable": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [id(p.grad) if p.grad is not None else None for p in model.parameters()],
        "versions": [parameter._version for parameter in model.parameters()],
        "gradient": model.head.weight.grad.clone().tolist(),
        "grad mode": torch.is_grad_enabled(),
        "random": torch.get_rng_state().tolist(),
    }


@pytest.fixture
def unusual(toy_vit):
    """Part trained, part frozen, in training mode but for one part, with a gradient kept."""
    model = toy_vit(drop_rate=0.3, drop_path_rate=0.3)
    model.train()
    model.blocks[0].eval()
    model.blocks[1].attn.fused_attn = False
    model.patch_embed.requires_grad_(False)
    model.head.weight.grad = torch.full_like(model.head.weight, 7.0)
    return model


class Fails(nn.Module):
    """A part that fails inside the pass, but not when asked what it gives for zeros."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    @property
    def weight(self):
        return self.part.weight

    def forward(self, features):
        if features.any():
            raise RuntimeError("out of memory")
        return self.part(features)


def test_describes_itself(method):
    assert METHODS[method.name] is type(method)
    assert method.title
    assert method.reference
    assert method.cost
    assert method.resolution in ("patch", "pixel")
    assert isinstance(method, Method)
    assert method == type(method)(**dataclasses.asdict(method))
    assert estimator(method.name) == type(method)()
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.samples = 3


def test_by_name_with_settings():
    assert estimator("smooth_cdam", samples=7).samples == 7
    with pytest.raises(MethodError, match="did you mean 'smooth_cdam'"):
        estimator("smoothcdam")
    with pytest.raises(MethodError, match="no method 'xyz': The methods are cdam"):
        estimator("xyz")
    with pytest.raises(MethodError, match="no setting 'sampels': it has noise, samples"):
        estimator("smooth_cdam", sampels=7)
    with pytest.raises(MethodError, match="no setting 'noise': it has none"):
        estimator("attention_map", noise=1)


def test_gives_what_it_declares(method, model, toy_images):
    found = method(model, toy_images)
    size = (4, 6) if method.resolution == "patch" else (16, 24)
    assert found.scores.shape == (2, 3, *size)
    assert torch.isfinite(found.scores).all()
    assert (found.scores < 0).any() == method.is_signed
    assert (found.scores > 0).any()
    with torch.no_grad():
        assert_close(found.outputs, model(toy_images), rtol=0, atol=1e-10)
    assert found.targets == (0, 1, 2)
    assert found.method == method.name
    assert found.resolution == method.resolution
    assert found.is_signed == method.is_signed
    assert found.path
    if found.prefix_scores is not None:
        assert found.prefix_scores.shape == (2, 3, 3)
        assert torch.isfinite(found.prefix_scores).all()
    tensors = (found.scores, found.outputs, found.prefix_scores)
    assert not any(tensor.requires_grad for tensor in tensors if tensor is not None)


def test_a_batch_gives_what_its_images_give_alone(method, model, toy_images):
    together = method(model, toy_images, seed=3)
    for index, image in enumerate(toy_images):
        alone = method(model, image[None], seed=3)
        assert_close(together.scores[index], alone.scores[0], rtol=1e-8, atol=1e-11)
        assert_close(together.outputs[index], alone.outputs[0], rtol=0, atol=1e-11)


def test_is_repeatable_and_draws_from_its_seed_alone(method, model, toy_images):
    first = method(model, toy_images, seed=1)
    torch.manual_seed(99)
    second = method(model, toy_images, seed=1)
    assert torch.equal(first.scores, second.scores)
    other = method(model, toy_images, seed=2)
    assert torch.equal(first.scores, other.scores) != (method.name in SEEDED)


def test_targets_by_column_in_any_order(method, model, toy_images):
    every = method(model, toy_images)
    some = method(model, toy_images, [2, 0])
    assert some.targets == (2, 0)
    assert_close(some.scores, every.scores[:, [2, 0]], rtol=1e-9, atol=1e-12)
    assert_close(some.outputs, every.outputs[:, [2, 0]], rtol=0, atol=1e-12)


def test_targets_by_name(method, model, toy_images):
    plain = class_token_model(model)
    named = ClassTokenModel(plain.vit, plain.prepare, plain.readout, ("a", "b", "c"))
    every = method(named, toy_images)
    assert every.targets == ("a", "b", "c")
    one = method(named, toy_images, "b")
    assert one.targets == ("b",)
    assert_close(one.scores[:, 0], every.scores[:, 1], rtol=1e-9, atol=1e-11)


def test_differences_of_outputs_are_targets(method, model, toy_images):
    every = method(model, toy_images)
    found = method(model, toy_images, [difference(0, 2), 1])
    assert found.targets == ("0 - 2", 1)
    assert_close(found.outputs[:, 0], every.outputs[:, 0] - every.outputs[:, 2])
    if method.name in LINEAR:
        expected = every.scores[:, 0] - every.scores[:, 2]
        assert_close(found.scores[:, 0], expected, rtol=1e-5, atol=1e-8)


def test_nothing_is_left_behind(method, unusual, toy_images):
    before, images = state_of(unusual), toy_images.clone()
    method(unusual, images)
    assert state_of(unusual) == before
    assert torch.equal(images, toy_images)
    assert not images.requires_grad
    assert images.grad is None


@pytest.mark.parametrize("place", ["head", "last block", "first block", "norm"])
def test_nothing_is_left_behind_after_an_error_inside(method, place, unusual, toy_images):
    if place == "head":
        unusual.head = Fails(unusual.head)
    elif place == "norm":
        unusual.norm = Fails(unusual.norm)
    else:
        block = unusual.blocks[0 if place == "first block" else -1]
        block.mlp.fc2 = Fails(block.mlp.fc2)
    before = state_of(unusual)
    with pytest.raises(ModelError, match=r"VisionTransformer failed .*out of memory"):
        method(unusual, toy_images)
    assert state_of(unusual) == before


def test_nothing_is_left_behind_after_a_refusal(method, unusual, toy_images):
    before = state_of(unusual)
    with pytest.raises(TargetError):
        method(unusual, toy_images, targets=99)
    with pytest.raises(CdamError):
        method(unusual, toy_images[0])
    assert state_of(unusual) == before


def test_dropout_is_off(method, unusual, toy_images):
    first = method(unusual, toy_images)
    assert torch.equal(first.scores, method(unusual.eval(), toy_images).scores)


def test_works_whatever_the_grad_mode(method, model, toy_images):
    expected = method(model, toy_images).scores
    model.requires_grad_(False)
    assert_close(method(model, toy_images).scores, expected, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        assert_close(method(model, toy_images).scores, expected, rtol=1e-9, atol=1e-12)
    with torch.inference_mode():
        assert_close(method(model, toy_images.clone()).scores, expected, rtol=1e-9, atol=1e-12)
    asking = toy_images.clone().requires_grad_()
    assert_close(method(model, asking).scores, expected, rtol=1e-9, atol=1e-12)
    assert asking.grad is None


def test_single_precision_is_near_double(method, model, toy_images):
    expected = method(model, toy_images).scores
    found = method(model.float(), toy_images.float())
    assert found.scores.dtype == torch.float32
    if method.name not in SEEDED:  # which draw other numbers in another precision
        # the residual rule divides by sums that nearly cancel
        share = 1e-2 if method.name == "partial_lrp" else 1e-4
        assert_close(
            found.scores.double(), expected, rtol=0, atol=share * expected.abs().max().item()
        )


@pytest.mark.parametrize("rounding", ["weights", "autocast"])
def test_half_precision_gives_nearly_the_same_maps(method, rounding, model, toy_images):
    toy_images = toy_images.bfloat16().double()  # rounded they would draw other noise
    single = method(model.float(), toy_images)
    rounded = copy.deepcopy(model).bfloat16() if rounding == "weights" else model
    with torch.autocast("cpu", torch.bfloat16, enabled=rounding == "autocast"):
        found = method(rounded, toy_images)
    assert found.scores.dtype == single.scores.dtype == torch.float32
    assert torch.isfinite(found.scores).all()
    if rounding == "weights":
        assert found.outputs.dtype == torch.bfloat16
    if method.name not in OTHER_MAPS_WHEN_ROUNDED:
        pairs = torch.stack((found.scores.flatten(0, 1), single.scores.flatten(0, 1)), dim=1)
        for pair in pairs.flatten(2):
            assert torch.corrcoef(pair)[0, 1] > 0.95


@pytest.mark.parametrize("name", [name for name in METHODS if "cdam" in name])
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["known form", "another"])
def test_autocast_rounds_blocks_but_not_sums(name, options, toy_vit, toy_images):
    settings = {"steps": 10} if "integrated" in name else {"samples": 10}
    method = estimator(name, **(settings if name != "cdam" else {}))
    model = toy_vit(**options).float()
    exact = method(model, toy_images).scores
    with torch.autocast("cpu", torch.bfloat16):
        found = method(model, toy_images)
    assert_close(found.scores, exact, atol=5e-2 * exact.abs().amax().item(), rtol=0)
    if not options:
        assert found.outputs.dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["known form", "another"])
def test_every_tensor_is_made_on_the_models_device(method, options, toy_vit, toy_images):
    """Where tensors are made on another device unless told, one that isn't told can't be used."""
    if method.name == "integrated_gradients":
        pytest.skip("captum makes its list of steps where tensors are made, and reads it back")
    model = toy_vit(**options)
    expected = method(model, toy_images, seed=1)
    with torch.device("meta"):
        found = method(model, toy_images, seed=1)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.outputs, expected.outputs)


def test_tensors_of_a_librarys_own_class_are_taken_as_torchs(method, model, toy_images):
    monai = pytest.importorskip("monai.data")
    expected = method(model, toy_images, seed=1)
    found = method(model, monai.MetaTensor(toy_images), seed=1)
    for name in ("scores", "outputs", "prefix_scores"):
        values = getattr(expected, name)
        if values is not None:
            assert type(getattr(found, name)) is torch.Tensor
            assert torch.equal(getattr(found, name), values)


@pytest.mark.parametrize(
    "name", ["attention_map", "grad_cam", pytest.param("token_ablation", marks=pytest.mark.slow)]
)
def test_threads_that_explain_one_model_do_not_disturb_each_other(name, toy_vit, toy_images):
    model, method = toy_vit(depth=4, drop_path_rate=0.5, drop_rate=0.5), estimator(name)
    model.head.weight.grad = torch.zeros_like(model.head.weight)
    batches = [factor * toy_images for factor in (1, 2, 3, 4)]
    expected = [method(model, images).scores for images in batches]
    model.train()
    before = state_of(model)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that threads take turns amidst a pass
    try:
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda x: method(model, x).scores, 2 * batches))
    finally:
        sys.setswitchinterval(interval)
    for index, scores in enumerate(found):
        assert_close(scores, expected[index % 4], rtol=1e-9, atol=1e-12)
    assert state_of(model) == before


def test_a_model_can_be_explained_while_it_is_explained(toy_vit, toy_images):
    """Calls wait for other threads, not for themselves, also where a description is explained."""
    model = toy_vit()
    plain = class_token_model(model)

    def within(outputs):
        with torch.no_grad():
            again = estimator("cdam")(model, toy_images).outputs
        return outputs[:, 0] + 0 * again.sum()

    described = ClassTokenModel(model, plain.prepare, plain.readout)
    found = estimator("cdam")(described, toy_images, OutputFunction(within, "again"))
    assert_close(found.scores, estimator("cdam")(model, toy_images, 0).scores)


def test_distilled_models_with_two_tokens_that_are_read(method, toy_vit, toy_images):
    model = toy_vit(VisionTransformerDistilled)
    found = method(model, toy_images)
    assert found.scores.shape[:2] == (2, 3)
    with torch.no_grad():
        assert_close(found.outputs, model(toy_images), rtol=0, atol=1e-10)
    if found.prefix_scores is not None:
        assert found.prefix_scores.shape == (2, 3, 2)
