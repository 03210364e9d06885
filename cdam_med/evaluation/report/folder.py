"""The folder of judged estimators: tables for machines, the page for people, and pictures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cdam_med.evaluation.intervals import CONFIDENCE, DRAWS
from cdam_med.evaluation.measures import METRICS
from cdam_med.evaluation.report.figure_layout import STATEMENT
from cdam_med.evaluation.report.figures import pictures
from cdam_med.evaluation.report.page import data_note, page
from cdam_med.evaluation.report.results import REFERENCE, Difference, Results, Row, SummaryRow
from data_prep.disk import check_folder, csv_bytes, json_bytes, write_file, written_folder
from data_prep.versions import version_of

REPORT_FORMAT = "cdam-med explanations"
"""Value of ``format`` in the ``summary.json`` of every folder."""

SCHEMA_VERSION = 1
"""Raised whenever a key or column changes its name or meaning."""

RECORD_NAME = "summary.json"
SUMMARY_COLUMNS = (
    "estimator", "metric", "resolution", "label", "mean", "low", "high", "images", "groups",
    "difference", "difference_low", "difference_high", "difference_other_side",
)  # fmt: skip
DIFFERENCE_COLUMNS = (
    "one", "other", "metric", "resolution", "difference", "low", "high", "other_side", "images",
    "groups",
)  # fmt: skip

_DISTRIBUTIONS = ("cdam-med", "torch", "timm", "numpy")

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
    """Write tables and pictures: all of them or nothing.

    Parameters
    ----------
    folder : Path
        Where; nothing or an empty folder may be there.
    results : Results
        What was measured.
    about : mapping of str to str
        What is to be said of the run, such as ``{"model": "demo", "data": "cohort"}``.
    reference : str
        Name of the estimator that others are compared with.
    overwrite : bool
        Replace a report. One that holds anything else, or a file that was changed since, is
        refused.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    OutputError
        If the place is taken or can't be written to.
    """
    check_folder(folder, "report", overwrite=overwrite)
    summary = results.summary(reference=reference)
    record = _record(results, summary, about, reference)
    files = {
        "results.csv": _csv(Row._fields, (_plain(row) for row in results.rows)),
        "summary.csv": _csv(SUMMARY_COLUMNS, (_summary_values(row) for row in summary)),
        "differences.csv": _csv(
            DIFFERENCE_COLUMNS, (_difference_values(pair) for pair in results.differences())
        ),
        **pictures(results, summary),
    }
    files["summary.md"] = page(results, summary, about, reference, tuple(files)).encode()
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
        "statement": STATEMENT,
        "data_note": data_note(results),
        "cdam_med": version_of("cdam-med"),
        "about": dict(about),
        "seed": results.seed,
        "reference": reference,
        "intervals": {"draws": DRAWS, "confidence": CONFIDENCE},
        "estimators": {
            each.name: {
                "title": each.title,
                "reference": each.reference,
                "resolution": each.resolution,
                "is_signed": each.is_signed,
                "cost": each.cost,
                "settings": asdict(each),  # type: ignore[call-overload]  # all are dataclasses
            }
            for each in results.estimators
        },
        "metrics": {name: asdict(metric) for name, metric in METRICS.items()},
        "left_out": [entry._asdict() for entry in results.left_out],
        "summary": [
            dict(zip(SUMMARY_COLUMNS, map(_json_value, _summary_values(row)), strict=True))
            for row in summary
        ],
        "pooled_pearson": [
            {"one": pair.one, "other": pair.other}
            | {key: _json_value(value) for key, value in asdict(pair.interval).items()}
            for pair in results.pooled
        ],
        "target_correlations": {
            name: {
                "targets": list(matrix.targets),
                **{
                    end: [[_json_value(value) for value in row] for row in values.tolist()]
                    for end, values in vars(matrix).items()
                    if end != "targets"
                },
            }
            for name, matrix in results.matrices.items()
        },
        "curves": {
            name: {
                key: [_json_value(value) for value in values.tolist()]
                for key, values in vars(curves).items()
            }
            for name, curves in results.curves.items()
        },
    }


def _json_value(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary_values(row: SummaryRow) -> list[object]:
    interval, difference = row.interval, row.difference
    values: list[object] = [row.estimator, row.metric, row.resolution, row.label]
    values += [interval.value, interval.low, interval.high, interval.images, interval.groups]
    if difference is None:
        return [*values, math.nan, math.nan, math.nan, math.nan]
    ends = (difference.value, difference.low, difference.high, difference.other_side)
    return [*values, *ends]


def _difference_values(pair: Difference) -> list[object]:
    found = pair.difference
    ends = (found.value, found.low, found.high, found.other_side, found.images, found.groups)
    return [pair.one, pair.other, pair.metric, pair.resolution, *ends]


def _plain(row: Row) -> list[object]:
    return list(row)


def _csv(header: Sequence[str], rows: Iterator[list[object]]) -> bytes:
    return csv_bytes(header, ([_csv_value(value) for value in row] for row in rows))


def _csv_value(value: object) -> object:
    if not isinstance(value, float):
        return value
    return f"{value:.{DIGITS}g}" if math.isfinite(value) else ""
