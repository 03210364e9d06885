"""What the columns and rows of a table of nodules mean; every value is checked."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from data_prep.errors import InputError, NoduleTableError
from data_prep.nodules import FRAMES, NODULE_ID
from data_prep.ratings import RATING_RANGES
from data_prep.text import comparable, printable

MAX_DIAMETER_MM = 500.0
"""Wider than any chest."""

_MAX_SHOWN = 40
_CELL = "<cell>"
_AROUND = ("coord", "coordinate", "world", "pos", "position", "center", "centre")


def _spellings(axis: str) -> tuple[str, ...]:
    plain = (axis, *(f"{word}{axis}" for word in _AROUND), *(f"{axis}{word}" for word in _AROUND))
    return (*plain, *(f"{name}mm" for name in plain))


SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "series_uid": ("seriesuid", "seriesinstanceuid"),
        "patient_id": ("patientid", "patient", "pid", "subjectid"),
        **{axis: _spellings(axis) for axis in "xyz"},
        "frame": ("frame", "coordinateframe", "coordinatesystem"),
        "diameter_mm": ("diametermm", "diammm"),
        "nodule_id": ("noduleid",),
        "is_nodule": ("isnodule", "isanodule"),
        **{name: (name.replace("_", ""),) for name in RATING_RANGES},
    }
)
"""Spellings of each column in small letters, without blanks and signs (see `plain_name`)."""

_LUNA16 = ("seriesuid", "coordx", "coordy", "coordz")
_LUNA16_NODULE = "class"  # of its candidates: 1 is a nodule, 0 is none
_MAY_MEAN_NODULE = frozenset({"class", "label", "nodule", "target", "type", "category"})
_NEGATIVE = frozenset({"false", "no", "n", "negative", "none", "background"})
_NO_NODULE = frozenset({"nonnodule", "nonodule", "notanodule", "notnodule", "falsepositive"})
_YES = frozenset({"1", "1.0", "true", "yes", "y", "t"})
_NO = frozenset({"0", "0.0", "false", "no", "n", "f"})
_LIMITS = {
    **{column: (float(low), float(high)) for column, (low, high) in RATING_RANGES.items()},
    "diameter_mm": (0.0, MAX_DIAMETER_MM),
}


def plain_name(text: str) -> str:
    """Return a name as it is compared.

    Examples
    --------
    >>> plain_name("Series Instance UID"), plain_name("diameter (mm)"), plain_name("coordX")
    ('seriesinstanceuid', 'diametermm', 'coordx')
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if character.isalnum())


def shown(text: str) -> str:
    """Return text of a table as it may be shown: short, without control characters."""
    printed = printable(text)
    return f"'{printed[:_MAX_SHOWN]}...'" if len(printed) > _MAX_SHOWN else f"'{printed}'"


@dataclass(frozen=True)
class NoduleRow:
    """One row of a table, by its line in the file; what it doesn't say is empty.

    `point_mm` is in `frame`; the `ratings` that are filled in, with ``diameter`` in millimetres.
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
    """A row that can't be used, and why; in `what`, ``<cell>`` stands for what the cell holds."""

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


@dataclass(frozen=True)
class NotANodule:
    """A row that says that it is no nodule."""

    series_uid: str
    patient_id: str


class _BadRowError(Exception):
    """A row can't be used: its arguments are `reason`, `what` and `cell` of a `LeftOutRow`."""


@dataclass
class RowReader:
    """Checks the rows of a table.

    Parameters
    ----------
    name
        The file's printable name.
    header
        Every column's name in the file.
    frame
        Of all points, as the caller states it; None where the table does.

    Raises
    ------
    InputError
        If `frame` is no frame.
    NoduleTableError
        ``semicolons``, ``columns``, ``no_frame`` or ``conflicting_frames``.
    """

    name: str
    header: Sequence[str]
    frame: str | None
    _places: dict[str, int] = field(default_factory=dict, init=False)
    _numbers: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list), init=False)

    def __post_init__(self) -> None:
        if self.frame is not None and self.frame not in FRAMES:
            raise InputError(f"The frame {shown(self.frame)} is unknown; give 'ras' or 'lps'.")
        if len(self.header) < 2 and re.search(r"[;\t]", "".join(self.header)):
            what = f"{self.name} has semicolons or tabs between its values: save it with commas."
            raise NoduleTableError("semicolons", what)
        plain = [plain_name(column) for column in self.header]
        is_luna16 = set(_LUNA16) <= set(plain)
        self._find_columns(plain)
        if is_luna16 and _LUNA16_NODULE in plain:
            self._places.setdefault("is_nodule", plain.index(_LUNA16_NODULE))
        self._check_columns(has_diameter="diameter" in plain)
        self.frame = self._frame("lps" if is_luna16 else None)

    @property
    def unused(self) -> dict[int, str]:
        """The columns that mean nothing here, by their place."""
        used = self._places.values()
        return {place: name for place, name in enumerate(self.header) if place not in used and name}

    def read(self, row: int, cells: Sequence[str] | str) -> NoduleRow | LeftOutRow | NotANodule:
        """Return one row, every value checked; `cells` is a text that says why there are none.

        A column that isn't read but may say that the row is no nodule is a NoduleTableError
        (``unclear_column``).
        """
        # filled in as far as the row is read
        known = {"series_uid": "", "patient_id": "", "nodule_id": ""}
        try:
            return self._read(row, cells, known)
        except _BadRowError as error:
            reason, what, *cell = error.args
            return LeftOutRow(row, **known, reason=reason, what=what, cell=shown("".join(cell)))

    def check_scales(self) -> None:
        """Refuse ratings from 0 to 1: a one would be taken for the lowest rating of a reader."""
        for column, numbers in self._numbers.items():
            if column in RATING_RANGES and min(numbers) < 1 and max(numbers) <= 1:
                low, high = RATING_RANGES[column]
                raise NoduleTableError(
                    "rating_scale",
                    f"The column {self._shown(column)} of {self.name} goes from {min(numbers):g} "
                    f"to {max(numbers):g}, but is a reader's rating from {low} to {high}: give "
                    "such ratings, or name the column otherwise (it then isn't read).",
                )

    def _find_columns(self, plain: Sequence[str]) -> None:
        for column, spellings in SYNONYMS.items():
            found = [place for place, spelling in enumerate(plain) if spelling in spellings]
            if len(found) > 1:
                both = " and ".join(shown(self.header[place]) for place in found[:2])
                what = f"{self.name} has two columns for one thing, {both} ({column}): keep one."
                raise NoduleTableError("columns", what)
            if found:
                self._places[column] = found[0]

    def _check_columns(self, *, has_diameter: bool) -> None:
        if has_diameter and "diameter_mm" not in self._places:
            what = f"{self.name} has a diameter without a unit: name the column diameter_mm."
            raise NoduleTableError("columns", what)
        missing = [axis for axis in "xyz" if axis not in self._places]
        if not set(self._places) & {"series_uid", "patient_id"}:
            missing.append("series_uid (or patient_id)")
        if missing:
            listed = ", ".join(shown(column) for column in self.header if column)[:200]
            raise NoduleTableError(
                "columns",
                f"{self.name} lacks the column {missing[0]}; needed are series_uid or patient_id, "
                f"and x, y, z in millimetres. Its columns: {listed or 'none'}.",
            )

    def _frame(self, defined: str | None) -> str | None:
        """Return the frame of all points, or None if a column says it; it is stated once."""
        has_column = "frame" in self._places
        if self.frame is None and defined is None and not has_column:
            raise NoduleTableError(
                "no_frame",
                f"{self.name} doesn't say in which frame its points are: add a column frame with "
                "ras (as NIfTI) or lps (as DICOM and ITK), or give the frame.",
            )
        if self.frame is not None and (has_column or defined not in (None, self.frame)):
            raise NoduleTableError(
                "conflicting_frames",
                f"The frame of {self.name} is given as {self.frame}, but its columns state it "
                "(frame, or LUNA16's, which are lps): say it once.",
            )
        if defined is not None and has_column:
            raise NoduleTableError(
                "conflicting_frames",
                f"{self.name} has a column frame beside LUNA16's columns, which are lps: name the "
                "columns series_uid, x, y, z.",
            )
        return self.frame or defined

    def _read(
        self, row: int, cells: Sequence[str] | str, known: dict[str, str]
    ) -> NoduleRow | NotANodule:
        if isinstance(cells, str):
            raise _BadRowError("bad_row", f"{cells}.")
        if len(cells) != len(self.header):
            raise _BadRowError(
                "bad_row",
                f"has {len(cells)} values where the header has {len(self.header)}: quote values "
                "that hold a comma, and write decimal points.",
            )
        self._check_unused(row, cells)
        values = {column: cells[place] for column, place in self._places.items()}
        for column in ("series_uid", "patient_id"):
            known[column] = comparable(values.get(column, ""))
        if not known["series_uid"] and not known["patient_id"]:
            raise _BadRowError("bad_value", "names neither a series nor a patient.")
        is_nodule = values.get("is_nodule", "1").lower()
        if is_nodule in _NO:
            return NotANodule(known["series_uid"], known["patient_id"])
        if is_nodule not in _YES:
            what = f"has the {self._shown('is_nodule')} {_CELL}, expected 1 or 0."
            raise _BadRowError("bad_value", what, is_nodule)
        nodule_id = values.get("nodule_id", "")
        if nodule_id and not NODULE_ID.fullmatch(nodule_id):
            what = f"has the nodule_id {_CELL}; use letters, digits, '_' and '-'."
            raise _BadRowError("bad_value", what, nodule_id)
        known["nodule_id"] = nodule_id
        frame = self.frame or values["frame"].lower()
        if frame not in FRAMES:
            raise _BadRowError("no_frame", f"has the frame {_CELL}; write ras or lps.", frame)
        x, y, z = (self._number(axis, values[axis]) for axis in "xyz")
        ratings = self._ratings(values)
        return NoduleRow(row, point_mm=(x, y, z), frame=frame, ratings=ratings, **known)

    def _check_unused(self, row: int, cells: Sequence[str]) -> None:
        for place, column in self.unused.items():
            word = plain_name(cells[place])
            is_zero = re.fullmatch(r"[+-]?0+(\.0*)?", cells[place]) is not None
            may_mean = plain_name(column) in _MAY_MEAN_NODULE
            if word in _NO_NODULE or (may_mean and (is_zero or word in _NEGATIVE)):
                raise NoduleTableError(
                    "unclear_column",
                    f"Row {row} of {self.name} has the {shown(column)} {shown(cells[place])}, "
                    "which may say that it is no nodule. If it does, name the column is_nodule "
                    "(1 or 0); if it means something else (benign), name it otherwise, or take "
                    "it out.",
                )

    def _ratings(self, values: Mapping[str, str]) -> dict[str, float]:
        ratings = {}
        for column, (low, high) in _LIMITS.items():
            text = values.get(column, "")
            if not text:
                continue
            number = self._number(column, text)
            self._numbers[column].append(number)
            if not low <= number <= high or number == 0:
                what = f"has the {self._shown(column)} {_CELL}, expected {low:g} to {high:g}."
                raise _BadRowError("bad_value", what, text)
            ratings["diameter" if column == "diameter_mm" else column] = number
        return ratings

    def _number(self, column: str, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = np.nan
        # float() also takes 1_000 and the digits of other scripts
        if not np.isfinite(number) or "_" in text or not text.isascii():
            remedy = "write a decimal point" if "," in text else "expected a number"
            raise _BadRowError(
                "bad_value", f"has the {self._shown(column)} {_CELL}; {remedy}.", text
            )
        return number

    def _shown(self, column: str) -> str:
        return printable(self.header[self._places[column]])[:_MAX_SHOWN]
