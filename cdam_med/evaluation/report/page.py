"""The page of an evaluation for people, in Markdown."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cdam_med.evaluation.intervals import CONFIDENCE, ROUNDING
from cdam_med.evaluation.metrics import METRICS, SECTIONS, metric_of
from cdam_med.evaluation.results import LEAST_GROUPS, Results, SummaryRow
from cdam_med.targets import MALIGNANCY
from data_prep.statements import RESEARCH_ONLY
from data_prep.text import in_markdown

LIDC_NOTE = (
    "LIDC-IDRI's malignancy ratings are radiologists' opinions from the images, not pathology, and "
    "the outlines are theirs too. Data: LIDC-IDRI, CC BY 3.0, "
    "https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX."
)

BY_LABEL = "Localisation"
"""Section whose tables are shown label by label; summary.csv has all by label."""

FEW_GROUPS = 20
"""Groups under which intervals are said to be too narrow."""

MATRIX_PARTS = ("mean", "low", "high", "images")
RESOLUTIONS = {"patch": "the patch grid", "pixel": "pixels"}


def page(
    results: Results,
    summary: Sequence[SummaryRow],
    about: Mapping[str, str],
    reference: str,
    files: Sequence[str],
) -> str:
    """Return the report in Markdown: a table for each section, resolution and label.

    Of the other `files`, pictures are shown.
    """
    titles = {each.name: each.title for each in results.methods}
    lines = ["# Explanations, evaluated", "", f"**{RESEARCH_ONLY}** {data_note(results)}".rstrip()]
    lines += ["", *(f"- {in_markdown(key)}: {in_markdown(each)}" for key, each in about.items())]
    lines += [f"- seed: {results.seed}", "", *_how_to_read(summary, titles.get(reference))]
    for section in SECTIONS:
        rows = [row for row in summary if metric_of(row.metric).section == section]
        if not rows:
            continue
        lines += ["", f"## {section}"]
        for label in dict.fromkeys(row.label for row in rows):
            if label == "" or section == BY_LABEL:
                lines += _tables([row for row in rows if row.label == label], label, titles)
        lines += ["", *_meanings(rows)]
    lines += _target_tables(results, titles)
    lines += _pooled_table(results, titles)
    lines += _left_out_list(results)
    shown = [name for name in files if name.endswith(".png")]
    lines += ["", "## Pictures", "", *(f"![{name}]({name})" for name in shown)]
    return "\n".join(lines) + "\n"


def data_note(results: Results) -> str:
    """Return what is to be said of nodules; nothing where none are explained."""
    return LIDC_NOTE if MALIGNANCY.name in (results.examples.targets or ()) else ""


def _how_to_read(summary: Sequence[SummaryRow], reference: str | None) -> list[str]:
    """Return what figures, brackets and asterisks mean, and when they mean little."""
    words = (
        f"Means over images with {CONFIDENCE:.0%} bootstrap intervals over groups (patients, or "
        "images)."
    )
    if reference is not None:
        words += (
            f" An asterisk marks a difference from {reference} on the same images whose interval "
            f"doesn't hold 0, where there are at least {LEAST_GROUPS} groups (no correction for "
            "the number of comparisons)."
        )
    words += (
        " Differences of every two methods are in differences.csv. Where fewer images have a "
        "value than for other methods, their number stands behind. All maps of a table are at "
        "one resolution; at pixels, maps of patches are spread."
    )
    of_images = (row.interval.groups for row in summary if row.metric != "grid_pointing")
    groups = max(of_images, default=0)
    if not 0 < groups < FEW_GROUPS:
        return [words]
    said = "intervals of so few are too narrow, and one group alone has none"
    return [words, "", f"**Groups (patients, or images): {groups}; {said}.**"]


def _tables(rows: Sequence[SummaryRow], label: str, titles: Mapping[str, str]) -> list[str]:
    """Return a table for each resolution, centred and shifted images apart."""
    kinds: dict[tuple[str, bool, bool], list[SummaryRow]] = {}
    for row in rows:
        kind = (row.resolution, "/shifted" in row.metric, row.metric.startswith("randomised"))
        kinds.setdefault(kind, []).append(row)
    lines = []
    for (resolution, is_shifted, _), part in sorted(kinds.items()):
        words = f"Maps at {RESOLUTIONS[resolution]}"
        words += ", objects out of the centre" if is_shifted else ""
        words += f", {in_markdown(label)} only" if label else ""
        lines += ["", f"{words}:", "", *_table(part, titles)]
    return lines


def _table(rows: Sequence[SummaryRow], titles: Mapping[str, str]) -> list[str]:
    columns = list(dict.fromkeys(row.metric for row in rows))
    cells = {(row.method, row.metric): row for row in rows}
    most = {m: max(row.interval.images for row in rows if row.metric == m) for m in columns}
    lines = _head("Method", [_column_title(metric) for metric in columns])
    for name, title in titles.items():
        found = [(cells.get((name, metric)), most[metric]) for metric in columns]
        if any(cell is not None for cell, _ in found):
            lines.append(f"| {title} | {' | '.join(_cell(*cell) for cell in found)} |")
    return lines


def _head(first: str, columns: Sequence[str]) -> list[str]:
    return [f"| {first} | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]


def _column_title(name: str) -> str:
    metric = metric_of(name)
    arrow = {"higher": "↑", "lower": "↓", "zero": "→ 0"}[metric.better]
    variant = f", {name.split('/', 1)[1]}" if "/" in name else ""
    return f"{metric.title}{variant} {arrow}"


def _cell(row: SummaryRow | None, most_images: int) -> str:
    if row is None or not math.isfinite(row.interval.value):
        return "-"
    interval = row.interval
    words = _with_ends(interval.value, interval.low, interval.high)
    words += f" (n = {interval.images})" if interval.images < most_images else ""
    return words + " *" * row.differs


def _with_ends(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return "-"
    words = [f"{0.0 if abs(each) < ROUNDING else each:.3g}" for each in (value, low, high)]
    return f"{words[0]} [{words[1]}, {words[2]}]" if math.isfinite(low) else words[0]


def _meanings(rows: Sequence[SummaryRow]) -> list[str]:
    counts: dict[str, tuple[int, int]] = {}
    for row in rows:
        name, count = row.metric.split("/")[0], (row.interval.images, row.interval.groups)
        counts[name] = max(count, counts.get(name, count))
    return [
        f"- {METRICS[name].title}: {METRICS[name].meaning} Images: {images}, groups: {groups}."
        for name, (images, groups) in counts.items()
    ]


def _target_tables(results: Results, titles: Mapping[str, str]) -> list[str]:
    """Return the matrix of correlations between targets of each method, half of it."""
    if not results.matrices:
        return []
    lines = [
        "",
        "## Correlation between the maps of two targets",
        "",
        "Pearson's correlation at the patch grid, mean over images.",
    ]
    names = [in_markdown(str(target)).replace("_", " ") for target in results.output_names]
    for method, matrix in results.matrices.items():
        images = matrix["images"]
        cells = [
            _with_ends(*ends) + (f" (n = {count})" if count < images.max() else "")
            for *ends, count in zip(*(matrix[key].flat for key in MATRIX_PARTS), strict=True)
        ]
        table = np.reshape(np.array(cells, dtype=object), images.shape)
        lines += ["", f"{titles[method]}:", "", *_half_table(names, table.tolist())]
    return lines


def _pooled_table(results: Results, titles: Mapping[str, str]) -> list[str]:
    found = results.pooled_correlations()
    if not found:
        return []
    table = [
        [
            _with_ends(pair.value, pair.low, pair.high)
            for column in titles
            if (pair := found.get((column, row))) is not None
        ]
        for row in titles
    ]
    return [
        "",
        "## Correlation between methods, all patches in one pool",
        "",
        "Pearson's correlation as in the first paper's table (arXiv 2312.02364v1). It mixes "
        "differences within and between images.",
        "",
        *_half_table(list(titles.values()), table),
    ]


def _half_table(names: Sequence[str], table: Sequence[Sequence[str]]) -> list[str]:
    """Return a table of every two names, each pair once: what lies below the diagonal."""
    lines = _head("", names[:-1])
    for number, (name, cells) in enumerate(zip(names, table, strict=True)):
        if number:
            filled = [*cells[:number], *[""] * (len(names) - 1 - number)]
            lines.append(f"| {name} | {' | '.join(filled)} |")
    return lines


def _left_out_list(results: Results) -> list[str]:
    if not results.left_out:
        return []
    by_reason: dict[tuple[str, str], list[str]] = {}
    for entry in results.left_out:
        by_reason.setdefault((entry.metric, entry.reason), []).append(entry.method)
    lines = ["", "## Left out", ""]
    for (metric, reason), names in by_reason.items():
        what = metric.replace("_", " ") or "everything"
        lines.append(f"- {what} of {', '.join(names)}: {in_markdown(reason)}")
    return lines
