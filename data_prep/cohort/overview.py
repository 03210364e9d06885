"""A cohort at a glance: contact sheets of every nodule, and the distributions of its labels."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped
from matplotlib import patheffects, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_prep.cohort.folder import RATINGS_NOTE, STATEMENT, Cohort
from data_prep.cohort.images import CohortImages
from data_prep.cohort.label_figure import label_figure
from data_prep.cohort.rows import CohortNodule
from data_prep.disk import write_file

WINDOW_LEVEL_HU = -600.0
WINDOW_WIDTH_HU = 1500.0

COLUMNS, ROWS = 6, 8
"""Nodules side by side, and rows of them, on a page."""

_DPI = 100
_PANEL = 132
_TILE_GAP = 14
_TEXT_HEIGHT = 34
_MARGIN = 24
_HEADER = 64
_FOOTER = 36
_SCALE_BAR_MM = 10.0
_HALO = (patheffects.withStroke(linewidth=1.8, foreground="black"),)
_ID_LENGTH = 44
STYLE = {
    "font.family": ["DejaVu Sans"],  # the one font that matplotlib brings along
    "font.size": 8.0,
    "text.parse_math": False,
    "axes.linewidth": 0.6,
}


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
    with style.context(["default", STYLE]):
        for name, figure in _pages(cohort):
            paths.append(folder / name)
            write_file(paths[-1], _png(figure))
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
        yield "labels.png", label_figure(cohort)


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    # without the name and version of the software: the same page, the same bytes
    figure.savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
    return data.getvalue()


@dataclass(frozen=True)
class _Sheet:
    """A page whose one axes has pixels from the top left corner as coordinates."""

    figure: Figure
    axes: Axes

    @classmethod
    def of(cls, n_nodules: int) -> "_Sheet":
        n_rows = -(-n_nodules // COLUMNS)
        width = 2 * _MARGIN + COLUMNS * 2 * _PANEL + (COLUMNS - 1) * _TILE_GAP
        height = _HEADER + n_rows * (_PANEL + _TEXT_HEIGHT) + _FOOTER
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        axes.set_axis_off()
        return cls(figure, axes)

    def text(
        self,
        left: int,
        top: int,
        text: str,
        *,
        size: float = 8.0,
        weight: str = "normal",
        colour: str = "black",
    ) -> None:
        self.axes.text(
            left,
            top,
            text,
            fontsize=size,
            fontweight=weight,
            va="top",
            color=colour,
            path_effects=list(_HALO) if colour == "white" else None,
        )


def _contact_sheet(cohort: Cohort, nodules: Sequence[CohortNodule], title: str) -> Figure:
    sheet = _Sheet.of(len(nodules))
    protocol = cohort.protocol
    sheet.text(_MARGIN, 14, f"{title}, protocol {protocol.name}", size=12.0, weight="bold")
    sheet.text(
        _MARGIN,
        40,
        f"Left: axial, anterior up; right: coronal, superior up; R: the patient's right. Cube of "
        f"{protocol.size_mm:g} mm, bar {_SCALE_BAR_MM:g} mm. Lung window W{WINDOW_WIDTH_HU:.0f} "
        f"L{WINDOW_LEVEL_HU:.0f}. Line: consensus of the readers.",
    )
    for number, nodule in enumerate(nodules):
        row, column = divmod(number, COLUMNS)
        left = _MARGIN + column * (2 * _PANEL + _TILE_GAP)
        top = _HEADER + row * (_PANEL + _TEXT_HEIGHT)
        images = cohort.read_images(nodule)
        for place, view in enumerate(("axial", "coronal")):
            _draw_slice(sheet.axes, images, view, protocol.size_mm, (left + place * _PANEL, top))
        if nodule.padding_fraction > 0:
            padded = f"{nodule.padding_fraction:.1%} outside the scan"
            sheet.text(left + 3, top + 3, padded, size=6.5, colour="white")
        sheet.text(left, top + _PANEL + 3, _shortened(nodule.nodule_id), size=6.5, weight="bold")
        sheet.text(left, top + _PANEL + 15, _caption(nodule), size=6.5)
    height = round(sheet.axes.get_ylim()[0])
    sheet.text(_MARGIN, height - 24, f"{STATEMENT} {RATINGS_NOTE}", size=9.0, weight="bold")
    return sheet.figure


def _draw_slice(
    axes: Axes, images: CohortImages, view: str, size_mm: float, corner: tuple[int, int]
) -> None:
    """Draw the slice through the middle of the cube, its outline, a letter and a scale bar."""
    left, top = corner
    right, bottom = left + _PANEL - 1, top + _PANEL
    black_hu = WINDOW_LEVEL_HU - WINDOW_WIDTH_HU / 2
    axes.imshow(
        _middle_slice(images.hu, view),
        cmap="gray",
        vmin=black_hu,
        vmax=black_hu + WINDOW_WIDTH_HU,
        extent=(left, right, bottom, top),
        interpolation="bilinear",
        aspect="auto",
    )
    if images.mask is not None:
        _draw_outline(axes, _middle_slice(images.mask, view), (left, right, top, bottom))
    axes.text(
        left + 3,
        (top + bottom) / 2,
        "R",
        color="white",
        fontsize=7,
        va="center",
        path_effects=list(_HALO),
    )
    length = _SCALE_BAR_MM / size_mm * _PANEL
    if length < _PANEL / 2:
        axes.plot(
            [right - 6 - length, right - 6],
            [bottom - 6, bottom - 6],
            color="white",
            linewidth=1.5,
            solid_capstyle="butt",
            path_effects=[patheffects.withStroke(linewidth=3.0, foreground="black")],
        )


def _middle_slice(
    array: Shaped[np.ndarray, "i j k"], view: str
) -> Shaped[np.ndarray, "rows columns"]:
    """Return a slice in radiological display; the cube's axes run closest to R+, A+ and S+."""
    middle = array.shape[0] // 2
    plane = array[:, :, middle] if view == "axial" else array[:, middle, :]
    return plane[::-1, ::-1].T


def _draw_outline(
    axes: Axes,
    mask: Bool[np.ndarray, "rows columns"],
    box: tuple[int, int, int, int],
) -> None:
    if not mask.any() or mask.all():
        return
    left, right, top, bottom = box
    rows, columns = mask.shape
    outline = axes.contour(
        left + (np.arange(columns) + 0.5) * (right - left) / columns,
        top + (np.arange(rows) + 0.5) * (bottom - top) / rows,
        mask,
        levels=[0.5],
        colors="#ffc20a",
        linewidths=0.8,
    )
    outline.set_path_effects([patheffects.withStroke(linewidth=1.6, foreground="black")])


def _caption(nodule: CohortNodule) -> str:
    parts = []
    malignancy = nodule.ratings.get("malignancy")
    # rated: the label is the readers' opinion
    parts.append("unrated" if malignancy is None else f"rated {nodule.label} ({malignancy:g})")
    if "diameter" in nodule.ratings:
        parts.append(f"{nodule.ratings['diameter']:.1f} mm")
    if nodule.n_readers:
        parts.append(f"{nodule.n_readers} readers" if nodule.n_readers > 1 else "1 reader")
    if nodule.fold is not None:
        parts.append(f"fold {nodule.fold}")
    return _shortened("; ".join(parts), 62)


def _shortened(text: str, length: int = _ID_LENGTH) -> str:
    """Cut a text in the middle: the ends of names tell them apart."""
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[:half]}\N{HORIZONTAL ELLIPSIS}{text[-half:]}"
