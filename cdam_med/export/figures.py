"""One page of a case as a picture, for people without a viewer."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cdam_med.data.views import OPPOSITE, VIEW_NAMES, View, get_view, volume_to_slices
from cdam_med.explanation import ChestSlice, ExplainedNodule, TargetMap
from cdam_med.export.page_words import (
    beyond_text,
    capital,
    colour_words,
    format_score,
    notes,
    output_name,
    prediction_text,
    readers_text,
    scale_text,
    target_words,
)
from cdam_med.targets import MALIGNANCY, MALIGNANCY_PROBABILITY
from data_prep import geometry
from data_prep.crop import CROP_AXCODES
from data_prep.drawing import (
    LUNG,
    MEDIASTINUM,
    Window,
    draw_bar,
    draw_letters,
    draw_slice,
    halo,
    signed_rgba,
)

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


_BOX_COLOUR = "#ffc20a"
_SCALE_BARS_MM = (50, 20, 10, 5, 2, 1)
_THIN = 0.4  # height to width
_BACKDROPS = np.array([0.3, 0.9])
_BAR_STEPS = 255


def overview_png(case: ExplainedNodule) -> bytes:
    """Return the page of a case as a PNG file."""
    figure = overview_figure(case)
    picture = io.BytesIO()
    with style.context(["default", _STYLE]):
        figure.savefig(
            picture,
            format="png",
            metadata={"Title": "cdam-med overview", "Description": case.statement},
        )
    return picture.getvalue()


def overview_figure(case: ExplainedNodule) -> Figure:
    """Draw the page of a case.

    Three planes through the nodule's centre, row by row: the CT in the lung window; the map that
    is handed over of the first target, the same volume in all planes; where more views were
    explained than one, each plane with the map computed in it; the CT in the mediastinal window.
    Beside them whole slices of the chest, predictions and notes; below, the other targets. Every
    axes is labelled: ``"<plane> ct"``, ``"<plane> <target>"``, ``"<plane> <target> view"``,
    ``"<plane> mediastinum"``, ``"chest <plane>"`` and ``"bar <target>"``; those of slices have mm
    from the slice's top left corner as coordinates.

    The figure is on an Agg canvas, at its final size; pyplot doesn't know of it.
    """
    # the user's own matplotlib settings must not reach the page
    with style.context(["default", _STYLE]):
        main, *others = case.maps
        lines = notes(case)
        side = _CHEST * bool(case.chest) + _table_height(case) + _LINE * len(lines)
        n_rows = 3 + (len(case.attribution.views) > 1)
        page = _Page.of(max(n_rows * _ROW, side), len(others))
        _draw_header(page, case)
        _draw_rows(page, case, main)
        bar = (page.side_left - _BAR_SPACE, _HEADER + _ROW + _TITLE, (_BAR_WIDTH, _PANEL))
        _draw_colour_bar(page.axes(*bar, f"bar {main.target.name}"), case, main)
        top = _HEADER
        if case.chest:
            _draw_chest(page, case, top)
            top += _CHEST
        _draw_table(page, case, top)
        for number, (text, weight) in enumerate(lines):
            line = top + _table_height(case) + number * _LINE
            page.text(page.side_left, line, text, weight=weight)
        _draw_others(page, case, others)
        page.text(_MARGIN, page.height - 18, case.statement, weight="bold", size=10.5)
        return page.figure


def _draw_rows(page: "_Page", case: ExplainedNodule, main: TargetMap) -> None:
    """Draw the planes side by side: bare, with maps, and in another window."""
    name, words = main.target.name, target_words(main)
    rows: list[tuple[str, str, Window, Mapping[str, Float32[np.ndarray, "i j k"] | None]]] = [
        ("ct", "lung window", LUNG, dict.fromkeys(VIEW_NAMES)),
        (name, words, LUNG, dict.fromkeys(VIEW_NAMES, main.scores)),
        ("mediastinum", "mediastinum", MEDIASTINUM, dict.fromkeys(VIEW_NAMES)),
    ]
    if len(case.attribution.views) > 1:
        own = {view: case.attribution.map(name, view) for view in case.attribution.views}
        rows.insert(2, (f"{name} view", "its own slices", LUNG, own))
    for number, (label, title, window, planes) in enumerate(rows):
        top = _HEADER + number * _ROW + _TITLE
        for plane, scores in planes.items():
            left = _MARGIN + VIEW_NAMES.index(plane) * (_PANEL + _GAP)
            axes = page.axes(left, top, (_PANEL, _PANEL), f"{plane} {label}")
            view = get_view(plane)
            _draw_crop(axes, case, view, window=window, scores=scores, limit=main.limit)
            axes.set_title(f"{_place(case, view)}: {title}", fontsize=9.5, loc="left")


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

    def text(self, left: int, top: int, text: str, **look: Any) -> None:
        self.figure.text(left / self.width, 1 - top / self.height, text, **look)


def _draw_header(page: _Page, case: ExplainedNodule) -> None:
    nodule, crop = case.nodule, case.crop
    title = f"{nodule.nodule_id}, series {case.source.series_uid_sha256[:_HASH_DIGITS]}"
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


def _draw_chest(page: _Page, case: ExplainedNodule, top: int) -> None:
    """Draw whole slices of the CT, which show where the crop lies."""
    edge = (_SIDE_WIDTH - _GAP) // 2
    for number, chest in enumerate(case.chest):
        left = page.side_left + number * (edge + _GAP)
        height = _CHEST - _TITLE - 2 * _GAP
        axes = page.axes(left, top + _TITLE, (edge, height), f"chest {chest.view.name}")
        axes.set_anchor("NW")
        _draw_whole_slice(axes, chest)
        page.text(left, top + _TITLE - 6, f"Whole scan, {chest.view.name}; yellow: the crop")


def _draw_table(page: _Page, case: ExplainedNodule, top: int) -> None:
    offsets = (0, 195, 325, 455)
    rows = [("Target", "Model", "Readers", "Off image", "")]
    for result in case.maps:
        name = result.target.name
        rows.append(
            (
                capital(output_name(result)),
                prediction_text(case, result),
                readers_text(case, name),
                f"{result.prefix_share:.0%}",
                f"{scale_text(result)}; {beyond_text(result)}",
            )
        )
        if name == MALIGNANCY.name and MALIGNANCY_PROBABILITY in case.predictions:
            probability = f"{case.predictions[MALIGNANCY_PROBABILITY]:.0%}"
            note = "that the readers' median is above 3; the logistic function of the logit"
            rows.append(("Malignancy probability", probability, "", "", note))
    for number, (*cells, note) in enumerate(rows):
        line = top + 14 + (26 + (number - 1) * _TABLE_ROW if number else 0)
        for offset, cell in zip(offsets, cells, strict=True):
            weight = "normal" if number else "bold"
            page.text(page.side_left + offset, line, cell, weight=weight)
        page.text(page.side_left, line + 14, note, size=7.5, color=_GREY)


def _table_height(case: ExplainedNodule) -> int:
    with_probability = any(result.target is MALIGNANCY for result in case.maps)
    return 60 + _TABLE_ROW * (len(case.maps) + with_probability)


def _draw_others(page: _Page, case: ExplainedNodule, others: list[TargetMap]) -> None:
    if not others:
        return
    view, top = get_view(case.attribution.model_views[0]), page.others_top
    title, colours = case.method.title, colour_words(case)
    heading = f"Other targets, {view.name} slice: {title}, {colours}"
    page.text(_MARGIN, top + 28, heading, size=11.5, weight="bold")
    for number, result in enumerate(others):
        row, column = divmod(number, page.columns)
        left = _MARGIN + column * (_SMALL_PANEL + _SMALL_BAR_SPACE)
        panel_top = top + _SECTION + _TITLE + row * (_SMALL_PANEL + _TITLE + _GAP)
        size = (_SMALL_PANEL, _SMALL_PANEL)
        axes = page.axes(left, panel_top, size, f"{view.name} {result.target.name}")
        _draw_crop(axes, case, view, scores=result.scores, limit=result.limit)
        title = f"{capital(target_words(result))} {prediction_text(case, result)}"
        if result.target.name in case.nodule.ratings:
            title += f" (readers {case.nodule.ratings[result.target.name]:.1f})"
        axes.set_title(title, fontsize=9.5, loc="left")
        bar = (left + _SMALL_PANEL + 6, panel_top, (_BAR_WIDTH, _SMALL_PANEL))
        _draw_colour_bar(page.axes(*bar, f"bar {result.target.name}"), case, result)


def _place(case: ExplainedNodule, view: View) -> str:
    affine = case.crop.affine
    center = geometry.apply_affine(affine, _center_ijk(case))
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


def _draw_crop(
    axes: Axes,
    case: ExplainedNodule,
    view: View,
    *,
    window: Window = LUNG,
    scores: Float32[np.ndarray, "i j k"] | None = None,
    limit: float = 0.0,
) -> None:
    """Draw the slice through the nodule's centre, bare or with a map and the nodule's outline."""
    crop, axis = case.crop, view.slice_axis
    index = int(_center_ijk(case)[axis])
    height, width = geometry.spacing_mm(crop.affine)[[view.row_axis, view.column_axis]]
    hu = volume_to_slices(crop.hu, view)[index]
    extent = (0.0, hu.shape[1] * float(width), hu.shape[0] * float(height), 0.0)
    mask = None
    if scores is not None:
        scores = volume_to_slices(scores, view)[index]
        mask = None if crop.mask is None else volume_to_slices(crop.mask, view)[index]
    draw_slice(axes, hu, extent, window=window, scores=scores, limit=limit, mask=mask)
    _draw_directions(axes, view, extent)


def _draw_whole_slice(axes: Axes, chest: ChestSlice) -> None:
    """Draw a whole slice of the CT, and the crop on it as a box."""
    (rows, columns), (height, width) = chest.hu.shape, chest.pixel_mm
    extent = (0.0, columns * width, rows * height, 0.0)
    draw_slice(axes, chest.hu, extent, window=LUNG)
    _draw_directions(axes, chest.view, extent)
    left, top, *size = chest.box_mm
    box = Rectangle((left, top), *size, fill=False, edgecolor=_BOX_COLOUR, linewidth=1.6)
    box.set_path_effects(halo(2.6))
    axes.add_patch(box)
    axes.set(xlim=extent[:2], ylim=extent[2:])


def _draw_directions(axes: Axes, view: View, extent: tuple[float, float, float, float]) -> None:
    """Write letters at the edges of a slice, and draw a scale bar where there is room for both."""
    _, width_mm, height_mm, _ = extent
    is_thin = height_mm < _THIN * width_mm
    draw_letters(axes, view.edges[: 2 if is_thin else 4], extent, 10.5)
    length = next((mm for mm in _SCALE_BARS_MM if mm <= 0.32 * width_mm), None)
    if is_thin or length is None:
        return
    left, bottom = 0.035 * width_mm, 0.965 * height_mm
    draw_bar(axes, left, bottom, float(length))
    axes.text(
        left,
        bottom - 0.02 * height_mm,
        f"{length} mm",
        color="white",
        fontsize=8.5,
        va="bottom",
        path_effects=halo(2.6),
    )


def _draw_colour_bar(axes: Axes, case: ExplainedNodule, result: TargetMap) -> None:
    """Draw the colours of scores: the left half over dark, the right half over light tissue.

    The bar of a method without sign begins at zero.
    """
    limit = result.limit
    span = limit if limit > 0 else 1.0
    lowest = -span if case.method.is_signed else 0.0
    rgba = signed_rgba(np.linspace(span, lowest, _BAR_STEPS)[:, None], limit)
    alpha = rgba[..., 3:]
    blend = alpha * rgba[..., :3] + (1 - alpha) * _BACKDROPS[None, :, None]
    axes.imshow(blend, extent=(0, 1, lowest, span), aspect="auto", interpolation="nearest")
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks(sorted({lowest, 0.0, span}) if limit > 0 else [0.0])
    axes.set_yticklabels([format_score(tick) for tick in axes.get_yticks()], fontsize=8.5)
    axes.annotate(
        f"score of a {case.method.resolution}" + (f", {result.unit}" if result.unit else ""),
        xy=(1.0, 0.5),
        xycoords="axes fraction",
        xytext=(20, 0),
        textcoords="offset points",
        rotation=90,
        fontsize=8.5,
        va="center",
    )


def _center_ijk(case: ExplainedNodule) -> Int64[np.ndarray, "3"]:
    """Return the voxel of the crop that the nodule's centre lies in."""
    to_voxels = geometry.inverse_affine(case.crop.affine)
    ijk = np.rint(geometry.apply_affine(to_voxels, case.nodule.center_xyz_mm))
    last = np.array(case.crop.hu.shape) - 1
    return np.asarray(np.clip(ijk, 0, last), dtype=np.int64)
