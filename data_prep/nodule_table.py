"""Nodules of any CT from a table: points in a stated frame, with diameters and ratings.

The table is CSV with a header row. A row names its series (``series_uid``), its patient
(``patient_id``) or both, and the point ``x, y, z`` in millimetres. The frame is never guessed: a
column ``frame`` holds ``ras`` or ``lps``, or the caller says it. Optional are ``diameter_mm``,
the ratings of `data_prep.ratings.RATING_RANGES`, ``nodule_id`` and ``is_nodule``. Names of
columns are known in their usual spellings (`data_prep.nodule_rows.SYNONYMS`). LUNA16's own
columns (``seriesuid, coordX, coordY, coordZ``, of candidates ``class``) are LPS by that
challenge's definition.

Each row stands for itself: one that can't be used is left out by its line, the others stay.
"""

import csv
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.errors import InputError, NoduleTableError, NoduleTableWarning
from data_prep.nodule_rows import LeftOutRow, NoduleRow, NotANodule, RowReader, shown
from data_prep.nodules import Nodule, nodule_at, reading_order
from data_prep.text import comparable, printable
from data_prep.volume import CTVolume

MAX_NODULES = 1000
"""More than any patient has."""

MAX_BYTES = 1 << 28
"""Some millions of rows; the longest table of a challenge has a quarter of it."""

SAME_PLACE_MM = 1e-3
"""Two rows of a series that lie closer are the same nodule."""


class PlacedRows(NamedTuple):
    """The nodules of a table on a scan, and the rows on its series or patient that give none.

    Nodules are named as in the table, else ``nodule_1`` ... from superior to inferior (ties: from
    left to right, from posterior to anterior). They are bare points with ratings: no outline.
    """

    nodules: tuple[Nodule, ...]
    left_out: tuple[LeftOutRow, ...]


@dataclass(frozen=True)
class NoduleTable:
    """Nodules by series or patient.

    Parameters
    ----------
    name
        The file's own name, printable.
    rows
        In the order of the file, without exact copies.
    left_out
        Rows that can't be used.
    not_nodules
        By series and patient, how many rows say that they are no nodule.
    duplicate_rows
        Lines that are exact copies of an earlier row; they count once.
    ignored_columns
        Columns that mean nothing here, printable.
    """

    name: str
    rows: tuple[NoduleRow, ...]
    left_out: tuple[LeftOutRow, ...] = ()
    not_nodules: Mapping[tuple[str, str], int] = field(default_factory=dict)
    duplicate_rows: tuple[int, ...] = ()
    ignored_columns: tuple[str, ...] = ()

    def of_series(self, series_uid: str, patient_id: str) -> "NoduleTable":
        """Return what the table says of a series, or of its patient alone."""
        series_uid, patient_id = comparable(series_uid), comparable(patient_id)

        def is_meant(uid: str, patient: str) -> bool:
            return uid == series_uid or (not uid and patient_id != "" and patient == patient_id)

        return replace(
            self,
            rows=tuple(row for row in self.rows if is_meant(row.series_uid, row.patient_id)),
            left_out=tuple(
                row for row in self.left_out if is_meant(row.series_uid, row.patient_id)
            ),
            not_nodules={key: n for key, n in self.not_nodules.items() if is_meant(*key)},
        )

    def for_series(
        self,
        series_uid: str,
        patient_id: str,
        volume: CTVolume,
        *,
        patient_has_one_series: bool = False,
    ) -> list[Nodule]:
        """Return the nodules of a series as `place` does, with a NoduleTableWarning a row left out.

        Rows that were left out when the table was read don't warn again.
        """
        placed = self.place(
            series_uid, patient_id, volume, patient_has_one_series=patient_has_one_series
        )
        for row in placed.left_out:
            if row not in self.left_out:
                message = f"{row.message(self.name)} It is left out."
                warnings.warn(message, NoduleTableWarning, stacklevel=2)
        return list(placed.nodules)

    def place(
        self,
        series_uid: str,
        patient_id: str,
        volume: CTVolume,
        *,
        patient_has_one_series: bool = False,
    ) -> PlacedRows:
        """Place the rows of a series on its scan.

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
        PlacedRows
            Rows are left out by these reasons, beside those of `read_nodule_table`:
            ``ambiguous_series`` (names a patient with several series), ``other_patient`` (names
            this series and another patient), ``outside_volume``, ``same_place`` (rows at one
            point that differ: each of them), ``same_id`` (rows of one name: each of them).

        Raises
        ------
        NoduleTableError
            ``too_many_nodules``.
        """
        table = self.of_series(series_uid, patient_id)
        if len(table.rows) > MAX_NODULES:
            raise NoduleTableError(
                "too_many_nodules",
                f"Row {table.rows[MAX_NODULES].row} of {self.name} is the {MAX_NODULES + 1}st "
                "nodule of one series: give a table of nodules.",
            )
        left_out = list(table.left_out)
        rows, points = [], []
        for row in table.rows:
            fault = _fault(row, comparable(patient_id), patient_has_one_series)
            if fault is None:
                try:
                    points.append(nodule_at(row.point_mm, volume, frame=row.frame).center_xyz_mm)
                    rows.append(row)
                    continue
                except InputError as error:
                    fault = ("outside_volume", f"can't be used: {error}")
            left_out.append(_left_out(row, *fault))
        nodules, conflicting = _named(rows, points)
        left_out = sorted([*left_out, *conflicting], key=lambda row: row.row)
        return PlacedRows(tuple(nodules), tuple(left_out))


def read_nodule_table(path: str | os.PathLike[str], *, frame: str | None = None) -> NoduleTable:
    """Read a table of nodules.

    Parameters
    ----------
    path
        CSV file, UTF-8, values separated by commas, decimal points.
    frame
        Frame of all points, ``"ras"`` or ``"lps"``, where the table doesn't state it.

    Returns
    -------
    NoduleTable
        Rows are left out by these reasons: ``bad_row``, ``bad_value``, ``no_frame``.

    Raises
    ------
    NoduleTableError
        If the table can't be read without guessing. The reasons: ``unreadable_table``,
        ``too_large``, ``encoding``, ``semicolons`` (also tabs), ``columns`` (one is missing, or
        two are one), ``no_frame``, ``conflicting_frames``, ``unclear_column`` (it may say that a
        row is no nodule), ``rating_scale``, ``no_rows``; that of its first row where none can be
        used.

    Warns
    -----
    NoduleTableWarning
        If columns aren't read, or rows are left out.
    """
    path = Path(path)
    name = printable(path.name)
    lines = _lines(path, name)
    _, header = next(lines, (1, []))
    if isinstance(header, str):
        raise NoduleTableError("columns", f"The header row of {name} {header}: save it as CSV.")
    reader = RowReader(name, header, frame)
    rows: list[NoduleRow] = []
    left_out: list[LeftOutRow] = []
    not_nodules: Counter[tuple[str, str]] = Counter()
    duplicates: list[int] = []
    seen: set[tuple[str, ...]] = set()
    for line, cells in lines:
        row = reader.read(line, cells)
        if isinstance(row, LeftOutRow):
            left_out.append(row)
        elif isinstance(row, NotANodule):
            not_nodules[row.series_uid, row.patient_id] += 1
        elif tuple(cells) in seen:
            duplicates.append(line)
        else:
            seen.add(tuple(cells))
            rows.append(row)
    reader.check_scales()
    ignored = tuple(shown(column) for column in reader.unused.values())
    table = NoduleTable(
        name, tuple(rows), tuple(left_out), dict(not_nodules), tuple(duplicates), ignored
    )
    _check_rows(table)
    unused = describe_unused(table)
    if unused:
        warnings.warn(unused, NoduleTableWarning, stacklevel=2)
    return table


def describe_unused(table: NoduleTable) -> str:
    """Say which columns and rows of a table aren't used; nothing if all are."""
    sentences = []
    if table.ignored_columns:
        listed = ", ".join(table.ignored_columns)
        sentences.append(f"{table.name} has columns that aren't used: {listed}.")
    n_no = sum(table.not_nodules.values())
    if n_no:
        sentences.append(f"{n_no} rows of {table.name} say that they are no nodule.")
    if table.left_out:
        sentences.append(
            f"{len(table.left_out)} rows of {table.name} can't be used and are left out; the "
            f"first: {table.left_out[0].message(table.name)}"
        )
    return " ".join(sentences)


def _lines(path: Path, name: str) -> Iterator[tuple[int, list[str] | str]]:
    """Give the stripped cells of each row that holds text, and of the first, with its line.

    Of a row that can't be taken apart it is said, in place of its cells, what is wrong with it.
    """
    try:
        if path.exists() and not path.is_file():
            what = f"{name} is no file: give the path of a CSV table."
            raise NoduleTableError("unreadable_table", what)
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.stat().st_size > MAX_BYTES:
                what = f"{name} is larger than {MAX_BYTES} bytes: give a table of nodules."
                raise NoduleTableError("too_large", what)
            yield from _rows_of_cells(csv.reader(file, strict=True), name)
    except OSError as error:
        raise NoduleTableError(
            "unreadable_table", f"{name} can't be read ({error.strerror}): check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise _not_utf8(name) from error


def _rows_of_cells(reader: "csv._reader", name: str) -> Iterator[tuple[int, list[str] | str]]:
    while True:
        line = reader.line_num + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > line or "end of data" in str(error):
                what = f"{name} has a quote on line {line} that isn't closed: close it."
                raise NoduleTableError("unreadable_table", what) from error
            yield line, f"isn't CSV ({error})"
            continue
        if any("\0" in cell for cell in cells):
            raise _not_utf8(name)
        if any(cells) or line == 1:
            yield line, cells


def _not_utf8(name: str) -> NoduleTableError:
    return NoduleTableError(
        "encoding", f"{name} isn't UTF-8: save it as 'CSV UTF-8 (comma delimited)'."
    )


def _check_rows(table: NoduleTable) -> None:
    if table.rows:
        return
    if table.left_out:
        first = table.left_out[0]
        others = len(table.left_out) - 1
        none = f" None of the {others} other rows can be used either." if others else ""
        raise NoduleTableError(first.reason, f"{first.message(table.name)}{none}")
    no_nodule = " that is a nodule" if table.not_nodules else ""
    raise NoduleTableError("no_rows", f"{table.name} holds no row{no_nodule} below its header row.")


def _fault(row: NoduleRow, patient_id: str, patient_has_one_series: bool) -> tuple[str, str] | None:
    """Return why a row can't be on a series that it may mean, or None."""
    if row.series_uid and patient_id and row.patient_id not in ("", patient_id):
        return (
            "other_patient",
            "names a series together with a patient that it isn't of: correct one of the two.",
        )
    if not row.series_uid and not patient_has_one_series:
        return (
            "ambiguous_series",
            "names a patient who may have several series: add a column series_uid that says which "
            "one is meant.",
        )
    return None


def _named(
    rows: Sequence[NoduleRow], points: Sequence[np.ndarray]
) -> tuple[list[Nodule], list[LeftOutRow]]:
    """Return the nodules at their points, by number, and the rows that contradict each other."""
    left_out = {}
    for place, point in enumerate(points):
        is_near = np.linalg.norm(np.subtract(points, point), axis=1) < SAME_PLACE_MM
        is_near[place] = False
        if is_near.any():
            other = rows[int(np.argmax(is_near))].row
            what = f"lies where row {other} does but differs from it: keep one."
            left_out[place] = _left_out(rows[place], "same_place", what)
    kept = [place for place in range(len(rows)) if place not in left_out]
    order = sorted(kept, key=lambda place: reading_order(points[place]))
    names = {place: rows[place].nodule_id or f"nodule_{n}" for n, place in enumerate(order, 1)}
    uses = Counter(names.values())
    nodules = []
    for place in order:
        if uses[names[place]] == 1:
            nodules.append(Nodule(names[place], points[place], rows[place].ratings))
            continue
        left_out[place] = _left_out(
            rows[place],
            "same_id",
            f"is nodule {names[place]}, as another row of the series is: name the nodules of a "
            "series apart, each or none.",
        )
    return nodules, list(left_out.values())


def _left_out(row: NoduleRow, reason: str, what: str) -> LeftOutRow:
    return LeftOutRow(row.row, row.series_uid, row.patient_id, row.nodule_id, reason, what)
