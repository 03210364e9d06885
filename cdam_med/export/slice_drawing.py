"""Slices as radiologists see them, with a map in symmetric orange and blue, and what that means.

Orange raises, blue lowers the output; the pair is told apart with every common colour vision
deficiency. Patches stay visible as squares (nearest neighbour); small scores fade rather than
being cut off, but for a narrow band about zero.
"""

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from matplotlib import patheffects
from matplotlib.axes import Axes

from cdam_med.attribution.views import View, volume_to_slices
from cdam_med.export.content import CaseContent, MethodRecord, TargetResult
from data_prep import geometry

WINDOW_WIDTH_HU = 1500.0
WINDOW_LEVEL_HU = -600.0
DEAD_ZONE = 0.05
"""Scores smaller than this share of the limit are not coloured."""

NO_MODEL = "no model"
"""The path of controls, maps that are made without the model."""

# from a light but saturated to a full colour: a white middle would wash the lung out
_RAISES = np.array([[255, 190, 110], [230, 97, 1]]) / 255
_LOWERS = np.array([[150, 190, 235], [33, 102, 172]]) / 255
_ALPHA = (0.4, 0.75)
_BACKDROPS = np.array([0.3, 0.9])
_BAR_STEPS = 255
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


def draw_slice(axes: Axes, content: CaseContent, view: View, result: TargetResult | None) -> None:
    """Draw the slice through the nodule's centre: CT, letters, scale bar; map and outline.

    Parameters
    ----------
    axes : Axes
        Gets coordinates in mm from the slice's top left corner.
    content : CaseContent
        The case.
    view : View
        The plane; the map is the one computed in it.
    result : TargetResult or None
        The target whose map is drawn, with the nodule's outline; None for the bare CT.
    """
    crop = content.crop
    index = int(center_ijk(content)[view.slice_axis])
    spacing_mm = geometry.spacing_mm(crop.affine)
    row_mm, column_mm = float(spacing_mm[view.row_axis]), float(spacing_mm[view.column_axis])
    hu = volume_to_slices(crop.hu, view)[index]
    rows, columns = hu.shape
    extent = (0.0, columns * column_mm, rows * row_mm, 0.0)
    black_hu = WINDOW_LEVEL_HU - WINDOW_WIDTH_HU / 2
    axes.imshow(
        hu,
        cmap="gray",
        vmin=black_hu,
        vmax=black_hu + WINDOW_WIDTH_HU,
        extent=extent,
        interpolation="bilinear",
    )
    if result is not None:
        scores = volume_to_slices(result.main_map, view)[index]
        rgba = attribution_rgba(scores, result.symmetric_limit)
        axes.imshow(rgba, extent=extent, interpolation="nearest")
        if crop.mask is not None:
            _draw_outline(axes, volume_to_slices(crop.mask, view)[index], (row_mm, column_mm))
    axes.set_axis_off()
    _draw_letters(axes, view)
    _draw_scale_bar(axes, extent[1], extent[2])


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


def _draw_letters(axes: Axes, view: View) -> None:
    left, right, top, bottom = view.edges
    for letter, x, y, across, along in (
        (left, 0.02, 0.5, "left", "center"),
        (right, 0.98, 0.5, "right", "center"),
        (top, 0.5, 0.98, "center", "top"),
        (bottom, 0.5, 0.02, "center", "bottom"),
    ):
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
    rgba = attribution_rgba(np.linspace(span, -span, _BAR_STEPS)[:, None], limit)
    backdrop = _BACKDROPS[None, :, None]
    alpha = rgba[..., 3:]
    blend = alpha * rgba[..., :3] + (1 - alpha) * backdrop
    axes.imshow(blend, extent=(0, 1, -span, span), aspect="auto", interpolation="nearest")
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks([-limit, 0.0, limit] if limit > 0 else [0.0])
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


def score_meaning(
    method: MethodRecord, output: str, *, above: str = "orange", below: str = "blue"
) -> str:
    """Say what a map's scores have to do with an output, as a part of a sentence.

    Parameters
    ----------
    method : MethodRecord
        How they were made.
    output : str
        What is explained, e.g. ``"malignancy logit"``.
    above, below : str
        How scores above and below zero are called.
    """
    if is_control(method):
        return "a control, which knows nothing of the model"
    if method.is_signed:
        return f"{above} raises / {below} lowers the {output}"
    return f"{above} has to do with the {output} (this method has no sign)"


def output_name(result: TargetResult) -> str:
    """Name the output that a target's map is about.

    Parameters
    ----------
    result : TargetResult
        The target.
    """
    kind = {"logit": " logit", "rating points": " rating"}.get(result.score_unit, "")
    return f"{result.target.name.replace('_', ' ')}{kind}"


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
