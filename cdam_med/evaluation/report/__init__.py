"""The report of an evaluation: tables for machines, the page for people, and pictures."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cdam_med.evaluation.intervals import CONFIDENCE, DRAWS
from cdam_med.evaluation.metrics import METRICS
from cdam_med.evaluation.report.figures import pictures
from cdam_med.evaluation.report.page import data_note, page
from cdam_med.evaluation.results import REFERENCE, Difference, Results, Row, SummaryRow
from data_prep.disk import check_folder, csv_bytes, json_bytes, write_file, written_folder
from data_prep.statements import RESEARCH_ONLY, version_of

REPORT_FORMAT = "cdam-med explanations"
"""Value of ``format`` in the ``summary.json`` of every folder."""

SCHEMA_VERSION = 2
"""Raised whenever a key or column changes its name or meaning."""

RECORD_NAME = "summary.json"

SUMMARY_COLUMNS = (
    "method", "metric", "resolution", "label", "mean", "low", "high", "images", "groups",
    "difference", "difference_low", "difference_high", "difference_other_side",
)  # fmt: skip
DIFFERENCE_COLUMNS = (
    "one", "other", "metric", "resolution", "difference", "low", "high", "other_side", "images",
    "groups",
)  # fmt: skip

DIGITS = 6
"""Significant digits in the CSV tables."""


def write_report(
    folder: Path,
    results: Results,
    *,
    about: Mapping[str, str],
    reference: str = REFERENCE,
    overwrite: bool = False,
) -> Path:
    """Write tables and pictures into a folder, all of them or nothing, and return the folder.

    Parameters
    ----------
    folder : Path
        Where; nothing or an empty folder may be there.
    results : Results
        What was found.
    about : mapping of str to str
        What is to be said of the run, such as ``{"model": "demo", "data": "cohort"}``.
    reference : str
        Name of the method that others are compared with.
    overwrite : bool
        Replace a report. One that holds anything else, or a file that was changed since, is
        refused.

    Raises
    ------
    OutputError
        If the place is taken or can't be written to.
    """
    check_folder(folder, "report", overwrite=overwrite)
    summary = results.summary(reference=reference)
    files = {
        "results.csv": _csv(Row._fields, results.rows),
        "summary.csv": _csv(SUMMARY_COLUMNS, map(_summary_line, summary)),
        "differences.csv": _csv(DIFFERENCE_COLUMNS, map(_difference_line, results.differences())),
        **pictures(results, summary),
    }
    files["summary.md"] = page(results, summary, about, reference, tuple(files)).encode()
    record = _jsonable(_record(results, summary, about, reference))
    files[RECORD_NAME] = json_bytes(record)
    with written_folder(folder, "report", overwrite=overwrite) as new:
        for name, data in files.items():
            write_file(new / name, data)
    return folder


def _record(
    results: Results, summary: Sequence[SummaryRow], about: Mapping[str, str], reference: str
) -> dict[str, Any]:
    return {
        "format": REPORT_FORMAT,
        "schema_version": SCHEMA_VERSION,
        "statement": RESEARCH_ONLY,
        "data_note": data_note(results),
        "cdam_med": version_of("cdam-med"),
        "about": dict(about),
        "seed": results.seed,
        "reference": reference,
        "intervals": {"draws": DRAWS, "confidence": CONFIDENCE},
        "methods": {
            each.name: {
                "title": each.title,
                "reference": each.reference,
                "resolution": each.resolution,
                "is_signed": each.is_signed,
                "cost": each.cost,
                "settings": asdict(each),  # type: ignore[call-overload]  # all are dataclasses
            }
            for each in results.methods
        },
        "metrics": {
            name: {
                "title": metric.title,
                "section": metric.section,
                "better": metric.better,
                "meaning": metric.meaning,
            }
            for name, metric in METRICS.items()
        },
        "left_out": [entry._asdict() for entry in results.left_out],
        "summary": [dict(zip(SUMMARY_COLUMNS, _summary_line(row), strict=True)) for row in summary],
        "pooled_pearson": [
            {"one": one, "other": other} | asdict(interval)
            for (one, other), interval in results.pooled_correlations().items()
        ],
        "target_correlations": {
            name: {"targets": results.output_names, **matrix}
            for name, matrix in results.matrices.items()
        },
        "curves": results.curves,
    }


def _summary_line(row: SummaryRow) -> list[object]:
    interval, found = row.interval, row.difference
    line: list[object] = [row.method, row.metric, row.resolution, row.label]
    line += [interval.value, interval.low, interval.high, interval.images, interval.groups]
    if found is None:
        return [*line, math.nan, math.nan, math.nan, math.nan]
    return [*line, found.value, found.low, found.high, found.other_side]


def _difference_line(pair: Difference) -> list[object]:
    found = pair.difference
    ends = (found.value, found.low, found.high, found.other_side, found.images, found.groups)
    return [pair.one, pair.other, pair.metric, pair.resolution, *ends]


def _jsonable(value: object) -> object:
    """Return plain lists and dictionaries, with None for numbers that aren't finite."""
    if isinstance(value, Mapping):
        return {key: _jsonable(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return _jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [_jsonable(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(header: Sequence[str], lines: Iterable[Iterable[object]]) -> bytes:
    return csv_bytes(header, ([_cell(value) for value in line] for line in lines))


def _cell(value: object) -> object:
    if not isinstance(value, float):
        return value
    return f"{value:.{DIGITS}g}" if math.isfinite(value) else ""
