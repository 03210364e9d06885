"""Small vision transformers with random weights, and the slow oracles."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

ORACLES = Path(__file__).resolve().parents[2] / "oracles"


@pytest.fixture(scope="session")
def slow_cdam() -> ModuleType:
    """Slow, independent re-implementations of CDAM."""
    spec = importlib.util.spec_from_file_location("slow_cdam", ORACLES / "slow_cdam.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy_vit() -> Callable[..., nn.Module]:
    """Build a ViT in float64 whose weights, biases and norms are all far from trivial."""

    def build(model_class: type[nn.Module] = VisionTransformer, **options: object) -> nn.Module:
        settings = {
            "img_size": (16, 24),
            "patch_size": 4,
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 3,
            "num_classes": 3,
        } | options
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = model_class(**settings).double()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1 and (parameter == 1).all():  # the scale of a norm
                        parameter.add_(torch.randn_like(parameter) * 0.3)
                    else:
                        parameter.copy_(torch.randn_like(parameter) * 0.3)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def toy_images() -> Tensor:
    """Two images of 16 x 24 pixels."""
    return torch.randn(
        2, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
