"""Models that can't be explained are refused by name, with the reason."""

import sys
import types

import pytest
import timm
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import nn

from cdam_med.errors import ModelError
from cdam_med.models.class_token import class_token_model


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, "within windows"),
        ("swinv2_tiny_window8_256", {"depths": (1, 1, 1, 1)}, "within windows"),
        ("cait_xxs24_224", {"depth": 1}, "the class token alone attends"),
        ("xcit_nano_12_p16_224", {"depth": 1}, "the class token alone attends"),
        ("crossvit_tiny_240", {"depth": ((1, 1, 0),) * 3}, "two branches"),
        ("pit_ti_224", {}, "stages of different patch sizes"),
        ("hiera_tiny_224", {}, "stages of different patch sizes"),
        ("mvitv2_tiny", {}, "stages of different patch sizes"),
        ("convit_tiny", {"depth": 1}, "a form of its own"),
        ("vit_relpos_small_patch16_224", {"depth": 1}, "a form of its own"),
        ("naflexvit_base_patch16_gap", {"depth": 1, "embed_dim": 24, "num_heads": 3}, "any number"),
        ("resnet10t", {}, "is not a timm VisionTransformer"),
    ],
)
def test_timms_other_models_are_refused_by_name(name, options, reason):
    model = timm.create_model(name, **options)
    with pytest.raises(ModelError, match=f"{type(model).__name__} .*{reason}.*: "):
        class_token_model(model)


def test_subclasses_are_refused_for_the_same_reason():
    class Mine(PyramidVisionTransformerV2):
        """A child of it."""

    model = Mine(depths=(1,) * 4, embed_dims=(8,) * 4, num_heads=(1,) * 4)
    with pytest.raises(ModelError, match="Mine has stages of different patch sizes"):
        class_token_model(model)


def test_torchvisions_model_of_the_same_name_is_told_apart(monkeypatch):
    module = types.ModuleType("torchvision.models.vision_transformer")
    vit = type("VisionTransformer", (nn.Module,), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ModelError, match=r"torchvision\.models\..*that timm's doesn't have"):
        class_token_model(vit())
