"""One page of a case as a picture, for people without a viewer."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cdam_med.data.views import OPPOSITE, VIEW_NAMES, View, get_view
from cdam_med.export.content import (
    CaseContent,
    TargetResult,
)
from cdam_med.export.page_words import (
    beyond_text,
    capital,
    notes,
    prediction_text,
    readers_text,
    scale_text,
    words_of,
)
from cdam_med.export.slice_drawing import (
    LUNG,
    MEDIASTINUM,
    Window,
    center_ijk,
    colour_words,
    draw_bar,
    draw_chest_slice,
    draw_slice,
    output_name,
)
from cdam_med.targets import MALIGNANCY, MALIGNANCY_PROBABILITY
from data_prep import geometry
from data_prep.crop import CROP_AXCODES
from data_prep.disk import write_file

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
_ROW = _TITLE + _PANEL + _GAP
_CHEST = 290
_TABLE_ROW = 35
_LINE = 18
_SECTION = 46
_FOOTER = 44
_HASH_DIGITS = 8
_WINDOWS = (LUNG, MEDIASTINUM)
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
            metadata={"Title": "cdam-med overview", "Description": content.statement},
        )
    write_file(Path(path), picture.getvalue())


def overview_figure(content: CaseContent) -> Figure:
    """Draw the page of a case.

    Three planes through the nodule's centre, row by row: the CT in the lung window; the map that
    is handed over of the first target, the same volume in all planes; where more views were
    explained than one, each plane with the map computed in it; the CT in the mediastinal window.
    Beside them whole slices of the chest, predictions and notes; below, the other targets. Every
    axes is labelled: ``"<plane> ct"``, ``"<plane> <target>"``, ``"<plane> <target> view"``,
    ``"<plane> mediastinum"``, ``"chest <plane>"`` and ``"bar <target>"``; those of slices have mm
    from the slice's top left corner as coordinates.

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
        main, *others = content.results
        lines = notes(content)
        side = _CHEST * bool(content.chest) + _table_height(content) + _LINE * len(lines)
        rows = _rows(content, main)
        page = _Page.of(max(len(rows) * _ROW, side), len(others))
        _draw_header(page, content)
        for number, row in enumerate(rows):
            _draw_row(page, content, row, _HEADER + number * _ROW)
        bar = (page.side_left - _BAR_SPACE, _HEADER + _ROW + _TITLE, (_BAR_WIDTH, _PANEL))
        draw_bar(page.axes(*bar, f"bar {main.target.name}"), content, main)
        top = _HEADER
        if content.chest:
            _draw_chest(page, content, top)
            top += _CHEST
        _draw_table(page, content, top)
        for number, (text, weight) in enumerate(lines):
            line = top + _table_height(content) + number * _LINE
            page.text(page.side_left, line, text, weight=weight)
        _draw_others(page, content, others)
        page.text(_MARGIN, page.height - 18, content.statement, weight="bold", size=10.5)
        return page.figure


@dataclass(frozen=True, eq=False)
class _Row:
    """Slices side by side: what is drawn in each plane, and how it is called."""

    label: str
    title: str
    planes: tuple[str, ...]
    window: Window = LUNG
    scores: Mapping[str, Float32[np.ndarray, "i j k"]] | None = None
    limit: float = 0.0


def _rows(content: CaseContent, main: TargetResult) -> list[_Row]:
    name, limit = main.target.name, main.symmetric_limit
    handed_over = dict.fromkeys(VIEW_NAMES, main.main_map)
    rows = [
        _Row("ct", "lung window", VIEW_NAMES),
        _Row(name, words_of(main), VIEW_NAMES, scores=handed_over, limit=limit),
        _Row("mediastinum", "mediastinum", VIEW_NAMES, window=MEDIASTINUM),
    ]
    views = tuple(view for view in VIEW_NAMES if view in content.method.views)
    if len(views) > 1:
        rows.insert(2, _Row(f"{name} view", "its own slices", views, scores=main.maps, limit=limit))
    return rows


def _draw_row(page: "_Page", content: CaseContent, row: _Row, top: int) -> None:
    for name in row.planes:
        left = _MARGIN + VIEW_NAMES.index(name) * (_PANEL + _GAP)
        axes = page.axes(left, top + _TITLE, (_PANEL, _PANEL), f"{name} {row.label}")
        scores = None if row.scores is None else row.scores[name]
        view = get_view(name)
        draw_slice(axes, content, view, window=row.window, scores=scores, limit=row.limit)
        axes.set_title(f"{_place(content, view)}: {row.title}", fontsize=9.5, loc="left")


@dataclass(frozen=True, eq=False)
class _Page:
    """A figure that is laid out in pixels from its top left corner."""

    figure: Figure
    width: int
    height: int
    side_left: int
    columns: int
    others_top: int

    @classmethod
    def of(cls, main_height: int, n_others: int) -> "_Page":
        side_left = _MARGIN + len(VIEW_NAMES) * (_PANEL + _GAP) + _BAR_SPACE
        width = side_left + _SIDE_WIDTH + _MARGIN
        columns = (width - 2 * _MARGIN) // (_SMALL_PANEL + _SMALL_BAR_SPACE)
        rows = -(-n_others // columns)
        others_top = height = _HEADER + main_height
        height += _FOOTER
        if rows:
            height += _SECTION + rows * (_SMALL_PANEL + _TITLE + _GAP)
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        return cls(figure, width, height, side_left, columns, others_top)

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
    title = f"{nodule.nodule_id}, series {content.source.series_uid_sha256[:_HASH_DIGITS]}"
    page.text(_MARGIN, 32, title, size=15.0, weight="bold")
    size_mm = geometry.spacing_mm(crop.affine) * crop.hu.shape
    windows = (f"{each.name} window W{each.width_hu:.0f} L{each.level_hu:.0f}" for each in _WINDOWS)
    parts = [
        f"centre {', '.join(_coordinate(nodule.center_xyz_mm, axis) for axis in range(3))} mm",
        "crop " + " x ".join(f"{side:.0f}" for side in size_mm) + " mm",
        *windows,
    ]
    if crop.padding_fraction > 0:
        parts.append(
            f"{crop.padding_fraction:.1%} of the crop lies outside the scan (shown as air)"
        )
    page.text(_MARGIN, 58, "   |   ".join(parts), color=_GREY)


def _draw_chest(page: _Page, content: CaseContent, top: int) -> None:
    """Draw whole slices of the CT, which show where the crop lies."""
    edge = (_SIDE_WIDTH - _GAP) // 2
    for number, chest in enumerate(content.chest):
        left = page.side_left + number * (edge + _GAP)
        height = _CHEST - _TITLE - 2 * _GAP
        axes = page.axes(left, top + _TITLE, (edge, height), f"chest {chest.view.name}")
        axes.set_anchor("NW")
        draw_chest_slice(axes, chest)
        page.text(left, top + _TITLE - 6, f"Whole scan, {chest.view.name}; yellow: the crop")


def _draw_table(page: _Page, content: CaseContent, top: int) -> None:
    offsets = (0, 195, 325, 455)
    rows = [("Target", "Model", "Readers", "Off image", "")]
    for result in content.results:
        name = result.target.name
        rows.append(
            (
                capital(output_name(result)),
                prediction_text(content, result),
                readers_text(content, name),
                f"{result.prefix_share:.0%}",
                f"{scale_text(result)}; {beyond_text(result)}",
            )
        )
        if name == MALIGNANCY.name and MALIGNANCY_PROBABILITY in content.predictions:
            probability = f"{content.predictions[MALIGNANCY_PROBABILITY]:.0%}"
            note = "that the readers' median is above 3; the logistic function of the logit"
            rows.append(("Malignancy probability", probability, "", "", note))
    for number, (*cells, note) in enumerate(rows):
        line = top + 14 + (26 + (number - 1) * _TABLE_ROW if number else 0)
        for offset, cell in zip(offsets, cells, strict=True):
            weight = "normal" if number else "bold"
            page.text(page.side_left + offset, line, cell, weight=weight)
        page.text(page.side_left, line + 14, note, size=7.5, color=_GREY)


def _table_height(content: CaseContent) -> int:
    with_probability = any(result.target is MALIGNANCY for result in content.results)
    return 60 + _TABLE_ROW * (len(content.results) + with_probability)


def _draw_others(page: _Page, content: CaseContent, others: list[TargetResult]) -> None:
    if not others:
        return
    view, top = get_view(content.method.model_views[0]), page.others_top
    title, colours = content.method.title, colour_words(content.method)
    heading = f"Other targets, {view.name} slice: {title}, {colours}"
    page.text(_MARGIN, top + 28, heading, size=11.5, weight="bold")
    for number, result in enumerate(others):
        row, column = divmod(number, page.columns)
        left = _MARGIN + column * (_SMALL_PANEL + _SMALL_BAR_SPACE)
        panel_top = top + _SECTION + _TITLE + row * (_SMALL_PANEL + _TITLE + _GAP)
        size = (_SMALL_PANEL, _SMALL_PANEL)
        axes = page.axes(left, panel_top, size, f"{view.name} {result.target.name}")
        draw_slice(axes, content, view, scores=result.main_map, limit=result.symmetric_limit)
        title = f"{capital(words_of(result))} {prediction_text(content, result)}"
        if result.target.name in content.nodule.ratings:
            title += f" (readers {content.nodule.ratings[result.target.name]:.1f})"
        axes.set_title(title, fontsize=9.5, loc="left")
        bar = (left + _SMALL_PANEL + 6, panel_top, (_BAR_WIDTH, _SMALL_PANEL))
        draw_bar(page.axes(*bar, f"bar {result.target.name}"), content, result)


def _place(content: CaseContent, view: View) -> str:
    affine = content.crop.affine
    center = geometry.apply_affine(affine, center_ijk(content))
    tilt = np.degrees(
        np.arccos(geometry.direction_cosines(affine)[view.slice_axis, view.slice_axis])
    )
    tilted = f", tilted {tilt:.0f}°" if tilt >= 1 else ""
    return f"{view.name.capitalize()} {_coordinate(center, view.slice_axis)} mm{tilted}"


def _coordinate(point_xyz_mm: Float64[np.ndarray, "3"], axis: int) -> str:
    """Write a RAS coordinate with the letter of the side that it lies on."""
    letter = CROP_AXCODES[axis]
    value = float(point_xyz_mm[axis])
    return f"{letter if value >= 0 else OPPOSITE[letter]} {abs(value):.1f}"
