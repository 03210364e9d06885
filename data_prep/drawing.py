"""A slice as radiologists see it, with a map in symmetric orange and blue, and an outline.

Orange is above zero, blue below; the pair is told apart with every common colour vision
deficiency. Patches stay visible as squares (nearest neighbour); small scores fade rather than
being cut off, but for a narrow band about zero.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped
from matplotlib.axes import Axes
from matplotlib.patheffects import AbstractPathEffect, withStroke


class Window(NamedTuple):
    """What part of the Hounsfield scale is shown from black to white."""

    name: str
    width_hu: float
    level_hu: float


class Line(NamedTuple):
    """How an outline is drawn."""

    colour: str
    width: float


LUNG = Window("lung", 1500.0, -600.0)
MEDIASTINUM = Window("mediastinal", 400.0, 40.0)
WHITE = Line("white", 1.1)

DEAD_ZONE = 0.05
"""Scores smaller than this share of the limit are not coloured."""

# from a light but saturated to a full colour: a white middle would wash the lung out
_RAISES = np.array([[255, 190, 110], [230, 97, 1]]) / 255
_LOWERS = np.array([[150, 190, 235], [33, 102, 172]]) / 255
_ALPHA = (0.4, 0.75)
_LETTER_PLACES = (  # left, right, top, bottom: share of the width and of the height
    (0.02, 0.5, "left", "center"),
    (0.98, 0.5, "right", "center"),
    (0.5, 0.02, "center", "top"),
    (0.5, 0.98, "center", "bottom"),
)


def draw_slice(
    axes: Axes,
    pixels: Shaped[np.ndarray, "rows columns"],
    extent: tuple[float, float, float, float],
    *,
    window: Window | None = None,
    scores: Float[np.ndarray, "patch_rows patch_columns"] | None = None,
    limit: float = 0.0,
    mask: Bool[np.ndarray, "mask_rows mask_columns"] | None = None,
    line: Line = WHITE,
) -> None:
    """Draw a slice in grey, a map over it, and the outline of a mask.

    Parameters
    ----------
    axes : Axes
        Where; its ticks and frame go.
    pixels : ndarray
        HU, or grey values.
    extent : tuple of float
        Left, right, bottom and top in the axes' coordinates, of everything drawn.
    window : Window, optional
        Window of HU; lowest to highest pixel else.
    scores : ndarray, optional
        Signed map.
    limit : float
        Score of the full colour.
    mask : ndarray, optional
        What is outlined; nothing is where it is empty or everywhere.
    line : Line
        How.
    """
    black = None if window is None else window.level_hu - window.width_hu / 2
    white = None if window is None else window.level_hu + window.width_hu / 2
    axes.imshow(
        pixels, cmap="gray", vmin=black, vmax=white, extent=extent, interpolation="bilinear"
    )
    axes.set_axis_off()
    if scores is not None:
        axes.imshow(signed_rgba(scores, limit), extent=extent, interpolation="nearest")
    if mask is not None and mask.any() and not mask.all():
        left, right, bottom, top = extent
        rows, columns = mask.shape
        outline = axes.contour(
            left + (np.arange(columns) + 0.5) * ((right - left) / columns),
            top + (np.arange(rows) + 0.5) * ((bottom - top) / rows),
            mask,
            levels=[0.5],
            colors=line.colour,
            linewidths=line.width,
        )
        outline.set_path_effects(halo(line.width + 1.5))


def draw_letters(
    axes: Axes, letters: Sequence[str], extent: tuple[float, float, float, float], size: float
) -> None:
    """Write letters inside the left, right, top and bottom edge of a slice, or the first of these.

    Parameters
    ----------
    axes : Axes
        Where the slice is.
    letters : sequence of str
        Up to four.
    extent : tuple of float
        That of the slice.
    size : float
        Font size.
    """
    left, right, bottom, top = extent
    for letter, (across, down, ha, va) in zip(letters, _LETTER_PLACES, strict=False):
        axes.text(
            left + across * (right - left),
            top + down * (bottom - top),
            letter,
            ha=ha,
            va=va,
            color="white",
            fontsize=size,
            fontweight="bold",
            path_effects=halo(2.6),
        )


def draw_bar(axes: Axes, left: float, bottom: float, length: float, width: float = 2.4) -> None:
    """Draw the white line of a scale bar, from its left end.

    Parameters
    ----------
    axes : Axes
        Where the slice is; places and length are in its coordinates.
    left, bottom, length : float
        Its place.
    width : float
        Of the line, in points.
    """
    axes.plot(
        [left, left + length],
        [bottom, bottom],
        color="white",
        linewidth=width,
        solid_capstyle="butt",
        path_effects=halo(width + 2.0),
    )


def signed_rgba(
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


def halo(width: float) -> list[AbstractPathEffect]:
    """Return the black edge that keeps letters and lines legible on any grey."""
    return [withStroke(linewidth=width, foreground="black")]
