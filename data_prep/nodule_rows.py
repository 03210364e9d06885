"""A row of a table of nodules: every value checked; what is said of one that is left out."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_prep.errors import NoduleTableError
from data_prep.nodule_columns import Columns, says_no_nodule, shown
from data_prep.nodules import FRAMES
from data_prep.ratings import RATING_RANGES
from data_prep.text import comparable

MAX_DIAMETER_MM = 500.0
"""Wider than any chest."""

_NODULE_ID = re.compile(r"[A-Za-z0-9_-]+")
_YES = frozenset({"1", "1.0", "true", "yes", "y", "t"})
_NO = frozenset({"0", "0.0", "false", "no", "n", "f"})
_CELL = "<cell>"
_LIMITS = {
    **{column: (float(low), float(high)) for column, (low, high) in RATING_RANGES.items()},
    "diameter_mm": (0.0, MAX_DIAMETER_MM),
}


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
class LeftOutRow:
    """A row that can't be used, and why; the others don't depend on it.

    Parameters
    ----------
    row
        Its line in the file.
    series_uid, patient_id, nodule_id
        As far as the row says them.
    reason
        Stable name of the reason.
    what
        What is wrong, behind the row's number; ``<cell>`` stands for what the cell holds.
    cell
        What the cell holds, as it may be shown.
    """

    row: int
    series_uid: str
    patient_id: str
    nodule_id: str
    reason: str
    what: str
    cell: str = ""

    def message(self, table: str) -> str:
        """Return the sentence, for the owner of the table."""
        return f"Row {self.row} of {table} {self.what.replace(_CELL, self.cell)}"

    @property
    def anonymous_message(self) -> str:
        """The sentence without the name of the file and the cell: they may name a patient."""
        return f"Row {self.row} of the table of nodules {self.what.replace(_CELL, '(not shown)')}"


class BadRowError(Exception):
    """A row can't be used: caught where the rows of a table are read."""

    def __init__(self, left_out: LeftOutRow) -> None:
        super().__init__(left_out)
        self.left_out = left_out


@dataclass
class RowReader:
    """Checks the rows of a table.

    Parameters
    ----------
    name
        The file's printable name.
    columns
        The table's columns.
    """

    name: str
    columns: Columns
    _highest: dict[str, float] = field(default_factory=dict, init=False)
    _lowest: dict[str, float] = field(default_factory=dict, init=False)

    def read(self, row: int, cells: Sequence[str] | str) -> NoduleRow | tuple[str, str]:
        """Return one row, every value checked.

        Returns
        -------
        NoduleRow or tuple
            Of a row that says that it is no nodule, the series and the patient alone.

        Raises
        ------
        BadRowError
            If the row can't be used.
        NoduleTableError
            ``unclear_column`` if a column that isn't read may say that the row is no nodule.
        """
        row_error = _RowErrors(row)
        if isinstance(cells, str):
            raise row_error("bad_row", f"{cells}.")
        if len(cells) != len(self.columns.header):
            raise row_error(
                "bad_row",
                f"has {len(cells)} values where the header has {len(self.columns.header)} "
                "columns: quote values that hold a comma, and write decimal points.",
            )
        self._check_unused(row, cells)
        values = {column: cells[place] for column, place in self.columns.places.items()}
        series_uid, patient_id = (
            comparable(values.get(column, "")) for column in ("series_uid", "patient_id")
        )
        row_error.series_uid, row_error.patient_id = series_uid, patient_id
        if not series_uid and not patient_id:
            raise row_error("bad_value", "names neither a series nor a patient.")
        if not self._is_nodule(values, row_error):
            return series_uid, patient_id
        nodule_id = values.get("nodule_id", "")
        if nodule_id and not _NODULE_ID.fullmatch(nodule_id):
            raise row_error(
                "bad_value",
                f"has the nodule_id {_CELL}; use letters, digits, '_' and '-'.",
                nodule_id,
            )
        row_error.nodule_id = nodule_id
        frame = self.columns.frame or values["frame"].lower()
        if frame not in FRAMES:
            raise row_error("no_frame", f"has the frame {_CELL}; write ras or lps.", frame)
        x, y, z = (self._number(axis, values[axis], row_error) for axis in "xyz")
        ratings = self._ratings(values, row_error)
        return NoduleRow(row, series_uid, patient_id, (x, y, z), frame, ratings, nodule_id)

    def check_scales(self) -> None:
        """Refuse ratings that are on another scale, once every row is read.

        Raises
        ------
        NoduleTableError
            ``rating_scale`` if a column goes from 0 to 1 where ratings start at 1: its ones would
            be taken for the lowest rating.
        """
        for column, lowest in self._lowest.items():
            if column in RATING_RANGES and lowest < 1 and self._highest[column] <= 1:
                low, high = RATING_RANGES[column]
                raise NoduleTableError(
                    "rating_scale",
                    f"The column {self.columns.shown(column)} of {self.name} goes from {lowest:g} "
                    f"to {self._highest[column]:g}, but is a reader's rating from {low} to {high}: "
                    "give such ratings, or name the column otherwise (it then isn't read).",
                )

    def _check_unused(self, row: int, cells: Sequence[str]) -> None:
        for place, column in self.columns.unused.items():
            if says_no_nodule(column, cells[place]):
                raise NoduleTableError(
                    "unclear_column",
                    f"Row {row} of {self.name} has the {shown(column)} {shown(cells[place])}, "
                    "which may say that it is no nodule. If it does, name the column is_nodule "
                    "(1 or 0); if it means something else (benign), name it otherwise, or take "
                    "it out.",
                )

    def _is_nodule(self, values: Mapping[str, str], row_error: "_RowErrors") -> bool:
        text = values.get("is_nodule", "1").lower()
        if text not in _YES | _NO:
            column = self.columns.shown("is_nodule")
            raise row_error("bad_value", f"has the {column} {_CELL}, expected 1 or 0.", text)
        return text in _YES

    def _ratings(self, values: Mapping[str, str], row_error: "_RowErrors") -> dict[str, float]:
        ratings = {}
        for column, (low, high) in _LIMITS.items():
            text = values.get(column, "")
            if not text:
                continue
            number = self._number(column, text, row_error)
            self._lowest[column] = min(number, self._lowest.get(column, number))
            self._highest[column] = max(number, self._highest.get(column, number))
            if not low <= number <= high or number == 0:
                name = self.columns.shown(column)
                raise row_error(
                    "bad_value", f"has the {name} {_CELL}, expected {low:g} to {high:g}.", text
                )
            ratings["diameter" if column == "diameter_mm" else column] = number
        return ratings

    def _number(self, column: str, text: str, row_error: "_RowErrors") -> float:
        try:
            number = float(text)
        except ValueError:
            number = np.nan
        # float() also takes 1_000 and the digits of other scripts
        if not np.isfinite(number) or "_" in text or not text.isascii():
            remedy = "write a decimal point" if "," in text else "expected a number"
            name = self.columns.shown(column)
            raise row_error("bad_value", f"has the {name} {_CELL}; {remedy}.", text)
        return number


@dataclass
class _RowErrors:
    """Makes the error of a row, with what is known of the row so far."""

    row: int
    series_uid: str = ""
    patient_id: str = ""
    nodule_id: str = ""

    def __call__(self, reason: str, what: str, cell: str = "") -> BadRowError:
        return BadRowError(
            LeftOutRow(
                self.row,
                self.series_uid,
                self.patient_id,
                self.nodule_id,
                reason,
                what,
                shown(cell),
            )
        )
