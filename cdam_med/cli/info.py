"""``cdam-med info``: what is installed and can be used here, without loading torch."""

import os
import platform
import shutil
import subprocess
from typing import Any

from cdam_med.cli.command import JsonOption, as_command
from cdam_med.cli.terminal import print_json, print_result

LIBRARIES = ("torch", "timm", "monai", "pydicom", "highdicom", "SimpleITK", "nibabel", "numpy")
"""Whose versions a report of a fault should name."""

NVIDIA_TIMEOUT_S = 10.0
"""A driver that doesn't answer by then is as good as none."""


@as_command
def info(as_json: JsonOption = False) -> None:
    """List versions, devices, models that ship with the package, and estimators."""
    from cdam_med.attribution.registry import ESTIMATORS
    from cdam_med.demo import model_path
    from data_prep.versions import version_of

    found: dict[str, Any] = {
        "versions": {
            "cdam-med": version_of("cdam-med"),
            "Python": platform.python_version(),
            "system": platform.platform(),
            **{name: version_of(name) for name in LIBRARIES},
        },
        "devices": [{"name": "cpu", "what": f"{os.cpu_count()} processors"}, *_nvidia_gpus()],
        "models": {"demo": str(model_path())},
        "estimators": list(ESTIMATORS),
    }
    if as_json:
        print_json(found)
        return
    for name, version in found["versions"].items():
        print_result(f"{name:<12}{version}")
    for device in found["devices"]:
        print_result(f"device      {device['name']}: {device['what']}")
    print_result("models      demo, or the folder of a trained model")
    print_result(f"estimators  {', '.join(ESTIMATORS)}")
    print_result("Research only, not for diagnosis.")


def _nvidia_gpus() -> list[dict[str, str]]:
    """Return the GPUs that NVIDIA's driver knows; whether torch can use one, only torch can say."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index,name,memory.total", "--format=csv,noheader"]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=NVIDIA_TIMEOUT_S, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return []
    rows = (line.split(", ", 1) for line in run.stdout.splitlines())
    return [{"name": f"cuda:{index}", "what": what} for index, what in rows]
