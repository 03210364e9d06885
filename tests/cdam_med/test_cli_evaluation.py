"""The commands around explanations: estimators, concepts, a linear head, evaluation, speed."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import Result

from cdam_med.attribution.registry import METHODS
from cdam_med.demo import extract_path
from cdam_med.models.backbone import BackboneSpec, build_backbone

Run = Callable[..., Result]
ARCHITECTURE, SIZE = "vit_tiny_patch16_224", 32


def test_estimators_are_listed_as_they_are_registered(run: Run) -> None:
    rows = json.loads(run("methods", "--json").stdout)
    assert [row["name"] for row in rows] == list(METHODS)
    text = run("methods").stdout
    assert "smooth_cdam" in text
    assert "others are given in Python" in text


def test_a_concept_of_a_cohort_is_made_listed_and_explained(
    run: Run, cohort: Path, at: list[str], model_folder: Path, tmp_path: Path
) -> None:
    query = ["--query", "malignancy >= 3", "--label", "suspicious", "--model", model_folder]
    made = run("concept", "make", cohort, *query)
    assert made.exit_code == 0, made.stderr
    assert "2 nodules" in made.stdout
    listed = run("concept", "list", cohort)
    assert "suspicious: 2 examples (malignancy >= 3), dot" in listed.stdout
    assert run("check", cohort).stdout == "0 errors, 1 notes.\n" or "concepts" not in (
        run("check", cohort).stdout
    )
    file = cohort / "concepts" / "suspicious.safetensors"
    options = ["--targets", "margin", "--model", model_folder, "--concept", file]
    result = run("explain", extract_path(), *at, *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "Concept suspicious: similarity" in result.stdout
    (folder,) = (tmp_path / "out").iterdir()
    record = json.loads((folder / "case.json").read_text())
    assert record["targets"]["suspicious"]["unit"] == "similarity"
    assert (folder / "attribution_suspicious.nii.gz").is_file()
    assert "It isn't how the output changes when the patch is removed" in " ".join(
        result.stdout.split()
    )


def test_a_control_is_not_said_to_raise_anything(
    run: Run, at: list[str], model_folder: Path, tmp_path: Path
) -> None:
    options = ["--targets", "margin", "--model", model_folder, "--method", "intensity"]
    result = run("explain", extract_path(), *at, *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert "knows nothing of the model" in said
    assert "pushes the output" not in said


def test_a_concept_that_is_no_file_is_refused_at_once(run: Run, tmp_path: Path) -> None:
    place = ["--at", "1,2,3", "--frame", "ras", "--out", tmp_path / "out"]
    for concept, what in ((tmp_path, "is a folder"), (tmp_path / "none", "doesn't exist")):
        result = run("explain", extract_path(), *place, "--concept", concept)
        assert result.exit_code == 2
        assert what in result.stderr
        assert "cdam-med concept make" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--query", "malignancy >= 9", "--label", "none"], "malignancy >= 9"),
        (["--query", "malignancy ~ 3", "--label", "odd"], "malignancy ~ 3"),
        (["--query", "malignancy >= 3", "--label", "../odd"], "../odd"),
    ],
)
def test_concepts_that_make_no_sense_are_refused(
    run: Run, cohort: Path, options: list[str], named: str
) -> None:
    before = sorted(cohort.rglob("*"))
    result = run("concept", "make", cohort, *options)
    assert result.exit_code == 2
    assert named in result.stderr
    assert sorted(cohort.rglob("*")) == before


def test_explanations_of_a_cohort_are_evaluated(
    run: Run, cohort: Path, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    options = ["--methods", "cdam,attention_map,random", "--metrics", "compactness,cost"]
    options += ["--model", model_folder]
    result = run("evaluate", "explanations", cohort, *options, "--out", out)
    assert result.exit_code == 0, result.stderr
    summary = (out / "summary.md").read_text()
    assert "not for diagnosis" in summary
    assert "CDAM" in summary
    assert (out / "results.csv").read_text().count("\n") > 9


@pytest.mark.slow
def test_an_evaluation_that_is_killed_goes_on(run: Run, cohort: Path, tmp_path: Path) -> None:
    options = ["--methods", "cdam,random,smoothgrad", "--metrics", "compactness"]
    command = ["evaluate", "explanations", cohort, *options, "--out"]
    assert run(*command, tmp_path / "whole").exit_code == 0
    folder, kept = tmp_path / "killed", tmp_path / ".killed.partial"
    words = [sys.executable, "-c", "from cdam_med.cli import main; main()", *command, folder]
    with subprocess.Popen([str(word) for word in words], stderr=subprocess.DEVNULL) as process:
        for _ in range(6000):
            if any(kept.glob("random-*.npz")) or process.poll() is not None:
                break
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    result = run(*command, folder)
    assert result.exit_code == 2
    assert "was stopped and left" in result.stderr
    result = run(*command, folder, "--resume")
    assert result.exit_code == 0, result.stderr
    assert not kept.exists()
    assert "Taken from the run that was broken off: cdam, random." in result.stderr
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole").iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_linear_head_is_trained_and_its_maps_evaluated(run: Run, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for channel, name in enumerate(("red", "green")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
                pixels[8:24, 8:24, channel] = 255
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = build_backbone(BackboneSpec(architecture=ARCHITECTURE, image_size=SIZE))
    save_file(
        {key: each.contiguous() for key, each in vit.state_dict().items()},
        tmp_path / "backbone.safetensors",
    )
    out = tmp_path / "head"
    shape = ["--architecture", ARCHITECTURE, "--image-size", SIZE]
    weights = ["--weights", tmp_path / "backbone.safetensors"]
    result = run(
        "train-head", tmp_path / "train", tmp_path / "val", *shape, *weights, "--epochs", 2,
        "--batch-size", 8, "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "Accuracy" in result.stdout
    told = [line for line in result.stderr.splitlines() if line.startswith("epoch ")]
    assert len(told) == 2
    other = ["--architecture", "swin_tiny_patch4_window7_224", "--image-size", 224]
    refused = run(
        "train-head", tmp_path / "train", tmp_path / "val", *other, "--weights",
        tmp_path / "none.safetensors", "--out", tmp_path / "swin",
    )  # fmt: skip
    assert refused.exit_code == 2
    assert "SwinTransformer" in refused.stderr
    options = ["--estimators", "cdam,random", "--measures", "compactness", "--limit", 4]
    report = tmp_path / "report"
    result = run(
        "evaluate", "explanations", tmp_path / "val", "--model", out, *options, "--out", report
    )
    assert result.exit_code == 0, result.stderr
    assert (report / "summary.csv").is_file()


def test_speed_is_measured_by_turns(run: Run) -> None:
    options = ["--models", ARCHITECTURE, "--turns", 1, "--slow-turns", 0, "--json"]
    result = run("benchmark", "speed", *options)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["machine"]["threads"] >= 1
    times = {row["what"]: row for row in report["rows"]}
    assert times["plain forward pass"]["ratio"] == 1
    assert times["CDAM, 9 targets"]["median_s"] > 0
    refused = run("benchmark", "speed", "--models", "no_such_model")
    assert refused.exit_code == 2
    assert "no_such_model" in refused.stderr


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, "can't be read"), (b"\xff\xfe", "can't be read"), (b"\n", "no name")],
)
def test_names_that_cannot_be_read_are_refused(
    run: Run, cohort: Path, tmp_path: Path, content: bytes | None, named: str
) -> None:
    file = tmp_path / "names.txt"
    if content is not None:
        file.write_bytes(content)
    options = ["--only", file, "--out", tmp_path / "report"]
    result = run("evaluate", "explanations", cohort, *options)
    assert result.exit_code == 2
    assert "names.txt" in result.stderr
    assert named in result.stderr.replace("\n", " ")
    assert not (tmp_path / "report").exists()


def test_a_source_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    result = run("evaluate", "explanations", tmp_path / "none", "--out", tmp_path / "report")
    assert result.exit_code == 2
    assert "none" in result.stderr
    assert "no folder" in result.stderr
