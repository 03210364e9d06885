"""Training on nodules that are easily told apart."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cdam_med.data.nodule_slices import NoduleSlices
from cdam_med.models.nodule_vit import NoduleViT
from cdam_med.training.cross_validation import middle_slice_outputs
from cdam_med.training.trainer import FitConfig, Recipe, fit
from data_prep.errors import InputError

MakeDiscs = Callable[..., NoduleSlices]


@pytest.fixture
def new_model(recipe: Recipe) -> Callable[[NoduleSlices], NoduleViT]:
    def make(nodules: NoduleSlices) -> NoduleViT:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = NoduleViT(recipe.model)
        labels = torch.from_numpy(nodules.biomarkers)
        model.heads.set_biomarker_scale(labels.mean(0), labels.std(0))
        return model

    return make


def silent(epoch: int, loss: float) -> None:
    pass


@pytest.mark.slow
def test_loss_falls_and_other_nodules_are_told_apart(
    make_discs: MakeDiscs, new_model: Callable[[NoduleSlices], NoduleViT]
) -> None:
    nodules = make_discs(96)
    model = new_model(nodules)
    told: list[tuple[int, float]] = []
    config = FitConfig(epochs=8, batch_size=16, learning_rate=2e-3, layer_decay=1)
    fit(model, nodules, config, seed=0, on_epoch=lambda *each: told.append(each))
    epochs, losses = zip(*told, strict=True)
    assert epochs == tuple(range(1, 9))
    assert losses[-1] < 0.75 * losses[0]
    assert not any(module.training for module in model.modules())
    others = make_discs(48, seed=1)
    outputs = middle_slice_outputs(model, others)
    called = outputs[others.has_class, 0] > 0
    assert np.mean(called == others.malignant[others.has_class]) > 0.9
    assert np.corrcoef(outputs[:, 6], others.diameter_mm)[0, 1] > 0.8


def test_the_seed_says_all(
    make_discs: MakeDiscs, new_model: Callable[[NoduleSlices], NoduleViT]
) -> None:
    nodules = make_discs(20)
    hashes = []
    for disturbance, seed in [(1, 5), (2, 5), (1, 6)]:
        torch.manual_seed(disturbance)
        model = new_model(nodules)
        fit(model, nodules, FitConfig(epochs=1, batch_size=8), seed=seed, on_epoch=silent)
        hashes.append(model.weights_sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def settings() -> tuple[object, ...]:
    return (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )


def test_nothing_is_left_behind(
    make_discs: MakeDiscs, new_model: Callable[[NoduleSlices], NoduleViT]
) -> None:
    nodules = make_discs(8)
    stored = [nodules.slices.copy(), nodules.biomarkers.copy(), nodules.malignancy.copy()]
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002  the global one
    before = settings()
    model = new_model(nodules)
    fit(model, nodules, FitConfig(epochs=1, batch_size=8, frozen_blocks=2), seed=0, on_epoch=silent)
    assert settings() == before
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    now = [nodules.slices, nodules.biomarkers, nodules.malignancy]
    for array, other in zip(now, stored, strict=True):
        np.testing.assert_array_equal(array, other)


def test_frozen_blocks_stay_and_everything_else_learns(
    make_discs: MakeDiscs, new_model: Callable[[NoduleSlices], NoduleViT]
) -> None:
    nodules = make_discs(16)
    model = new_model(nodules)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = FitConfig(epochs=2, batch_size=8, learning_rate=1e-3, frozen_blocks=4)
    fit(model, nodules, config, seed=0, on_epoch=silent)
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    scales = {"heads.biomarker_mean", "heads.biomarker_scale"}
    frozen = {name for name in before if name.startswith("backbone.")} - {
        name
        for name in before
        if name.startswith(("backbone.blocks.4.", "backbone.blocks.5.", "backbone.norm."))
    }
    assert not changed & (frozen | scales)
    assert before.keys() - frozen - scales == changed


@pytest.mark.parametrize("n_steps", [1, 2, 5, 6])
def test_any_number_of_steps(
    make_discs: MakeDiscs, new_model: Callable[[NoduleSlices], NoduleViT], n_steps: int
) -> None:
    nodules = make_discs(8)
    fit(new_model(nodules), nodules, FitConfig(epochs=n_steps), seed=0, on_epoch=silent)


def test_a_device_that_is_not_there_is_refused(
    make_discs: MakeDiscs, new_model: Callable[[NoduleSlices], NoduleViT]
) -> None:
    nodules = make_discs(8)
    with pytest.raises(InputError, match=r"'abacus'.*use 'cpu'"):
        fit(
            new_model(nodules),
            nodules,
            FitConfig(epochs=1),
            seed=0,
            device="abacus",
            on_epoch=silent,
        )
