"""The names that users rely on: all there, listed, and loaded only when asked for."""

import subprocess
import sys
from importlib import metadata

import pytest

import cdam_med


@pytest.mark.parametrize("name", cdam_med.__all__)
def test_name_loads(name: str) -> None:
    value = getattr(cdam_med, name)
    other_names = {"CdamScores": "Attribution", "estimator": "method"}
    expected = other_names.get(name, name)
    assert getattr(value, "__name__", expected) == expected
    assert name in dir(cdam_med)


def test_promised_names() -> None:
    promised = {"cdam_scores", "CdamScores", "load_model", "explain", "Explanation"}
    assert promised <= set(cdam_med.__all__)
    assert len({*cdam_med.__all__} - {"estimator"}) <= 16  # until 0.2


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"cdam_med.*cdam_score"):
        cdam_med.cdam_score  # noqa: B018


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, cdam_med\n"
        "heavy = {'torch', 'timm', 'monai', 'numpy', 'pydicom', 'matplotlib', 'data_prep'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from cdam_med import TARGET_NAMES\n"
        "assert 'torch' not in sys.modules\n"
        "assert len(TARGET_NAMES) == 9\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_explaining_loads_what_it_uses() -> None:
    code = (
        "import sys\n"
        "from cdam_med import explain, load_model\n"
        "unused = {'monai', 'matplotlib', 'sklearn', 'captum', 'pandas'} & set(sys.modules)\n"
        "assert not unused, unused\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_version_is_that_of_the_distribution() -> None:
    assert cdam_med.__version__ == metadata.version("cdam-med")
