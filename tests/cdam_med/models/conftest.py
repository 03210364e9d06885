"""A very small ViT as backbone, and files that must not be loaded."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from cdam_med.data.transforms import InputSpec
from cdam_med.models.backbone import BackboneSpec, build_backbone
from cdam_med.models.nodule_vit import ModelConfig, NoduleViT


@contextmanager
def _seed(number: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(number)
        yield


@pytest.fixture
def small_vit() -> VisionTransformer:
    """Six blocks of dimension 64 on 2 x 2 patches, with weights that are far from trivial."""
    with _seed(0):
        vit = build_backbone(BackboneSpec(architecture="test_vit", image_size=32)).eval()
        for parameter in vit.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return vit


@pytest.fixture
def small_config() -> ModelConfig:
    return ModelConfig(
        name="small",
        backbone=BackboneSpec(architecture="test_vit", image_size=32),
        input=InputSpec(field_of_view_mm=16, image_size=32, intensity="slice_stretch"),
    )


@pytest.fixture
def make_model(small_config: ModelConfig, small_vit: VisionTransformer) -> Callable[..., NoduleViT]:
    """Build a model with known random weights, with or without a rank in its configuration."""

    def make(rank: int | None = None) -> NoduleViT:
        backbone = small_config.backbone.model_copy(update={"rank": rank})
        with _seed(1):
            model = NoduleViT(small_config.model_copy(update={"backbone": backbone})).eval()
            model.heads.set_biomarker_scale(torch.randn(8), torch.rand(8) + 0.5)
        model.backbone.load_state_dict(small_vit.state_dict())
        return model

    return make


@pytest.fixture
def grey_images() -> torch.Tensor:
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(2))


class _Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.path,)


@pytest.fixture(params=["pickle", "torch"])
def write_bomb(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Write a file that makes a folder when it is unpickled; no test may set it off."""
    exploded = tmp_path / "exploded"

    def write(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if request.param == "torch":
            torch.save({"weight": _Bomb(exploded)}, path)
        else:
            path.write_bytes(pickle.dumps(_Bomb(exploded)))
        return path

    yield write
    assert not exploded.exists()
    # the file is armed: else the test shows nothing
    pickle.loads(pickle.dumps(_Bomb(exploded)))
    assert exploded.is_dir()
