"""Synthetic nodules that are easily told apart, a very small recipe, and folds in one process."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cdam_med.data.nodule_slices import NoduleSlices
from cdam_med.data.transforms import AUGMENTATION_MARGIN_MM
from cdam_med.models.backbone import BackboneSpec, build_backbone
from cdam_med.models.nodule_vit import ModelConfig
from cdam_med.training.trainer import FitConfig, Recipe

FIELD_MM = 16
SOURCE_PX = FIELD_MM + 2 * round(AUGMENTATION_MARGIN_MM)


@pytest.fixture(scope="session")
def make_discs() -> Callable[..., NoduleSlices]:
    """Make nodules: large discs are malignant, small ones benign, every sixth is undecided."""

    def make(count: int, *, seed: int = 0, per_patient: int = 2) -> NoduleSlices:
        random = np.random.default_rng(seed)
        malignancy = np.where(np.arange(count) // per_patient % 2, 5.0, 1.5)
        malignancy[::6] = 3.0
        radius_mm = 1.0 + malignancy + random.uniform(-0.5, 0.5, count)
        axis = np.arange(SOURCE_PX) - (SOURCE_PX - 1) / 2
        distance = np.hypot(axis[:, None], axis)
        disc = distance[None, None] < radius_mm[:, None, None, None]
        slices = np.repeat(disc, 3, axis=1) * 150 + random.normal(50, 4, disc.shape)
        biomarkers = random.uniform(1, 5, (count, 8))
        biomarkers[:, 5] = 2 * radius_mm
        return NoduleSlices(
            slices.astype(np.float32),
            np.full(count, 3, dtype=np.int64),
            malignancy.astype(np.float32),
            biomarkers.astype(np.float32),
            tuple(f"patient {index // per_patient}" for index in range(count)),
            tuple(f"nodule_{index}" for index in range(count)),
        )

    return make


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return Recipe(
        model=ModelConfig.model_validate(
            {
                "name": "discs",
                "backbone": {"architecture": "test_vit", "image_size": 32, "rank": 8},
                "input": {
                    "field_of_view_mm": FIELD_MM,
                    "image_size": 32,
                    "intensity": "slice_stretch",
                },
            }
        ),
        fine_tuning=FitConfig(epochs=2, batch_size=16, learning_rate=1e-3, layer_decay=0.9),
        recovery=FitConfig(epochs=1, batch_size=16, learning_rate=3e-4, layer_decay=0.9),
        seed=4,
    )


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to start from: random, but always the same."""
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = build_backbone(BackboneSpec(architecture="test_vit", image_size=32))
    save_file(vit.state_dict(), path)
    return path


class _SerialExecutor(Executor):
    """Runs each job when it is submitted, and remembers what it was given."""

    def __init__(self) -> None:
        self.jobs: list[tuple[object, ...]] = []

    def submit(self, fn, /, *args, **kwargs) -> Future:
        self.jobs.append(args)
        future: Future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.fixture
def executor() -> Executor:
    return _SerialExecutor()
