"""Models that can't be explained are refused by name."""

import sys
import types

import pytest
import timm
from torch import nn

from cdam_med.attribution.class_token import class_token_model
from cdam_med.errors import ModelError


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}),
        ("cait_xxs24_224", {"depth": 1}),
        ("crossvit_tiny_240", {"depth": ((1, 1, 0),) * 3}),
        ("hiera_tiny_224", {}),
        ("convit_tiny", {"depth": 1}),
        ("resnet10t", {}),
    ],
)
def test_timms_other_models_are_refused_by_name(name, options):
    model = timm.create_model(name, **options)
    with pytest.raises(ModelError, match=f"{type(model).__name__} is not a vision .*: pass a ViT"):
        class_token_model(model)


def test_a_model_of_timms_name_is_told_apart(monkeypatch):
    module = types.ModuleType("elsewhere.vision_transformer")
    vit = type("VisionTransformer", (nn.Module,), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(
        ModelError, match="VisionTransformer is not a vision transformer of a known"
    ):
        class_token_model(vit())
