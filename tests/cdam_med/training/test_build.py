"""From a backbone's weights to a model of low rank."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cdam_med.data.nodule_slices import NoduleSlices
from cdam_med.errors import ModelError
from cdam_med.training.trainer import Recipe, build_model
from data_prep.errors import InputError

MakeDiscs = Callable[..., NoduleSlices]


def silent(line: str) -> None:
    pass


def test_a_model_by_the_recipe(make_discs: MakeDiscs, recipe: Recipe, weights: Path) -> None:
    nodules = make_discs(32)
    lines: list[str] = []
    model = build_model(recipe, nodules, backbone_weights=weights, report=lines.append)
    assert [line.split(":")[0] for line in lines] == [
        "fine-tuning epoch 1/2",
        "fine-tuning epoch 2/2",
        "recovery epoch 1/1",
    ]
    assert not model.training
    assert model.config == recipe.model
    for block in model.backbone.blocks:
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            assert type(layer) is torch.nn.Linear
            assert np.linalg.matrix_rank(layer.weight.detach().numpy(), tol=1e-5) == 8
    mean, scale = model.heads.biomarker_mean.numpy(), model.heads.biomarker_scale.numpy()
    np.testing.assert_allclose(mean, nodules.biomarkers.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(scale, nodules.biomarkers.std(axis=0, ddof=1), rtol=1e-5)


def test_without_a_rank_there_is_no_recovery(
    make_discs: MakeDiscs, recipe: Recipe, weights: Path
) -> None:
    whole = recipe.model.model_copy(
        update={"backbone": recipe.model.backbone.model_copy(update={"rank": None})}
    )
    lines: list[str] = []
    model = build_model(
        recipe.model_copy(update={"model": whole}),
        make_discs(16),
        backbone_weights=weights,
        report=lines.append,
    )
    assert len(lines) == 2
    assert np.linalg.matrix_rank(model.backbone.blocks[0].attn.qkv.weight.detach().numpy()) > 8


def test_the_recipe_says_all(make_discs: MakeDiscs, recipe: Recipe, weights: Path) -> None:
    short = recipe.model_copy(
        update={"fine_tuning": recipe.fine_tuning.model_copy(update={"epochs": 1})}
    )
    hashes = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        model = build_model(short, make_discs(16), backbone_weights=weights, report=silent)
        hashes.append(model.weights_sha256)
    assert hashes[0] == hashes[1]


def test_weights_that_are_not_there(make_discs: MakeDiscs, recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "nowhere.safetensors"
    with pytest.raises(ModelError, match=r"nowhere\.safetensors"):
        build_model(recipe, make_discs(8), backbone_weights=path, report=silent)


def test_labels_that_do_not_vary(make_discs: MakeDiscs, recipe: Recipe, weights: Path) -> None:
    nodules = make_discs(8)
    nodules.biomarkers[:, 1] = 6.0
    with pytest.raises(InputError, match="of calcification don't vary"):
        build_model(recipe, nodules, backbone_weights=weights, report=silent)
