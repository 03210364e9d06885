"""A cohort at a glance: contact sheets of every nodule, and the distributions of its labels."""

import io
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_prep.cohort.folder import Cohort, CohortImages
from data_prep.cohort.schema import CONSENSUS_NAMES, LABELS, CohortNodule
from data_prep.disk import write_file
from data_prep.drawing import LUNG, Line, draw_bar, draw_letters, draw_slice, halo
from data_prep.ratings import RATING_RANGES
from data_prep.statements import RATINGS_NOTE, RESEARCH_ONLY

COLUMNS, ROWS = 6, 8
"""Nodules side by side, and rows of them, on a page."""

_DPI = 100
# in pixels of a contact sheet
_PANEL = 132
_TILE_GAP = 14
_TEXT_HEIGHT = 34
_MARGIN = 24
_HEADER = 64
_FOOTER = 36
_SCALE_BAR_MM = 10.0
_OUTLINE = Line("#ffc20a", 0.8)
_STYLE = {
    "font.family": ["DejaVu Sans"],  # the one font that matplotlib brings along
    "font.size": 8.0,
    "text.parse_math": False,
    "axes.linewidth": 0.6,
}
# told apart with every common colour vision deficiency (Okabe and Ito)
_FOLD_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_LABEL_COLOURS = {"benign": "#56b4e9", "malignant": "#d55e00", "indeterminate": "#bbbbbb"}
_RATING_STEP = 0.5
_DIAMETER_STEP_MM = 2.0
_MOST_BINS = 40


def write_overview(cohort: Cohort, folder: str | PathLike[str]) -> list[Path]:
    """Write the pictures of a cohort: ``nodules_01.png`` and on, and ``labels.png``.

    Each nodule is shown by the axial and the coronal slice through the middle of its cube, as
    radiologists see them: the patient's right on the left, anterior or superior up, lung window.
    The outline is the readers' consensus.

    Parameters
    ----------
    cohort
        The cohort.
    folder
        Where the pictures go; made if it isn't there.

    Returns
    -------
    list of Path
        The pictures; none for a cohort without nodules. The same cohort gives the same bytes.

    Raises
    ------
    InputError
        If an image of the cohort can't be read.
    OSError
        If a picture can't be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    # the user's own matplotlib settings must not reach the page
    with style.context(["default", _STYLE]):
        for name, figure in _pages(cohort):
            data = io.BytesIO()
            # without the name and version of the software: the same page, the same bytes
            figure.savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
            paths.append(folder / name)
            write_file(paths[-1], data.getvalue())
    return paths


def _pages(cohort: Cohort) -> Iterator[tuple[str, Figure]]:
    per_page = COLUMNS * ROWS
    starts = range(0, len(cohort.nodules), per_page)
    digits = max(2, len(str(len(starts))))
    for number, start in enumerate(starts, start=1):
        nodules = cohort.nodules[start : start + per_page]
        title = f"Nodules {start + 1} to {start + len(nodules)} of {len(cohort.nodules)}"
        yield f"nodules_{number:0{digits}d}.png", _contact_sheet(cohort, nodules, title)
    if cohort.nodules:
        yield "labels.png", _label_figure(cohort)


def _contact_sheet(cohort: Cohort, nodules: Sequence[CohortNodule], title: str) -> Figure:
    protocol = cohort.protocol
    width = 2 * _MARGIN + COLUMNS * 2 * _PANEL + (COLUMNS - 1) * _TILE_GAP
    height = _HEADER + -(-len(nodules) // COLUMNS) * (_PANEL + _TEXT_HEIGHT) + _FOOTER
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    # pixels from the top left corner
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)

    def write(left: int, top: int, text: str, *, size: float = 6.5, weight: str = "bold") -> None:
        axes.text(left, top, text, fontsize=size, fontweight=weight, va="top")

    write(_MARGIN, 14, f"{title}, protocol {protocol.name}", size=12.0)
    write(
        _MARGIN,
        40,
        f"Left: axial, anterior up; right: coronal, superior up; R: the patient's right. Cube of "
        f"{protocol.size_mm:g} mm, bar {_SCALE_BAR_MM:g} mm. Lung window W{LUNG.width_hu:.0f} "
        f"L{LUNG.level_hu:.0f}. Line: consensus of the readers.",
        size=8.0,
        weight="normal",
    )
    for number, nodule in enumerate(nodules):
        row, column = divmod(number, COLUMNS)
        left = _MARGIN + column * (2 * _PANEL + _TILE_GAP)
        top = _HEADER + row * (_PANEL + _TEXT_HEIGHT)
        images = cohort.read_images(nodule)
        for place, view in enumerate(("axial", "coronal")):
            _draw_view(axes, images, view, protocol.size_mm, (left + place * _PANEL, top))
        if nodule.padding_fraction > 0:
            padded = f"{nodule.padding_fraction:.1%} outside the scan"
            axes.text(
                left + 3,
                top + 3,
                padded,
                fontsize=6.5,
                va="top",
                color="white",
                path_effects=halo(1.8),
            )
        write(left, top + _PANEL + 3, _shortened(nodule.nodule_id, 44))
        write(left, top + _PANEL + 15, _caption(nodule), weight="normal")
    write(_MARGIN, height - 24, f"{RESEARCH_ONLY} {RATINGS_NOTE}", size=9.0)
    return figure


def _draw_view(
    axes: Axes, images: CohortImages, view: str, size_mm: float, corner: tuple[int, int]
) -> None:
    """Draw the slice through the middle of the cube, its outline, a letter and a scale bar."""
    left, top = corner
    extent = (float(left), float(left + _PANEL - 1), float(top + _PANEL), float(top))
    mask = None if images.mask is None else _middle_slice(images.mask, view)
    pixels = _middle_slice(images.hu, view)
    draw_slice(axes, pixels, extent, window=LUNG, mask=mask, line=_OUTLINE)
    draw_letters(axes, "R", extent, 7.0)
    length = _SCALE_BAR_MM / size_mm * _PANEL
    if length < _PANEL / 2:
        draw_bar(axes, extent[1] - 6 - length, extent[2] - 6, length, 1.5)


def _middle_slice(
    array: Shaped[np.ndarray, "i j k"], view: str
) -> Shaped[np.ndarray, "rows columns"]:
    """Return a slice in radiological display; the cube's axes run closest to R+, A+ and S+."""
    middle = array.shape[0] // 2
    plane = array[:, :, middle] if view == "axial" else array[:, middle, :]
    return plane[::-1, ::-1].T


def _caption(nodule: CohortNodule) -> str:
    malignancy = nodule.ratings.get("malignancy")
    # rated: the label is the readers' opinion
    parts = ["unrated" if malignancy is None else f"rated {nodule.label} ({malignancy:g})"]
    if "diameter" in nodule.ratings:
        parts.append(f"{nodule.ratings['diameter']:.1f} mm")
    if nodule.n_readers:
        parts.append(f"{nodule.n_readers} readers" if nodule.n_readers > 1 else "1 reader")
    if nodule.fold is not None:
        parts.append(f"fold {nodule.fold}")
    return _shortened("; ".join(parts), 62)


def _shortened(text: str, length: int) -> str:
    """Cut a text in the middle: the ends of names tell them apart."""
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[:half]}\N{HORIZONTAL ELLIPSIS}{text[-half:]}"


def _label_figure(cohort: Cohort) -> Figure:
    """Draw the distributions of malignancy and biomarkers, and of the labels over the folds.

    Bars are all nodules, lines the folds, both as shares of their own nodules.
    """
    figure = Figure(figsize=(13, 9.6), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    nodules = cohort.nodules
    folds = sorted({nodule.fold for nodule in nodules if nodule.fold is not None})
    grid = figure.add_gridspec(
        3, 4, left=0.05, right=0.985, top=0.9, bottom=0.1, hspace=0.5, wspace=0.28
    )
    for number, name in enumerate(CONSENSUS_NAMES):
        axes = figure.add_subplot(grid[number // 3, number % 3])
        _draw_distribution(axes, nodules, name, folds)
    _draw_labels(figure.add_subplot(grid[:2, 3]), nodules, folds)
    legend = figure.add_subplot(grid[2, 3])
    legend.set_axis_off()
    legend.stairs([0], [0, 1], fill=True, color="0.8", label="all nodules")
    for fold in folds:
        legend.plot([], [], color=_fold_colour(fold), label=f"fold {fold}")
    legend.legend(loc="upper left", frameon=False, fontsize=9)
    title = (
        f"Labels of {len(nodules)} nodules of {len({nodule.patient_id for nodule in nodules})} "
        f"patients, protocol {cohort.protocol.name}"
    )
    figure.text(0.05, 0.955, title, fontsize=12, fontweight="bold")
    figure.text(0.05, 0.025, f"{RESEARCH_ONLY} {RATINGS_NOTE}", fontsize=9, fontweight="bold")
    return figure


def _fold_colour(fold: int) -> str:
    return _FOLD_COLOURS[(fold - 1) % len(_FOLD_COLOURS)]


def _draw_distribution(
    axes: Axes, nodules: Sequence[CohortNodule], name: str, folds: Sequence[int]
) -> None:
    rated = [nodule for nodule in nodules if name in nodule.ratings]
    values = np.array([nodule.ratings[name] for nodule in rated])
    statistic = "median" if name == "malignancy" else "mean"
    title = f"{name.capitalize()}, readers' {statistic}"
    if len(rated) < len(nodules):
        title += f" ({len(nodules) - len(rated)} without)"
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel("mm" if name == "diameter" else "rating")
    axes.set_ylabel("nodules, %")
    axes.spines[["top", "right"]].set_visible(False)
    if not rated:
        axes.text(0.5, 0.5, "no ratings", transform=axes.transAxes, ha="center")
        return
    edges = _edges(name, values)
    values = values.clip(edges[0], edges[-1])
    axes.hist(values, edges, weights=_shares(values), histtype="stepfilled", color="0.8")
    for fold in folds:
        of_fold = values[[nodule.fold == fold for nodule in rated]]
        axes.hist(
            of_fold, edges, weights=_shares(of_fold), histtype="step", color=_fold_colour(fold)
        )


def _edges(name: str, values: np.ndarray) -> list[float]:
    """Return the edges of the bars: half rating points around each value, or steps in mm."""
    if name in RATING_RANGES:
        low, high = RATING_RANGES[name]
        first, last, step = low - _RATING_STEP / 2, high + _RATING_STEP, _RATING_STEP
    else:
        step = max(_DIAMETER_STEP_MM, float(np.ceil(values.max() / _MOST_BINS)))
        first, last = 0.0, values.max() + 2 * step
    return [float(edge) for edge in np.arange(first, last, step)]


def _shares(values: np.ndarray) -> np.ndarray:
    """Return the weights that make a histogram one of percentages."""
    return np.full(len(values), 100 / max(1, len(values)))


def _draw_labels(axes: Axes, nodules: Sequence[CohortNodule], folds: Sequence[int]) -> None:
    """Stack the labels of each fold, or of all nodules where there are no folds."""
    groups: list[int | None] = [*folds] or [None]
    names = [str(fold) if fold is not None else "all" for fold in groups]
    bottoms = np.zeros(len(groups))
    for label in LABELS:
        counts = np.array(
            [sum(n.label == label and n.fold == fold for n in nodules) for fold in groups]
        )
        if not counts.any():
            continue
        colour = _LABEL_COLOURS.get(label, "#eeeeee")
        bars = axes.bar(names, counts, 0.75, bottoms, color=colour, label=label or "unrated")
        axes.bar_label(bars, [str(count or "") for count in counts], label_type="center")
        bottoms += counts
    axes.set_title("Readers' opinion" + (" by fold" if folds else ""), fontsize=9, loc="left")
    axes.set_ylabel("nodules")
    axes.set_xlabel("fold" if folds else "")
    axes.set_ylim(0, bottoms.max() * 1.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False, fontsize=8)
