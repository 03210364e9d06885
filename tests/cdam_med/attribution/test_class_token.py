"""How a model's outputs are read from its class token, and which models are refused."""

from functools import partial

import jaxtyping
import numpy as np
import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import DataParallel
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close

from cdam_med.attribution.cdam import cdam_scores
from cdam_med.attribution.class_token import ClassTokenModel, class_token_model
from cdam_med.errors import CdamError, ModelError, TargetError

SMALL = {
    "img_size": (16, 24),
    "patch_size": 4,
    "embed_dim": 48,
    "depth": 1,
    "num_heads": 3,
    "num_classes": 3,
}


def small(model_class=VisionTransformer, **options):
    torch.manual_seed(0)
    model = model_class(**SMALL | options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


class Named:
    """A model that describes itself."""

    def class_token_model(self):
        vit = small(num_classes=0)
        head = nn.Linear(48, 2)
        return ClassTokenModel(vit, lambda grey: grey.expand(-1, 3, -1, -1), head, ("size", "edge"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reg_tokens": 4},
        {"fc_norm": True},
        {"final_norm": False},
        {"num_classes": 0},
        {"model_class": VisionTransformerDistilled},
        {"model_class": Eva, "global_pool": "token"},
        {"model_class": Eva, "global_pool": "token", "use_fc_norm": True},
        {"model_class": Beit, "global_pool": "token"},
        {"global_pool": "avg"},
        {"global_pool": "avg", "reg_tokens": 2, "pool_include_prefix": True},
        {"global_pool": "avg", "class_token": False},
        {"global_pool": "avgmax"},
        {"global_pool": "max", "fc_norm": False},
        {"global_pool": "map"},
        {"global_pool": "map", "class_token": False, "num_classes": 0},
        {"global_pool": "prr"},
        {"model_class": Eva},
        {"model_class": Eva, "global_pool": "map"},
        {"model_class": Beit},
        {"model_class": Beit, "use_fc_norm": False},
    ],
    ids=str,
)
def test_read_gives_the_models_own_outputs(options, images):
    model = small(**options)
    described = class_token_model(model)
    left_last_block = []
    model.blocks[-1].register_forward_hook(lambda _, __, tokens: left_last_block.append(tokens))
    expected = model(described.check_images(images))
    assert_close(described.read(left_last_block[0]), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            lambda: timm.create_model("resnet10t"),
            "ResNet is not a vision transformer of a known family",
        ),
        (lambda: nn.Linear(2, 2), "Linear is not a vision transformer of a known family"),
    ],
)
def test_other_models_are_refused_by_name(model, reason):
    with pytest.raises(ModelError, match=reason):
        class_token_model(model())


def test_a_described_vit_needs_a_class_token():
    vit = small(class_token=False, global_pool="avg")
    with pytest.raises(ModelError, match="no class token"):
        ClassTokenModel(vit, lambda images: images, vit.head)


def test_a_description_of_another_kind_is_refused():
    class Wrong:
        def class_token_model(self):
            return "a ViT"

    with pytest.raises(ModelError, match="of Wrong gives str, and must give a ClassTokenModel"):
        class_token_model(Wrong())


def test_a_description_may_be_a_property():
    class Property(Named):
        @property
        def class_token_model(self):
            return super().class_token_model()

    assert class_token_model(Property()).target_names == ("size", "edge")


def test_a_description_is_its_own_description():
    described = Named().class_token_model()
    assert class_token_model(described) is described


@pytest.mark.parametrize(
    ("targets", "columns"),
    [(None, (0, 1)), ("edge", (1,)), (0, (0,)), (["edge", 0, "edge"], (1, 0, 1)), ((1,), (1,))],
)
def test_targets_by_name_and_column(targets, columns):
    assert class_token_model(Named()).target_columns(targets) == columns


@pytest.mark.parametrize("targets", ["texture", 2, -1, ["edge", "texture"]])
def test_unknown_targets_are_told_what_there_is(targets):
    with pytest.raises(TargetError, match="0 to 1 or size, edge"):
        class_token_model(Named()).target_columns(targets)
    with pytest.raises(TargetError, match="choose from 0 to 2"):
        class_token_model(small()).target_columns("texture")


def test_no_target_at_all_is_refused():
    with pytest.raises(TargetError, match="No target"):
        class_token_model(small()).target_columns([])


@pytest.mark.parametrize("names", [("one",), ("one", "two", "three", "four"), ("a", "b", "a")])
def test_names_must_be_one_for_each_output_and_different(names):
    vit = small()
    described = ClassTokenModel(vit, lambda given: given, vit.head, names)
    for targets in (None, names[0], 0):
        with pytest.raises(ModelError, match=r"3 output\(s\), and the names .* all different"):
            described.target_columns(targets)


@pytest.mark.parametrize(
    ("prepare", "found"),
    [
        (lambda given: torch.cat((given, given)), r"2 image\(s\) .* not \(4, 3, 16, 24\)"),
        (lambda given: given[0], r"not \(3, 16, 24\)"),
        (lambda given: [given], "not list"),
    ],
)
def test_prepare_must_give_as_many_images(prepare, found, images):
    vit = small()
    with pytest.raises(ModelError, match=f"prepare of VisionTransformer must turn .*{found}"):
        ClassTokenModel(vit, prepare, vit.head).check_images(images)


def test_prepare_is_given_and_gives_tensors_of_torchs_own_class(images):
    class Carrying(torch.Tensor):
        """A tensor of a library, which stays one in all that is computed of it."""

    seen, vit = [], small()

    def prepare(given):
        seen.append(type(given))
        return given.as_subclass(Carrying)

    described = ClassTokenModel(vit, prepare, vit.head)
    assert type(described.check_images(images.as_subclass(Carrying))) is torch.Tensor
    assert seen == [torch.Tensor]


@pytest.mark.parametrize("kind", [VisionTransformer, Eva, Beit])
def test_outputs_of_each_token_are_refused(kind, images):
    vit = small(kind, global_pool="")
    with pytest.raises(
        ModelError, match=rf"{kind.__name__} gives \(2, 25, 3\) for 2 image.*readout"
    ):
        class_token_model(vit).outputs(images)


@pytest.mark.parametrize(
    "outputs",
    [
        lambda y: (y, y),
        lambda y: {"logits": y},
        lambda y: y[0],
        lambda y: y[..., None],
        lambda y: y[:1],
    ],
    ids=["tuple", "dict", "no batch", "one axis more", "one image less"],
)
def test_a_head_that_gives_something_else_is_refused(outputs, images):
    class Head(nn.Linear):
        def forward(self, token):
            return outputs(super().forward(token))

    vit = small()
    vit.head = Head(48, 3)
    with pytest.raises(ModelError, match=r"VisionTransformer gives .* tensor \(batch, target\)"):
        class_token_model(vit).outputs(images)
    with pytest.raises(ModelError, match=r"VisionTransformer gives .* tensor \(batch, target\)"):
        cdam_scores(vit, images)


@pytest.mark.parametrize("cut", [torch.no_grad(), None])
def test_a_readout_without_a_gradient_is_refused_where_one_is_wanted(cut):
    vit = small()
    readout = cut(vit.head.forward) if cut else lambda token: vit.head(token).detach()
    described = ClassTokenModel(vit, lambda given: given, readout)
    tokens = torch.randn(2, 25, 48)
    with torch.no_grad():
        assert described.read(tokens).shape == (2, 3)
    with pytest.raises(ModelError, match="outputs of VisionTransformer can't be differentiated"):
        described.read(tokens.requires_grad_())
    with pytest.raises(ModelError, match="outputs of VisionTransformer can't be differentiated"):
        described.with_outputs([lambda token, _: token.sum(1)]).read(tokens)


def test_images_are_prepared_and_take_the_type_of_the_weights():
    described = class_token_model(Named())
    prepared = described.check_images(torch.zeros(1, 1, 16, 24, dtype=torch.float64))
    assert prepared.shape == (1, 3, 16, 24)
    assert prepared.dtype == torch.float32
    assert described.grid_size(prepared) == (4, 6)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (torch.zeros(3, 16, 24), r"not \(3, 16, 24\)"),
        (torch.zeros(1, 3, 16, 24, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(0, 3, 16, 24), r"of one image or more, not \(0, 3, 16, 24\)"),
        (torch.full((1, 3, 16, 24), torch.nan), "NaN"),
        (torch.zeros(1, 3, 24, 16), "16 x 24 pixels with 3 .*not 24 x 16 with 3"),
        (torch.zeros(1, 1, 16, 24), "16 x 24 pixels with 3 .*not 16 x 24 with 1"),
    ],
)
def test_images_that_the_model_does_not_take(found, reason):
    with pytest.raises(CdamError, match=reason):
        class_token_model(small()).check_images(found)


@pytest.mark.parametrize(
    ("found", "name"),
    [([torch.zeros(3, 16, 24)], "list"), (np.zeros((1, 3, 16, 24)), "ndarray"), (None, "NoneType")],
)
def test_images_that_are_no_tensor_are_named_where_nobody_checks_types(found, name):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(CdamError, match=rf"not {name}: .*torch.as_tensor\(.*torch.stack"):
            class_token_model(small()).check_images(found)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_images_with_values_that_the_weights_type_does_not_have(images):
    half = class_token_model(small().half())
    with pytest.raises(CdamError, match=r"up to 1e\+05 that torch.float16.* VisionTransformer"):
        half.check_images(torch.full((1, 3, 16, 24), 1e5))
    with pytest.raises(CdamError, match="NaN or infinite"):
        half.check_images(torch.full((1, 3, 16, 24), torch.inf))
    large = torch.full((1, 3, 16, 24), 6e4)  # whose sum float16 doesn't have
    assert torch.equal(half.check_images(large), large.half())


def test_a_dynamic_model_takes_whole_patches():
    described = class_token_model(small(dynamic_img_size=True, patch_size=(4, 8)))
    assert described.check_images(torch.zeros(1, 3, 12, 40)).shape == (1, 3, 12, 40)
    with pytest.raises(CdamError, match="of whole patches of 4 x 8 pixels"):
        described.check_images(torch.zeros(1, 3, 12, 36))


@pytest.mark.parametrize(
    "wrap", [partial(torch.compile, backend="eager"), DataParallel, AveragedModel]
)
def test_out_of_a_wrapper_of_torch_the_model_inside_is_taken(wrap, images):
    vit = small()
    wrapped = wrap(vit)
    expected, found = cdam_scores(vit, images), cdam_scores(wrapped, images)
    assert torch.equal(found.scores, expected.scores)
    assert found.path == "closed form"


def test_a_model_compiled_in_place_is_taken():
    vit = small()
    vit.compile()
    vit.blocks[0].compile()
    assert class_token_model(vit).vit is vit


def test_a_readout_must_give_a_row_an_image():
    described = ClassTokenModel(small(), lambda x: x, lambda token: token.sum(1))
    with pytest.raises(ModelError, match=r"VisionTransformer gives \(1,\) .* tensor \(batch, ta"):
        described.target_columns(None)
