"""Slices as radiologists see them, with a map in symmetric orange and blue, and what that means.

Orange is above zero, blue below; the pair is told apart with every common colour vision
deficiency. Patches stay visible as squares (nearest neighbour); small scores fade rather than
being cut off, but for a narrow band about zero.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from cdam_med.data.views import View, volume_to_slices
from cdam_med.export.chest_slice import ChestSlice
from cdam_med.export.content import CaseContent, MethodRecord, TargetResult
from data_prep import geometry
from data_prep.text import printable


class Window(NamedTuple):
    """What part of the Hounsfield scale is shown from black to white."""

    name: str
    width_hu: float
    level_hu: float


LUNG = Window("lung", 1500.0, -600.0)
MEDIASTINUM = Window("mediastinal", 400.0, 40.0)

DEAD_ZONE = 0.05
"""Scores smaller than this share of the limit are not coloured."""

NO_MODEL = "no model"
"""The path of controls, maps that are made without the model."""

_LETTERS_END = 0x530
"""First letter behind Latin, Greek and Cyrillic, which matplotlib's own font has."""

# from a light but saturated to a full colour: a white middle would wash the lung out
_RAISES = np.array([[255, 190, 110], [230, 97, 1]]) / 255
_LOWERS = np.array([[150, 190, 235], [33, 102, 172]]) / 255
_ALPHA = (0.4, 0.75)
_BACKDROPS = np.array([0.3, 0.9])
_BAR_STEPS = 255
_THIN = 0.4  # height to width
_BOX_COLOUR = "#ffc20a"
_SCALE_BARS_MM = (50, 20, 10, 5, 2, 1)
_HALO = (patheffects.withStroke(linewidth=2.6, foreground="black"),)


def attribution_rgba(
    scores: Float[np.ndarray, "*shape"], limit: float
) -> Float64[np.ndarray, "*shape 4"]:
    """Colour signed scores: orange above zero, blue below, the more opaque the larger.

    Parameters
    ----------
    scores : ndarray
        Signed scores.
    limit : float
        Score of the full colour, 0 or more; larger ones get the same.

    Returns
    -------
    ndarray
        Red, green, blue and alpha from 0 to 1; alpha is 0 within `DEAD_ZONE` of zero.
    """
    strength = np.clip(np.abs(scores) / limit, 0, 1) if limit > 0 else np.zeros(scores.shape)
    arms = np.where((scores > 0)[..., None, None], _RAISES, _LOWERS)
    weight = strength[..., None]
    rgba = np.empty((*scores.shape, 4))
    rgba[..., :3] = (1 - weight) * arms[..., 0, :] + weight * arms[..., 1, :]
    rgba[..., 3] = _ALPHA[0] + strength * (_ALPHA[1] - _ALPHA[0])
    rgba[..., 3][strength < DEAD_ZONE] = 0.0
    return rgba


def draw_slice(
    axes: Axes,
    content: CaseContent,
    view: View,
    *,
    window: Window = LUNG,
    scores: Float[np.ndarray, "i j k"] | None = None,
    limit: float = 0.0,
) -> None:
    """Draw the slice through the nodule's centre: CT, letters, scale bar; map and outline.

    Parameters
    ----------
    axes : Axes
        Gets coordinates in mm from the slice's top left corner.
    content : CaseContent
        The case.
    view : View
        The plane.
    window : Window
        Window of the CT.
    scores : ndarray or None
        The map to draw, with the nodule's outline; None for the bare CT.
    limit : float
        Score of the full colour.
    """
    crop = content.crop
    index = int(center_ijk(content)[view.slice_axis])
    spacing_mm = geometry.spacing_mm(crop.affine)
    pixel_mm = (float(spacing_mm[view.row_axis]), float(spacing_mm[view.column_axis]))
    extent = _draw_ct(axes, volume_to_slices(crop.hu, view)[index], pixel_mm, view, window)
    if scores is not None:
        rgba = attribution_rgba(volume_to_slices(scores, view)[index], limit)
        axes.imshow(rgba, extent=extent, interpolation="nearest")
        if crop.mask is not None:
            _draw_outline(axes, volume_to_slices(crop.mask, view)[index], pixel_mm)


def draw_chest_slice(axes: Axes, chest: ChestSlice) -> None:
    """Draw a whole slice of the CT, and the crop on it as a box.

    Parameters
    ----------
    axes : Axes
        Gets coordinates in mm from the slice's top left corner.
    chest : ChestSlice
        The slice.
    """
    extent = _draw_ct(axes, chest.hu, chest.pixel_mm, chest.view, LUNG)
    left, top, width, height = chest.box_mm
    box = Rectangle((left, top), width, height, fill=False, edgecolor=_BOX_COLOUR, linewidth=1.6)
    box.set_path_effects(list(_HALO))
    axes.add_patch(box)
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])


def _draw_ct(
    axes: Axes,
    hu: Shaped[np.ndarray, "rows columns"],
    pixel_mm: tuple[float, float],
    view: View,
    window: Window,
) -> tuple[float, float, float, float]:
    """Draw a slice with letters and a scale bar, and return its left, right, bottom and top."""
    rows, columns = hu.shape
    extent = (0.0, columns * pixel_mm[1], rows * pixel_mm[0], 0.0)
    black_hu = window.level_hu - window.width_hu / 2
    axes.imshow(
        hu,
        cmap="gray",
        vmin=black_hu,
        vmax=black_hu + window.width_hu,
        extent=extent,
        interpolation="bilinear",
    )
    axes.set_axis_off()
    is_thin = extent[2] < _THIN * extent[1]  # too few slices for letters above each other
    _draw_letters(axes, view.edges[: 2 if is_thin else 4])
    if not is_thin:
        _draw_scale_bar(axes, extent[1], extent[2])
    return extent


def _draw_outline(
    axes: Axes, mask: Bool[np.ndarray, "rows columns"], voxel_mm: tuple[float, float]
) -> None:
    if not mask.any() or mask.all():
        return
    rows, columns = mask.shape
    outline = axes.contour(
        (np.arange(columns) + 0.5) * voxel_mm[1],
        (np.arange(rows) + 0.5) * voxel_mm[0],
        mask,
        levels=[0.5],
        colors="white",
        linewidths=1.1,
    )
    outline.set_path_effects(list(_HALO))


def _draw_letters(axes: Axes, letters: Sequence[str]) -> None:
    """Write letters at the left, right, top and bottom edge, or the first of these."""
    places = (
        (0.02, 0.5, "left", "center"),
        (0.98, 0.5, "right", "center"),
        (0.5, 0.98, "center", "top"),
        (0.5, 0.02, "center", "bottom"),
    )
    for letter, (x, y, across, along) in zip(letters, places, strict=False):
        axes.text(
            x,
            y,
            letter,
            transform=axes.transAxes,
            ha=across,
            va=along,
            color="white",
            fontsize=10.5,
            fontweight="bold",
            path_effects=list(_HALO),
        )


def _draw_scale_bar(axes: Axes, width_mm: float, height_mm: float) -> None:
    length = next((mm for mm in _SCALE_BARS_MM if mm <= 0.32 * width_mm), None)
    if length is None:
        return
    left, bottom = 0.035 * width_mm, 0.965 * height_mm
    axes.plot(
        [left, left + length],
        [bottom, bottom],
        color="white",
        linewidth=2.4,
        solid_capstyle="butt",
        path_effects=[patheffects.withStroke(linewidth=4.4, foreground="black")],
    )
    axes.text(
        left,
        bottom - 0.02 * height_mm,
        f"{length} mm",
        color="white",
        fontsize=8.5,
        va="bottom",
        path_effects=list(_HALO),
    )


def draw_bar(axes: Axes, content: CaseContent, result: TargetResult) -> None:
    """Draw the colour bar of a target: its left half over dark, its right half over light tissue.

    That of a method without sign begins at zero.

    Parameters
    ----------
    axes : Axes
        Gets the score as y coordinate.
    content : CaseContent
        The case.
    result : TargetResult
        The target.
    """
    limit = result.symmetric_limit
    span = limit if limit > 0 else 1.0
    lowest = -span if content.method.is_signed else 0.0
    rgba = attribution_rgba(np.linspace(span, lowest, _BAR_STEPS)[:, None], limit)
    backdrop = _BACKDROPS[None, :, None]
    alpha = rgba[..., 3:]
    blend = alpha * rgba[..., :3] + (1 - alpha) * backdrop
    axes.imshow(blend, extent=(0, 1, lowest, span), aspect="auto", interpolation="nearest")
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks(sorted({lowest, 0.0, span}) if limit > 0 else [0.0])
    axes.set_yticklabels([format_score(tick) for tick in axes.get_yticks()], fontsize=8.5)
    unit = score_unit(content.method, result)
    axes.annotate(
        f"score of a {content.method.resolution}" + ("" if unit is None else f", {unit}"),
        xy=(1.0, 0.5),
        xycoords="axes fraction",
        xytext=(20, 0),
        textcoords="offset points",
        rotation=90,
        fontsize=8.5,
        va="center",
    )


def is_control(method: MethodRecord) -> bool:
    """Say whether maps were made without asking the model.

    Parameters
    ----------
    method : MethodRecord
        How they were made.
    """
    return method.path == NO_MODEL


def score_unit(method: MethodRecord, result: TargetResult) -> str | None:
    """Return the unit of a target's scores; None where they aren't parts of the output.

    Parameters
    ----------
    method : MethodRecord
        How they were made.
    result : TargetResult
        The target.
    """
    return result.score_unit if method.is_signed and not is_control(method) else None


def colour_words(method: MethodRecord) -> str:
    """Say what the colours of a method's maps stand for, as a part of a sentence.

    Parameters
    ----------
    method : MethodRecord
        How they were made.
    """
    if method.is_signed:
        return "orange above zero, blue below"
    return "the stronger the colour, the larger the score"


def output_name(result: TargetResult) -> str:
    """Name the output that a target's map is about.

    Parameters
    ----------
    result : TargetResult
        The target.
    """
    kind = {"logit": " logit", "rating points": " rating"}.get(result.score_unit, "")
    return f"{shown(result.target.name.replace('_', ' '), 30)}{kind}"


def shown(text: str, length: int = 60) -> str:
    """Return text with the letters that the page's font has, and as long as the page has room for.

    Parameters
    ----------
    text : str
        Any text, such as a name that somebody gave.
    length : int
        How many letters.
    """
    plain = "".join(
        letter
        if ord(letter) < _LETTERS_END
        else letter.encode("ascii", "backslashreplace").decode()
        for letter in printable(text)
    )
    return plain if len(plain) <= length else f"{plain[: length - 3]}..."


def center_ijk(content: CaseContent) -> Int64[np.ndarray, "3"]:
    """Voxel of the crop that the nodule's centre lies in.

    Parameters
    ----------
    content : CaseContent
        The case.
    """
    to_voxels = geometry.inverse_affine(content.crop.affine)
    ijk = np.rint(geometry.apply_affine(to_voxels, content.nodule.center_xyz_mm))
    last = np.array(content.crop.hu.shape) - 1
    return np.asarray(np.clip(ijk, 0, last), dtype=np.int64)


def format_score(score: float) -> str:
    """Write a score with its sign and two digits; a true minus, and no sign for zero.

    Parameters
    ----------
    score : float
        Signed score.
    """
    return f"{score:+.2g}".replace("-", "\N{MINUS SIGN}") if score else "0"
