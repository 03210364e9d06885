"""What commands print: names from outside can't steer the terminal, add lines or markup."""

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

import cdam_med.cli
from cdam_med.cli import app
from cdam_med.demo import extract_path, xml_path

NASTY = "CT\x1b[31m\x9b2J\r\n[red]x:boom:\u202egpj.\u2066\udcff"
SHOWN = "CT?[31m?2J??[red]x:boom:?gpj.??"


def leaves(command: Any, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not hasattr(command, "commands"):
        return {words: command}
    found = {}
    for name, each in command.commands.items():
        found |= leaves(each, (*words, name))
    return found


COMMANDS = leaves(get_command(app))


def takes_text(parameter: Any) -> bool:
    return not parameter.is_flag if hasattr(parameter, "is_flag") else True


def given(parameter: Any, text: str) -> list[str]:
    """Return the words that give a text to a parameter."""
    return [text] if parameter.param_type_name == "argument" else [parameter.opts[0], text]


CASES = [
    pytest.param(words, parameter.name, id=f"{' '.join(words)} {parameter.name}")
    for words, command in COMMANDS.items()
    for parameter in command.params
    if takes_text(parameter)
]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def assert_harmless(result: Result, *, n_lines: int | None = None) -> str:
    """Return the output, which holds nothing but printable lines."""
    output = result.stdout + result.stderr
    for line in output.split("\n"):
        assert line.isprintable(), ascii(line)
    assert "\N{COLLISION SYMBOL}" not in output
    assert not any(line.lstrip().startswith("[red]") for line in output.splitlines())
    if n_lines is not None:
        assert output.count("\n") == n_lines, output
    return output


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a command writes by a name that is given goes here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")


@pytest.mark.parametrize(("words", "name"), CASES)
def test_no_command_repeats_what_could_steer_the_terminal(
    words: tuple[str, ...], name: str
) -> None:
    arguments = [*words]
    for parameter in COMMANDS[words].params:
        if parameter.name == name or (parameter.required and takes_text(parameter)):
            arguments += given(parameter, NASTY)
    if words == ("demo",):  # which would do its work
        Path(NASTY).write_text("in the way")
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert_harmless(result)


@pytest.mark.parametrize("words", [(), *COMMANDS], ids=" ".join)
def test_options_and_commands_that_do_not_exist(words: tuple[str, ...]) -> None:
    for word in (f"--{NASTY}", NASTY):
        result = run(*words, word, word, word, word)
        assert result.exit_code == 2
        assert_harmless(result)


def test_names_of_files_stay_names() -> None:
    series, xml = Path(f"{NASTY} series"), Path(f"{NASTY}.xml")
    result = run("check", series)
    assert f"{SHOWN} series" in assert_harmless(result)
    shutil.copytree(extract_path(), series)
    for command in (["check", series], ["check", series, "--json"]):
        result = run(*command)
        assert result.exit_code == 0
        assert_harmless(result)
    assert json.loads(result.stdout)["path"] == f"{SHOWN} series"
    missing = run("explain", series, "--lidc-xml", xml, "--out", "out")
    assert f"{SHOWN}.xml" in assert_harmless(missing)
    xml.write_text("<not xml")
    broken = run("explain", series, "--lidc-xml", xml, "--out", "out")
    assert broken.exit_code == 2
    assert f"{SHOWN}.xml" in assert_harmless(broken)


def test_a_case_folder_of_any_name_is_written_and_named(model_folder: Path) -> None:
    out, xml = Path(f"{NASTY} cases"), Path(f"{NASTY}.xml")
    shutil.copy(xml_path(), xml)
    command = ["explain", extract_path(), "--lidc-xml", xml, "--model", model_folder, "--out", out]
    result = run(*command, "--targets", "malignancy")
    assert result.exit_code == 0, result.output
    assert f"Case folder: {SHOWN} cases/nodule_1\n" in assert_harmless(result)
    assert (out / "nodule_1" / "case.json").read_text().replace("\n", "").isprintable()
    again = run(*command)
    assert again.exit_code == 2
    assert f"{SHOWN} cases/nodule_1 is there already" in assert_harmless(again)
    assert "replace it by --overwrite." in again.stderr
    (out / "nodule_1" / f"{NASTY}.mrml").touch()
    refused = run(*command, "--overwrite")
    assert refused.exit_code == 2
    assert f"{SHOWN}.mrml; move it away" in assert_harmless(refused)


def test_commands_print_in_one_place_only() -> None:
    """typer's and rich's printing, and Python's, are called in terminal.py alone."""
    folder = Path(cdam_med.cli.__file__).parent
    for file in folder.glob("*.py"):
        if file.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert not re.search(r"(^|\.)(echo|secho|print|Console|write)$", called), file.name
