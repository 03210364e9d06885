"""``cdam-med info`` and ``cdam-med methods``: what is installed, and every way to make a map."""

import os
import platform
import shutil
import subprocess

from cdam_med.cli.command import JsonOption, as_command
from cdam_med.cli.terminal import print_outcome, working

LIBRARIES = ("torch", "timm", "monai", "pydicom", "highdicom", "nibabel", "numpy")
"""Whose versions a report of a fault should name."""

NVIDIA_TIMEOUT_S = 10.0
"""A driver that doesn't answer by then is as good as none."""


@as_command
def info(as_json: JsonOption = False) -> None:
    """List versions, devices, models that ship with the package, and methods."""
    from cdam_med.attribution.registry import METHODS
    from cdam_med.demo import model_path
    from data_prep.statements import RESEARCH_ONLY, version_of

    versions = {
        "cdam-med": version_of("cdam-med"),
        "Python": platform.python_version(),
        "system": platform.platform(),
        **{name: version_of(name) for name in LIBRARIES},
    }
    devices = [{"name": "cpu", "what": f"{os.cpu_count()} processors"}, *_nvidia_gpus()]
    content = {
        "versions": versions,
        "devices": devices,
        "models": {"demo": str(model_path())},
        "methods": list(METHODS),
    }
    print_outcome(
        content,
        *(f"{name:<12}{version}" for name, version in versions.items()),
        *(f"device      {device['name']}: {device['what']}" for device in devices),
        "models      demo, or the folder of a trained model",
        f"methods     {', '.join(METHODS)}",
        RESEARCH_ONLY,
        as_json=as_json,
    )


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


@as_command
def methods(as_json: JsonOption = False) -> None:
    """List the methods: name, resolution, sign, cost, settings and reference.

    Commands use the settings as listed; others are given in Python.
    """
    import dataclasses

    with working("Loading the methods"):
        from cdam_med.attribution.registry import METHODS

        keys = ("name", "title", "resolution", "is_signed", "cost", "reference")
        rows = [
            {
                **{key: getattr(kind, key) for key in keys},
                "settings": dataclasses.asdict(kind()),  # type: ignore[call-overload]
            }
            for kind in METHODS.values()
        ]
    lines = []
    for row in rows:
        sign = "signed" if row["is_signed"] else "unsigned"
        settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
        lines += [
            f"{row['name']:28s}{row['title']}; {row['resolution']}, {sign}; {row['cost']}",
            f"{'':28s}{row['reference']}{f'; {settings}' if settings else ''}",
        ]
    lines.append(
        "Commands use these settings; others are given in Python, e.g. "
        "method('smooth_cdam', samples=20)."
    )
    print_outcome(rows, *lines, as_json=as_json)
