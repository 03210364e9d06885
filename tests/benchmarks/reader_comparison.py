"""Read CT series with one defect each by several readers, and measure what comes out.

Each case of `defect_cases` is written into a temporary folder and read by SimpleITK's series
reader, by MONAI's two DICOM readers, and by `data_prep.read_series` (as it is, and with the repairs
that its refusals name). Measured are the distance of the marker's centre of mass from the truth,
and how far the values are from Hounsfield units.

Every reading happens in a process of its own with a limit on memory and time, so that a reader that
crashes is a result too.

Run: ``python tests/benchmarks/reader_comparison.py [--json FILE] [--case WORD]``. MONAI's default
reader needs the package ``itk``; without it that column is left out.
"""

import argparse
import json
import logging
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from defect_cases import CASES, Case
from defective_series import AIR_HU, LUNG_HU, MARKER_PEAK_HU, Scene

RIGHT_MM, RIGHT_HU = 0.1, 1.0
MEMORY_BYTES = 3 * 2**30  # above what the imports take
SECONDS = 120.0


@dataclass(frozen=True)
class Result:
    """What a reader made of a case.

    Parameters
    ----------
    outcome
        One of "right", "wrong", "refused", "crashed".
    position_error_mm
        Of the marker; None without one.
    hu_error
        See `hu_error`.
    said
        What the reader told besides, shortened; empty if nothing.
    detail
        Why it refused, how it crashed, which repairs were asked for, or an odd shape.
    """

    outcome: str
    position_error_mm: float | None = None
    hu_error: float | None = None
    said: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Reading:
    """A volume, its affine from voxel index to RAS mm, and what was told besides.

    ``outside`` are the voxels that the reader itself marks as padding.
    """

    hu: np.ndarray
    affine: np.ndarray
    said: str = ""
    detail: str = ""
    outside: np.ndarray | None = None


Reader = Callable[[Path], Reading]


def read_simpleitk(folder: Path) -> Reading:
    import SimpleITK as sitk  # noqa: N813

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    n = image.GetDimension()  # 4 for a multi-frame file: its first three are judged
    direction = np.array(image.GetDirection()).reshape(n, n)[:3, :3]
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = direction * image.GetSpacing()[:3]
    affine_lps[:3, 3] = image.GetOrigin()[:3]
    return Reading(sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine_lps)


def read_monai_itk(folder: Path) -> Reading:
    return _read_monai("ITKReader", folder)


def read_monai_pydicom(folder: Path) -> Reading:
    return _read_monai("PydicomReader", folder)


def _read_monai(reader_name: str, folder: Path) -> Reading:
    image = monai_loader(reader_name)(str(folder))
    return Reading(np.asarray(image), np.asarray(image.affine, dtype=float))


@cache
def monai_loader(reader_name: str) -> Any:
    """Return MONAI's LoadImage with one reader; otherwise it falls back to others."""
    import monai.data
    from monai.transforms import LoadImage

    load = LoadImage(image_only=True)
    load.readers = [getattr(monai.data, reader_name)()]
    return load


def read_ours(folder: Path) -> Reading:
    from data_prep import read_series

    volume = read_series(folder)
    return _reading(volume)


def read_ours_repaired(folder: Path) -> Reading:
    """Ask for the repair that a refusal names, until it is read or there is none."""
    from data_prep import SeriesError, read_series
    from data_prep.problems import PROBLEMS

    asked: tuple[str, ...] = ()
    while True:
        try:
            volume = read_series(folder, repair=asked)
        except SeriesError as error:
            if PROBLEMS[error.reason].repair is None or error.reason in asked:
                raise
            asked += (error.reason,)
        else:
            return _reading(volume, f"repair: {', '.join(asked)}" if asked else "")


def _reading(volume: Any, detail: str = "") -> Reading:
    said = ", ".join(sorted({problem.name for problem in volume.problems}))
    return Reading(volume.hu, volume.affine, said, detail, volume.outside)


READERS: dict[str, Reader] = {
    "SimpleITK": read_simpleitk,
    "MONAI ITKReader": read_monai_itk,
    "MONAI PydicomReader": read_monai_pydicom,
    "cdam-med": read_ours,
    "cdam-med, repair": read_ours_repaired,
}


def position_error_mm(hu: np.ndarray, affine: np.ndarray, scene: Scene) -> float:
    """Return how far the marker's centre of mass is from its right place.

    The marker is what lies 1050 above the median or more. So it is found in values that lack
    their rescale too, and among padding that lies above any bone.
    """
    above = hu.astype(float) - float(np.median(hu))
    weights = np.where(above < 2000.0, np.maximum(above - 1050.0, 0.0), 0.0) ** 2
    if not weights.any():
        return np.inf
    center_ijk = [
        float((np.arange(n) * weights.sum(axis=tuple(a for a in range(3) if a != axis))).sum())
        / weights.sum()
        for axis, n in enumerate(weights.shape)
    ]
    return float(np.linalg.norm((affine @ [*center_ijk, 1.0])[:3] - scene.marker_ras))


def hu_error(hu: np.ndarray, scene: Scene) -> float:
    """Return how far the values are from Hounsfield units, whatever the geometry.

    Air, lung and soft tissue fill a good part of the volume each: the distance of each to the
    nearest value that fills a fiftieth. Nothing is denser than the marker or thinner than -1024.
    """
    values, counts = np.unique(np.rint(hu).astype(np.int64), return_counts=True)
    common = values[counts >= 0.02 * hu.size]
    if not common.size:
        return np.inf
    levels = (AIR_HU, LUNG_HU, scene.tissue_hu)
    plateaus = max(float(np.abs(common - level).min()) for level in levels)
    return max(plateaus, float(values[-1]) - MARKER_PEAK_HU, -1024.0 - float(values[0]))


def judge(reading: Reading, scenes: Sequence[Scene], told: str) -> Result:
    """Measure a reading against the scene that it comes nearest to."""
    said = "; ".join(part for part in (reading.said, told) if part)[:400]
    hu = np.squeeze(reading.hu)
    if hu.ndim != 3 or reading.affine.shape != (4, 4):
        shape = " x ".join(map(str, reading.hu.shape))
        return Result("wrong", None, None, said, f"an array of {shape}")
    if reading.outside is not None:
        hu = np.where(reading.outside, AIR_HU, hu)
    measured = [(position_error_mm(hu, reading.affine, one), hu_error(hu, one)) for one in scenes]
    distance_mm, error = min(measured, default=(np.inf, np.inf))
    is_right = distance_mm < RIGHT_MM and error <= RIGHT_HU
    return Result(
        "right" if is_right else "wrong",
        round(distance_mm, 3) if np.isfinite(distance_mm) else None,
        round(error, 1) if np.isfinite(error) else None,
        said,
        reading.detail,
    )


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collect what is told: Python's warnings and logs, and text from libraries on stderr."""
    told: list[str] = []
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kept = [os.dup(1), os.dup(2)]
        try:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
            yield told
        finally:
            for handler in logging.getLogger().handlers:
                handler.flush()
            for descriptor, old in zip((1, 2), kept, strict=True):
                os.dup2(old, descriptor)
                os.close(old)
            told += [
                str(each.message)
                for each in caught
                if not issubclass(each.category, DeprecationWarning | FutureWarning)
            ]
            file.seek(0)
            told += [file.read().decode(errors="replace")]


def read_and_judge(reader: Reader, folder: Path, scenes: Sequence[Scene]) -> Result:
    """Read a folder; a refusal is a result."""
    told: list[str] = []
    try:
        with listening() as told:
            reading = reader(folder)
    except MemoryError:
        return Result("crashed", detail="memory")
    except Exception as error:  # noqa: BLE001 - readers fail in their own ways
        reason = getattr(error, "reason", type(error).__name__)
        text = " ".join(str(error).split())
        return Result("refused", said=_short(told), detail=f"{reason}: {text}"[:400])
    return judge(reading, scenes, _short(told))


def _short(told: list[str]) -> str:
    return " ".join(" ".join(told).split())[:300]


def _work(connection: Any, reader: Reader, folder: Path, scenes: Sequence[Scene]) -> None:
    with Path("/proc/self/statm").open() as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    connection.send(read_and_judge(reader, folder, scenes))


def run_apart(reader: Reader, folder: Path, scenes: Sequence[Scene]) -> Result:
    """Do it in a process of its own."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, reader, folder, scenes))
    process.start()
    theirs.close()
    try:
        result: Result = ours.recv() if ours.poll(SECONDS) else Result("crashed", detail="time")
    except EOFError:
        process.join()
        result = Result("crashed", detail=f"exit code {process.exitcode}")
    process.kill()
    process.join()
    return result


def cell(case: Case, result: Result) -> str:
    """Return a result as it stands in the table."""
    if result.outcome == "refused":
        return f"refused ({result.detail.split(':')[0]})"
    if result.outcome == "crashed":
        return f"**crashed** ({result.detail})"
    if result.outcome == "right":
        if not case.must_be_said:
            return "right"
        return "right, says so" if result.said else "right, **silent**"
    how = "warns" if result.said else "**silent**"
    distance_mm = result.position_error_mm or 0.0
    sizes = [f"{distance_mm:.1f} mm"] if distance_mm >= RIGHT_MM else []
    sizes += [f"{result.hu_error:.0f} HU"] if (result.hu_error or 0) > RIGHT_HU else []
    return f"wrong, {how}: {', '.join(sizes) or result.detail or 'no marker'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--case", default="", help="only cases whose name has this")
    arguments = parser.parse_args()
    readers = dict(READERS)
    if find_spec("itk") is None:
        del readers["MONAI ITKReader"]
        sys.stderr.write("itk isn't installed: MONAI's ITKReader is left out\n")
    for module in ("SimpleITK", "data_prep"):
        __import__(module)
    for name in list(readers):
        if name.startswith("MONAI"):
            monai_loader(name.split()[1])  # tells about decoders that it lacks, which is no news
    results: dict[str, dict[str, Result]] = {}
    sys.stdout.write(
        "| case | " + " | ".join(readers) + " |\n" + "| --- " * (len(readers) + 1) + "|\n"
    )
    for case in CASES:
        if arguments.case not in case.name:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "series"
            scenes = case.write(folder)
            row = {name: run_apart(reader, folder, scenes) for name, reader in readers.items()}
        results[case.name] = row
        cells = [cell(case, result) for result in row.values()]
        sys.stdout.write(f"| {case.name} | " + " | ".join(cells) + " |\n")
        sys.stdout.flush()
    packages = ["SimpleITK", "monai", "pydicom", *(["itk-io"] if find_spec("itk") else [])]
    versions = {name: version(name) for name in packages} | {"python": platform.python_version()}
    if arguments.json:
        record = {
            "versions": versions,
            "right_mm": RIGHT_MM,
            "right_hu": RIGHT_HU,
            "cases": {
                name: {reader: asdict(result) for reader, result in row.items()}
                for name, row in results.items()
            },
        }
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
