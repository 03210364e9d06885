"""The tables of a cohort folder: a nodule that it holds, a row that was left out, read and written.

Values are checked where a table is read (`nodules_from_csv`), by the types of the fields.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter, ValidationError

from data_prep.disk import csv_bytes
from data_prep.errors import InputError, NamedError
from data_prep.ratings import BIOMARKERS
from data_prep.text import printable

CONSENSUS_NAMES = ("malignancy", *BIOMARKERS)
"""Ratings of a nodule: malignancy by median, the others by mean."""

READER_NAMES = (*CONSENSUS_NAMES, "internal_structure")
"""Ratings of a single reader."""

MOST_ROWS = 1_000_000
MOST_BAD_ROWS = 100
"""Reading goes on after a bad row, but not for ever."""

_MESSAGE_LENGTH = 1000
_SHOWN_LENGTH = 60
_ID = "[A-Za-z0-9][A-Za-z0-9_-]{0,119}"
_AXES = ("LR", "PA", "SI")
_DIRECTIONS = {axis: number for number, axes in enumerate(_AXES) for axis in axes}
_CENTER_COLUMNS = tuple(f"center_{axis}_ras_mm" for axis in "xyz")
_SPACING_COLUMNS = tuple(f"source_spacing_{axis}_mm" for axis in "ijk")


def _is_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError
    return text


def _are_directions(text: str) -> str:
    if sorted(_DIRECTIONS.get(letter, -1) for letter in text) != [0, 1, 2]:
        raise ValueError
    return text


Label = Literal["benign", "malignant", "indeterminate", ""]
LABELS = get_args(Label)
SafeId = Annotated[str, StringConstraints(pattern=f"^{_ID}$")]
SafeIdOrNone = Annotated[str, StringConstraints(pattern=f"^({_ID})?$")]
Name = Annotated[str, StringConstraints(pattern="^[a-z0-9_]{1,60}$")]
Number = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=10**9)]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Sha256OrNone = Annotated[str, StringConstraints(pattern="^([0-9a-f]{64})?$")]


@dataclass(frozen=True)
class CohortNodule:
    """One nodule of a cohort: a row of ``manifest.csv``.

    ``docs/reference/cohort_folder.md`` says what the columns mean. `ratings` and `reader_ratings`
    are by name (`CONSENSUS_NAMES`, `READER_NAMES`), without those that aren't known; a reader who
    didn't rate has None. The centre is in RAS millimetres, the spacing along the scan's own axes.
    A file that isn't there has the hash ``""``.
    """

    nodule_id: SafeId
    patient_id: SafeId
    series_id: SafeId
    fold: Count | None
    label: Label
    ratings: Mapping[str, Number]
    reader_ratings: Mapping[str, tuple[Number | None, ...]]
    n_readers: Count
    annotation_ids: tuple[Count, ...]
    center_xyz_mm: tuple[Number, Number, Number]
    padding_fraction: Number
    source_spacing_mm: tuple[Number, Number, Number]
    source_axcodes: Annotated[str, AfterValidator(_are_directions)]
    interpolated_slices: Count
    repairs: tuple[Name, ...]
    notes: tuple[Name, ...]
    flags: tuple[Name, ...]
    crop_sha256: Sha256
    mask_sha256: Sha256OrNone
    readers_sha256: Sha256OrNone
    region: Annotated[str, Field(max_length=80), AfterValidator(_is_printable)] = ""

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of each file of the nodule, by its place in the cohort folder."""
        hashes = (self.crop_sha256, self.mask_sha256, self.readers_sha256)
        places = file_places(self.nodule_id).values()
        return {place: sha256 for place, sha256 in zip(places, hashes, strict=True) if sha256}


@dataclass(frozen=True)
class Exclusion:
    """A series or a nodule that a cohort doesn't hold, and why.

    Names are safe ones as in the manifest, ``""`` where there is none: without `nodule_id` the
    whole series is left out. Scripts may rely on the name of the `reason`.
    """

    patient_id: SafeIdOrNone
    series_id: SafeIdOrNone
    nodule_id: SafeIdOrNone
    reason: Name
    message: str


@dataclass(frozen=True)
class CohortProblem:
    """Something that is wrong (an error) or odd (a note) with a cohort folder.

    Scripts may rely on the `name`. The `place` is a file or nodule in the folder, or ``""``.
    """

    name: str
    severity: Literal["error", "note"]
    message: str
    place: str = ""


Row = TypeVar("Row")
_NODULE = TypeAdapter(CohortNodule)
_EXCLUSION = TypeAdapter(Exclusion)


def label_of(malignancy: float | None) -> Label:
    """Return the label that a median malignancy (1 to 5) means.

    Examples
    --------
    >>> label_of(3.5), label_of(2.0), label_of(3.0), label_of(None)
    ('malignant', 'benign', 'indeterminate', '')
    """
    if malignancy is None:
        return ""
    if malignancy == 3:
        return "indeterminate"
    return "malignant" if malignancy > 3 else "benign"


def is_safe_id(text: str) -> bool:
    """Tell whether a name may be part of a path: ASCII letters, digits, ``_-``, 120 at most.

    Examples
    --------
    >>> is_safe_id("LIDC-IDRI-0001"), is_safe_id("../x"), is_safe_id("")
    (True, False, False)
    """
    return re.fullmatch(_ID, text) is not None


def slicer_safe_id(text: str) -> str:
    """Break what 3D Slicer takes for the name of a label map (see `data_prep.nifti`).

    Examples
    --------
    >>> slicer_safe_id("series_0001_Segment_2"), slicer_safe_id("a_label_1")
    ('series_0001_S-egment_2', 'a_l-abel_1')
    """
    return re.sub(r"([Ll])(abel)", r"\1-\2", re.sub(r"([Ss])(eg)", r"\1-\2", text))


def cohort_nodule_id(series_id: str, nodule_id: str) -> str:
    """Return the name of a nodule in a cohort, from its name within its series, if it has one."""
    return slicer_safe_id(f"{series_id}_{nodule_id}") if nodule_id else ""


def file_places(nodule_id: str) -> dict[str, str]:
    """Return where the files of a nodule lie in the cohort folder: crop, mask and readers."""
    return {
        "crop": f"crops/{nodule_id}.nii.gz",
        "mask": f"masks/{nodule_id}.nii.gz",
        "readers": f"masks/{nodule_id}_readers.nii.gz",
    }


def number_text(value: float | int) -> str:
    """Return a number as the manifest writes it.

    Examples
    --------
    >>> number_text(13 / 3), number_text(-1e-9), number_text(2.50)
    ('4.333333', '0', '2.5')
    """
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def reading_order(row: CohortNodule | Exclusion) -> tuple[object, ...]:
    """Sort key of both tables: patient, series, and nodules by their numbers (2 before 10)."""
    parts = re.split(r"([0-9]+)", row.nodule_id)
    natural = tuple((part, 0) if n % 2 == 0 else ("", int(part)) for n, part in enumerate(parts))
    last = (row.reason, row.message) if isinstance(row, Exclusion) else ()
    return row.patient_id, row.series_id, natural, row.nodule_id, *last


def _column(name: str) -> str:
    return "diameter_mm" if name == "diameter" else name


MANIFEST_COLUMNS = (
    *("nodule_id", "patient_id", "series_id", "fold", "label"),
    *(_column(name) for name in CONSENSUS_NAMES),
    "n_readers",
    *(f"{_column(name)}_readers" for name in READER_NAMES),
    "annotation_ids",
    "region",
    *_CENTER_COLUMNS,
    "padding_fraction",
    *_SPACING_COLUMNS,
    *("source_axcodes", "interpolated_slices", "repairs", "notes", "flags"),
    *(f"{kind}_{what}" for kind in file_places("") for what in ("file", "sha256")),
)
"""Columns of ``manifest.csv``, in this order."""

EXCLUSION_COLUMNS = ("patient_id", "series_id", "nodule_id", "reason", "message")
"""Columns of ``exclusions.csv``, in this order."""


def manifest_csv(nodules: Iterable[CohortNodule]) -> bytes:
    """Return ``manifest.csv``: UTF-8, a header, lines that end in a line feed."""
    cells = map(cells_of_nodule, nodules)
    return csv_bytes(MANIFEST_COLUMNS, ([row[name] for name in MANIFEST_COLUMNS] for row in cells))


def exclusions_csv(exclusions: Iterable[Exclusion]) -> bytes:
    """Return ``exclusions.csv``; messages without control characters, cut where endless."""
    cells = (
        {**vars(exclusion), "message": printable(exclusion.message)[:_MESSAGE_LENGTH]}
        for exclusion in exclusions
    )
    return csv_bytes(
        EXCLUSION_COLUMNS, ([row[name] for name in EXCLUSION_COLUMNS] for row in cells)
    )


def nodules_from_csv(data: bytes) -> tuple[list[CohortNodule], list[CohortProblem]]:
    """Return the rows of ``manifest.csv`` that can be used, and what is wrong with the others."""
    return _read(data, "manifest.csv", MANIFEST_COLUMNS, nodule_from_cells)


def exclusions_from_csv(data: bytes) -> tuple[list[Exclusion], list[CohortProblem]]:
    """Return the rows of ``exclusions.csv`` that can be used, and what is wrong with the rest."""
    return _read(data, "exclusions.csv", EXCLUSION_COLUMNS, exclusion_from_cells)


def exclusion_from_cells(cells: Mapping[str, Any]) -> Exclusion:
    """Return an exclusion, or refuse names that aren't safe (InputError)."""
    try:
        return _EXCLUSION.validate_python(cells)
    except ValidationError as error:
        raise input_error(error) from error


def cells_of_nodule(nodule: CohortNodule) -> dict[str, str]:
    """Return the cells of a nodule's row by column."""
    texts = {
        **{name: str(getattr(nodule, name)) for name in ("nodule_id", "patient_id", "series_id")},
        "fold": "" if nodule.fold is None else str(nodule.fold),
        "label": nodule.label,
        "n_readers": str(nodule.n_readers),
        "annotation_ids": ";".join(map(str, nodule.annotation_ids)),
        "region": nodule.region,
        "padding_fraction": number_text(nodule.padding_fraction),
        "source_axcodes": nodule.source_axcodes,
        "interpolated_slices": str(nodule.interpolated_slices),
        **{name: ";".join(getattr(nodule, name)) for name in ("repairs", "notes", "flags")},
        **dict(zip(_CENTER_COLUMNS, map(number_text, nodule.center_xyz_mm), strict=True)),
        **dict(zip(_SPACING_COLUMNS, map(number_text, nodule.source_spacing_mm), strict=True)),
    }
    for name in CONSENSUS_NAMES:
        texts[_column(name)] = _optional_text(nodule.ratings.get(name))
    for name in READER_NAMES:
        ratings = nodule.reader_ratings.get(name, ())
        texts[f"{_column(name)}_readers"] = ";".join(map(_optional_text, ratings))
    for kind, place in file_places(nodule.nodule_id).items():
        texts[f"{kind}_sha256"] = nodule.files.get(place, "")
        texts[f"{kind}_file"] = place if place in nodule.files else ""
    return texts


def nodule_from_cells(cells: Mapping[str, str]) -> CohortNodule:
    """Return the nodule of a row, or refuse the first cell that doesn't hold what it should."""
    ratings = {name: cells[_column(name)] for name in CONSENSUS_NAMES}
    of_readers = {name: cells[f"{_column(name)}_readers"] for name in READER_NAMES}
    values: dict[str, Any] = {
        **{name: cells[name] for name in CohortNodule.__dataclass_fields__ if name in cells},
        **{name: _parts(cells[name]) for name in ("annotation_ids", "repairs", "notes", "flags")},
        "fold": cells["fold"] or None,
        "ratings": {name: text for name, text in ratings.items() if text},
        "reader_ratings": {
            name: [part or None for part in text.split(";")]
            for name, text in of_readers.items()
            if text
        },
        "center_xyz_mm": [cells[name] for name in _CENTER_COLUMNS],
        "source_spacing_mm": [cells[name] for name in _SPACING_COLUMNS],
    }
    try:
        nodule = _NODULE.validate_python(values)
    except ValidationError as error:
        raise input_error(error) from error
    if nodule.label != label_of(nodule.ratings.get("malignancy")):
        raise InputError(f"label {nodule.label!r} isn't what the malignancy means.")
    for kind, place in file_places(nodule.nodule_id).items():
        expected = place if place in nodule.files else ""
        if cells[f"{kind}_file"] != expected:
            raise InputError(f"{kind}_file is {_shown(cells[f'{kind}_file'])}, not {expected!r}.")
    return nodule


def input_error(error: ValidationError) -> InputError:
    """Return the first thing that pydantic found, as an error of ours."""
    found = error.errors(include_url=False)[0]
    if found["type"] == "value_error" and str(found["ctx"]["error"]):
        return InputError(str(found["ctx"]["error"]))
    place, value = ".".join(map(str, found["loc"])), _shown(found["input"])
    if place in ("nodule_id", "patient_id", "series_id"):
        return NamedError("unsafe_id", f"{place} {value} is not a safe name.")
    return InputError(f"{place} holds {value}, which is not what belongs there.")


def problem(
    name: str, message: str, place: str = "", *, severity: Literal["error", "note"] = "error"
) -> CohortProblem:
    """Return a problem whose texts can be printed, whatever a file holds."""
    return CohortProblem(name, severity, printable(message)[:400], printable(place)[:400])


def _optional_text(value: float | None) -> str:
    return "" if value is None else number_text(value)


def _parts(text: str) -> list[str]:
    return text.split(";") if text else []


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else str(type(value).__name__)
    return repr(printable(text[:_SHOWN_LENGTH]))


def _read(
    data: bytes, file: str, columns: Sequence[str], convert: Callable[[Mapping[str, str]], Row]
) -> tuple[list[Row], list[CohortProblem]]:
    rows: list[Row] = []
    problems: list[CohortProblem] = []
    try:
        reader = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
        header = next(reader, [])
        # cohorts of earlier days have no column of regions
        if header not in ([*columns], [name for name in columns if name != "region"]):
            odd = ", ".join(name[:40] for name in header if name not in columns)
            missing = ", ".join(name for name in columns if name not in header)
            message = (
                f"{file} doesn't have the columns of this schema in their order; missing "
                f"{missing or 'none'}, unknown {odd or 'none'}."
            )
            return [], [problem("bad_columns", message)]
        for cells in reader:
            try:
                if len(cells) != len(header):
                    raise InputError(f"{len(cells)} cells instead of {len(header)}.")
                rows.append(
                    convert(dict.fromkeys(columns, "") | dict(zip(header, cells, strict=True)))
                )
            except InputError as error:
                name = error.reason if isinstance(error, NamedError) else "bad_row"
                problems.append(problem(name, f"{file}, line {reader.line_num}: {error}"))
            if len(rows) > MOST_ROWS or len(problems) >= MOST_BAD_ROWS:
                problems.append(problem("bad_row", f"{file} is read up to line {reader.line_num}."))
                break
    except (UnicodeDecodeError, csv.Error) as error:
        problems.append(problem("bad_row", f"{file} is no UTF-8 CSV table: {error}."))
    return rows, problems
