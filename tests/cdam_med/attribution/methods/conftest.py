"""The slow oracles, which import each other."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ORACLES = Path(__file__).resolve().parents[3] / "oracles"


@pytest.fixture(scope="session")
def oracle() -> Callable[[str], ModuleType]:
    """Import one of the slow, independent re-implementations by its name."""

    def by_name(name: str) -> ModuleType:
        if str(ORACLES) not in sys.path:
            sys.path.append(str(ORACLES))
        return importlib.import_module(name)

    return by_name
