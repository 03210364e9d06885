"""Pictures of judged estimators: example maps, curves, targets, randomisation, and the summary."""

import io
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from torch import Tensor

from cdam_med.attribution.estimator import Estimator
from cdam_med.evaluation.measures import metric_of
from cdam_med.evaluation.report.results import REFERENCE, Results, SummaryRow
from cdam_med.export.slice_drawing import attribution_rgba

STATEMENT = "Research only, not for diagnosis."

DISPLAY_QUANTILE = 0.995
"""Share of a map's scores whose size the colour scale reaches; each map has a scale of its own."""

SHOWN_METRICS = (
    "mif_lif/signed, blur",
    "ablation_spearman",
    "positive_share",
    "positive_share/shifted",
    "pointing_game/shifted",
    "auroc/shifted",
    "grid_pointing",
    "target_correlation",
    "class_correlation/top and bottom",
    "gini",
    "other_images",
    "randomised_signed/embedding",
)
"""Metrics of the summary's picture, those that were measured, at the patch grid."""

_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.0,
    "text.parse_math": False,
    "axes.linewidth": 0.6,
}
_DPI = 120
_ACCENT, _QUIET, _GREY = "#c8500a", "#2166ac", "0.6"
_MOST_COLUMNS = 14
_MOST_PANELS = 6
_ENDS = ("", "_low", "_high")
_CHARACTER = 0.066  # inches that one takes at the side of a panel, at most on average
_NAME_WIDTH = 18  # characters of a line above an image
_TITLE_WIDTH = 22  # characters of a line above a panel


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


def maps_figure(results: Results) -> Figure:
    """Draw the first images, and below each its map by every estimator.

    Orange speaks for the target, blue against it; every map has its own scale. The white line is
    the object. Each axes is labelled with estimator and image.

    Parameters
    ----------
    results : Results
        What was measured.
    """
    shown = results.shown
    count, names = len(shown.examples), list(shown.maps)
    blocks = max(1, _MOST_COLUMNS // (count + 1))
    rows = 1 + math.ceil(len(names) / blocks)
    across = blocks * (count + 1)
    figure = _figure(1.25 * across + 0.2, 1.33 * rows + 0.95)
    common = set(shown.targets)
    words = f"{_target_words(shown.targets[0])}." if len(common) == 1 else "the target."
    _headed(figure, "Maps, each on its own scale", f"Orange for, blue against {words}")
    grid = figure.add_gridspec(
        rows, across, left=0.01, right=0.99, top=1 - 0.85 / _height(figure), bottom=0.01,
        wspace=0.06, hspace=0.16,
    )  # fmt: skip
    titles = {each.name: each.title for each in results.estimators}
    for block in range(blocks):
        part = names[block * (rows - 1) : (block + 1) * (rows - 1)]
        for row, name in enumerate((None, *part)):
            first = block * (count + 1)
            words = "Image" if name is None else titles[name].replace(" ", "\n")
            label = figure.add_subplot(grid[row, first], label=f"name {block} {row}")
            label.set_axis_off()
            label.text(1, 0.5, words, ha="right", va="center", transform=label.transAxes)
            for index in range(count):
                axes = figure.add_subplot(
                    grid[row, first + 1 + index], label=f"{name or 'image'} {index}"
                )
                _draw_map(axes, results, index, None if name is None else shown.maps[name][index])
                if name is None:
                    title = _image_title(results, index, with_target=len(common) > 1)
                    axes.set_title(title, fontsize=6.5, pad=2)
    return figure


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
    figure, panels = _small_multiples(shown, 1.75, "Share of patches replaced (blur)")
    _headed(
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
        _panel_title(axes, each.title)
    _share_limits(panels)
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
    figure, panels = _small_multiples(shown, 1.95, "", left=1.1)
    _headed(figure, "Correlation between maps of two targets", "Mean over images.")
    names = next(iter(results.matrices.values())).targets
    words = [str(name).replace("_", " ") for name in names]
    image = None
    for each, axes in zip(shown, panels, strict=True):
        matrix = results.matrices[each.name].mean
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        _panel_title(axes, each.title)
        axes.set_xticks([])
        axes.set_yticks(range(len(words)), words if _place(axes).is_first_col() else [])
        axes.tick_params(length=0, labelsize=6.5)
    if image is not None:
        bar = figure.add_axes((0.3, 0.3 / _height(figure), 0.4, 0.1 / _height(figure)), label="bar")
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
    figure, panels = _small_multiples(shown, 1.75, "Weights randomised down to", bottom=0.95)
    _headed(
        figure,
        "Rank correlation with the original map",
        "Orange: signed. Blue: sizes of scores.",
    )
    for each, axes in zip(shown, panels, strict=True):
        for kind, colour in (("signed", _ACCENT), ("absolute", _QUIET)):
            line = [values.get((each.name, f"randomised_{kind}/{s}"), np.nan) for s in stages]
            axes.plot(range(len(stages)), line, color=colour, marker="o", markersize=2.5)
        axes.axhline(0, color=_GREY, linewidth=0.6)
        _panel_title(axes, each.title)
        axes.set_xticks(range(len(stages)), stages, rotation=90)
        axes.set_ylim(-1.05, 1.05)
    _only_outer(panels)
    return figure


def summary_figure(results: Results, summary: Sequence[SummaryRow]) -> Figure | None:
    """Draw the main metrics of all estimators with their intervals.

    Parameters
    ----------
    results : Results
        What was measured.
    summary : sequence of SummaryRow
        Its summary; None where none of `SHOWN_METRICS` was asked for.
    """
    found = {
        (row.metric, row.estimator): row.interval
        for row in summary
        if row.label == "" and row.resolution == "patch"
    }
    metrics = [m for m in SHOWN_METRICS if any(m == metric for metric, _ in found)]
    if not metrics:
        return None
    columns = min(4, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    estimators = list(results.estimators)
    height = 0.17 * len(estimators) + 0.75
    left = 0.3 + _CHARACTER * max(len(each.title) for each in estimators)
    width = left + 0.15 + 2.1 * columns
    figure = _figure(width, rows * height + 0.6)
    _headed(figure, "Means over images with bootstrap intervals", "Maps at the patch grid.")
    grid = figure.add_gridspec(
        rows, columns, left=left / width, right=1 - 0.1 / width,
        top=1 - 0.75 / _height(figure), bottom=0.35 / _height(figure), wspace=0.1,
        hspace=0.55 / (height - 0.55),
    )  # fmt: skip
    for number, metric in enumerate(metrics):
        axes = figure.add_subplot(grid[number // columns, number % columns], label=metric)
        _draw_intervals(axes, [found.get((metric, e.name)) for e in estimators], estimators)
        words = metric_of(metric)
        variant = f" ({metric.split('/')[1]})" if "/" in metric else ""
        better = "near 0" if words.better == "zero" else words.better
        axes.set_title(f"{words.title}{variant}\n{better} is better", pad=3, fontsize=7.5)
        if number % columns:
            axes.set_yticklabels([])
    return figure


def _draw_intervals(axes: Axes, intervals: Sequence[object], estimators: list[Estimator]) -> None:
    for row, (interval, each) in enumerate(zip(intervals, estimators, strict=True)):
        if interval is None:
            continue
        value, low, high = (getattr(interval, end) for end in ("value", "low", "high"))
        colour = _ACCENT if each.name == REFERENCE else _QUIET
        axes.plot([low, high], [row, row], color=colour, linewidth=1.2)
        axes.plot([value], [row], color=colour, marker="o", markersize=3)
        if each.name == REFERENCE and math.isfinite(value):
            axes.axvline(value, color=_ACCENT, linewidth=0.5, alpha=0.6)
    axes.set_yticks(range(len(estimators)), [each.title for each in estimators])
    axes.set_ylim(len(estimators) - 0.5, -0.5)
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.tick_params(length=2)


def _draw_map(axes: Axes, results: Results, index: int, scores: Tensor | None) -> None:
    examples = results.shown.examples
    pixels = examples.images[index].mean(0).numpy()
    extent = (0.0, float(pixels.shape[1]), float(pixels.shape[0]), 0.0)
    axes.imshow(pixels, cmap="gray", extent=extent, interpolation="bilinear")
    axes.set_axis_off()
    if scores is None:
        return
    values = scores.double().numpy()
    limit = float(np.quantile(np.abs(values), DISPLAY_QUANTILE))
    axes.imshow(attribution_rgba(values, limit), extent=extent, interpolation="nearest")
    if examples.masks is not None and bool(examples.masks[index].any()):
        mask = examples.masks[index].numpy()
        axes.contour(
            np.arange(mask.shape[1]) + 0.5, np.arange(mask.shape[0]) + 0.5, mask,
            levels=[0.5], colors="white", linewidths=0.7,
        )  # fmt: skip


def _image_title(results: Results, index: int, *, with_target: bool) -> str:
    examples = results.shown.examples
    name = examples.ids[index].replace("LIDC-IDRI-", "")
    words = examples.labels[index] or "unlabelled"
    if with_target:
        words = f"{words[:9]}, for {_target_words(results.shown.targets[index])[:8]}"
    shown = name if len(name) <= _NAME_WIDTH else f"…{name[1 - _NAME_WIDTH :]}"
    return f"{shown}\n{words[:_NAME_WIDTH]}"


def _target_words(target: object) -> str:
    return str(target).replace("_", " ") if isinstance(target, str) else f"output {target}"


def _panel_title(axes: Axes, title: str) -> None:
    axes.set_title(textwrap.fill(title, _TITLE_WIDTH), pad=3, fontsize=7.5)


def _small_multiples(
    estimators: Sequence[Estimator], edge: float, xlabel: str, *, left: float = 0.5,
    bottom: float = 0.65,
) -> tuple[Figure, list[Axes]]:  # fmt: skip
    """Return one axes an estimator, in rows of the same length but for the last."""
    rows = math.ceil(len(estimators) / _MOST_PANELS)
    columns = math.ceil(len(estimators) / rows)
    width, height = left + 0.1 + edge * columns, 0.75 + bottom + edge * rows
    # wide enough for the line at the top
    figure = _figure(max(width, 7.5), height)
    grid = figure.add_gridspec(
        rows, columns, left=left / max(width, 7.5), right=1 - 0.1 / max(width, 7.5),
        top=1 - 0.75 / height, bottom=bottom / height, wspace=0.12, hspace=0.32,
    )  # fmt: skip
    panels = [
        figure.add_subplot(grid[number // columns, number % columns], label=each.name)
        for number, each in enumerate(estimators)
    ]
    if xlabel:
        figure.text(0.5, 0.1 / height, xlabel, ha="center")
    return figure, panels


def _share_limits(panels: Sequence[Axes]) -> None:
    low = min(axes.get_ylim()[0] for axes in panels)
    high = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(low, high)
    _only_outer(panels)


def _only_outer(panels: Sequence[Axes]) -> None:
    """Label the axes at the left, and those that have none below."""
    below = {_place(axes).colspan.start: axes for axes in panels}
    for axes in panels:
        spec = _place(axes)
        if not spec.is_first_col():
            axes.set_yticklabels([])
        if below[spec.colspan.start] is not axes:
            axes.set_xticklabels([])
        axes.tick_params(length=2)


def _place(axes: Axes) -> SubplotSpec:
    place = axes.get_subplotspec()
    if place is None:
        raise ValueError("the axes must be made on a grid")
    return place


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _headed(figure: Figure, title: str, note: str) -> None:
    height = _height(figure)
    figure.text(0.01, 1 - 0.18 / height, title, fontsize=9.5, fontweight="bold", va="center")
    figure.text(
        0.01, 1 - 0.36 / height, f"{note} {STATEMENT}", fontsize=8, color="0.3", va="center"
    )


def _height(figure: Figure) -> float:
    return float(figure.get_size_inches()[1])


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Description": STATEMENT})
    return picture.getvalue()
