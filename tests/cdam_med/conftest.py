"""A small model with random weights, for tests that need one but not what it knows."""

import sys
from pathlib import Path

import pytest
import torch

from cdam_med.data.transforms import InputSpec
from cdam_med.models.backbone import BackboneSpec
from cdam_med.models.nodule_vit import ModelConfig, NoduleViT

HERE = Path(__file__).resolve().parent
sys.path.extend(
    [str(HERE / "attribution"), str(HERE.parent / "oracles")]
)  # for modules beside tests


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """A grid of 4 x 4 patches over 24 mm, predictions from two views."""
    return ModelConfig(
        name="tiny",
        backbone=BackboneSpec(architecture="vit_tiny_patch16_224", image_size=64),
        input=InputSpec(field_of_view_mm=24.0, spacing_mm=1.0, image_size=64),
        views=("axial", "sagittal"),
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config: ModelConfig) -> NoduleViT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NoduleViT(tiny_config).eval()
