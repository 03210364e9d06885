"""Pictures of an evaluation: example maps, curves, targets, randomisation, and the summary."""

import io
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from torch import Tensor

from cdam_med.attribution.method import Method
from cdam_med.evaluation.metrics import METRICS, metric_of
from cdam_med.evaluation.results import REFERENCE, Results, SummaryRow
from data_prep.drawing import Line, draw_slice
from data_prep.statements import RESEARCH_ONLY
from data_prep.text import printable

DISPLAY_QUANTILE = 0.995
"""Share of a map's scores whose size the colour scale reaches; each map has a scale of its own."""

_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.0,
    "text.parse_math": False,
    "axes.linewidth": 0.6,
}
_ACCENT, _QUIET, _GREY = "#c8500a", "#2166ac", "0.6"
_VERDICTS = {"better": "black", "worse": _QUIET, "open": "0.65"}
_OUTLINE = Line("white", 0.7)
_DPI = 120
_LEAST_WIDTH = 7.5  # inches, for the line at the top
_MOST_PANELS, _MOST_MAPS, _MOST_COLUMNS = 6, 7, 14  # in a row
_TITLE_WIDTH, _NAME_WIDTH = 22, 18  # characters of a line above a panel, and above an image
_CHARACTER = 0.066  # inches that one takes at the side of a panel, at most on average


def pictures(results: Results, summary: Sequence[SummaryRow]) -> dict[str, bytes]:
    """Return PNG files by their names; those for which there is something to show."""
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
    """Draw the first images, and the map of each by every method.

    Orange is above zero, blue below, which maps without a sign don't have; what a score means
    differs between methods. Every map has its own scale. The white line is the object. Each
    axes is labelled with method and image.
    """
    targets = results.examples.targets or ()
    words = f"{_target_words(targets[0])}." if len(set(targets)) == 1 else "the target."
    title, note = (
        "Maps, each on its own scale",
        f"Orange: scores above zero, blue: below (only methods with a sign); of {words}",
    )
    count, names = len(results.examples), list(results.shown)
    titles = {each.name: each.title for each in results.methods}
    if count == 1:  # one image and its maps as panels of one grid
        rows, columns = math.ceil((1 + len(names)) / _MOST_MAPS), min(_MOST_MAPS, 1 + len(names))
        figure = _new_figure(max(1.55 * columns + 0.2, 5.0), 1.85 * rows + 0.6, title, note)
        grid = _grid(figure, rows, columns, top=0.9, bottom=None, hspace=0.26)
        for number, name in enumerate((None, *names)):
            axes = figure.add_subplot(grid[number // columns, number % columns])
            _draw_map(axes, results, 0, name)
            _set_title(axes, "Image" if name is None else titles[name])
        return figure
    # images in a row and maps below them, in blocks side by side
    blocks = max(1, _MOST_COLUMNS // (count + 1))
    rows, columns = 1 + math.ceil(len(names) / blocks), blocks * (count + 1)
    figure = _new_figure(1.25 * columns + 0.2, 1.33 * rows + 0.95, title, note)
    grid = _grid(figure, rows, columns, top=0.85, bottom=None, hspace=0.16)
    for block in range(blocks):
        first = block * (count + 1)
        part = names[block * (rows - 1) : (block + 1) * (rows - 1)]
        for row, name in enumerate((None, *part)):
            words = "Image" if name is None else titles[name].replace(" ", "\n")
            label = figure.add_subplot(grid[row, first], label=f"name {block} {row}")
            label.set_axis_off()
            label.text(1, 0.5, words, ha="right", va="center", transform=label.transAxes)
            for index in range(count):
                axes = figure.add_subplot(grid[row, first + 1 + index])
                _draw_map(axes, results, index, name)
                if name is None:
                    axes.set_title(_image_title(results, index), fontsize=6.5, pad=2)
    return figure


def _draw_map(axes: Axes, results: Results, index: int, name: str | None) -> None:
    """Draw an image, and its map by the method of a name."""
    axes.set_label(f"{name or 'image'} {index}")
    examples = results.examples
    pixels = examples.images[index].mean(0).numpy()
    extent = (0.0, float(pixels.shape[1]), float(pixels.shape[0]), 0.0)
    if name is None:
        draw_slice(axes, pixels, extent)
        return
    scores: Tensor = results.shown[name][index]
    values = scores.double().numpy()
    limit = float(np.quantile(np.abs(values), DISPLAY_QUANTILE))
    mask = None if examples.masks is None else examples.masks[index].numpy()
    draw_slice(axes, pixels, extent, scores=values, limit=limit, mask=mask, line=_OUTLINE)


def _image_title(results: Results, index: int) -> str:
    examples, targets = results.examples, results.examples.targets or ()
    name = printable(examples.ids[index]).replace("LIDC-IDRI-", "")
    words = printable(examples.labels[index]) or "unlabelled"
    if len(set(targets)) > 1:
        words = f"{words[:9]}, for {_target_words(targets[index])[:8]}"
    shown = name if len(name) <= _NAME_WIDTH else f"…{name[1 - _NAME_WIDTH :]}"
    return f"{shown}\n{words[:_NAME_WIDTH]}"


def _target_words(target: str | int) -> str:
    if isinstance(target, str):
        return printable(target).replace("_", " ")
    return f"output {target}"


def curves_figure(results: Results) -> Figure | None:
    """Draw the mean perturbation curves of each method over those of the reference."""
    if not results.curves:
        return None
    reference = results.curves.get(REFERENCE)
    figure, panels = _small_multiples(
        [each for each in results.methods if each.name in results.curves],
        "Mean raw output while patches are replaced, with bootstrap intervals",
        "Orange: most important first (MIF). Blue: least important first (LIF)."
        + (" Grey: CDAM." if reference is not None else ""),
        xlabel="Share of patches replaced (blur)",
    )
    for axes in panels:
        name = str(axes.get_label())
        curves = results.curves[name]
        if reference is not None and name != REFERENCE:
            for each in ("most_first", "least_first"):
                axes.plot(reference["shares"], reference[each], color="0.7", linewidth=0.9)
        for each, colour in (("most_first", _ACCENT), ("least_first", _QUIET)):
            low, high = curves[f"{each}_low"], curves[f"{each}_high"]
            axes.fill_between(curves["shares"], low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(curves["shares"], curves[each], color=colour, linewidth=1.3)
    limits = np.array([axes.get_ylim() for axes in panels])
    for axes in panels:
        axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())
    _label_outer(panels)
    return figure


def targets_figure(results: Results) -> Figure | None:
    """Draw the correlations between the maps of all targets, one matrix a method."""
    if not results.matrices:
        return None
    figure, panels = _small_multiples(
        [each for each in results.methods if each.name in results.matrices],
        "Correlation between maps of two targets",
        "Mean over images.",
        edge=1.95,
        left=1.1,
    )
    words = [str(name).replace("_", " ") for name in results.output_names]
    for axes in panels:
        matrix = results.matrices[str(axes.get_label())]["mean"]
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_xticks([])
        axes.set_yticks(range(len(words)), words)
        axes.tick_params(length=0, labelsize=6.5)
    _label_outer(panels, length=0)
    height = figure.get_figheight()
    bar = figure.add_axes((0.3, 0.3 / height, 0.4, 0.1 / height), label="bar")
    figure.colorbar(image, cax=bar, orientation="horizontal")
    return figure


def randomisation_figure(results: Results, summary: Sequence[SummaryRow]) -> Figure | None:
    """Draw how like the original a map stays while weights are randomised."""
    values = {
        (row.method, row.metric): row.interval.value
        for row in summary
        if row.label == "" and row.metric.startswith("randomised_")
    }
    if not values:
        return None
    stages = list(dict.fromkeys(metric.split("/")[1] for _, metric in values))
    figure, panels = _small_multiples(
        [each for each in results.methods if any(each.name == name for name, _ in values)],
        "Rank correlation with the original map",
        "Orange: signed. Blue: sizes of scores.",
        xlabel="Weights randomised down to",
        bottom=0.95,
    )
    for axes in panels:
        name = str(axes.get_label())
        for kind, colour in (("signed", _ACCENT), ("absolute", _QUIET)):
            line = [values.get((name, f"randomised_{kind}/{stage}"), np.nan) for stage in stages]
            axes.plot(range(len(stages)), line, color=colour, marker="o", markersize=2.5)
        axes.axhline(0, color=_GREY, linewidth=0.6)
        axes.set_xticks(range(len(stages)), stages, rotation=90)
        axes.set_ylim(-1.05, 1.05)
    _label_outer(panels)
    return figure


def summary_figure(results: Results, summary: Sequence[SummaryRow]) -> Figure | None:
    """Draw all metrics of all methods at the patch grid with their intervals.

    None is left out but the stages of randomised weights, which have a picture of their own. A
    method's colour says whether it is better or worse than the reference by that metric.
    """
    found = {
        (row.metric, row.method): row
        for row in summary
        if row.label == "" and row.resolution == "patch"
    }
    names = dict.fromkeys(name for name, _ in found if not name.startswith("randomised_"))
    order = list(METRICS)
    metrics = sorted(names, key=lambda name: order.index(name.split("/")[0]))
    if not metrics:
        return None
    methods = results.methods
    columns = min(4, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    height = 0.17 * len(methods) + 0.9
    left = 0.3 + _CHARACTER * max(len(each.title) for each in methods)
    note = "Maps at the patch grid."
    if any(each.name == REFERENCE for each in methods):
        note += " Orange: CDAM. Black: better than CDAM by this metric; blue: worse; grey: open."
    figure = _new_figure(
        max(left + 0.15 + 2.1 * columns, _LEAST_WIDTH),
        rows * height + 0.6,
        "Means over images with bootstrap intervals",
        note,
    )
    hspace = 0.7 / (height - 0.7)
    grid = _grid(figure, rows, columns, left=left, top=0.9, bottom=0.35, wspace=0.1, hspace=hspace)
    for number, metric in enumerate(metrics):
        axes = figure.add_subplot(grid[number // columns, number % columns], label=metric)
        of_metric = [found.get((metric, each.name)) for each in methods]
        _draw_intervals(axes, of_metric, methods)
        _title_metric(axes, metric, [row for row in of_metric if row is not None])
        if number % columns:
            axes.set_yticklabels([])
    return figure


def _title_metric(axes: Axes, name: str, rows: Sequence[SummaryRow]) -> None:
    """Write what a metric is, which way is better, and how the reference fares against others."""
    metric = metric_of(name)
    variant = f" ({name.split('/')[1]})" if "/" in name else ""
    better = "near 0" if metric.better == "zero" else metric.better
    counts = ""
    if metric.better != "zero" and any(row.difference is not None for row in rows):
        verdicts = [_verdict(row) for row in rows]
        counts = f"\nCDAM beats {verdicts.count('worse')}, loses to {verdicts.count('better')}"
    title = f"{metric.title}{variant}\n{better} is better{counts}"
    axes.set_title(title, pad=3, fontsize=7.5)


def _verdict(row: SummaryRow) -> str:
    """Say whether a method is better or worse than the reference, as far as is known."""
    better = metric_of(row.metric).better
    if row.difference is None or not row.differs or better == "zero":
        return "open"
    return "better" if (row.difference.low > 0) == (better == "higher") else "worse"


def _draw_intervals(
    axes: Axes, rows: Sequence[SummaryRow | None], methods: Sequence[Method]
) -> None:
    for number, row in enumerate(rows):
        if row is None:
            continue
        value, is_reference = row.interval.value, row.method == REFERENCE
        colour = _ACCENT if is_reference else _VERDICTS[_verdict(row)]
        ends = [row.interval.low, row.interval.high]
        axes.plot(ends, [number, number], color=colour, linewidth=1.2)
        axes.plot([value], [number], color=colour, marker="o", markersize=3)
        if is_reference and math.isfinite(value):
            axes.axvline(value, color=_ACCENT, linewidth=0.5, alpha=0.6)
    axes.set_yticks(range(len(methods)), [each.title for each in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.tick_params(length=2)


def _new_figure(width: float, height: float, title: str, note: str) -> Figure:
    """Return a figure that needs no display, with what it shows in 0.5 inches at its top."""
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.01, 1 - 0.18 / height, title, fontsize=9.5, fontweight="bold", va="center")
    below = f"{note} {RESEARCH_ONLY}"
    figure.text(0.01, 1 - 0.36 / height, below, fontsize=8, color="0.3", va="center")
    return figure


def _grid(
    figure: Figure,
    rows: int,
    columns: int,
    *,
    top: float,
    bottom: float | None,
    hspace: float,
    left: float | None = None,
    wspace: float = 0.06,
) -> GridSpec:
    """Return a grid with room at the figure's edges, in inches; a hundredth of it where None."""
    width, height = figure.get_size_inches()
    return figure.add_gridspec(
        rows,
        columns,
        left=0.01 if left is None else left / width,
        right=0.99 if left is None else 1 - 0.1 / width,
        top=1 - top / height,
        bottom=0.01 if bottom is None else bottom / height,
        wspace=wspace,
        hspace=hspace,
    )


def _small_multiples(
    methods: Sequence[Method],
    title: str,
    note: str,
    *,
    edge: float = 1.75,
    xlabel: str = "",
    left: float = 0.5,
    bottom: float = 0.65,
) -> tuple[Figure, list[Axes]]:
    """Return one axes a method, labelled with its name, in rows of one length but for the last."""
    rows = math.ceil(len(methods) / _MOST_PANELS)
    columns = math.ceil(len(methods) / rows)
    height = 0.75 + bottom + edge * rows
    figure = _new_figure(max(left + 0.1 + edge * columns, _LEAST_WIDTH), height, title, note)
    grid = _grid(
        figure, rows, columns, left=left, top=0.75, bottom=bottom, wspace=0.12, hspace=0.32
    )
    panels = []
    for number, each in enumerate(methods):
        place = grid[number // columns, number % columns]
        panels.append(figure.add_subplot(place, label=each.name))
        _set_title(panels[-1], each.title)
    if xlabel:
        figure.text(0.5, 0.1 / height, xlabel, ha="center")
    return figure, panels


def _set_title(axes: Axes, title: str) -> None:
    axes.set_title(textwrap.fill(title, _TITLE_WIDTH), pad=3, fontsize=7.5)


def _label_outer(panels: Sequence[Axes], *, length: int = 2) -> None:
    """Label the axes at the left, and those that have none below."""
    columns = len({round(axes.get_position().x0, 6) for axes in panels})
    for number, axes in enumerate(panels):
        if number % columns:
            axes.set_yticklabels([])
        if number + columns < len(panels):
            axes.set_xticklabels([])
        axes.tick_params(length=length)


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Description": RESEARCH_ONLY})
    return picture.getvalue()
