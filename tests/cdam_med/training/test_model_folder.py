"""The folder of a trained model: whole or not at all, and telling what it is."""

import csv
import io
import json
import re
import resource
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.main import get_command

from cdam_med.cli import app
from cdam_med.data.nodule_slices import NoduleSlices
from cdam_med.models.nodule_vit import NoduleViT
from cdam_med.models.store import load_model
from cdam_med.targets import TARGET_NAMES
from cdam_med.training.cross_validation import CrossValidation, Predictions, figures_of
from cdam_med.training.model_folder import predictions_csv, write_model_folder
from cdam_med.training.trainer import Recipe
from data_prep.errors import InputError

MakeDiscs = Callable[..., NoduleSlices]
EXCLUDED = ("LIDC-IDRI-0003", "LIDC-IDRI-0001")


@pytest.fixture
def model(recipe: Recipe) -> NoduleViT:
    return NoduleViT(recipe.model)


@pytest.fixture(scope="module")
def nodules(make_discs: MakeDiscs) -> NoduleSlices:
    return make_discs(40)


@pytest.fixture(scope="module")
def predictions(nodules: NoduleSlices) -> Predictions:
    random = np.random.default_rng(0)
    outputs = random.normal(3, 1, (40, 9)).astype(np.float32)
    outputs[:, 0] = nodules.malignancy - 3 + random.normal(0, 2, 40)
    logits = nodules.malignancy - 3 + random.normal(0, 1, 40)
    return Predictions(outputs, logits, np.arange(40) // 2 % 4 + 1)


@pytest.fixture(scope="module")
def figures(nodules: NoduleSlices, predictions: Predictions) -> CrossValidation:
    return figures_of(predictions, nodules)


def write(
    folder: Path, model: NoduleViT, recipe: Recipe, figures: CrossValidation | None = None
) -> Path:
    write_model_folder(
        folder, model, recipe, figures=figures, excluded_patients=EXCLUDED, n_training_nodules=1107
    )
    return folder


def test_the_folder_is_a_model(
    tmp_path: Path, model: NoduleViT, recipe: Recipe, figures: CrossValidation
) -> None:
    folder = write(tmp_path / "deep" / "model", model, recipe, figures)
    assert {file.name for file in folder.iterdir()} == {
        ".cdam-med-model.sha256",
        "README.md",
        "config.json",
        "cross_validation.json",
        "model.safetensors",
        "recipe.json",
    }
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]
    loaded = load_model(folder)
    assert loaded.config == recipe.model
    images = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        expected = model.float().eval()(images)
        torch.testing.assert_close(loaded(images), expected, atol=0.05, rtol=0.02)
    assert (folder / "model.safetensors").stat().st_size < 2.2 * sum(
        parameter.numel() for parameter in model.parameters()
    )
    assert Recipe.model_validate_json((folder / "recipe.json").read_text()) == recipe
    stored = CrossValidation.model_validate_json((folder / "cross_validation.json").read_text())
    assert stored == figures
    assert json.loads((folder / "config.json").read_text())["name"] == "discs"


def test_the_card_says_how_good_it_is_and_what_it_is_not_for(
    tmp_path: Path, model: NoduleViT, recipe: Recipe, figures: CrossValidation
) -> None:
    card = (write(tmp_path / "model", model, recipe, figures) / "README.md").read_text()
    assert card.startswith("---\n")
    assert "license: apache-2.0" in card.split("---")[1]
    assert "not for diagnosis" in card
    assert "CC BY 3.0" in card
    assert "10.7937/K9/TCIA.2015.LO9QL9SX" in card
    assert "1107 nodules" in card
    rows = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for line in card.splitlines()
        if line.startswith("|")
        for cells in [line.strip("|").split("|")]
    }
    for name, result in [("this recipe", figures.model)] + [
        (name, figures.diameter) for name in rows if name.startswith("diameter alone")
    ]:
        numbers = [float(number) for number in re.findall(r"[\d.]+", " ".join(rows[name]))]
        expected = [
            number
            for figure in (result.auc, result.accuracy, result.sensitivity, result.specificity)
            for number in (figure.value, figure.low, figure.high)
        ]
        np.testing.assert_allclose(numbers, expected, atol=0.0005)
    assert any(name.startswith("diameter alone") for name in rows)
    for target, errors in figures.biomarkers.items():
        (row,) = (cells for name, cells in rows.items() if name.startswith(f"{target} ("))
        assert float(row[0]) == pytest.approx(errors.mean_absolute_error, abs=0.005)
        assert float(row[1]) == pytest.approx(errors.pearson, abs=0.005)
        assert float(row[2]) == pytest.approx(errors.relative_squared_error, abs=0.005)


def test_the_card_says_how_to_make_the_model_again(
    tmp_path: Path, model: NoduleViT, recipe: Recipe, figures: CrossValidation
) -> None:
    card = (write(tmp_path / "model", model, recipe, figures) / "README.md").read_text()
    (command,) = re.findall(r"^cdam-med (train .*)$", card, flags=re.MULTILINE)
    name, *arguments = shlex.split(command)
    given = get_command(app).commands[name].make_context(name, arguments).params
    assert tuple(given["exclude_patient"]) == EXCLUDED
    assert given["folds"] == figures.n_folds
    assert given["epochs"] == recipe.fine_tuning.epochs


def test_a_card_without_cross_validation_says_so(
    tmp_path: Path, model: NoduleViT, recipe: Recipe
) -> None:
    folder = write(tmp_path / "model", model, recipe)
    assert not (folder / "cross_validation.json").exists()
    card = (folder / "README.md").read_text()
    assert "Not cross-validated" in card
    assert "--folds 0" in card
    assert "stretched slice by slice" in card


def test_the_card_speaks_of_the_intensities_that_the_model_takes(
    tmp_path: Path, recipe: Recipe
) -> None:
    config = recipe.model
    window = config.model_copy(
        update={"input": config.input.model_copy(update={"intensity": "hu_window"})}
    )
    folder = write(
        tmp_path / "model", NoduleViT(window), recipe.model_copy(update={"model": window})
    )
    card = (folder / "README.md").read_text()
    assert "`hu_window`" in card
    assert "stretched" not in card
    assert "any point.\n- It was trained" in card


def test_a_place_that_is_taken_is_left_alone(
    tmp_path: Path, model: NoduleViT, recipe: Recipe
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("ten years")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for place in (taken, taken / "thesis.txt", taken / "thesis.txt" / "model" / "deeper", link):
        with pytest.raises(InputError, match=r"is there already|is a file|is a link"):
            write(place, model, recipe)
    assert [entry.name for entry in taken.iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "nowhere").exists()


@contextmanager
def small_disk(n_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, model: NoduleViT, recipe: Recipe
) -> None:
    with small_disk(2000), pytest.raises(InputError, match=r"Can't write .*model: .*choose"):
        write(tmp_path / "model", model, recipe)
    assert not list(tmp_path.iterdir())


def test_predictions_as_a_table(predictions: Predictions, nodules: NoduleSlices) -> None:
    rows = list(csv.DictReader(io.StringIO(predictions_csv(predictions, nodules), newline="")))
    assert [row["nodule_id"] for row in rows] == list(nodules.nodule_ids)
    assert [row["patient_id"] for row in rows] == list(nodules.patient_ids)
    assert [int(row["fold"]) for row in rows] == predictions.fold.tolist()
    assert [float(row["median_malignancy"]) for row in rows] == nodules.malignancy.tolist()

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in rows]

    np.testing.assert_allclose(column("diameter_logit"), predictions.diameter_logits, atol=1e-5)
    for index, target in enumerate(TARGET_NAMES):
        np.testing.assert_allclose(column(target), predictions.outputs[:, index], atol=1e-5)
        if index > 0:
            rated = nodules.biomarkers[:, index - 1]
            np.testing.assert_allclose(column(f"rated_{target}"), rated, atol=1e-5)
