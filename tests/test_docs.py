"""The documentation agrees with the code: links, options, reasons, names and signatures."""

import ast
import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

import cdam_med
import data_prep
from cdam_med.attribution.registry import METHODS
from cdam_med.cli import app
from cdam_med.evaluation.metrics import GROUPS, METRICS
from cdam_med.targets import TARGET_NAMES
from data_prep.errors import NamedError
from data_prep.problems import PROBLEMS, Action, Finding, SeriesError

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def sections(text: str, level: int) -> dict[str, str]:
    """Split a page at headings of one level: what stands below each."""
    parts = re.split(rf"^{'#' * level} (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def anchor(heading: str) -> str:
    """Make a heading the anchor that Markdown viewers give it."""
    plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return plain.strip().replace(" ", "-")


def first_column(text: str) -> list[str]:
    """Return what stands in backticks in the first column of tables, headings left out."""
    return re.findall(r"^\| `([^`]+)`[^|]* \|", text, flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path):
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page_id(page)} links to {target}"
        if fragment:
            headings = re.findall(r"^#+ (.+)$", prose(linked), flags=re.MULTILINE)
            assert fragment in map(anchor, headings), f"{page_id(page)} links to {target}"


def test_every_page_of_the_docs_is_in_the_index():
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target).resolve() for target in LINK.findall(prose(index))}
    assert linked == set((ROOT / "docs").rglob("*.md")) - {index}


OF_EVERY_COMMAND = ("--quiet", "--verbose")


def commands() -> dict[str, Any]:
    """Return every command by its words, groups without options of their own left out."""

    def below(group: Any, words: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, command in group.commands.items():
            if command.hidden:  # an old name
                continue
            path = f"{words} {name}".strip()
            found |= below(command, path) if hasattr(command, "commands") else {path: command}
        return found

    group = typer.main.get_command(app)
    return {"": group, **below(group, "")}


def parameter_name(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    return str(parameter.opts[0] if is_option else parameter.name.upper())


def shown_default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.default is None or parameter.default is False or parameter.default == "":
        return ""
    return f"`{parameter.default}`"


def test_every_option_is_documented_with_its_default():
    page = (ROOT / "docs" / "reference" / "command_line.md").read_text(encoding="utf-8")
    documented = sections(page, level=2)
    assert sorted(documented) == sorted(f"cdam-med {name}".strip() for name in commands())
    for name, command in commands().items():
        rows = re.findall(
            r"^\| `([^`]+)` \| (.*?) ?\| .+ \|$",
            documented[f"cdam-med {name}".strip()],
            flags=re.MULTILINE,
        )
        expected = [(parameter_name(each), shown_default(each)) for each in command.params]
        own = [row for row in expected if row[0] not in OF_EVERY_COMMAND]
        assert sorted(rows) == sorted(own)
        assert not name or len(expected) - len(own) == len(OF_EVERY_COMMAND)
    beginning = page[: page.index("\n## ")]
    assert all(f"| `{option}`" in beginning for option in OF_EVERY_COMMAND)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_that_are_shown_have_their_options(page: Path):
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"cdam-med ([a-z][^`\n]*)", "\n".join(shown_code(text))):
        matching = [each for each in commands() if each and f"{line} ".startswith(f"{each} ")]
        if not matching:  # a group of commands, without options
            assert not OPTION.findall(line), f"cdam-med {line}"
            continue
        (name,) = matching
        known = {option for each in commands()[name].params for option in each.opts}
        assert set(OPTION.findall(line)) <= known, f"cdam-med {line}"


def shown_code(text: str) -> list[str]:
    """Return the lines of shell blocks and the code spans that start with the command."""
    blocks = [code for language, code in FENCE.findall(text) if language == "sh"]
    spans = re.findall(r"`(cdam-med [^`]+)`", FENCE.sub("", text))
    return [*"\n".join(blocks).splitlines(), *(span for span in spans if "COMMAND" not in span)]


def test_options_in_the_guides_exist():
    known = {
        option for command in commands().values() for each in command.params for option in each.opts
    }
    for page in (ROOT / "docs").rglob("*.md"):
        mentioned = set(OPTION.findall(" ".join(re.findall(r"`([^`]+)`", prose(page)))))
        assert mentioned - {"--help"} <= known, page_id(page)


def test_every_problem_of_a_series_is_documented_with_its_default_and_repair():
    page = (ROOT / "docs" / "reference" / "series_problems.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (\w+) \| (.*?) ?\|$", page, flags=re.MULTILINE)
    words = {Action.REFUSE: "refused", Action.REPAIR: "repaired", Action.NOTE: "noted"}
    assert sorted(rows) == sorted(
        (kind.name, kind.meaning, words[kind.default], kind.repair or "")
        for kind in PROBLEMS.values()
    )


def test_every_estimator_is_documented_as_the_registry_has_it():
    page = (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+ \| .+) \|$", page, flags=re.MULTILINE)
    documented = {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in rows}
    meanings = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", page, flags=re.MULTILINE))
    assert meanings == {name: kind.meaning for name, kind in METHODS.items()}
    assert list(documented) == list(METHODS)
    for name, kind in METHODS.items():
        title, resolution, sign, cost, settings, source = documented[name]
        assert (title, resolution, cost, source) == (
            kind.title,
            kind.resolution,
            kind.cost,
            kind.reference,
        )
        assert sign == ("signed" if kind.is_signed else "unsigned")
        defaults = dataclasses.asdict(kind())
        assert settings == ", ".join(f"`{key}={value}`" for key, value in defaults.items())


def test_every_metric_of_explanations_is_documented():
    page = (ROOT / "docs" / "how-to" / "evaluate_explanations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", page, flags=re.MULTILINE)
    documented = {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in rows}
    assert documented == {
        name: [metric.title, metric.section, metric.better, metric.meaning]
        for name, metric in METRICS.items()
    }
    assert all(f"`{name}`" in page for name in GROUPS)


def test_the_code_that_explains_any_image_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    page = (ROOT / "docs" / "how-to" / "explain_any_image.md").read_text(encoding="utf-8")
    code = "\n".join(block for language, block in FENCE.findall(page) if language == "python")
    assert code.count("pretrained=True") == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    picture = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    Image.fromarray(picture).save("image.png")
    exec(code.replace("pretrained=True", "pretrained=False"), {})
    printed = capsys.readouterr().out
    assert "torch.Size([1, 3, 14, 14])" in printed
    assert "('like these', " in printed
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_the_code_that_explains_a_vit_of_ones_own_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    page = (ROOT / "docs" / "how-to" / "explain_your_own_vit.md").read_text(encoding="utf-8")
    code = "\n".join(block for language, block in FENCE.findall(page) if language == "python")
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "page"})
    printed = capsys.readouterr().out
    assert "{'solid': " in printed
    assert "autograd (64, 64, 64)" in printed
    assert (tmp_path / "case_timm" / "attribution_solid.nii.gz").is_file()


def reference() -> dict[str, str]:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    return sections(page, level=3)


def resolve(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_every_public_name_is_documented():
    public = [
        f"{module.__name__}.{name}" for module in (cdam_med, data_prep) for name in module.__all__
    ]
    assert sorted(reference()) == sorted(public)


def written_parameters(name: str, code: str) -> dict[str, tuple[Any, Any]]:
    """Return kind and default of the parameters in a signature as the page writes it."""
    definition = ast.parse(f"def {code.strip()}: ...").body[0]
    assert isinstance(definition, ast.FunctionDef)
    assert definition.name == name.rpartition(".")[2]
    namespace: dict[str, Any] = {"Policy": data_prep.Policy}
    exec(ast.unparse(definition), namespace)
    signature = inspect.signature(namespace[definition.name])
    return {each.name: (each.kind, each.default) for each in signature.parameters.values()}


@pytest.mark.parametrize("name", reference())
def test_signatures_are_those_of_the_code(name: str):
    codes = [code for _, code in FENCE.findall(reference()[name])]
    value = resolve(name)
    if inspect.isfunction(value):
        assert codes, f"{name} is written without its signature"
    if codes:
        expected = inspect.signature(value).parameters.values()
        assert written_parameters(name, codes[0]) == {
            each.name: (each.kind, each.default) for each in expected
        }


@pytest.mark.parametrize("name", reference())
def test_attributes_that_are_documented_exist(name: str):
    mentioned = set(re.findall(r"`\.([a-z_0-9]+)`", reference()[name]))
    value = resolve(name)
    fields = (
        {each.name for each in dataclasses.fields(value)}
        if dataclasses.is_dataclass(value)
        else set()
    )
    if inspect.isfunction(value):  # what is said of its result
        return
    if issubclass_of_error(value):
        first = (
            Finding("missing_slices", "A slice is missing") if value is SeriesError else "reason"
        )
        fields = set(vars(value(first, "A sentence.")))
    assert mentioned <= fields | set(dir(value))
    assert fields <= mentioned | signature_names(name)


def issubclass_of_error(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, NamedError)


def signature_names(name: str) -> set[str]:
    codes = [code for _, code in FENCE.findall(reference()[name])]
    return set(written_parameters(name, codes[0])) if codes else set()


def test_modules_and_names_that_are_mentioned_exist():
    for page in PAGES:
        for dotted in re.findall(r"`((?:cdam_med|data_prep)(?:\.\w+)+)`", prose(page)):
            try:
                importlib.import_module(dotted)
            except ModuleNotFoundError:
                assert resolve(dotted) is not None, f"{page_id(page)}: {dotted}"


def test_paths_that_are_mentioned_exist():
    for page in PAGES:
        spans = re.findall(r"`((?:cdam_med|data_prep|tests|docs)/[\w/.-]*)`", prose(page))
        commands_shown = re.findall(r"(?:pytest|python) (tests/[\w/.]+)", page.read_text("utf-8"))
        for path in [*spans, *commands_shown]:
            assert (ROOT / path).exists(), f"{page_id(page)}: {path}"


def test_tests_that_are_named_as_proof_exist():
    """A command ``pytest FILE -k WORD`` in the docs picks at least one test of that file."""
    for page in PAGES:
        for path, word in re.findall(r"pytest (tests/[\w/.]+) -k (\w+)", page.read_text("utf-8")):
            names = re.findall(r"^def (test_\w+)", (ROOT / path).read_text("utf-8"), re.MULTILINE)
            assert any(word in name for name in names), f"{page_id(page)}: {path} -k {word}"


def test_targets_are_listed_where_users_choose_them():
    for page in ("docs/how-to/explain_a_ct.md", "docs/reference/case_folder.md"):
        for name in TARGET_NAMES:
            assert f"`{name}`" in (ROOT / page).read_text(encoding="utf-8")
