"""Which column of a table of nodules means what, whatever its spelling, and in which frame."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from data_prep.errors import InputError, NoduleTableError
from data_prep.nodules import FRAMES
from data_prep.ratings import RATING_RANGES
from data_prep.text import printable

_MAX_SHOWN = 40


def _spellings(axis: str) -> tuple[str, ...]:
    around = ("coord", "coordinate", "world", "pos", "position", "center", "centre")
    plain = (axis, *(f"{word}{axis}" for word in around), *(f"{axis}{word}" for word in around))
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
_LUNA16_NODULE = "class"
"""Of LUNA16's candidates, by that challenge's definition: 1 is a nodule, 0 is none."""

_MAY_MEAN_NODULE = frozenset({"class", "label", "nodule", "target", "type", "category"})
_NO = frozenset({"false", "no", "n", "negative", "none", "background"})
_NO_NODULE = frozenset({"nonnodule", "nonodule", "notanodule", "notnodule", "falsepositive"})


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read.

    Parameters
    ----------
    places
        Place in a row of each column, by the names of `SYNONYMS`.
    header
        Every column's name in the file.
    frame
        Of all points; None where a column says it.
    """

    places: Mapping[str, int]
    header: Sequence[str]
    frame: str | None

    @property
    def unused(self) -> dict[int, str]:
        """The columns that mean nothing here, by their place."""
        used = set(self.places.values())
        return {place: name for place, name in enumerate(self.header) if place not in used and name}

    def shown(self, column: str) -> str:
        """Return a column's name in the file, printable."""
        return printable(self.header[self.places[column]])[:_MAX_SHOWN]


def plain_name(text: str) -> str:
    """Return a name as it is compared.

    Examples
    --------
    >>> plain_name("Series Instance UID"), plain_name("diameter (mm)"), plain_name("coordX")
    ('seriesinstanceuid', 'diametermm', 'coordx')
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if character.isalnum())


def says_no_nodule(column: str, cell: str) -> bool:
    """Tell whether a cell of a column that isn't read may say that a row is no nodule."""
    word = plain_name(cell)
    is_zero = re.fullmatch(r"[+-]?0+(\.0*)?", cell) is not None
    may_mean = plain_name(column) in _MAY_MEAN_NODULE
    return word in _NO_NODULE or (may_mean and (is_zero or word in _NO))


def find_columns(header: Sequence[str], name: str, frame: str | None) -> Columns:
    """Find the columns of a table by its header.

    Parameters
    ----------
    header
        First row.
    name
        The file's printable name.
    frame
        Frame that the caller states for all points.

    Raises
    ------
    InputError
        If `frame` is no frame.
    NoduleTableError
        ``semicolons``, ``columns``, ``no_frame`` or ``conflicting_frames``.
    """
    if frame is not None and frame not in FRAMES:
        raise InputError(f"The frame {shown(frame)} is unknown; give 'ras' or 'lps'.")
    if len(header) < 2 and re.search(r"[;\t]", "".join(header)):
        raise NoduleTableError(
            "semicolons",
            f"{name} separates its values by semicolons or tabs: save it with commas (and decimal "
            "points).",
        )
    plain = [plain_name(column) for column in header]
    is_luna16 = set(_LUNA16) <= set(plain)
    places = _places(plain, header, name)
    if is_luna16 and _LUNA16_NODULE in plain and "is_nodule" not in places:
        places["is_nodule"] = plain.index(_LUNA16_NODULE)
    if "diameter" in plain and "diameter_mm" not in places:
        raise NoduleTableError(
            "columns", f"{name} has a diameter without a unit: name the column diameter_mm."
        )
    missing = [axis for axis in "xyz" if axis not in places]
    if not set(places) & {"series_uid", "patient_id"}:
        missing.append("series_uid (or patient_id)")
    if missing:
        listed = ", ".join(shown(column) for column in header if column)[:200]
        raise NoduleTableError(
            "columns",
            f"{name} lacks the column {missing[0]}; needed are series_uid or patient_id, and x, "
            f"y, z in millimetres. Its columns: {listed or 'none'}.",
        )
    return Columns(places, header, _frame(places, name, frame, "lps" if is_luna16 else None))


def shown(text: str) -> str:
    """Return text of a table as it may be shown: short, without control characters."""
    printed = printable(text)
    return f"'{printed[:_MAX_SHOWN]}...'" if len(printed) > _MAX_SHOWN else f"'{printed}'"


def _places(plain: Sequence[str], header: Sequence[str], name: str) -> dict[str, int]:
    places: dict[str, int] = {}
    for column, spellings in SYNONYMS.items():
        found = [place for place, spelling in enumerate(plain) if spelling in spellings]
        if len(found) > 1:
            both = " and ".join(shown(header[place]) for place in found[:2])
            raise NoduleTableError(
                "columns",
                f"{name} has two columns for one thing, {both} ({column}): keep one, or name the "
                "other one otherwise.",
            )
        if found:
            places[column] = found[0]
    return places


def _frame(
    places: Mapping[str, int], name: str, asked: str | None, defined: str | None
) -> str | None:
    stated = [source for source in (asked, defined, places.get("frame")) if source is not None]
    if not stated:
        raise NoduleTableError(
            "no_frame",
            f"{name} doesn't say in which frame its points are: add a column frame that holds ras "
            "(as NIfTI and 3D Slicer's tables) or lps (as DICOM and ITK), or give the frame.",
        )
    if asked is not None and ("frame" in places or defined not in (None, asked)):
        raise NoduleTableError(
            "conflicting_frames",
            f"The frame of {name} is given as {asked}, but the table states it itself (a column "
            "frame, or LUNA16's columns, which are lps): say it once.",
        )
    if defined is not None and "frame" in places:
        raise NoduleTableError(
            "conflicting_frames",
            f"{name} has a column frame beside LUNA16's columns, which are lps: name the columns "
            "series_uid, x, y, z.",
        )
    return asked or defined
