"""Where the slices of a stack lie along their normal: regular, with gaps, or of varying spacing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

from data_prep import geometry
from data_prep.dicom.pixels import CTSlice
from data_prep.problems import Finding

POSITION_TOLERANCE_MM = 0.1
"""How far a slice may lie from its place in the regular stack, in each direction.

Scanners and exporters round positions, the coarsest to 0.1 mm (1.25 mm steps as 1.3, 2.5, 3.8):
each is then wrong by up to 0.05 mm, and so are the two ends that the regular stack is laid
through. A larger difference is not rounding.
"""

POSITION_TOLERANCE_SPACINGS = 0.1
"""The same along the normal as a share of the slice spacing, for very thin slices; the smaller
of the two tolerances holds. Where positions are written too coarsely for that (0.625 mm steps as
0.6, 1.3, 1.9), what their digits round away holds instead."""

MAX_ROUNDING_MM = 0.05
"""Positions written with fewer digits than one decimal aren't taken for rounded."""

RUN_OF_GAPS = 3
"""So many equal gaps one after another are no gaps, but another spacing."""

GRID_ROUNDING = 1e-6
"""Part of a spacing that is float rounding."""

HOLE = 1.8
"""Where the spacing varies, a step so many times as long as both its neighbours is a gap too."""

MAX_GROWTH = 8
"""A repair makes at most so many times as many slices as there are images: beyond, the positions
are damaged (or a spacing is, of which the smallest counts)."""


MAX_POSITION_MM = 1e6
"""No patient lies a kilometre from the origin."""

PIXEL_SPACING_RANGE_MM = (1e-3, 1e3)
"""No CT is reconstructed more finely or coarsely."""


@dataclass(frozen=True, eq=False)
class Levels:
    """The slices of a regular grid along the normal, and the images that they come from.

    Parameters
    ----------
    spacing_mm
        Of the grid; its first slice lies at the first image.
    source_k
        For each slice of the grid, its place among the images: a whole number where one of them
        is taken as it is, between two of them otherwise.
    image_k
        For each image, its place among the slices of the grid: whole unless resampled.
    interpolated_slices
        Ascending k of slices that no image stands behind.
    is_resampled
        Whether the grid's slices are no longer the images'.
    rounding_mm
        How far an image lies at most from the place where it is taken to be.
    """

    spacing_mm: float
    source_k: np.ndarray
    image_k: np.ndarray
    interpolated_slices: tuple[int, ...] = ()
    is_resampled: bool = False
    rounding_mm: float = 0.0

    @property
    def count(self) -> int:
        """Number of slices of the grid."""
        return len(self.source_k)


def check_numbers(slices: Sequence[CTSlice]) -> tuple[Finding, ...]:
    """Find the first slice whose numbers can't be a place: ``bad_orientation``, ``bad_header``."""
    known: set[bytes] = set()
    smallest_mm, largest_mm = PIXEL_SPACING_RANGE_MM
    for one in slices:
        spacing_mm = one.pixel_spacing_mm
        if (
            np.abs(one.position_lps).max() > MAX_POSITION_MM
            or spacing_mm.min() < smallest_mm
            or spacing_mm.max() > largest_mm
        ):
            what = (
                f"{one.name} claims ImagePositionPatient {one.position_lps.tolist()} and "
                f"PixelSpacing {spacing_mm.tolist()} mm, which is no CT of a patient"
            )
            remedy = "the header is damaged; fetch the file again"
            return (Finding("bad_header", what, remedy, (one.file,)),)
        orientation = one.orientation_lps.tobytes()
        if orientation in known:
            continue
        known.add(orientation)
        try:
            geometry.slice_axes_lps(one.orientation_lps)
        except ValueError:
            what = (
                f"ImageOrientationPatient of {one.name} isn't two unit vectors at a right "
                "angle, so the slices can't be placed"
            )
            remedy = "export the original series again"
            return (Finding("bad_orientation", what, remedy, (one.file,)),)
    return ()


def rounding_tolerance_mm(slices: Sequence[CTSlice], axis_lps: Float64[np.ndarray, "3"]) -> float:
    """Return how far the written digits of positions may move a slice from a regular stack.

    By the rounding of its own position and by that of the end that the stack is laid from.

    Parameters
    ----------
    slices
        Their positions are as exact as the one with the most digits, number by number.
    axis_lps
        Unit vector along which they are measured.
    """
    rounding_mm = np.min([one.position_rounding_mm for one in slices], axis=0)
    rounding_mm = np.minimum(rounding_mm, MAX_ROUNDING_MM)
    return 2 * float(np.abs(axis_lps) @ rounding_mm) + GRID_ROUNDING


def find_levels(
    in_order: Sequence[CTSlice],
    along_mm: Float64[np.ndarray, " n"],
    rounding_mm: float = 0.0,
) -> tuple[Levels, list[Finding]]:
    """Lay a regular grid through the slices of a stack.

    Regular slices, and those with whole slices missing, are the grid's own slices. Where the
    spacing varies, the grid takes the smallest one (or a little less, so that it begins and ends
    with the images).

    Parameters
    ----------
    in_order
        Two slices or more.
    along_mm
        Their positions along the normal; they grow and start at 0.
    rounding_mm
        From `rounding_tolerance_mm`.

    Returns
    -------
    levels : Levels
    findings : list of Finding
        ``missing_slices``, ``variable_spacing``.
    """
    steps_mm = np.diff(along_mm)
    n_images = len(in_order)
    even_mm = np.linspace(0, along_mm[-1], n_images)
    off_mm = float(np.abs(along_mm - even_mm).max())
    if off_mm <= rounding_mm:  # also where rounding makes steps of 0.2 mm of others of 0.15
        each = np.arange(float(n_images))
        return Levels(float(even_mm[1]), each, each, rounding_mm=off_mm), []
    # The smallest steps are those where nothing is missing, give or take the rounding.
    typical_mm = float(np.mean(steps_mm[steps_mm < 1.5 * steps_mm.min()]))
    counts = np.rint(steps_mm / typical_mm).astype(np.int64)
    index = np.concatenate([[0], np.cumsum(counts)])
    spacing_mm = float(along_mm[-1] / index[-1])
    tolerance_mm = min(POSITION_TOLERANCE_MM, POSITION_TOLERANCE_SPACINGS * spacing_mm)
    tolerance_mm = max(tolerance_mm, rounding_mm)
    off_mm = float(np.abs(along_mm - index * spacing_mm).max())
    n_missing = int(index[-1]) + 1 - len(in_order)
    if off_mm > tolerance_mm or _is_other_spacing(counts, n_missing):
        return _vary(in_order, along_mm, typical_mm)
    findings = [_missing(in_order, steps_mm, counts, spacing_mm)] if n_missing else []
    if n_missing > (MAX_GROWTH - 1) * len(in_order):  # refused: no grid so long is made
        index = np.arange(len(in_order))
    grid_k = np.arange(index[-1] + 1)
    filled = tuple(np.setdiff1d(grid_k, index).tolist())
    source_k = np.interp(grid_k, index, np.arange(len(in_order)))
    image_k = index.astype(np.float64)
    return Levels(spacing_mm, source_k, image_k, filled, rounding_mm=off_mm), findings


def _is_other_spacing(counts: Int[np.ndarray, " n"], n_missing: int) -> bool:
    """Tell gaps in regular slices from a change of the spacing to a multiple."""
    run = np.lib.stride_tricks.sliding_window_view(counts, min(RUN_OF_GAPS, len(counts)))
    has_run = bool(((run[:, :1] > 1) & (run == run[:, :1])).all(axis=1).any())
    # a stray step far smaller than all others makes each of them a "gap"
    is_stray = n_missing > len(counts) + 1 and (counts == 1).mean() < 0.5
    return has_run or bool(is_stray)


def _missing(
    in_order: Sequence[CTSlice],
    steps_mm: Float64[np.ndarray, " n"],
    counts: Int[np.ndarray, " n"],
    spacing_mm: float,
) -> Finding:
    k = int(np.argmax(counts > 1))
    one, other = in_order[k], in_order[k + 1]
    n_gaps, n_missing = int((counts > 1).sum()), int((counts - 1).sum())
    can_repair = n_missing <= (MAX_GROWTH - 1) * len(in_order)
    more = f" in {n_gaps} gaps" if n_gaps > 1 else ""
    return Finding(
        "missing_slices",
        f"{one.name} and {other.name} lie {steps_mm[k]:.2f} mm apart where {spacing_mm:.2f} mm are "
        f"usual; in all {n_missing} slice(s) are missing{more}",
        "fetch the series again" if can_repair else "too many to fill; fetch the series again",
        (one.file, other.file),
        f"the missing {n_missing} are interpolated linearly between their neighbours, and flagged",
        can_repair,
    )


def _vary(
    in_order: Sequence[CTSlice], along_mm: Float64[np.ndarray, " n"], typical_mm: float
) -> tuple[Levels, list[Finding]]:
    """Lay a grid of the smallest spacing through slices of several."""
    steps_mm = np.diff(along_mm)
    n_steps = np.ceil(along_mm[-1] / steps_mm.min() - GRID_ROUNDING)
    can_repair = bool(n_steps < MAX_GROWTH * len(in_order))
    # where it is refused, no grid so long is made
    grid_mm = np.linspace(0, along_mm[-1], int(n_steps) + 1 if can_repair else len(in_order))
    spacing_mm = float(along_mm[-1] / (len(grid_mm) - 1))
    k = int(np.argmax(np.abs(steps_mm - typical_mm)))
    one, other = in_order[k], in_order[k + 1]
    remedy = "use a reconstruction with one spacing"
    if not can_repair:
        remedy = (
            f"the smallest step of {steps_mm.min():.3f} mm is too small to resample to; {remedy}"
        )
    what = (
        f"{one.name} and {other.name} lie {steps_mm[k]:.2f} mm apart and others "
        f"{typical_mm:.2f} mm: the spacing varies"
    )
    done = f"resampled linearly from the true positions to {spacing_mm:.4g} mm"
    findings = [
        Finding("variable_spacing", what, remedy, (one.file, other.file), done, can_repair),
        *_holes(in_order, steps_mm),
    ]
    source_k = np.interp(grid_mm, along_mm, np.arange(len(in_order)))
    whole = np.rint(source_k)
    source_k = np.where(np.abs(source_k - whole) < GRID_ROUNDING, whole, source_k)
    below_mm = grid_mm - along_mm[np.floor(source_k).astype(np.int64)]
    above_mm = along_mm[np.ceil(source_k).astype(np.int64)] - grid_mm
    alone = np.minimum(below_mm, above_mm) > (0.5 + GRID_ROUNDING) * spacing_mm
    return Levels(
        spacing_mm,
        source_k,
        along_mm / spacing_mm,
        tuple(np.flatnonzero(alone).tolist()),
        is_resampled=True,
    ), findings


def _holes(in_order: Sequence[CTSlice], steps_mm: Float64[np.ndarray, " n"]) -> list[Finding]:
    """Name the first gap in slices of varying spacing."""
    # at either end there is one neighbour
    before = np.concatenate([steps_mm[1:2], steps_mm[:-1]])
    after = np.concatenate([steps_mm[1:], steps_mm[-2:-1]])
    if len(steps_mm) < 2:
        return []
    is_hole = steps_mm > HOLE * np.maximum(before, after)
    if not is_hole.any():
        return []
    k = int(np.argmax(is_hole))
    one, other = in_order[k], in_order[k + 1]
    return [
        Finding(
            "missing_slices",
            f"{one.name} and {other.name} lie {steps_mm[k]:.2f} mm apart, their neighbours "
            f"{before[k]:.2f} and {after[k]:.2f} mm; {int(is_hole.sum())} such gap(s)",
            "fetch the series again",
            (one.file, other.file),
            "it is filled by linear interpolation, and flagged",
        )
    ]
