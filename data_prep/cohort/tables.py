"""The tables of a cohort folder, written and read: ``manifest.csv`` and ``exclusions.csv``."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from data_prep.cohort.rows import (
    CONSENSUS_NAMES,
    LABELS,
    READER_NAMES,
    CohortNodule,
    Exclusion,
    Label,
    file_places,
    is_safe_id,
    label_of,
    number_text,
)
from data_prep.errors import InputError, NamedError
from data_prep.text import printable

MOST_ROWS = 1_000_000
MOST_PROBLEMS = 100
"""Reading goes on after a bad row, but not for ever."""

_MESSAGE_LENGTH = 1000
_SHOWN_LENGTH = 60
_REGION_LENGTH = 80
_NAME = re.compile(r"[a-z0-9_]{1,60}")
_NUMBER = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,6})?")
_COUNT = re.compile(r"0|[1-9][0-9]{0,8}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AXES = ("LR", "PA", "SI")


@dataclass(frozen=True)
class TableProblem:
    """A row that can't be used.

    Parameters
    ----------
    name
        Stable name of the problem.
    message
        One sentence for a person.
    """

    name: str
    message: str


_SOURCE_COLUMNS = tuple(f"source_spacing_{axis}_mm" for axis in "ijk")
_CENTER_COLUMNS = tuple(f"center_{axis}_ras_mm" for axis in "xyz")


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
    *_SOURCE_COLUMNS,
    *("source_axcodes", "interpolated_slices", "repairs", "notes", "flags"),
    *(f"{kind}_{what}" for kind in file_places("") for what in ("file", "sha256")),
)
"""Columns of ``manifest.csv``, in this order."""

EXCLUSION_COLUMNS = ("patient_id", "series_id", "nodule_id", "reason", "message")
"""Columns of ``exclusions.csv``, in this order."""


def manifest_csv(nodules: Iterable[CohortNodule]) -> bytes:
    """Return ``manifest.csv``: UTF-8, a header, lines that end in a line feed."""
    return _csv(MANIFEST_COLUMNS, [_cells(nodule) for nodule in nodules])


def exclusions_csv(exclusions: Iterable[Exclusion]) -> bytes:
    """Return ``exclusions.csv``; messages without control characters, cut where endless."""
    rows = [
        {
            **{name: getattr(exclusion, name) for name in EXCLUSION_COLUMNS},
            "message": printable(exclusion.message)[:_MESSAGE_LENGTH],
        }
        for exclusion in exclusions
    ]
    return _csv(EXCLUSION_COLUMNS, rows)


def nodules_from_csv(data: bytes) -> tuple[list[CohortNodule], list[TableProblem]]:
    """Return the rows of ``manifest.csv`` that can be used, and what is wrong with the others."""
    nodules, problems = [], []
    rows, table_problems = _rows(data, "manifest.csv", MANIFEST_COLUMNS)
    problems += table_problems
    for line, cells in rows:
        try:
            nodules.append(_nodule(cells))
        except InputError as error:
            problems.append(_bad_row("manifest.csv", line, error))
        if len(problems) >= MOST_PROBLEMS:
            break
    return nodules, problems


def exclusions_from_csv(data: bytes) -> tuple[list[Exclusion], list[TableProblem]]:
    """Return the rows of ``exclusions.csv`` that can be used, and what is wrong with the rest."""
    exclusions, problems = [], []
    rows, table_problems = _rows(data, "exclusions.csv", EXCLUSION_COLUMNS)
    problems += table_problems
    for line, cells in rows:
        try:
            exclusions.append(check_exclusion(Exclusion(**cells)))
        except InputError as error:
            problems.append(_bad_row("exclusions.csv", line, error))
        if len(problems) >= MOST_PROBLEMS:
            break
    return exclusions, problems


def check_exclusion(exclusion: Exclusion) -> Exclusion:
    """Return an exclusion whose names are safe.

    Raises
    ------
    InputError
        If they aren't.
    """
    for name in ("patient_id", "series_id", "nodule_id"):
        if getattr(exclusion, name) and not is_safe_id(getattr(exclusion, name)):
            shown = _shown(getattr(exclusion, name))
            raise NamedError("unsafe_id", f"{name} {shown} is not a safe name.")
    _match(_NAME, exclusion.reason, "reason")
    return exclusion


def nodule_to_json(nodule: CohortNodule) -> dict[str, str]:
    """Return the cells of a nodule's row by column."""
    return _cells(nodule)


def nodule_from_json(cells: Mapping[str, str]) -> CohortNodule:
    """Return the nodule of a row.

    Raises
    ------
    InputError
        If a cell is missing or doesn't hold what it should.
    """
    if sorted(cells) != sorted(MANIFEST_COLUMNS):
        raise InputError("the row doesn't have the columns of a manifest.")
    return _nodule(cells)


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _rows(
    data: bytes, file: str, columns: Sequence[str]
) -> tuple[list[tuple[int, dict[str, str]]], list[TableProblem]]:
    """Return line number and cells of each row that has all columns."""
    rows: list[tuple[int, dict[str, str]]] = []
    problems: list[TableProblem] = []
    without: dict[str, str] = {}
    try:
        reader = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
        header = next(reader, [])
        # cohorts of earlier days have no column of regions
        if "region" in columns and header == [name for name in columns if name != "region"]:
            without, columns = {"region": ""}, header
        if header != list(columns):
            odd = [printable(name)[:40] for name in header if name not in columns][:5]
            missing = [name for name in columns if name not in header]
            message = (
                f"{file} doesn't have the columns of this schema in their order; missing "
                f"{', '.join(missing) or 'none'}, unknown {', '.join(odd) or 'none'}."
            )
            return [], [TableProblem("bad_columns", message)]
        for cells in reader:
            line = reader.line_num
            if len(cells) == len(columns):
                rows.append((line, dict(zip(columns, cells, strict=True)) | without))
            else:
                message = f"{file}, line {line}: {len(cells)} cells instead of {len(columns)}."
                problems.append(TableProblem("bad_row", message))
            if len(rows) > MOST_ROWS or len(problems) >= MOST_PROBLEMS:
                problems.append(TableProblem("bad_row", f"{file} is read up to line {line}."))
                break
    except (UnicodeDecodeError, csv.Error) as error:
        problems.append(TableProblem("bad_row", f"{file} is no UTF-8 CSV table: {error}."))
    return rows, problems


def _bad_row(file: str, line: int, error: InputError) -> TableProblem:
    name = error.reason if isinstance(error, NamedError) else "bad_row"
    return TableProblem(name, f"{file}, line {line}: {error}")


def _cells(nodule: CohortNodule) -> dict[str, str]:
    texts = {
        "nodule_id": nodule.nodule_id,
        "patient_id": nodule.patient_id,
        "series_id": nodule.series_id,
        "fold": "" if nodule.fold is None else str(nodule.fold),
        "label": nodule.label,
        "n_readers": str(nodule.n_readers),
        "annotation_ids": ";".join(map(str, nodule.annotation_ids)),
        "region": nodule.region,
        "padding_fraction": number_text(nodule.padding_fraction),
        "source_axcodes": nodule.source_axcodes,
        "interpolated_slices": str(nodule.interpolated_slices),
        "repairs": ";".join(nodule.repairs),
        "notes": ";".join(nodule.notes),
        "flags": ";".join(nodule.flags),
    }
    for name in CONSENSUS_NAMES:
        rating = nodule.ratings.get(name)
        texts[_column(name)] = "" if rating is None else number_text(rating)
    for name in READER_NAMES:
        texts[f"{_column(name)}_readers"] = ";".join(
            "" if rating is None else number_text(rating)
            for rating in nodule.reader_ratings.get(name, ())
        )
    texts |= dict(zip(_CENTER_COLUMNS, map(number_text, nodule.center_xyz_mm), strict=True))
    texts |= dict(zip(_SOURCE_COLUMNS, map(number_text, nodule.source_spacing_mm), strict=True))
    for kind, place in file_places(nodule.nodule_id).items():
        texts[f"{kind}_sha256"] = nodule.files.get(place, "")
        texts[f"{kind}_file"] = place if place in nodule.files else ""
    return texts


def _nodule(cells: Mapping[str, str]) -> CohortNodule:
    """Return the nodule of a row, or refuse the first cell that doesn't hold what it should."""
    for name in ("nodule_id", "patient_id", "series_id"):
        if not is_safe_id(cells[name]):
            raise NamedError("unsafe_id", f"{name} {_shown(cells[name])} is not a safe name.")
    if cells["label"] not in LABELS:
        raise InputError(f"label {_shown(cells['label'])} is unknown.")
    axcodes = cells["source_axcodes"]
    if len(axcodes) != 3 or not all(any(a in axis for a in axcodes) for axis in _AXES):
        raise InputError(f"source_axcodes {_shown(axcodes)} are no three directions.")
    ratings = {
        name: _number(cells, _column(name)) for name in CONSENSUS_NAMES if cells[_column(name)]
    }
    label = cast(Label, cells["label"])
    if label != label_of(ratings.get("malignancy")):
        raise InputError(f"label {_shown(label)} isn't what the malignancy means.")
    center_x, center_y, center_z = (_number(cells, name) for name in _CENTER_COLUMNS)
    spacing_i, spacing_j, spacing_k = (_number(cells, name) for name in _SOURCE_COLUMNS)
    sha256 = _sha256_of_files(cells)
    return CohortNodule(
        nodule_id=cells["nodule_id"],
        patient_id=cells["patient_id"],
        series_id=cells["series_id"],
        fold=_count(cells, "fold") if cells["fold"] else None,
        label=label,
        ratings=ratings,
        reader_ratings=_reader_ratings(cells),
        n_readers=_count(cells, "n_readers"),
        annotation_ids=_annotation_ids(cells),
        center_xyz_mm=(center_x, center_y, center_z),
        padding_fraction=_number(cells, "padding_fraction"),
        source_spacing_mm=(spacing_i, spacing_j, spacing_k),
        source_axcodes=axcodes,
        interpolated_slices=_count(cells, "interpolated_slices"),
        repairs=_names(cells, "repairs"),
        notes=_names(cells, "notes"),
        flags=_names(cells, "flags"),
        crop_sha256=sha256["crop"],
        mask_sha256=sha256["mask"],
        readers_sha256=sha256["readers"],
        region=_region(cells),
    )


def _sha256_of_files(cells: Mapping[str, str]) -> dict[str, str]:
    """Return the hash of each file; its place follows from the nodule's name, or is refused."""
    hashes = {}
    for kind, place in file_places(cells["nodule_id"]).items():
        file, sha256 = cells[f"{kind}_file"], cells[f"{kind}_sha256"]
        if (file or kind == "crop") and file != place:
            raise InputError(f"{kind}_file is {_shown(file)}, not {place}.")
        if file:
            _match(_SHA256, sha256, f"{kind}_sha256")
        elif sha256:
            raise InputError(f"{kind}_sha256 is there, but no {kind}_file.")
        hashes[kind] = sha256
    return hashes


def _reader_ratings(cells: Mapping[str, str]) -> dict[str, tuple[float | None, ...]]:
    ratings = {}
    for name in READER_NAMES:
        column = f"{_column(name)}_readers"
        if cells[column]:
            parts = cells[column].split(";")
            for part in parts:
                if part:
                    _match(_NUMBER, part, column)
            ratings[name] = tuple(float(part) if part else None for part in parts)
    return ratings


def _annotation_ids(cells: Mapping[str, str]) -> tuple[int, ...]:
    parts = cells["annotation_ids"].split(";") if cells["annotation_ids"] else []
    return tuple(int(_match(_COUNT, part, "annotation_ids")) for part in parts)


def _names(cells: Mapping[str, str], column: str) -> tuple[str, ...]:
    names = tuple(cells[column].split(";")) if cells[column] else ()
    for name in names:
        _match(_NAME, name, column)
    return names


def _region(cells: Mapping[str, str]) -> str:
    region = cells["region"]
    if not region.isprintable() or len(region) > _REGION_LENGTH:
        raise InputError(f"region holds {_shown(region)}, which is not what belongs there.")
    return region


def _number(cells: Mapping[str, str], column: str) -> float:
    return float(_match(_NUMBER, cells[column], column))


def _count(cells: Mapping[str, str], column: str) -> int:
    return int(_match(_COUNT, cells[column], column))


def _match(pattern: re.Pattern[str], text: str, column: str) -> str:
    if not pattern.fullmatch(text):
        raise InputError(f"{column} holds {_shown(text)}, which is not what belongs there.")
    return text


def _shown(text: str) -> str:
    return repr(printable(text[:_SHOWN_LENGTH]))
