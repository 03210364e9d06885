"""What the pictures of a report share: their head, and panels side by side."""

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

from cdam_med.attribution.estimator import Estimator

STATEMENT = "Research only, not for diagnosis."

_DPI = 120
_MOST_PANELS = 6
_TITLE_WIDTH = 22  # characters of a line above a panel


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that needs no display.

    Parameters
    ----------
    width, height : float
        In inches.
    """
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def headed(figure: Figure, title: str, note: str) -> None:
    """Write what the figure shows at its top, and what it isn't for.

    Parameters
    ----------
    figure : Figure
        At least 0.5 inches of its top are free.
    title, note : str
        One line each.
    """
    height = height_of(figure)
    figure.text(0.01, 1 - 0.18 / height, title, fontsize=9.5, fontweight="bold", va="center")
    figure.text(
        0.01, 1 - 0.36 / height, f"{note} {STATEMENT}", fontsize=8, color="0.3", va="center"
    )


def height_of(figure: Figure) -> float:
    """Return a figure's height in inches.

    Parameters
    ----------
    figure : Figure
        The figure.
    """
    return float(figure.get_size_inches()[1])


def panel_title(axes: Axes, title: str) -> None:
    """Write a title above a panel, in lines that fit.

    Parameters
    ----------
    axes : Axes
        The panel.
    title : str
        The title.
    """
    axes.set_title(textwrap.fill(title, _TITLE_WIDTH), pad=3, fontsize=7.5)


def small_multiples(
    estimators: Sequence[Estimator], edge: float, xlabel: str, *, left: float = 0.5,
    bottom: float = 0.65,
) -> tuple[Figure, list[Axes]]:  # fmt: skip
    """Return one axes an estimator, in rows of the same length but for the last.

    Parameters
    ----------
    estimators : sequence of Estimator
        Whose names the axes are labelled with.
    edge : float
        Of a panel and the room beside it, in inches.
    xlabel : str
        Below all panels.
    left, bottom : float
        Room at the figure's edges, in inches.
    """
    rows = math.ceil(len(estimators) / _MOST_PANELS)
    columns = math.ceil(len(estimators) / rows)
    width, height = left + 0.1 + edge * columns, 0.75 + bottom + edge * rows
    # wide enough for the line at the top
    figure = new_figure(max(width, 7.5), height)
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


def share_limits(panels: Sequence[Axes]) -> None:
    """Give panels the same vertical limits, and labels at the outer ones alone.

    Parameters
    ----------
    panels : sequence of Axes
        Axes on one grid.
    """
    low = min(axes.get_ylim()[0] for axes in panels)
    high = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(low, high)
    only_outer(panels)


def only_outer(panels: Sequence[Axes]) -> None:
    """Label the axes at the left, and those that have none below.

    Parameters
    ----------
    panels : sequence of Axes
        Axes on one grid.
    """
    below = {place_of(axes).colspan.start: axes for axes in panels}
    for axes in panels:
        place = place_of(axes)
        if not place.is_first_col():
            axes.set_yticklabels([])
        if below[place.colspan.start] is not axes:
            axes.set_xticklabels([])
        axes.tick_params(length=2)


def place_of(axes: Axes) -> SubplotSpec:
    """Return where axes lie on their grid.

    Parameters
    ----------
    axes : Axes
        Axes on a grid.
    """
    place = axes.get_subplotspec()
    if place is None:
        raise ValueError("the axes must be made on a grid")
    return place
