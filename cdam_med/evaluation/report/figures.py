"""Pictures of judged estimators: curves, targets, randomisation, and the summary."""

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cdam_med.attribution.estimator import Estimator
from cdam_med.evaluation.measures import METRICS, metric_of
from cdam_med.evaluation.report.figure_layout import (
    STATEMENT,
    headed,
    height_of,
    new_figure,
    only_outer,
    panel_title,
    place_of,
    share_limits,
    small_multiples,
)
from cdam_med.evaluation.report.maps_figure import maps_figure
from cdam_med.evaluation.report.results import REFERENCE, Results, SummaryRow

_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.0,
    "text.parse_math": False,
    "axes.linewidth": 0.6,
}
_ACCENT, _QUIET, _GREY = "#c8500a", "#2166ac", "0.6"
_VERDICTS = {"better": "black", "worse": _QUIET, "open": "0.65"}
_ENDS = ("", "_low", "_high")
_CHARACTER = 0.066  # inches that one takes at the side of a panel, at most on average


def pictures(results: Results, summary: Sequence[SummaryRow]) -> dict[str, bytes]:
    """Return PNG files by their names; those for which there is something to show.

    Parameters
    ----------
    results : Results
        What was measured.
    summary : sequence of SummaryRow
        Its summary.
    """
    # the user's own matplotlib settings must not reach the pictures
    with style.context(["default", _STYLE]):
        drawn = {
            "maps.png": maps_figure(results),
            "summary.png": summary_figure(results, summary),
            "curves.png": curves_figure(results),
            "targets.png": targets_figure(results),
            "randomisation.png": randomisation_figure(results, summary),
        }
        return {name: _png(figure) for name, figure in drawn.items() if figure is not None}


def curves_figure(results: Results) -> Figure | None:
    """Draw the mean perturbation curves of each estimator over those of the reference.

    Parameters
    ----------
    results : Results
        What was measured; None where the curves weren't asked for.
    """
    if not results.curves:
        return None
    shown = [each for each in results.estimators if each.name in results.curves]
    reference = results.curves.get(REFERENCE)
    figure, panels = small_multiples(shown, 1.75, "Share of patches replaced (blur)")
    headed(
        figure,
        "Mean raw output while patches are replaced, with bootstrap intervals",
        "Orange: most important first (MIF). Blue: least important first (LIF)."
        + (" Grey: CDAM." if reference is not None else ""),
    )
    for each, axes in zip(shown, panels, strict=True):
        curves = results.curves[each.name]
        if reference is not None and each.name != REFERENCE:
            for values in (reference.most_first, reference.least_first):
                axes.plot(reference.shares, values, color="0.7", linewidth=0.9)
        for first, colour in (("most", _ACCENT), ("least", _QUIET)):
            mean, low, high = (getattr(curves, f"{first}_first{end}") for end in _ENDS)
            axes.fill_between(curves.shares, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(curves.shares, mean, color=colour, linewidth=1.3)
        panel_title(axes, each.title)
    share_limits(panels)
    return figure


def targets_figure(results: Results) -> Figure | None:
    """Draw the correlations between the maps of all targets, one matrix an estimator.

    Parameters
    ----------
    results : Results
        What was measured; None where the correlations weren't asked for.
    """
    if not results.matrices:
        return None
    shown = [each for each in results.estimators if each.name in results.matrices]
    figure, panels = small_multiples(shown, 1.95, "", left=1.1)
    headed(figure, "Correlation between maps of two targets", "Mean over images.")
    names = next(iter(results.matrices.values())).targets
    words = [str(name).replace("_", " ") for name in names]
    image = None
    for each, axes in zip(shown, panels, strict=True):
        matrix = results.matrices[each.name].mean
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        panel_title(axes, each.title)
        axes.set_xticks([])
        axes.set_yticks(range(len(words)), words if place_of(axes).is_first_col() else [])
        axes.tick_params(length=0, labelsize=6.5)
    if image is not None:
        bar = figure.add_axes(
            (0.3, 0.3 / height_of(figure), 0.4, 0.1 / height_of(figure)), label="bar"
        )
        figure.colorbar(image, cax=bar, orientation="horizontal")
    return figure


def randomisation_figure(results: Results, summary: Sequence[SummaryRow]) -> Figure | None:
    """Draw how like the original a map stays while weights are randomised.

    Parameters
    ----------
    results : Results
        What was measured.
    summary : sequence of SummaryRow
        Its summary; None where the randomisation wasn't asked for.
    """
    values = {
        (row.estimator, row.metric): row.interval.value
        for row in summary
        if row.label == "" and row.metric.startswith("randomised_")
    }
    stages = list(dict.fromkeys(metric.split("/")[1] for _, metric in values))
    shown = [each for each in results.estimators if any(each.name == name for name, _ in values)]
    if not shown:
        return None
    figure, panels = small_multiples(shown, 1.75, "Weights randomised down to", bottom=0.95)
    headed(
        figure,
        "Rank correlation with the original map",
        "Orange: signed. Blue: sizes of scores.",
    )
    for each, axes in zip(shown, panels, strict=True):
        for kind, colour in (("signed", _ACCENT), ("absolute", _QUIET)):
            line = [values.get((each.name, f"randomised_{kind}/{s}"), np.nan) for s in stages]
            axes.plot(range(len(stages)), line, color=colour, marker="o", markersize=2.5)
        axes.axhline(0, color=_GREY, linewidth=0.6)
        panel_title(axes, each.title)
        axes.set_xticks(range(len(stages)), stages, rotation=90)
        axes.set_ylim(-1.05, 1.05)
    only_outer(panels)
    return figure


def summary_figure(results: Results, summary: Sequence[SummaryRow]) -> Figure | None:
    """Draw all metrics of all estimators at the patch grid with their intervals.

    None is left out but the stages of randomised weights, which have a picture of their own. An
    estimator's colour says whether it is better or worse than the reference by that metric.

    Parameters
    ----------
    results : Results
        What was measured.
    summary : sequence of SummaryRow
        Its summary; None where nothing was measured at the patch grid.
    """
    found = {
        (row.metric, row.estimator): row
        for row in summary
        if row.label == "" and row.resolution == "patch"
    }
    measured = dict.fromkeys(metric for metric, _ in found if not metric.startswith("randomised_"))
    order = list(METRICS)
    metrics = sorted(measured, key=lambda metric: order.index(metric.split("/")[0]))
    if not metrics:
        return None
    columns = min(4, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    estimators = list(results.estimators)
    height = 0.17 * len(estimators) + 0.9
    left = 0.3 + _CHARACTER * max(len(each.title) for each in estimators)
    width = left + 0.15 + 2.1 * columns
    figure = new_figure(max(width, 7.5), rows * height + 0.6)
    legend = "Maps at the patch grid."
    if any(each.name == REFERENCE for each in estimators):
        legend += " Orange: CDAM. Black: better than CDAM by this measure; blue: worse; grey: open."
    headed(figure, "Means over images with bootstrap intervals", legend)
    grid = figure.add_gridspec(
        rows, columns, left=left / max(width, 7.5), right=1 - 0.1 / max(width, 7.5),
        top=1 - 0.9 / height_of(figure), bottom=0.35 / height_of(figure), wspace=0.1,
        hspace=0.7 / (height - 0.7),
    )  # fmt: skip
    for number, metric in enumerate(metrics):
        axes = figure.add_subplot(grid[number // columns, number % columns], label=metric)
        _draw_intervals(axes, [found.get((metric, e.name)) for e in estimators], estimators)
        words, rows_here = metric_of(metric), [row for (m, _), row in found.items() if m == metric]
        better_than, worse_than = (
            sum(_verdict(row) == verdict for row in rows_here) for verdict in ("worse", "better")
        )
        counts = f"\nCDAM beats {better_than}, loses to {worse_than}" * _is_judged(rows_here)
        variant = f" ({metric.split('/')[1]})" if "/" in metric else ""
        better = "near 0" if words.better == "zero" else words.better
        axes.set_title(f"{words.title}{variant}\n{better} is better{counts}", pad=3, fontsize=7.5)
        if number % columns:
            axes.set_yticklabels([])
    return figure


def _is_judged(rows: Sequence[SummaryRow]) -> bool:
    """Say whether there is a reference that a metric can tell better from worse than."""
    has_reference = any(row.difference is not None for row in rows)
    return has_reference and metric_of(rows[0].metric).better != "zero"


def _verdict(row: SummaryRow) -> str:
    """Say whether an estimator is better or worse than the reference, as far as is known."""
    better = metric_of(row.metric).better
    if row.difference is None or not row.differs or better == "zero":
        return "open"
    return "better" if (row.difference.low > 0) == (better == "higher") else "worse"


def _draw_intervals(
    axes: Axes, rows: Sequence[SummaryRow | None], estimators: list[Estimator]
) -> None:
    for number, (row, each) in enumerate(zip(rows, estimators, strict=True)):
        if row is None:
            continue
        value, low, high = row.interval.value, row.interval.low, row.interval.high
        colour = _ACCENT if each.name == REFERENCE else _VERDICTS[_verdict(row)]
        axes.plot([low, high], [number, number], color=colour, linewidth=1.2)
        axes.plot([value], [number], color=colour, marker="o", markersize=3)
        if each.name == REFERENCE and math.isfinite(value):
            axes.axvline(value, color=_ACCENT, linewidth=0.5, alpha=0.6)
    axes.set_yticks(range(len(estimators)), [each.title for each in estimators])
    axes.set_ylim(len(estimators) - 0.5, -0.5)
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.tick_params(length=2)


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Description": STATEMENT})
    return picture.getvalue()
