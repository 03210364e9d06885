"""One page of a case as a picture, for people without a viewer."""

import io
import textwrap
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cdam_med.attribution.views import OPPOSITE, View, get_view
from cdam_med.export.content import (
    DISPLAY_QUANTILE,
    RATINGS_NOTE,
    STATEMENT,
    CaseContent,
    TargetResult,
)
from cdam_med.export.slice_drawing import (
    DEAD_ZONE,
    WINDOW_LEVEL_HU,
    WINDOW_WIDTH_HU,
    center_ijk,
    draw_bar,
    draw_slice,
    is_control,
    output_name,
    score_meaning,
)
from data_prep import geometry
from data_prep.crop import CROP_AXCODES
from data_prep.disk import write_file
from data_prep.text import printable

_DPI = 100
_MARGIN = 28
_GAP = 12
_PANEL = 320
_BAR_WIDTH = 16
_BAR_SPACE = 100
_SIDE_WIDTH = 530
_SMALL_PANEL = 290
_SMALL_BAR_SPACE = 92
_HEADER = 78
_TITLE = 24
_SECTION = 46
_FOOTER = 44
_HEADING_LETTERS = 66
_GREY = "0.35"
_STYLE = {
    "font.family": ["DejaVu Sans"],  # the one font that matplotlib brings along
    "font.size": 9.5,
    "text.parse_math": False,
    "axes.linewidth": 0.6,
}


def write_overview(path: str | PathLike[str], content: CaseContent) -> None:
    """Write the page of a case as a PNG file: aside, then renamed.

    Parameters
    ----------
    path : path-like
        The file.
    content : CaseContent
        The case.

    Raises
    ------
    OSError
        The file can't be written.
    """
    figure = overview_figure(content)
    picture = io.BytesIO()
    with style.context(["default", _STYLE]):
        figure.savefig(
            picture,
            format="png",
            metadata={"Title": "cdam-med overview", "Description": f"{STATEMENT} {RATINGS_NOTE}"},
        )
    write_file(Path(path), picture.getvalue())


def overview_figure(content: CaseContent) -> Figure:
    """Draw the page of a case.

    First row: the bare CT through the nodule's centre, in each view; second row: the same with
    the map of the first target, each plane with the map computed in that plane; below, the other
    targets in the first view. Every axes is labelled: ``"<view> ct"``, ``"<view> <target>"`` and
    ``"bar <target>"``; those of slices have mm from the slice's top left corner as coordinates.

    Parameters
    ----------
    content : CaseContent
        The case.

    Returns
    -------
    Figure
        On an Agg canvas, at its final size; pyplot doesn't know of it.
    """
    # the user's own matplotlib settings must not reach the page
    with style.context(["default", _STYLE]):
        page = _Page.of(content)
        _draw_header(page, content)
        main, *others = content.results
        top = _HEADER
        for column, name in enumerate(content.method.views):
            left = _MARGIN + column * (_PANEL + _GAP)
            view = get_view(name)
            for row, result in enumerate((None, main)):
                axes = page.axes(
                    left,
                    top + _TITLE + row * (_PANEL + _TITLE + _GAP),
                    (_PANEL, _PANEL),
                    f"{name} {'ct' if result is None else result.target.name}",
                )
                draw_slice(axes, content, view, result)
                axes.set_title(_slice_title(content, view, result), fontsize=9.5, loc="left")
        bar_top = top + _PANEL + _GAP + 2 * _TITLE
        bar = (page.side_left - _BAR_SPACE, bar_top, (_BAR_WIDTH, _PANEL))
        draw_bar(page.axes(*bar, f"bar {main.target.name}"), content, main)
        _draw_table(page, content, top)
        _draw_notes(page, content, bar_top)
        _draw_others(page, content, others, bar_top + _PANEL + _GAP)
        page.text(
            _MARGIN, page.height - 18, f"{STATEMENT} {RATINGS_NOTE}", weight="bold", size=10.5
        )
        return page.figure


@dataclass(frozen=True, eq=False)
class _Page:
    """A figure that is laid out in pixels from its top left corner."""

    figure: Figure
    width: int
    height: int
    side_left: int
    columns: int

    @classmethod
    def of(cls, content: CaseContent) -> "_Page":
        views = len(content.method.views)
        side_left = _MARGIN + views * (_PANEL + _GAP) + _BAR_SPACE
        width = side_left + _SIDE_WIDTH + _MARGIN
        columns = (width - 2 * _MARGIN) // (_SMALL_PANEL + _SMALL_BAR_SPACE)
        rows = -(-(len(content.results) - 1) // columns)
        height = _HEADER + 2 * (_PANEL + _TITLE + _GAP) + _FOOTER
        if rows:
            height += _SECTION + rows * (_SMALL_PANEL + _TITLE + _GAP)
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        return cls(figure, width, height, side_left, columns)

    def axes(self, left: int, top: int, size: tuple[int, int], label: str) -> Axes:
        bottom = self.height - top - size[1]
        box = (left / self.width, bottom / self.height, size[0] / self.width, size[1] / self.height)
        # without ticks from the start: to make and drop them takes a third of the drawing
        return self.figure.add_axes(box, label=label, xticks=[], yticks=[])

    def text(
        self,
        left: int,
        top: int,
        text: str,
        *,
        size: float = 9.5,
        weight: str = "normal",
        color: str = "black",
    ) -> None:
        self.figure.text(
            left / self.width,
            1 - top / self.height,
            text,
            fontsize=size,
            fontweight=weight,
            color=color,
            va="baseline",
        )


def _draw_header(page: _Page, content: CaseContent) -> None:
    nodule, crop = content.nodule, content.crop
    page.text(_MARGIN, 32, f"Nodule {nodule.nodule_id}", size=15.0, weight="bold")
    size_mm = geometry.spacing_mm(crop.affine) * crop.hu.shape
    parts = [
        f"centre {', '.join(_coordinate(nodule.center_xyz_mm, axis) for axis in range(3))} mm",
        "crop " + " x ".join(f"{side:.0f}" for side in size_mm) + " mm",
        f"lung window W{WINDOW_WIDTH_HU:.0f} L{WINDOW_LEVEL_HU:.0f}",
    ]
    if crop.padding_fraction > 0:
        parts.append(
            f"{crop.padding_fraction:.1%} of the crop lies outside the scan (shown as air)"
        )
    page.text(_MARGIN, 58, "   |   ".join(parts), color=_GREY)


def _draw_table(page: _Page, content: CaseContent, top: int) -> None:
    offsets = (0, 195, 325, 455)
    headings = ("Target", "Model", "Readers", "Off image")
    for offset, heading in zip(offsets, headings, strict=True):
        page.text(page.side_left + offset, top + 14, heading, weight="bold")
    for row, result in enumerate(content.results):
        line = top + 40 + row * 35
        cells = (
            _words(result).capitalize(),
            _prediction_text(content, result),
            _readers_text(content, result.target.name),
            f"{result.prefix_share:.0%}",
        )
        for offset, cell in zip(offsets, cells, strict=True):
            page.text(page.side_left + offset, line, cell)
        page.text(page.side_left, line + 14, _scale_text(result), size=7.5, color=_GREY)


def _draw_notes(page: _Page, content: CaseContent, top: int) -> None:
    readers = len(content.nodule.readers)
    squares = {"patch": "the model's patches", "pixel": "the slice's pixels"}[
        content.method.resolution
    ]
    notes = [
        f"Squares are {squares}, {_patch_text(content)}. Scores under {DEAD_ZONE:.0%} of "
        "the end of the scale stay clear. Each plane shows the map computed in that plane.",
        f"All maps of a target share one scale; its end is what {DISPLAY_QUANTILE:.1%} of the "
        "voxels stay under, and stronger squares have the end's colour.",
        "Orange is above zero, blue below. A method that explains the model must do better."
        if is_control(content.method)
        else "The maps show what an output leans on, not that it is right.",
        f"Readers: consensus and range of {readers}." if readers else "No readers' ratings.",
        "Off image: share of the scores on class and register tokens, which have no place in the "
        "image.",
        f"Model {_printable(content.model.name)}, weights {content.model.weights_sha256[:12]}; "
        f"{_printable(content.method.name)}, {_printable(content.method.path)}.",
        f"Predictions: {_printable(content.method.prediction_rule, 160)}.",
    ]
    if content.crop.mask is not None:
        drawn_by = "outlined by at least half of the readers" if readers else "outline"
        notes.insert(1, f"White line: {drawn_by}.")
    meaning = score_meaning(content.method, output_name(content.results[0]))
    headings = textwrap.wrap(f"{meaning[0].upper()}{meaning[1:]}.", _HEADING_LETTERS)
    for number, heading in enumerate(headings):
        page.text(page.side_left, top + 10 + number * 18, heading, weight="bold")
    lines = [
        textwrap.fill(note, 76, initial_indent="\N{BULLET} ", subsequent_indent="   ")
        for note in notes
    ]
    for number, line in enumerate("\n".join(lines).splitlines(), start=len(headings) - 1):
        page.text(page.side_left, top + 34 + number * 18, line)


def _draw_others(page: _Page, content: CaseContent, others: list[TargetResult], top: int) -> None:
    if not others:
        return
    view = get_view(content.method.views[0])
    heading = f"Other targets, {view.name} slice: {score_meaning(content.method, 'output')}"
    page.text(_MARGIN, top + 28, heading, size=11.5, weight="bold")
    for number, result in enumerate(others):
        row, column = divmod(number, page.columns)
        left = _MARGIN + column * (_SMALL_PANEL + _SMALL_BAR_SPACE)
        panel_top = top + _SECTION + _TITLE + row * (_SMALL_PANEL + _TITLE + _GAP)
        size = (_SMALL_PANEL, _SMALL_PANEL)
        axes = page.axes(left, panel_top, size, f"{view.name} {result.target.name}")
        draw_slice(axes, content, view, result)
        title = f"{_words(result).capitalize()} {_prediction_text(content, result)}"
        if result.target.name in content.nodule.ratings:
            title += f" (readers {content.nodule.ratings[result.target.name]:.1f})"
        axes.set_title(title, fontsize=9.5, loc="left")
        bar = (left + _SMALL_PANEL + 6, panel_top, (_BAR_WIDTH, _SMALL_PANEL))
        draw_bar(page.axes(*bar, f"bar {result.target.name}"), content, result)


def _slice_title(content: CaseContent, view: View, result: TargetResult | None) -> str:
    affine = content.crop.affine
    center = geometry.apply_affine(affine, center_ijk(content))
    tilt = np.degrees(
        np.arccos(geometry.direction_cosines(affine)[view.slice_axis, view.slice_axis])
    )
    place = _coordinate(center, view.slice_axis)
    what = "CT" if result is None else _words(result)
    tilted = f", tilted {tilt:.0f}°" if tilt >= 1 else ""
    return f"{view.name.capitalize()} {place} mm{tilted}: {what}"


def _coordinate(point_xyz_mm: Float64[np.ndarray, "3"], axis: int) -> str:
    """Write a RAS coordinate with the letter of the side that it lies on."""
    letter = CROP_AXCODES[axis]
    value = float(point_xyz_mm[axis])
    return f"{letter if value >= 0 else OPPOSITE[letter]} {abs(value):.1f}"


def _prediction_text(content: CaseContent, result: TargetResult) -> str:
    prediction = content.predictions[result.target.name]
    if result.target.unit == "logit":
        return f"{prediction:+.2f}".replace("-", "\N{MINUS SIGN}")
    return f"{prediction:.1f}{' mm' if result.target.unit == 'mm' else ''}"


def _readers_text(content: CaseContent, target: str) -> str:
    consensus = content.nodule.ratings.get(target)
    if consensus is None:
        return "\N{EN DASH}"
    spread = content.nodule.rating_range(target)
    return f"{consensus:.1f}" + (f" ({spread[0]:.3g} to {spread[1]:.3g})" if spread else "")


def _scale_text(result: TargetResult) -> str:
    """Say what the ends of the readers' scale mean."""
    target = result.target
    if target.unit == "logit":
        return f"readers: 1 {target.low}, 5 {target.high}"
    if target.unit.startswith("rating "):
        first, last = target.unit.removeprefix("rating ").split("-")
        return f"{first} {target.low}, {last} {target.high}"
    return f"in {target.unit}"


def _words(result: TargetResult) -> str:
    return result.target.name.replace("_", " ")


def _patch_text(content: CaseContent) -> str:
    sizes: dict[str, list[str]] = {}
    for view, (height, width) in content.method.patch_size_mm.items():
        sizes.setdefault(f"{height:.3g} x {width:.3g} mm", []).append(view)
    if len(sizes) == 1:
        return next(iter(sizes))
    return ", ".join(f"{size} ({', '.join(views)})" for size, views in sizes.items())


def _printable(text: str, length: int = 60) -> str:
    """Keep to letters that the font has, and to a length that the page has."""
    plain = printable(text).encode("ascii", "backslashreplace").decode()
    return plain if len(plain) <= length else f"{plain[: length - 3]}..."
