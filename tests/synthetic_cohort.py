"""Series that are made on the spot, for tests of `data_prep.prepare.run`; also run as a program.

A module of its own, as other processes import it: ``python synthetic_cohort.py OUT JOBS PIDS``
prepares (or goes on preparing) a cohort and leaves the process ids of its workers in PIDS.
"""

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_prep.cohort.select import CLINICAL
from data_prep.dicom.files import DicomFile
from data_prep.nodules import MaskBox, Nodule, Reader
from data_prep.prepare.run import prepare_cohort
from data_prep.prepare.series import LoadedSeries
from data_prep.problems import Finding, SeriesError
from data_prep.volume import CTVolume

SHAPE = (24, 20, 12)
AFFINE = np.array([[-0.8, 0, 0, 9.0], [0, -0.8, 0, 7.0], [0, 0, 1.5, -60.0], [0, 0, 0, 1]])
PROTOCOL = replace(CLINICAL, size_mm=8.0, n_folds=2)
N_SERIES = 5


@dataclass(frozen=True)
class SyntheticTask:
    """A series of two nodules whose content follows from a seed."""

    series_id: str
    patient_id: str
    seed: int
    delay_s: float = 0.0
    pids: Path | None = None

    def load(self) -> LoadedSeries:
        if self.pids is not None:
            (self.pids / str(os.getpid())).touch()
        time.sleep(self.delay_s)
        rng = np.random.default_rng(self.seed)
        hu = rng.integers(-1000, 400, SHAPE).astype(np.int16)
        volume = CTVolume(hu, AFFINE, f"1.2.840.113619.{self.seed}")
        nodules = [nodule(number, rng.integers(1, 6, 3).tolist()) for number in (1, 2)]
        return LoadedSeries(volume, nodules, sources=("Made by a test, CC0.",))


@dataclass(frozen=True)
class FailingTask:
    """A series that can't be loaded, in one way or another."""

    series_id: str
    patient_id: str
    how: str

    def load(self) -> LoadedSeries:
        if self.how == "named":
            files = (DicomFile(Path("/mnt/DOE_JOHN/0001.dcm")),)
            what = "Series 1.2.840.113619.7 lacks one"
            raise SeriesError(Finding("missing_slices", what, files=files))
        if self.how == "unexpected":
            raise KeyError("no such\nthing in /mnt/DOE_JOHN/0001.dcm")
        if self.how == "memory":
            raise MemoryError
        if self.how == "os":
            raise PermissionError(13, "Permission denied", "/mnt/DOE_JOHN/0001.dcm")
        if self.how == "killed":
            os.kill(os.getpid(), 9)
        if self.how == "interrupted":
            raise KeyboardInterrupt
        raise AssertionError(self.how)


def nodule(number: int, malignancies: list[int], *, at: tuple[int, int, int] | None = None):
    """Return a nodule of 4 x 4 x 3 voxels that three readers outlined, each a little larger."""
    origin = at or (4 + 9 * (number - 1), 8, 4)
    readers = tuple(
        Reader(
            {"malignancy": malignancy, "subtlety": session, "diameter": 4.1 + session},
            MaskBox(origin, np.ones((4, 4, 2 + (session > 1)), np.bool_), SHAPE),
            session,
            annotation_id=100 * number + session,
        )
        for session, malignancy in enumerate(malignancies, start=1)
    )
    outline = MaskBox(origin, np.ones((4, 4, 3), np.bool_), SHAPE)
    center = AFFINE[:3, :3] @ np.add(origin, [1.5, 1.5, 1.0]) + AFFINE[:3, 3]
    ratings = {
        "malignancy": float(np.median(malignancies)),
        "subtlety": 2.0,
        "diameter": float(np.mean([reader.ratings["diameter"] for reader in readers])),
    }
    return Nodule(f"nodule_{number}", center, ratings, readers, outline)


def tasks(delay_s: float = 0.0, pids: Path | None = None) -> list[SyntheticTask | FailingTask]:
    series = [
        SyntheticTask(f"series_{n:04d}", f"patient_{n // 2:04d}", n, delay_s, pids)
        for n in range(N_SERIES)
    ]
    return [*series, FailingTask("broken", "patient_0009", "named")]


if __name__ == "__main__":
    out, jobs, pids = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    started = out.with_name(f".{out.name}.partial").exists()
    prepare_cohort(tasks(0.1, pids), PROTOCOL, out, resume=started, jobs=jobs)
