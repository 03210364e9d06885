"""Maps are of the model's own pass, whatever anybody has put into it, or are refused."""

import gc
import sys
import threading
import types
import weakref
from functools import partial

import pytest
import torch
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import nn
from torch.nn.modules import module as torch_module
from torch.testing import assert_close

from cdam_med.attribution.cdam import Cdam, cdam_scores
from cdam_med.attribution.class_token import ClassTokenModel, class_token_model
from cdam_med.attribution.registry import estimator
from cdam_med.errors import ModelError


def mix(_, __, output):
    """A hook that gives every token a part of all others."""
    return output - 0.5 * output.mean(1, keepdim=True)


class Mixing(nn.Module):
    """The same as a module in the place of another."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return mix(None, None, self.part(x))


def hook_on(name, model):
    model.get_submodule(name).register_forward_hook(mix)


def module_at(name, model):
    model.set_submodule(name, Mixing(model.get_submodule(name)).eval())


def one_block_at_three_depths(model):
    block = model.blocks[0]
    model.blocks = nn.Sequential(block, block, block)


def a_sequential_of_its_own(model):
    class Halving(nn.Sequential):
        def forward(self, x):
            return super().forward(x) / 2 + x / 2

    model.blocks = Halving(*model.blocks)


def a_forward_of_its_own(name, model):
    part = model.get_submodule(name)
    forward = part.forward
    part.forward = types.MethodType(lambda _, x, **others: forward(x, **others).sin(), part)


def features_of_its_own(model):
    forward = model.forward_features
    model.forward_features = lambda x, **others: 2 * forward(x, **others)


def head_of_its_own(model):
    model.forward_head = lambda x: model.head(x[:, 0]).softmax(-1)


def zero_adapter_that_was_trained(model):
    """A change of weights alone: an adapter that did nothing when the model was first explained."""
    adapter = nn.Linear(24, 24, bias=False).double()
    nn.init.zeros_(adapter.weight)
    model.blocks[-1].attn.proj.register_forward_hook(
        lambda _, __, output: output + adapter(output.mean(1, keepdim=True))
    )
    model.blocks[-1].attn.proj.adapter = adapter
    cdam_scores(model, torch.randn(1, 3, 16, 24).double())
    with torch.no_grad():
        adapter.weight.add_(torch.eye(24))


LAST = "blocks.2."
CHANGES = {
    **{
        f"hook on {name}": partial(hook_on, LAST + name)
        for name in ("attn.proj", "ls1", "norm2", "mlp", "mlp.act", "attn", "norm1", "drop_path2")
    },
    **{
        f"module at {name}": partial(module_at, LAST + name)
        for name in ("attn.proj", "norm2", "mlp.fc1", "mlp.act", "ls1")
    },
    "hook on the final norm": partial(hook_on, "norm"),
    "module in place of the final norm": partial(module_at, "norm"),
    "hook on the blocks": partial(hook_on, "blocks"),
    "hook on the model": lambda model: model.register_forward_hook(lambda _, __, y: y.sin()),
    "blocks in a Sequential of its own": a_sequential_of_its_own,
    "one block at three depths": one_block_at_three_depths,
    "forward set on the model": partial(a_forward_of_its_own, ""),
    "forward set on the blocks": partial(a_forward_of_its_own, "blocks"),
    "forward set on mlp": partial(a_forward_of_its_own, LAST + "mlp"),
    "forward_features set": features_of_its_own,
    "forward_head set": head_of_its_own,
    "an adapter that was trained since": zero_adapter_that_was_trained,
}


def by_own_pass(model, images):
    """CDAM of all tokens, and outputs, with nothing but hooks on the unmodified model and torch."""
    kept, scores = {}, []
    handle = model.blocks[-1].norm1.register_forward_hook(lambda _, __, T: kept.update(T=T))
    outputs = model(images)
    handle.remove()
    for output in outputs.sum(0):
        (gradient,) = torch.autograd.grad(output, kept["T"], retain_graph=True)
        scores.append((kept["T"] * gradient).sum(-1))
    return torch.stack(scores, dim=1).detach(), outputs.detach()


def assert_is_own(found, expected):
    scores, outputs = expected
    everything = torch.cat((found.prefix_scores, found.scores.flatten(2)), dim=2)
    assert_close(everything, scores, rtol=1e-10, atol=1e-11 * scores.abs().max().item())
    assert_close(found.outputs, outputs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "explained_before"),
    [
        pytest.param({}, True, id="known form, explained before"),
        pytest.param({}, False, id="known form", marks=pytest.mark.slow),
        pytest.param({"qk_norm": True}, True, id="another", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_was_changed_is_in_the_map(change, options, explained_before, toy_vit, toy_images):
    model = toy_vit(depth=3, **options)
    plain = by_own_pass(model, toy_images)
    if explained_before:
        assert_is_own(cdam_scores(model, toy_images), plain)
    change(model)
    expected = by_own_pass(model, toy_images)
    assert not torch.allclose(expected[0], plain[0])
    for _ in range(2):  # also with what was found the first time
        assert_is_own(cdam_scores(model, toy_images), expected)


@pytest.mark.parametrize(
    ("kind", "function"),
    [(Attention, "forward"), (VisionTransformer, "forward_features"), (VisionTransformer, "pool")],
)
def test_functions_of_timms_classes_that_somebody_replaced(
    kind, function, toy_vit, toy_images, monkeypatch
):
    model, own = toy_vit(), getattr(kind, function)
    cdam_scores(model, toy_images)
    monkeypatch.setattr(kind, function, lambda self, x, **others: own(self, x, **others).sin())
    assert_is_own(cdam_scores(model, toy_images), by_own_pass(model, toy_images))


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.GELU])
def test_global_hooks_of_torch(kind, toy_vit, toy_images):
    model = toy_vit()
    cdam_scores(model, toy_images)
    handle = torch_module.register_module_forward_hook(
        lambda module, _, output: mix(None, None, output) if isinstance(module, kind) else None
    )
    try:
        found, expected = cdam_scores(model, toy_images), by_own_pass(model, toy_images)
    finally:
        handle.remove()
    assert_is_own(found, expected)


OTHERS = (
    "smooth_cdam",
    "integrated_cdam",
    "integrated_cdam_block_input",
    "grad_cam",
    "legrad",
    "partial_lrp",
    "token_ablation",
    "attention_map",
    "occlusion",
)


def few(name):
    """A method of this name, with few versions of the tokens where it averages over some."""
    settings = {"samples": 3} if "smooth" in name else {}
    return estimator(name, **({"steps": 3} if "integrated" in name else settings))


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    "change",
    [
        "hook on the final norm",
        "one block at three depths",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "hook on attn.proj",
                "hook on the blocks",
                "hook on the model",
                "blocks in a Sequential of its own",
            )
        ),
    ],
)
def test_outputs_of_other_estimators_are_the_models_own_or_it_is_refused(
    name, change, toy_vit, toy_images
):
    model = toy_vit(depth=3)
    CHANGES[change](model)
    method = few(name)
    try:
        found = method(model, toy_images)
    except ModelError:
        assert name in {"legrad", "partial_lrp", "token_ablation"}
        return
    with torch.no_grad():
        assert_close(found.outputs, model(toy_images), rtol=1e-10, atol=1e-11)


def test_an_unshared_copy_of_a_shared_block_has_the_same_averaged_maps(toy_vit, toy_images):
    shared, copies = toy_vit(depth=3), toy_vit(depth=3)
    one_block_at_three_depths(shared)
    for block in copies.blocks:
        block.load_state_dict(shared.blocks[0].state_dict())
    for name in ("smooth_cdam", "smooth_cdam_normed", "integrated_cdam", "attention_map"):
        settings = {} if name == "attention_map" else {"steps" if "int" in name else "samples": 3}
        method = estimator(name, **settings)
        one, other = method(shared, toy_images), method(copies, toy_images)
        assert_close(one.scores, other.scores, rtol=1e-9, atol=1e-11)


def test_only_what_is_unequal_takes_the_general_path_and_verify_can_be_left_out(
    toy_vit, toy_images
):
    model = toy_vit()
    assert cdam_scores(model, toy_images).path == "closed form"
    model.blocks[-1].mlp.register_forward_hook(lambda _, __, output: 2 * output)  # of each token
    assert cdam_scores(model, toy_images).path == "closed form"
    hook_on("blocks.1.mlp", model)
    assert cdam_scores(model, toy_images).path == "autograd"
    assert cdam_scores(model, toy_images, verify=False).path == "closed form"
    assert Cdam(verify=False)(model, toy_images).path == "closed form"


def test_each_state_is_verified_once(toy_vit, toy_images):
    model, passes = toy_vit(), []
    model.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    cdam_scores(model, toy_images)
    assert len(passes) == 2  # the batch, and its first image
    cdam_scores(model, 2 * toy_images)
    assert len(passes) == 3
    with torch.no_grad():
        model.head.weight.mul_(2)
    cdam_scores(model, toy_images)
    assert len(passes) == 5
    cdam_scores(model, toy_images, verify=False)
    assert len(passes) == 6


def test_what_is_known_of_a_model_does_not_keep_it(toy_vit, toy_images):
    model = toy_vit()
    cdam_scores(model, toy_images)
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


class Describing(nn.Module):
    """A model that says of itself what it doesn't do."""

    def __init__(self, vit, factor):
        super().__init__()
        self.vit, self.factor = vit, factor

    def forward(self, images):
        return self.factor * self.vit(images)

    def class_token_model(self):
        return ClassTokenModel(self.vit, lambda images: images, self.vit.head)


@pytest.mark.parametrize("name", ["cdam", "grad_cam", "occlusion", "random"])
def test_a_model_that_describes_itself_wrongly_is_refused(name, toy_vit, toy_images):
    estimator(name)(Describing(toy_vit(), 1), toy_images)
    with pytest.raises(
        ModelError, match=r"Vis.* gives .* by the description that Describing.class"
    ):
        estimator(name)(Describing(toy_vit(), 2), toy_images)
    described = Describing(toy_vit(), 2).class_token_model()
    estimator(name)(described, toy_images)


class BatchMixing(nn.Module):
    def forward(self, x):
        return x - 0.5 * x.mean(0, keepdim=True)


@pytest.mark.parametrize("place", ["patch_embed.norm", "blocks.0.drop_path1", "fc_norm"])
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["known form", "another"])
def test_a_model_that_mixes_the_images_of_a_batch_is_refused(place, options, toy_vit, toy_images):
    model = toy_vit(**options)
    model.set_submodule(place, BatchMixing())
    with pytest.raises(ModelError, match=r"in a batch of 2 images, .* for the same image alone"):
        cdam_scores(model, toy_images)


def test_prompt_tokens_are_refused(toy_vit, toy_images):
    model = toy_vit()
    prompt = torch.zeros(1, 5, 24).double()
    model.norm_pre.register_forward_hook(
        lambda _, __, x: torch.cat((x[:, :1], prompt.expand(len(x), -1, -1), x[:, 1:]), dim=1)
    )
    for name in ("cdam", "smooth_cdam", "grad_cam", "attention_map", "token_ablation"):
        with pytest.raises(ModelError, match=r"VisionTransformer has 30 tokens .* 24 patches"):
            estimator(name)(model, toy_images)


def test_merged_tokens_are_refused(toy_vit, toy_images):
    model = toy_vit()
    model.blocks[0].register_forward_hook(lambda _, __, x: x[:, :-7])
    with pytest.raises(ModelError, match=r"VisionTransformer has 18 tokens .* 24 patches"):
        cdam_scores(model, toy_images)


class WithoutNorm(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block


def test_a_block_that_does_not_call_its_norm_is_refused(toy_vit, toy_images):
    model = toy_vit()
    block = model.blocks[-1]
    block.forward = lambda x, **_: x + block.attn(nn.functional.layer_norm(x, (24,)))
    with pytest.raises(
        ModelError, match="VisionTransformer doesn't call its norm before attention"
    ):
        cdam_scores(model, toy_images)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantised_model_is_refused_by_name(toy_vit, toy_images):
    model = torch.ao.quantization.quantize_dynamic(toy_vit().float(), {nn.Linear})
    with pytest.raises(ModelError, match=r"VisionTransformer .*quantised"):
        cdam_scores(model, toy_images.float())


def test_a_wrapped_patch_embedding_is_looked_into(toy_vit, toy_images):
    class Wrapped(nn.Module):
        def __init__(self, within):
            super().__init__()
            self.within = within

        def forward(self, images):
            return 2 * self.within(images)

    model = toy_vit()
    model.patch_embed = Wrapped(model.patch_embed)
    assert_is_own(cdam_scores(model, toy_images), by_own_pass(model, toy_images))
    model.patch_embed = nn.Conv2d(3, 24, 4)
    with pytest.raises(ModelError, match="VisionTransformer embeds its patches by Conv2d"):
        cdam_scores(model, toy_images)


def test_what_has_no_values_is_refused(toy_vit, toy_images):
    with pytest.raises(ValueError, match="on meta"):
        cdam_scores(toy_vit(), toy_images.to("meta"))
    with pytest.raises(ModelError, match="has no floating-point weights with values"):
        cdam_scores(toy_vit().to("meta"), toy_images)


def test_a_norm_of_the_batch_is_fine_in_evaluation_mode(toy_vit, toy_images):
    model = toy_vit()
    model.head = nn.Sequential(nn.BatchNorm1d(24), nn.Linear(24, 3)).double()
    model.train()
    found = cdam_scores(model, toy_images)
    assert_is_own(found, by_own_pass(model.eval(), toy_images))
    model.head[0].track_running_stats = False
    model.head[0].running_mean = model.head[0].running_var = None
    with pytest.raises(ModelError, match=r"VisionTransformer failed .*more than 1 value"):
        cdam_scores(model, toy_images)


def test_a_model_under_no_grad_of_its_owner_is_explained(toy_vit, toy_images):
    """A frozen backbone within another module's pass."""

    class Frozen(nn.Module):
        def __init__(self, vit, head):
            super().__init__()
            self.vit, self.head = vit, head

        def forward(self, images):
            with torch.no_grad():
                features = self.vit(images)
            return self.head(features)

    vit, head = toy_vit(num_classes=0), nn.Linear(24, 3).double()
    model = ClassTokenModel(vit, lambda x: x, None, forward=Frozen(vit, head))
    expected = toy_vit(num_classes=0)
    expected.head = head
    assert_is_own(cdam_scores(model, toy_images), by_own_pass(expected, toy_images))


@pytest.mark.parametrize("has_readout", [False, True])
@pytest.mark.parametrize(
    "forward",
    [
        lambda vit, x: vit(x) + vit(x.flip(-1)),
        lambda vit, x: vit(torch.cat((x, x.flip(-1)))).view(2, -1, 3)[0],
    ],
    ids=["one after the other", "in one batch"],
)
def test_a_pass_of_several_views_is_refused(forward, has_readout, toy_vit, toy_images):
    vit = toy_vit(qk_norm=True)
    readout = vit.head if has_readout else None
    model = ClassTokenModel(vit, lambda x: x, readout, forward=partial(forward, vit))
    with pytest.raises(ModelError, match=r"2 images for one|2 times in one|tokens of 4 images"):
        cdam_scores(model, toy_images)


def test_a_whole_model_compiled_in_place_is_explained(toy_vit, toy_images):
    model, plain = toy_vit(qk_norm=True), toy_vit(qk_norm=True)
    model.compile(backend="eager")
    for block in model.blocks:
        block.compile(backend="eager")
    with torch.no_grad():
        model(toy_images)
    assert_is_own(cdam_scores(model, toy_images), by_own_pass(plain, toy_images))
    assert all(block._compiled_call_impl is not None for block in (model, *model.blocks))


@pytest.mark.parametrize(
    "name",
    [
        "cdam",
        "attention_map",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("smooth_cdam", "grad_cam", "legrad", "token_ablation", "partial_lrp")
        ),
    ],
)
def test_a_thread_that_only_predicts_neither_disturbs_nor_is_disturbed(name, toy_vit, toy_images):
    options = {"qk_norm": True} if "cdam" in name else {}
    model = toy_vit(depth=4, **options)
    method = few(name)
    expected = method(model, toy_images)
    other = 3 * toy_images.flip(0)
    with torch.no_grad():
        expected_outputs = model(other)
    stop, wrong = threading.Event(), []

    def predict():
        with torch.no_grad():
            while not stop.is_set():
                outputs = model(other)
                if outputs.requires_grad or not torch.allclose(outputs, expected_outputs):
                    wrong.append(outputs)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=predict)
    thread.start()
    try:
        for _ in range(5):
            found = method(model, toy_images)
            assert_close(found.scores, expected.scores, rtol=1e-9, atol=1e-12)
            assert_close(found.outputs, expected.outputs, rtol=1e-9, atol=1e-12)
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert not wrong


def test_a_description_with_a_forward_needs_no_readout(toy_vit, toy_images):
    vit = toy_vit()
    whole = ClassTokenModel(vit, lambda x: x, None, forward=vit)
    assert_is_own(cdam_scores(whole, toy_images), by_own_pass(vit, toy_images))
    assert class_token_model(whole).output_count == 3
    with pytest.raises(
        ModelError, match=r"how VisionTransformer reads|How VisionTransformer reads"
    ):
        estimator("token_ablation")(whole, toy_images)
