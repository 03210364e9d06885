"""Time and memory of reading one CT series: `data_prep.read_series` and SimpleITK's series reader.

Both read the same folder by turns in one process, after a round that isn't counted (it fills the
disk's cache); the ratio of each turn's two times means something even on a busy machine. Memory is
measured apart, each reader once in a process of its own: how far its peak rose above what the
process took before (Linux only).

Run: ``python tests/benchmarks/read_series_speed.py FOLDER [--repeats 9]``; prints JSON.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import SimpleITK
from SimpleITK import GetArrayViewFromImage, ImageSeriesReader

from data_prep import read_series


def read_ours(folder: Path) -> int:
    return int(read_series(folder).hu.size)


def read_simpleitk(folder: Path) -> int:
    """Read with SimpleITK; the files in the first folder that has some are one series."""
    reader = ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    return int(GetArrayViewFromImage(image).size)


def seconds(read: Callable[[Path], int], folder: Path) -> tuple[float, float]:
    """Return wall time and processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    read(folder)
    return time.perf_counter() - wall, time.process_time() - processor


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {name}: memory is measured on Linux only")


def _peak(connection: Any, read: Callable[[Path], int], folder: Path) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status_bytes("VmRSS")
    read(folder)
    connection.send(_status_bytes("VmHWM") - before)


def peak_bytes(read: Callable[[Path], int], folder: Path) -> int:
    """Return how far the peak of resident memory rises while reading."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(theirs, read, folder))
    process.start()
    theirs.close()
    rise: int = ours.recv()
    process.join()
    return rise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder that holds the files of one CT series")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    folder = next(path.parent for path in sorted(arguments.folder.rglob("*.dcm")))

    n_voxels = read_simpleitk(folder)
    if read_ours(folder) != n_voxels:
        raise SystemExit(f"{folder} isn't one whole series: the two read different shapes")
    memory = {name: peak_bytes(read, folder) for name, read in READERS.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in READERS}
    for _ in range(arguments.repeats):
        for name, read in READERS.items():
            times[name].append(seconds(read, folder))
    ratios = [a[0] / b[0] for a, b in zip(times["cdam-med"], times["SimpleITK"], strict=True)]
    processor = [a[1] / b[1] for a, b in zip(times["cdam-med"], times["SimpleITK"], strict=True)]
    record = {
        "n_files": len(list(folder.glob("*.dcm"))),
        "int16_bytes": 2 * n_voxels,
        "repeats": arguments.repeats,
        "median_s": {
            name: round(statistics.median(wall for wall, _ in each), 3)
            for name, each in times.items()
        },
        "median_ratio": round(statistics.median(ratios), 3),
        "ratio_from": round(min(ratios), 3),
        "ratio_to": round(max(ratios), 3),
        "median_ratio_processor": round(statistics.median(processor), 3),
        "peak_over_int16": {name: round(rise / (2 * n_voxels), 3) for name, rise in memory.items()},
        "simpleitk": SimpleITK.Version.VersionString(),
        "pydicom": version("pydicom"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    sys.stdout.write(json.dumps(record, indent=1) + "\n")


READERS = {"SimpleITK": read_simpleitk, "cdam-med": read_ours}


if __name__ == "__main__":
    main()
