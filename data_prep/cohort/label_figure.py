"""The distributions of a cohort's labels, for the whole and for each fold."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_prep.cohort.folder import RATINGS_NOTE, STATEMENT, Cohort
from data_prep.cohort.rows import CONSENSUS_NAMES, LABELS, CohortNodule
from data_prep.ratings import RATING_RANGES

_DPI = 100
# told apart with every common colour vision deficiency (Okabe and Ito)
_FOLD_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_LABEL_COLOURS = {"benign": "#56b4e9", "malignant": "#d55e00", "indeterminate": "#bbbbbb"}
_NO_LABEL_COLOUR = "#eeeeee"
_RATING_STEP = 0.5
_DIAMETER_STEP_MM = 2.0
_MOST_DIAMETER_BINS = 40


def label_figure(cohort: Cohort) -> Figure:
    """Draw the distributions of malignancy and biomarkers, and of the labels over the folds.

    Bars are all nodules, lines the folds, both as shares of their own nodules.

    Parameters
    ----------
    cohort
        A cohort with nodules.

    Returns
    -------
    Figure
        On an Agg canvas, at its final size; pyplot doesn't know of it.
    """
    figure = Figure(figsize=(13, 9.6), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    folds = sorted({nodule.fold for nodule in cohort.nodules if nodule.fold is not None})
    grid = figure.add_gridspec(
        3, 4, left=0.05, right=0.985, top=0.9, bottom=0.1, hspace=0.5, wspace=0.28
    )
    for number, name in enumerate(CONSENSUS_NAMES):
        axes = figure.add_subplot(grid[number // 3, number % 3])
        _draw_distribution(axes, cohort.nodules, name, folds)
    _draw_labels(figure.add_subplot(grid[:2, 3]), cohort.nodules, folds)
    _draw_legend(figure.add_subplot(grid[2, 3]), folds)
    n_patients = len({nodule.patient_id for nodule in cohort.nodules})
    figure.text(
        0.05,
        0.955,
        f"Labels of {len(cohort.nodules)} nodules of {n_patients} patients, protocol "
        f"{cohort.protocol.name}",
        fontsize=12,
        fontweight="bold",
    )
    figure.text(0.05, 0.025, f"{STATEMENT} {RATINGS_NOTE}", fontsize=9, fontweight="bold")
    return figure


def _draw_distribution(
    axes: Axes, nodules: tuple[CohortNodule, ...], name: str, folds: list[int]
) -> None:
    rated = [nodule for nodule in nodules if name in nodule.ratings]
    values = np.array([nodule.ratings[name] for nodule in rated])
    unit = "mm" if name == "diameter" else "rating"
    statistic = "median" if name == "malignancy" else "mean"
    title = f"{name.capitalize()}, readers' {statistic}"
    if len(rated) < len(nodules):
        title += f" ({len(nodules) - len(rated)} without)"
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(unit)
    axes.set_ylabel("nodules, %")
    axes.spines[["top", "right"]].set_visible(False)
    if not rated:
        axes.text(0.5, 0.5, "no ratings", transform=axes.transAxes, ha="center")
        return
    edges = _edges(name, values)
    axes.stairs(_shares(values, edges), edges, fill=True, color="0.8")
    for fold in folds:
        of_fold = np.array([n.ratings[name] for n in rated if n.fold == fold])
        if of_fold.size:
            colour = _FOLD_COLOURS[(fold - 1) % len(_FOLD_COLOURS)]
            axes.stairs(_shares(of_fold, edges), edges, color=colour, linewidth=1.0)
    axes.set_ylim(bottom=0)


def _edges(name: str, values: np.ndarray) -> np.ndarray:
    """Return the edges of the bars: half rating points around each value, or steps in mm."""
    if name in RATING_RANGES:
        low, high = RATING_RANGES[name]
        low, high = min(low, int(values.min())), max(high, int(np.ceil(values.max())))
        if high - low <= _MOST_DIAMETER_BINS:
            return np.arange(low - _RATING_STEP / 2, high + _RATING_STEP, _RATING_STEP)
    span = max(float(values.max()), _DIAMETER_STEP_MM)
    step = max(_DIAMETER_STEP_MM, float(np.ceil(span / _MOST_DIAMETER_BINS)))
    return np.arange(min(0.0, float(np.floor(values.min()))), span + 2 * step, step)


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    shares: np.ndarray = np.histogram(values, edges)[0] * 100 / len(values)
    return shares


def _draw_labels(axes: Axes, nodules: tuple[CohortNodule, ...], folds: list[int]) -> None:
    """Stack the labels of each fold, or of all nodules where there are no folds."""
    groups: list[int | None] = [*folds] or [None]
    bottoms = np.zeros(len(groups))
    for label in LABELS:
        counts = np.array(
            [sum(n.label == label and n.fold == fold for n in nodules) for fold in groups]
        )
        if not counts.any():
            continue
        names = [str(fold) if fold is not None else "all" for fold in groups]
        colour = _LABEL_COLOURS.get(label, _NO_LABEL_COLOUR)
        axes.bar(names, counts, bottom=bottoms, color=colour, label=label or "unrated", width=0.75)
        for place, (count, bottom) in enumerate(zip(counts, bottoms, strict=True)):
            if count:
                axes.text(place, bottom + count / 2, str(count), ha="center", va="center")
        bottoms += counts
    axes.set_title("Readers' opinion" + (" by fold" if folds else ""), fontsize=9, loc="left")
    axes.set_ylabel("nodules")
    axes.set_xlabel("fold" if folds else "")
    axes.set_ylim(0, bottoms.max() * 1.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False, fontsize=8)


def _draw_legend(axes: Axes, folds: list[int]) -> None:
    axes.set_axis_off()
    axes.stairs([0], [0, 1], fill=True, color="0.8", label="all nodules")
    for fold in folds:
        colour = _FOLD_COLOURS[(fold - 1) % len(_FOLD_COLOURS)]
        axes.plot([], [], color=colour, label=f"fold {fold}")
    axes.legend(loc="upper left", frameon=False, fontsize=9)
