"""Nodules of any CT from a table: points in a stated frame, with diameters and ratings.

The table is CSV with a header row. A row names its series (``series_uid``), its patient
(``patient_id``) or both, and the point ``x, y, z`` in millimetres. The frame is never guessed: a
column ``frame`` holds ``ras`` or ``lps``, or the caller says it. Optional are ``diameter_mm``,
the ratings of `data_prep.lidc.ratings.RATING_RANGES` and ``nodule_id``. LUNA16's own columns
(``seriesuid, coordX, coordY, coordZ``) are known, and LPS by that challenge's definition.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.dicom.files import printable
from data_prep.errors import InputError, NoduleTableError
from data_prep.lidc.ratings import RATING_RANGES
from data_prep.nodules import FRAMES, Nodule, nodule_at, reading_order
from data_prep.table_text import read_cells
from data_prep.volume import CTVolume

MAX_NODULES = 1000
"""More than any patient has."""

MAX_DIAMETER_MM = 500.0
"""Wider than any chest."""

SAME_PLACE_MM = 1e-3
"""Two rows of a series that lie closer are the same nodule."""

LUNA16_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ")

_MAX_SHOWN = 40
_NODULE_ID = re.compile(r"[A-Za-z0-9_-]+")
_KNOWN = ("series_uid", "patient_id", "x", "y", "z", "frame", "diameter_mm", "nodule_id")


@dataclass(frozen=True)
class NoduleRow:
    """One row of a table.

    Parameters
    ----------
    row
        Its line in the file, from 1 (the header row).
    series_uid, patient_id
        Whose nodule it is; empty where the row doesn't say.
    point_mm
        x, y, z in `frame`.
    frame
        ``"ras"`` or ``"lps"``.
    ratings
        By name, ``diameter`` in millimetres; only those that are filled in.
    nodule_id
        Empty where the row doesn't name it.
    """

    row: int
    series_uid: str
    patient_id: str
    point_mm: tuple[float, float, float]
    frame: str
    ratings: Mapping[str, float]
    nodule_id: str


@dataclass(frozen=True)
class NoduleTable:
    """Nodules by series or patient.

    Parameters
    ----------
    name
        The file's own name, printable.
    rows
        In the order of the file, without exact copies.
    duplicate_rows
        Lines that are exact copies of an earlier row; they count once.
    ignored_columns
        Columns that mean nothing here, printable.
    """

    name: str
    rows: tuple[NoduleRow, ...]
    duplicate_rows: tuple[int, ...] = ()
    ignored_columns: tuple[str, ...] = ()

    def for_series(
        self,
        series_uid: str,
        patient_id: str,
        volume: CTVolume,
        *,
        patient_has_one_series: bool = False,
    ) -> list[Nodule]:
        """Return the nodules of a series.

        Parameters
        ----------
        series_uid, patient_id
            Of the series; an empty `patient_id` matches no row.
        volume
            The scan.
        patient_has_one_series
            Whether rows that name the patient alone can only mean this series.

        Returns
        -------
        list of Nodule
            Named as in the table, else ``nodule_1`` ... from superior to inferior (ties: from
            left to right, from posterior to anterior). Bare points with ratings: no outline.

        Raises
        ------
        NoduleTableError
            ``ambiguous_series`` (rows name a patient with several series), ``other_patient`` (a
            row names this series and another patient), ``outside_volume``, ``same_place`` (two
            rows at one point), ``same_id`` or ``too_many_nodules``. The message names the row.
        """
        rows = self._rows_of(series_uid, patient_id, patient_has_one_series)
        points = [self._point(row, volume) for row in rows]
        self._check_places(rows, points)
        order = sorted(range(len(rows)), key=lambda n: reading_order(points[n]))
        names = {n: rows[n].nodule_id or f"nodule_{place}" for place, n in enumerate(order, 1)}
        self._check_names(rows, [names[n] for n in range(len(rows))])
        return [Nodule(names[n], points[n], rows[n].ratings) for n in order]

    def _rows_of(
        self, series_uid: str, patient_id: str, patient_has_one_series: bool
    ) -> list[NoduleRow]:
        rows = []
        for row in self.rows:
            if row.series_uid == series_uid:
                if patient_id and row.patient_id not in ("", patient_id):
                    raise self._error(
                        "other_patient",
                        row,
                        f"names series {_shown(series_uid)} together with a patient that it isn't "
                        "of: correct one of the two.",
                    )
                rows.append(row)
            elif not row.series_uid and patient_id and row.patient_id == patient_id:
                if not patient_has_one_series:
                    raise self._error(
                        "ambiguous_series",
                        row,
                        "names a patient who may have several series: add a column series_uid "
                        "that says which one is meant.",
                    )
                rows.append(row)
        if len(rows) > MAX_NODULES:
            raise self._error(
                "too_many_nodules",
                rows[MAX_NODULES],
                f"is the {MAX_NODULES + 1}st nodule of one series: give a table of nodules.",
            )
        return rows

    def _point(self, row: NoduleRow, volume: CTVolume) -> np.ndarray:
        try:
            return nodule_at(row.point_mm, volume, frame=row.frame).center_xyz_mm
        except InputError as error:
            message = str(error)
            raise self._error("outside_volume", row, f"can't be used: {message}") from error

    def _check_places(self, rows: Sequence[NoduleRow], points: Sequence[np.ndarray]) -> None:
        for later, row in enumerate(rows):
            for earlier in range(later):
                if np.linalg.norm(points[later] - points[earlier]) < SAME_PLACE_MM:
                    raise self._error(
                        "same_place",
                        row,
                        f"lies where row {rows[earlier].row} does but differs from it: keep one.",
                    )

    def _check_names(self, rows: Sequence[NoduleRow], names: Sequence[str]) -> None:
        for later, row in enumerate(rows):
            if names[later] in names[:later]:
                raise self._error(
                    "same_id",
                    row,
                    f"is nodule {names[later]}, as another row of the series is: name the "
                    "nodules of a series apart, each or none.",
                )

    def _error(self, reason: str, row: NoduleRow, what: str) -> NoduleTableError:
        return NoduleTableError(reason, f"Row {row.row} of {self.name} {what}")


def read_nodule_table(path: str | os.PathLike[str], *, frame: str | None = None) -> NoduleTable:
    """Read a table of nodules.

    Parameters
    ----------
    path
        CSV file, UTF-8, values separated by commas, decimal points.
    frame
        Frame of all points, ``"ras"`` or ``"lps"``, where the table doesn't state it.

    Raises
    ------
    NoduleTableError
        If the table can't be read without guessing. The reasons: ``unreadable_table``,
        ``too_large``, ``encoding``, ``semicolons`` (also tabs), ``columns``, ``no_frame``,
        ``conflicting_frames``, ``no_rows``; of a row ``bad_row`` and ``bad_value``.
    """
    path = Path(path)
    name = printable(path.name)
    if frame is not None and frame not in FRAMES:
        raise InputError(f"The frame {_shown(frame)} is unknown; give 'ras' or 'lps'.")
    lines = read_cells(path)
    header = lines[0][1] if lines else []
    columns, table_frame = _columns(header, name, frame)
    reader = _RowReader(name, columns, table_frame, len(header))
    rows: list[NoduleRow] = []
    duplicates: list[int] = []
    seen: set[tuple[str, ...]] = set()
    for row, cells in lines[1:]:
        parsed = reader.read(row, cells)
        if tuple(cells) in seen:
            duplicates.append(row)
        else:
            seen.add(tuple(cells))
            rows.append(parsed)
    if not rows:
        raise NoduleTableError("no_rows", f"{name} holds no nodule below its header row.")
    ignored = [column for column in header if column not in columns]
    return NoduleTable(
        name, tuple(rows), tuple(duplicates), tuple(_shown(column) for column in ignored)
    )


class _RowReader:
    """Checks the rows of a table.

    Parameters
    ----------
    name
        The file's printable name.
    columns
        Place of each known column, by the name that it has in the file.
    frame
        Of all points; None where a column says it.
    n_columns
        Cells of a row.
    """

    def __init__(
        self, name: str, columns: Mapping[str, int], frame: str | None, n_columns: int
    ) -> None:
        self.name = name
        self.columns = columns
        self.frame = frame
        self.n_columns = n_columns
        is_luna16 = set(LUNA16_COLUMNS) <= set(columns)
        self.series, *self.axes = LUNA16_COLUMNS if is_luna16 else ("series_uid", "x", "y", "z")

    def read(self, row: int, cells: Sequence[str]) -> NoduleRow:
        """Return one row, every value checked."""
        if len(cells) != self.n_columns:
            raise self._error(
                "bad_row",
                row,
                f"has {len(cells)} values where the header has {self.n_columns} columns: quote "
                "values that hold a comma, and write decimal points.",
            )
        values = {column: cells[place] for column, place in self.columns.items()}
        series_uid, patient_id = values.get(self.series, ""), values.get("patient_id", "")
        if not series_uid and not patient_id:
            raise self._error("bad_value", row, "names neither a series nor a patient.")
        nodule_id = values.get("nodule_id", "")
        if nodule_id and not _NODULE_ID.fullmatch(nodule_id):
            raise self._error(
                "bad_value",
                row,
                f"has the nodule_id {_shown(nodule_id)}; use letters, digits, '_' and '-'.",
            )
        frame = self.frame or values["frame"].lower()
        if frame not in FRAMES:
            raise self._error("no_frame", row, f"has the frame {_shown(frame)}; write ras or lps.")
        x, y, z = (self._number(row, axis, values[axis]) for axis in self.axes)
        return NoduleRow(
            row, series_uid, patient_id, (x, y, z), frame, self._ratings(row, values), nodule_id
        )

    def _ratings(self, row: int, values: Mapping[str, str]) -> dict[str, float]:
        ratings = {}
        limits = {
            column: (float(low), float(high)) for column, (low, high) in RATING_RANGES.items()
        }
        for column, (low, high) in (limits | {"diameter_mm": (0.0, MAX_DIAMETER_MM)}).items():
            text = values.get(column, "")
            if not text:
                continue
            number = self._number(row, column, text)
            if not low <= number <= high or number == 0:
                raise self._error(
                    "bad_value",
                    row,
                    f"has the {column} {_shown(text)}, expected {low:g} to {high:g}.",
                )
            ratings["diameter" if column == "diameter_mm" else column] = number
        return ratings

    def _number(self, row: int, column: str, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = np.nan
        # float() also takes 1_000 and the digits of other scripts
        if not np.isfinite(number) or "_" in text or not text.isascii():
            remedy = "write a decimal point" if "," in text else "expected a number"
            raise self._error("bad_value", row, f"has the {column} {_shown(text)}; {remedy}.")
        return number

    def _error(self, reason: str, row: int, what: str) -> NoduleTableError:
        return NoduleTableError(reason, f"Row {row} of {self.name} {what}")


def _columns(
    header: Sequence[str], name: str, frame: str | None
) -> tuple[dict[str, int], str | None]:
    """Return the place of each known column, and the frame unless a column says it."""
    if len(header) < 2 and re.search(r"[;\t]", "".join(header)):
        raise NoduleTableError(
            "semicolons",
            f"{name} separates its values by semicolons or tabs: save it with commas (and decimal "
            "points).",
        )
    twice = [column for place, column in enumerate(header) if column and column in header[:place]]
    if twice:
        raise NoduleTableError("columns", f"{name} has two columns {_shown(twice[0])}: keep one.")
    if "diameter" in header:
        raise NoduleTableError(
            "columns", f"{name} has a diameter without a unit: name the column diameter_mm."
        )
    is_luna16 = set(LUNA16_COLUMNS) <= set(header)
    known = {*_KNOWN, *RATING_RANGES, *(LUNA16_COLUMNS if is_luna16 else ())}
    columns = {column: place for place, column in enumerate(header) if column in known}
    if is_luna16 and set(columns) & {"series_uid", "x", "y", "z"}:
        raise NoduleTableError(
            "columns", f"{name} has both LUNA16's columns and series_uid, x, y or z: keep one kind."
        )
    missing = [] if is_luna16 else [axis for axis in "xyz" if axis not in columns]
    if not is_luna16 and not set(columns) & {"series_uid", "patient_id"}:
        missing.append("series_uid (or patient_id)")
    if missing:
        raise NoduleTableError(
            "columns",
            f"{name} lacks the column {missing[0]}; needed are series_uid or patient_id, and x, "
            "y, z in millimetres.",
        )
    return columns, _frame(columns, name, frame, "lps" if is_luna16 else None)


def _frame(
    columns: Mapping[str, int], name: str, asked: str | None, defined: str | None
) -> str | None:
    stated = [source for source in (asked, defined, columns.get("frame")) if source is not None]
    if not stated:
        raise NoduleTableError(
            "no_frame",
            f"{name} doesn't say in which frame its points are: add a column frame that holds ras "
            "(as NIfTI and 3D Slicer's tables) or lps (as DICOM and ITK), or give the frame.",
        )
    if asked is not None and ("frame" in columns or defined not in (None, asked)):
        raise NoduleTableError(
            "conflicting_frames",
            f"The frame of {name} is given as {asked}, but the table states it itself (a column "
            "frame, or LUNA16's columns, which are lps): say it once.",
        )
    if defined is not None and "frame" in columns:
        raise NoduleTableError(
            "conflicting_frames",
            f"{name} has a column frame beside LUNA16's columns, which are lps: name the columns "
            "series_uid, x, y, z.",
        )
    return asked or defined


def _shown(text: str) -> str:
    """Return text of a table as it may be shown: short, without control characters."""
    shown = printable(text)
    return f"'{shown[:_MAX_SHOWN]}...'" if len(shown) > _MAX_SHOWN else f"'{shown}'"
