"""The house stays small: no circle of imports, few floors in each room, files of one size."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_FLOORS = 7
MOST_FILES = 170
MOST_LINES = 400

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("cdam_med", "data_prep")
    for path in sorted((ROOT / package).rglob("*.py"))
}
ROOMS = sorted({".".join(name.split(".")[:2]) for name in FILES if name.count(".") > 1})


def imported_names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


@cache
def imports(name: str) -> frozenset[str]:
    """Return the modules that a module imports, also within functions, but not for types alone."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    for_types = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and id(node) not in for_types:
            for imported in imported_names(node):
                module = imported if imported in FILES else imported.rpartition(".")[0]
                if module in FILES and module != name:
                    found.add(module)
    return frozenset(found)


def floor(name: str, room: str, below: tuple[str, ...] = ()) -> int:
    """Return the length of the longest chain of imports within a room that ends at a module."""
    assert name not in below, f"a circle of imports: {' > '.join((*below, name))}"
    inside = [each for each in imports(name) if each.startswith(f"{room}.")]
    return 1 + max((floor(each, room, (*below, name)) for each in inside), default=0)


@pytest.mark.parametrize("room", ROOMS)
def test_few_floors_and_no_circle(room: str):
    floors = {name: floor(name, room) for name in FILES if name.startswith(f"{room}.")}
    highest = max(floors, key=lambda name: floors[name])
    assert floors[highest] <= MOST_FLOORS, f"{highest} stands on {floors[highest]} floors"


def test_files_are_few_and_none_is_long():
    assert len(FILES) <= MOST_FILES
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_nobody_imports_what_another_file_keeps_private():
    private = [
        f"{name} imports {imported}"
        for name, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in name
        for imported in imported_names(node)
        if imported.rpartition(".")[2].startswith("_") and "__" not in imported
    ]
    assert private == []
