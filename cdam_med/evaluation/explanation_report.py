"""The folder of judged estimators: tables for machines and people, and pictures."""

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cdam_med.evaluation.explanation_figures import STATEMENT, pictures
from cdam_med.evaluation.explanation_results import REFERENCE, Results, Row, SummaryRow
from cdam_med.evaluation.intervals import CONFIDENCE, DRAWS
from cdam_med.evaluation.measures import METRICS, metric_of
from cdam_med.targets import MALIGNANCY
from data_prep.disk import output_error, write_file
from data_prep.errors import OutputError
from data_prep.versions import version_of

REPORT_FORMAT = "cdam-med explanations"
"""Value of ``format`` in the ``summary.json`` of every folder."""

SCHEMA_VERSION = 1
"""Raised whenever a key or column changes its name or meaning."""

RECORD_NAME = "summary.json"
FILE_NAMES = (
    "results.csv",
    "summary.csv",
    RECORD_NAME,
    "summary.md",
    "maps.png",
    "summary.png",
    "curves.png",
    "targets.png",
    "randomisation.png",
)
"""All that such a folder may hold."""

LIDC_NOTE = (
    "LIDC-IDRI's malignancy ratings are radiologists' opinions from the images, not pathology, and "
    "the outlines are theirs too. Data: LIDC-IDRI, CC BY 3.0, "
    "https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX."
)

SUMMARY_COLUMNS = (
    "estimator", "metric", "resolution", "label", "mean", "low", "high", "images", "groups",
    "difference", "difference_low", "difference_high", "difference_other_side",
)  # fmt: skip

BY_LABEL = "Localisation"
"""Section whose tables are shown label by label; summary.csv has all by label."""

RESOLUTIONS = {"patch": "the patch grid", "pixel": "pixels"}

_DISTRIBUTIONS = ("cdam-med", "torch", "timm", "numpy")

DIGITS = 6
"""Significant digits in the CSV tables."""


def check_report_folder(folder: Path) -> None:
    """Refuse a place that can't be used before hours are spent on what is to go there.

    Parameters
    ----------
    folder : Path
        A new folder, an empty one, or one of an earlier run, which is overwritten.

    Raises
    ------
    OutputError
        If it is a file, holds something else, or can't be written to.
    """
    parent = next(place for place in (folder.absolute(), *folder.absolute().parents)
                  if place.exists())  # fmt: skip
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"{folder} can't be written to or made in {parent}; choose a folder that you may "
            "write to."
        )
    if not folder.is_dir():
        return
    present = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    if present and not _is_ours(folder / RECORD_NAME):
        raise OutputError(
            f"{folder} holds something else than a report of explanations; choose a new folder."
        )


def write_report(
    folder: Path,
    results: Results,
    *,
    about: Mapping[str, str],
    reference: str = REFERENCE,
) -> Path:
    """Write tables and pictures, each file whole or not at all; the record last.

    Parameters
    ----------
    folder : Path
        A new folder, an empty one, or one of an earlier run, which is overwritten.
    results : Results
        What was measured.
    about : mapping of str to str
        What is to be said of the run, such as ``{"model": "demo", "data": "cohort"}``.
    reference : str
        Name of the estimator that others are compared with.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    OutputError
        If the place is taken or can't be written to.
    """
    check_report_folder(folder)
    summary = results.summary(reference=reference)
    record = _record(results, summary, about, reference)
    files = {
        "results.csv": _csv(Row._fields, (_plain(row) for row in results.rows)),
        "summary.csv": _csv(SUMMARY_COLUMNS, (_summary_values(row) for row in summary)),
        **pictures(results, summary),
    }
    files["summary.md"] = _markdown(results, summary, about, reference, tuple(files)).encode()
    files[RECORD_NAME] = f"{json.dumps(record, indent=2, allow_nan=False)}\n".encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILE_NAMES:  # a picture of an earlier run would be taken for one of this
            if name not in files:
                (folder / name).unlink(missing_ok=True)
        for name, data in files.items():
            write_file(folder / name, data)
    except OSError as error:
        raise output_error("the report", folder, error) from error
    return folder


def _is_ours(record: Path) -> bool:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == REPORT_FORMAT


def _record(
    results: Results, summary: Sequence[SummaryRow], about: Mapping[str, str], reference: str
) -> dict[str, Any]:
    return {
        "format": REPORT_FORMAT,
        "schema_version": SCHEMA_VERSION,
        "statement": STATEMENT,
        "data_note": _data_note(results),
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
                "mean": [[_json_value(value) for value in row] for row in matrix.mean.tolist()],
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


def _data_note(results: Results) -> str:
    """Return what is to be said of nodules; nothing where none are explained."""
    return LIDC_NOTE if MALIGNANCY.name in results.shown.targets else ""


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


def _plain(row: Row) -> list[object]:
    return list(row)


def _csv(header: Sequence[str], rows: Iterator[list[object]]) -> bytes:
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([_csv_value(value) for value in row])
    return table.getvalue().encode()


def _csv_value(value: object) -> object:
    if not isinstance(value, float):
        return value
    return f"{value:.{DIGITS}g}" if math.isfinite(value) else ""


def _markdown(
    results: Results,
    summary: Sequence[SummaryRow],
    about: Mapping[str, str],
    reference: str,
    files: Sequence[str],
) -> str:
    """Return the report for people: a table for each section and label."""
    titles = {each.name: each.title for each in results.estimators}
    lines = ["# Explanations, judged", "", f"**{STATEMENT}** {_data_note(results)}".rstrip(), ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    lines += [
        f"- seed: {results.seed}",
        "",
        f"Means over images with {CONFIDENCE:.0%} bootstrap intervals over groups (patients, or "
        f"images). An asterisk marks a difference from {titles.get(reference, reference)} on the "
        "same images whose interval doesn't hold 0 (no correction for the number of comparisons). "
        "Maps of unlike resolution are never in one table.",
    ]
    sections = list(dict.fromkeys(metric.section for metric in METRICS.values()))
    for section in sections:
        rows = [row for row in summary if metric_of(row.metric).section == section]
        if not rows:
            continue
        lines += ["", f"## {section}"]
        for label in dict.fromkeys(row.label for row in rows):
            if label == "" or section == BY_LABEL:
                lines += _tables([row for row in rows if row.label == label], label, titles)
        lines += ["", *_meanings(rows)]
    lines += _pooled_table(results, titles)
    lines += _left_out_list(results)
    shown = [name for name in files if name.endswith(".png")]
    lines += ["", "## Pictures", "", *(f"![{name}]({name})" for name in shown)]
    return "\n".join(lines) + "\n"


def _tables(rows: Sequence[SummaryRow], label: str, titles: Mapping[str, str]) -> list[str]:
    """Return a table for each resolution, centred and shifted images apart."""
    kinds: dict[tuple[str, bool, bool], list[SummaryRow]] = {}
    for row in rows:
        kind = (row.resolution, "/shifted" in row.metric, row.metric.startswith("randomised"))
        kinds.setdefault(kind, []).append(row)
    lines = []
    for (resolution, is_shifted, _), part in sorted(kinds.items()):
        words = [f"maps at {RESOLUTIONS[resolution]}"]
        words += ["objects out of the centre"] if is_shifted else []
        words += [f"{label} only"] if label else []
        lines += ["", f"{', '.join(words).capitalize()}:", "", *_table(part, titles)]
    return lines


def _table(rows: Sequence[SummaryRow], titles: Mapping[str, str]) -> list[str]:
    columns = list(dict.fromkeys(row.metric for row in rows))
    cells = {(row.estimator, row.metric): row for row in rows}
    heads = [_column_title(metric) for metric in columns]
    lines = [f"| Estimator | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(columns)]
    for name, title in titles.items():
        found = [cells.get((name, metric)) for metric in columns]
        if any(cell is not None for cell in found):
            lines.append(f"| {title} | {' | '.join(_cell(cell) for cell in found)} |")
    return lines


def _column_title(metric: str) -> str:
    arrow = {"higher": " ↑", "lower": " ↓", "zero": " → 0"}[metric_of(metric).better]
    variant = f", {metric.split('/', 1)[1]}" if "/" in metric else ""
    return f"{metric_of(metric).title}{variant}{arrow}"


def _cell(row: SummaryRow | None) -> str:
    if row is None or not math.isfinite(row.interval.value):
        return "-"
    difference = row.difference
    differs = difference is not None and (difference.low > 0 or difference.high < 0)
    ends = row.interval
    spread = f" [{ends.low:.3g}, {ends.high:.3g}]" if math.isfinite(ends.low) else ""
    return f"{ends.value:.3g}{spread}{' *' if differs else ''}"


def _meanings(rows: Sequence[SummaryRow]) -> list[str]:
    names = dict.fromkeys(row.metric.split("/")[0] for row in rows)
    most = max(row.interval.images for row in rows)
    said = [f"- {METRICS[name].title}: {METRICS[name].meaning}" for name in names]
    return [*said, f"- At most {most} images have a value."]


def _pooled_table(results: Results, titles: Mapping[str, str]) -> list[str]:
    if not results.pooled:
        return []
    value = {frozenset((pair.one, pair.other)): pair.interval.value for pair in results.pooled}
    lines = [
        "",
        "## Correlation between estimators, all patches in one pool",
        "",
        "Pearson's correlation as in the first paper's table (arXiv 2312.02364v1). It mixes "
        "differences within and between images.",
        "",
        f"| | {' | '.join(titles.values())} |",
        "| --- |" + " ---: |" * len(titles),
    ]
    for name, title in titles.items():
        found = [value.get(frozenset((name, other)), math.nan) for other in titles]
        words = [f"{number:.2f}" if math.isfinite(number) else "" for number in found]
        lines.append(f"| {title} | {' | '.join(words)} |")
    return lines


def _left_out_list(results: Results) -> list[str]:
    if not results.left_out:
        return []
    by_reason: dict[tuple[str, str], list[str]] = {}
    for entry in results.left_out:
        by_reason.setdefault((entry.measure, entry.reason), []).append(entry.estimator)
    lines = ["", "## Left out", ""]
    for (measure, reason), names in by_reason.items():
        what = measure.replace("_", " ") or "everything"
        lines.append(f"- {what} of {', '.join(names)}: {reason}")
    return lines
