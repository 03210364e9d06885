"""The command line: help, both ways to name a nodule, what it prints, and bad input."""

import json
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import typer
from typer.testing import Result

from cdam_med.cli import app, terminal
from cdam_med.cli.explain import read_annotations
from cdam_med.cli.terminal import progress_bar, working
from cdam_med.demo import extract_path, xml_path
from cdam_med.targets import TARGET_NAMES
from data_prep import InputError, Nodule, read_series

Run = Callable[..., Result]
LINES_OF_A_SCREEN = 60
IN_SUBPROCESS = [sys.executable, "-c", "from cdam_med.cli import main; main()"]


@pytest.fixture(scope="module")
def series() -> Path:
    return extract_path()


@pytest.fixture(scope="module")
def nodules(nodule: Nodule) -> list[Nodule]:
    return [nodule]


def assert_refused(result: Result, out: Path, *named: str) -> None:
    assert result.exit_code == 2
    *before, error = result.stderr.splitlines()
    assert error.startswith("Error: ")
    assert not any(line.startswith("Error: ") for line in before)
    for each in named:
        assert each in error
    assert not out.exists()


def test_help_answers_at_once_and_lists_the_commands() -> None:
    cpu_s = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = subprocess.run([*IN_SUBPROCESS, "--help"], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert answer.returncode == 0
    assert {"demo", "explain"} <= set(answer.stdout.split())
    assert min(cpu_s) < 0.5  # processor time: what else the computer does can't change it much


def test_missing_folder_as_a_shell_sees_it(tmp_path: Path) -> None:
    arguments = ["explain", tmp_path / "nowhere", "--lidc-xml", "a.xml", "--out", tmp_path / "out"]
    answer = subprocess.run([*IN_SUBPROCESS, *arguments], capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("Error: ")
    assert answer.stderr.count("\n") == 1
    assert str(tmp_path / "nowhere") in answer.stderr
    assert not list(tmp_path.iterdir())


def test_version_is_that_of_the_installed_package(run: Run) -> None:
    try:
        version = metadata.version("cdam-med")
    except metadata.PackageNotFoundError:
        pytest.skip("cdam-med isn't installed, the tests run from its source tree")
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"{version}\n"


@pytest.mark.slow
def test_demo_needs_nothing_but_the_package(
    run: Run, nodules: list[Nodule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError("the demonstration tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    result = run("demo")
    assert result.exit_code == 0, result.stderr
    for nodule in nodules:
        folder = tmp_path / "cdam-med-demo" / nodule.nodule_id
        assert (folder / "overview.png").is_file()
        record = json.loads((folder / "case.json").read_text())
        for reader in nodule.readers:
            assert f"{reader.ratings['diameter']:.1f}" in result.stdout
        diameter = record["predictions"]["diameter"]
        assert abs(diameter - nodule.ratings["diameter"]) < 0.5 * nodule.ratings["diameter"]
    assert "Research only, not for diagnosis." in " ".join(result.stdout.split())


def test_explain_the_nodules_of_a_series(
    run: Run, series: Path, nodules: list[Nodule], model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cases"
    result = run(
        *("explain", series, "--lidc-xml", xml_path(), "--model", model_folder),
        *("--out", out, "--quiet"),
    )
    assert result.exit_code == 0, result.stderr
    # the extract is a part of a series, and its instance numbers show it
    assert re.fullmatch(r"Warning: late_first_instance: .+\n", result.stderr)
    assert max(len(line.rstrip()) for line in result.stdout.splitlines() if "/" not in line) <= 80
    assert sorted(case.name for case in out.iterdir()) == sorted(n.nodule_id for n in nodules)
    for nodule in nodules:
        record = json.loads((out / nodule.nodule_id / "case.json").read_text())
        assert set(record["targets"]) == set(TARGET_NAMES)
        assert record["inputs"]["annotation_sha256"] is not None
        assert str(out / nodule.nodule_id) in result.stdout
        each = " ".join(str(reader.ratings["malignancy"]) for reader in nodule.readers)
        row = f"malignancy {record['predictions']['malignancy']:+.2f} "
        row += f"{nodule.ratings['malignancy']:.1f} {each} 1 benign - 5 malignant"
        assert row in " ".join(result.stdout.split())
        probability = record["predictions"]["malignancy_probability"]
        assert f"\nmalignancy_probability: {probability:.0%}\n" in result.stdout
    assert "Research only, not for diagnosis." in " ".join(result.stdout.split())


def test_a_point_in_either_frame_is_the_same_point(
    run: Run, series: Path, nodules: list[Nodule], model_folder: Path, tmp_path: Path
) -> None:
    x, y, z = (float(mm) for mm in nodules[0].center_xyz_mm)
    options = ["--model", model_folder, "--targets", "margin,diameter", "--views", "coronal"]
    maps = {}
    for frame, point in (("ras", (x, y, z)), ("lps", (-x, -y, z))):
        out = tmp_path / frame
        at = ",".join(repr(mm) for mm in point)
        result = run("explain", series, "--at", at, "--frame", frame, "--out", out, *options)
        assert result.exit_code == 0, result.stderr
        (folder,) = out.iterdir()
        record = json.loads((folder / "case.json").read_text())
        assert record["nodule"]["center_ras_mm"] == pytest.approx([x, y, z], abs=1e-6)
        assert set(record["targets"]) == {"margin", "diameter"}
        assert set(record["method"]["views"]) == {"axial", "coronal", "sagittal"}
        assert "Readers" not in result.stdout
        maps[frame] = nibabel.load(folder / "attribution_margin.nii.gz")
    np.testing.assert_array_equal(maps["ras"].get_fdata(), maps["lps"].get_fdata())
    np.testing.assert_allclose(maps["ras"].affine, maps["lps"].affine)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--min-readers", "9"], ["9 readers", "--min-readers"]),
        (["--series-uid", "1.2.3"], ["1.2.3"]),
        (["--at", "1,2,3", "--frame", "ras"], ["--lidc-xml", "--at"]),
        (["--lidc-xml", "no-such-file.xml"], ["no-such-file.xml"]),
    ],
)
def test_bad_options_are_refused(
    run: Run, series: Path, model_folder: Path, tmp_path: Path, options: list[str], named: list[str]
) -> None:
    out = tmp_path / "out"
    valid = ["--lidc-xml", xml_path(), "--model", model_folder, "--out", out]
    assert_refused(run("explain", series, *valid, *options), out, *named)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], ["--lidc-xml", "--at"]),
        (["--at", "1,2,3"], ["--frame"]),
        (["--frame", "ras", "--lidc-xml", "a.xml"], ["--at", "--frame"]),
        (["--at", "1,2", "--frame", "ras"], ["'1,2'", "three numbers"]),
        (["--at", "1,2,front", "--frame", "lps"], ["'1,2,front'"]),
        (["--at", "9999,0,0", "--frame", "lps"], ["outside"]),
    ],
)
def test_bad_points_are_refused(
    run: Run, series: Path, model_folder: Path, tmp_path: Path, options: list[str], named: list[str]
) -> None:
    out = tmp_path / "out"
    result = run("explain", series, "--model", model_folder, "--out", out, *options)
    assert_refused(result, out, *named)


def test_folders_that_hold_no_ct_are_refused(run: Run, model_folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "letter.txt").write_text("Dear colleague")
    out = tmp_path / "out"
    for folder in (empty, letters):
        result = run(
            "explain", folder, "--lidc-xml", xml_path(), "--model", model_folder, "--out", out
        )
        assert_refused(result, out, str(folder))


def test_place_that_is_taken_is_refused_and_left_alone(
    run: Run, series: Path, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "file"
    out.write_text("taken")
    options = ["--model", model_folder, "--targets", "margin", "--views", "axial"]
    result = run("explain", series, "--lidc-xml", xml_path(), "--out", out, *options)
    assert result.exit_code == 2
    assert str(out) in result.stderr
    assert out.read_text() == "taken"
    assert list(tmp_path.iterdir()) == [out]


def test_nodule_larger_than_the_field_of_view_is_reported(
    run: Run,
    series: Path,
    nodules: list[Nodule],
    make_model_folder: Callable[[float], Path],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    model = make_model_folder(4.0)
    options = ["--lidc-xml", xml_path(), "--model", model, "--out", out, "--quiet"]
    result = run("explain", series, *options)
    assert result.exit_code == 2
    _, *reasons, summary = result.stderr.splitlines()
    assert len(reasons) == len(nodules)
    for nodule, reason in zip(nodules, reasons, strict=True):
        assert nodule.nodule_id in reason
        assert nodule.nodule_id in summary
    assert f"{len(nodules)} of {len(nodules)}" in summary
    assert not out.exists()


@pytest.mark.shared_data
def test_one_nodule_too_large_does_not_keep_the_others(
    run: Run,
    shared_data: Path,
    make_model_folder: Callable[[float], Path],
    tmp_path: Path,
) -> None:
    (xml,) = (shared_data / "lidc" / "LIDC-IDRI-0003").rglob("*.xml")
    options = ["--targets", "margin", "--views", "axial", "--out", tmp_path / "out", "--quiet"]
    model = make_model_folder(24.0)
    result = run("explain", xml.parent, "--lidc-xml", xml, "--model", model, *options)
    assert result.exit_code == 2
    explained = {case.name for case in (tmp_path / "out").iterdir()}
    assert explained == {"nodule_1", "nodule_2"}  # of 15 and 13 mm; nodule_3 has 31 mm
    reason, summary = result.stderr.splitlines()
    assert "nodule_3" in reason
    assert "1 of 3" in summary
    assert "nodule_3" in summary


def test_xml_of_another_series_is_refused(
    run: Run, series: Path, model_folder: Path, tmp_path: Path
) -> None:
    uid = read_series(series).series_uid
    other = tmp_path / "other.xml"
    other.write_text(xml_path().read_text().replace(uid, "1.2.3.4"))
    out = tmp_path / "out"
    result = run("explain", series, "--lidc-xml", other, "--model", model_folder, "--out", out)
    assert_refused(result, out, str(other), "series")


def test_what_else_the_readers_marked_is_in_the_record(
    run: Run, series: Path, model_folder: Path, tmp_path: Path
) -> None:
    xml = tmp_path / "marked.xml"
    marks = "<nonNodule/><nonNodule/></readingSession>"
    xml.write_text(xml_path().read_text().replace("</readingSession>", marks, 1))
    out = tmp_path / "out"
    options = ["--model", model_folder, "--targets", "margin", "--out", out]
    result = run("explain", series, "--lidc-xml", xml, *options)
    assert result.exit_code == 0, result.stderr
    record = json.loads((out / "nodule_1" / "case.json").read_text())
    expected = {"nodule_id": "", "reason": "no_nodule", "count": 2}
    assert record["inputs"]["left_out"] == [expected]


def test_what_else_the_readers_marked_is_told(
    series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = read_series(series)
    marks = "<unblindedReadNodule/><nonNodule/><nonNodule/></readingSession>"
    xml = tmp_path / "marked.xml"
    xml.write_text(xml_path().read_text().replace("</readingSession>", marks, 1))
    nodules, record = read_annotations(xml, volume, min_readers=3)
    assert [nodule.nodule_id for nodule in nodules] == ["nodule_1"]
    counted = {each.reason: each.count for each in record["left_out"]}
    assert counted == {"small_nodule": 1, "no_nodule": 2}
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "Left out, small_nodule: Marks of nodules below 3 mm, which have no outline: 1.",
        "Left out, no_nodule: Marks of findings that are no nodule: 2.",
    ]
    with pytest.raises(InputError, match="by 5 readers or more"):
        read_annotations(xml, volume, min_readers=5)
    told = capsys.readouterr().err
    assert "Left out, too_few_readers: nodule_1 was outlined by 4; asked for are 5" in told


def test_progress_shows_on_a_terminal_once_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> str:
        with progress_bar("Counting") as progress:
            for done in range(1, 21):
                progress(done, 20)
        return capsys.readouterr().err

    monkeypatch.setattr(terminal, "PATIENCE_S", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes rich take any stream for a terminal
    assert "Counting" in work()
    monkeypatch.setattr(terminal, "PATIENCE_S", 60.0)
    assert work() == ""


def test_where_nobody_watches_a_step_is_told_at_once_and_then_now_and_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "LINE_EVERY_S", 0.2)
    with working("Loading"):
        time.sleep(0.5)
    first, *later = capsys.readouterr().err.splitlines()
    assert first == "Loading ..."
    assert later[0] == "Loading: still at it"
    with progress_bar("Counting") as progress:
        assert capsys.readouterr().err == "Counting ...\n"
        progress(5, 20)
        time.sleep(0.5)
    assert re.match(r"Counting: 5 of 20, about \d+ s left\n", capsys.readouterr().err)
    time.sleep(0.3)
    assert capsys.readouterr().err == ""


def test_how_much_a_command_says(run: Run) -> None:
    plain, quiet, verbose = (run("methods", *options) for options in ([], ["-q"], ["-v"]))
    assert plain.stdout == quiet.stdout == verbose.stdout
    assert re.fullmatch(r"Loading the methods \.\.\.\nDone in \d+ s\.\n", plain.stderr)
    assert quiet.stderr == ""
    assert re.search(r"^Loading the methods: \d+\.\d s$", verbose.stderr, re.MULTILINE)
    failed = run("check", "no_such_folder", "--verbose")
    assert "Traceback" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("Error: ")


def test_every_command_has_a_short_help_with_an_example(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    commands = list(leaves(typer.main.get_command(app), ()))
    assert len(commands) >= 12
    for words in commands:
        shown = run(*words, "-h").stdout
        assert f"Example: cdam-med {' '.join(words)}" in shown
        assert "--quiet" in shown
        assert len(shown.splitlines()) <= LINES_OF_A_SCREEN, words


def leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the words of each command that does something."""
    if not hasattr(command, "commands"):
        yield words
        return
    shown = {name: each for name, each in command.commands.items() if not each.hidden}
    for name, each in shown.items():
        yield from leaves(each, (*words, name))


def test_info_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from cdam_med.cli import app\n"
        "try:\n    app(['info', '--json'])\n"
        "except SystemExit:\n    pass\n"
        "raise SystemExit('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    assert found["versions"]["torch"] == metadata.version("torch")
    assert "cdam" in found["methods"]
    assert found["devices"][0]["name"] == "cpu"


def test_errors_are_in_the_words_of_options(run: Run, series: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    shutil.copytree(series, two / "first")
    for path in sorted((two / "first").iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = "1.2.3"
        dataset.SOPInstanceUID = f"1.2.3.{dataset.InstanceNumber}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(two / f"other_{path.name}")
    out = tmp_path / "out"
    result = run("explain", two, "--at", "0,0,0", "--frame", "ras", "--out", out)
    assert_refused(result, out, "--series-uid")
    assert "series_uid=" not in result.stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--targets", "malignacy"], "malignancy"),
        (["--views", "axial,coronel"], "coronal"),
        (["--method", "smoth_cdam"], "smooth_cdam"),
        (["--model", "no_such_model"], "no_such_model"),
        (["--device", "cuda:7"], "cuda:7"),
        (["--repair", "missing_slice"], "missing_slices"),
        (["--out", "/dev/null/cases"], "/dev/null"),
    ],
)
def test_what_is_wrong_is_refused_before_the_series_is_read(
    run: Run, series: Path, tmp_path: Path, options: list[str], named: str
) -> None:
    out = tmp_path / "out"
    result = run("explain", series, "--at", "0,0,0", "--frame", "ras", "--out", out, *options)
    assert_refused(result, out, named)
    assert "Reading the series" not in result.stderr


def test_unknown_models_are_refused_before_anything_is_timed(run: Run, tmp_path: Path) -> None:
    result = run("benchmark", "speed", "--models", "vit_small_patch16_224,vit_smal_patch8_224")
    assert_refused(result, tmp_path / "none", "vit_small_patch8_224")
    assert result.stdout == ""
