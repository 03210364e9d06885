"""CT slices -> a regular grid in patient space, from their positions alone.

Only ImagePositionPatient, ImageOrientationPatient and PixelSpacing count. InstanceNumber,
SliceLocation, SliceThickness, SpacingBetweenSlices and GantryDetectorTilt are free to be wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from data_prep import geometry
from data_prep.dicom.pixels import MAX_VOXELS, CTSlice
from data_prep.dicom.spacing import (
    GRID_ROUNDING,
    POSITION_TOLERANCE_MM,
    Levels,
    check_numbers,
    find_levels,
    rounding_tolerance_mm,
)
from data_prep.problems import Finding
from data_prep.rounding import largest_angle

WORTH_NOTING_MM = 0.01
"""Deviations from a regular stack above this are noted: ten times the rounding of the usual three
decimals."""

MAX_TILT_DEGREES = 45.0
"""Positions more askew than this are no gantry's tilt, which ends at 30 degrees."""


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the slices of a stack lie, and the regular grid that they are read on.

    Parameters
    ----------
    slices
        In the order of their positions along the normal ``row x column``.
    affine_lps
        Voxel index of the grid to LPS mm.
    shape
        Of the grid: (i, j, k).
    levels
        Where the grid's slices lie among `slices`.
    shift_ij
        For each of `slices`, where its first pixel lies in the grid, in voxels along (i, j).
    is_resampled
        Whether the grid's slices are no longer the images' (tilt or variable spacing).
    """

    slices: tuple[CTSlice, ...]
    affine_lps: np.ndarray
    shape: tuple[int, int, int]
    levels: Levels
    shift_ij: np.ndarray
    is_resampled: bool

    @property
    def is_identity(self) -> bool:
        """Whether the images themselves are the grid."""
        return not self.is_resampled and self.levels.count == len(self.slices)


def place_slices(slices: Sequence[CTSlice]) -> tuple[Placement | None, tuple[Finding, ...]]:
    """Sort slices along their normal and lay a regular grid through them.

    The grid's slice axis is the normal ``row x column`` of ImageOrientationPatient. Where the
    slices are regular, the grid's slices are the images, and the spacing is the mean over the
    stack, as in ITK. Otherwise it is the grid that a repair fills, see `data_prep.dicom.regrid`.

    Parameters
    ----------
    slices
        Of one orientation, matrix size and pixel spacing, each at its own place along the normal;
        in any order.

    Returns
    -------
    placement : Placement or None
        None where no grid can be laid, which the findings explain.
    findings : tuple of Finding
        ``bad_orientation``, ``bad_header``, ``single_slice``, ``shifted_slices``, ``gantry_tilt``,
        ``missing_slices``, ``variable_spacing``, ``too_large``, ``position_rounding``.

    References
    ----------
    PS3.3 C.7.6.2.1.1 (Image Position and Image Orientation).
    """
    first = min(slices, key=lambda one: one.file)
    wrong = check_numbers(slices)
    if wrong:
        return None, wrong
    if len(slices) == 1:
        what = (
            f"The stack consists of one slice, {first.name}, and the distance to a next one "
            "is unknown (SliceThickness is not spacing)"
        )
        remedy = "give a series of two or more"
        return None, (Finding("single_slice", what, remedy, (first.file,)),)
    axes_lps = np.stack(geometry.slice_axes_lps(first.orientation_lps))
    in_order = sorted(slices, key=lambda one: (float(one.position_lps @ axes_lps[2]), one.file))
    positions_lps = np.stack([one.position_lps for one in in_order])
    axes_lps = _along_positions(axes_lps, positions_lps[-1] - positions_lps[0], first)
    offsets_mm = (positions_lps - positions_lps[0]) @ axes_lps.T
    tolerances_mm = [rounding_tolerance_mm(in_order, axis_lps) for axis_lps in axes_lps]
    levels, findings = find_levels(in_order, offsets_mm[:, 2], tolerances_mm[2])
    sideways = _find_sideways(in_order, offsets_mm, max(POSITION_TOLERANCE_MM, *tolerances_mm[:2]))
    findings += sideways.findings
    rounding_mm = max(levels.rounding_mm, sideways.rounding_mm)
    if not findings and rounding_mm > WORTH_NOTING_MM:
        what = (
            f"Positions lie up to {rounding_mm:.3f} mm from a regular stack, which is taken for "
            "rounding: they are read as regular"
        )
        findings.append(Finding("position_rounding", what))
    placement = _lay_grid(in_order, axes_lps, levels, sideways.shift_mm)
    if np.prod(placement.shape, dtype=np.float64) > MAX_VOXELS:
        what = (
            f"The series makes a grid of {' x '.join(map(str, placement.shape))} voxels "
            f"({in_order[0].name} and others), more than {MAX_VOXELS}"
        )
        remedy = "its headers are damaged, or it is no patient's CT; fetch the series again"
        findings.append(Finding("too_large", what, remedy, (in_order[0].file,)))
    return placement, tuple(findings)


def _along_positions(
    axes_lps: Float64[np.ndarray, "3 3"],
    line_lps: Float64[np.ndarray, "3"],
    one: CTSlice,
) -> Float64[np.ndarray, "3 3"]:
    """Turn the axes of slices so that their normal runs along the positions.

    That is done where direction cosines written with three decimals explain the difference: it
    would look like a tilt of up to 0.1 degrees, and the positions are more exact.
    """
    angle = largest_angle(one.orientation_rounding)
    length_mm = float(np.linalg.norm(line_lps))
    leaning_mm = float(np.linalg.norm(axes_lps[:2] @ line_lps))
    if not POSITION_TOLERANCE_MM < leaning_mm <= angle * length_mm:
        return axes_lps
    normal = line_lps / length_mm
    row = axes_lps[0] - (axes_lps[0] @ normal) * normal
    row = row / np.linalg.norm(row)
    return np.stack([row, np.cross(normal, row), normal])


@dataclass(frozen=True, eq=False)
class _Sideways:
    shift_mm: np.ndarray  # (n, 2), along rows and columns; zero unless the stack is tilted
    rounding_mm: float
    findings: list[Finding]


def _find_sideways(
    in_order: Sequence[CTSlice], offsets_mm: Float64[np.ndarray, "n 3"], tolerance_mm: float
) -> _Sideways:
    """Tell how the slices lie above one another.

    Parameters
    ----------
    in_order
        The slices.
    offsets_mm
        Position relative to the first slice along row, column and normal.
    tolerance_mm
        For rounding.
    """
    sideways_mm, along_mm = offsets_mm[:, :2], offsets_mm[:, 2]
    straight = np.zeros_like(sideways_mm)
    largest_mm = float(np.abs(sideways_mm).max())
    if largest_mm <= tolerance_mm:
        return _Sideways(straight, largest_mm, [])
    ends = (in_order[0], in_order[-1])
    terms = np.column_stack([np.ones_like(along_mm), along_mm])
    (start_mm, per_mm), *_ = np.linalg.lstsq(terms, sideways_mm, rcond=None)
    askew_mm = start_mm + along_mm[:, np.newaxis] * per_mm
    bend_mm = float(np.abs(sideways_mm - askew_mm).max())
    if bend_mm > tolerance_mm:
        return _Sideways(straight, 0.0, [_shifted(in_order, sideways_mm, along_mm)])
    degrees = float(np.degrees(np.arctan(np.linalg.norm(per_mm))))
    is_tilt = degrees <= MAX_TILT_DEGREES
    what = (
        f"{ends[0].name} and {ends[1].name} show a gantry tilt of {degrees:.2f} degrees "
        "(the positions run askew to the slices)"
    )
    remedy = "use a reconstruction without tilt"
    if not is_tilt:
        remedy = "no gantry tilts as far; export the original series again"
    files = (ends[0].file, ends[1].file)
    tilt = Finding("gantry_tilt", what, remedy, files, can_repair=is_tilt)
    return _Sideways(askew_mm if is_tilt else straight, bend_mm, [tilt])


def _shifted(
    in_order: Sequence[CTSlice],
    sideways_mm: Float64[np.ndarray, "n 2"],
    along_mm: Float64[np.ndarray, " n"],
) -> Finding:
    """Name the pair of neighbours with the greatest jump, beside what all have in common."""
    per_mm = np.median(np.diff(sideways_mm, axis=0) / np.diff(along_mm)[:, np.newaxis], axis=0)
    jumps_mm = np.abs(np.diff(sideways_mm - along_mm[:, np.newaxis] * per_mm, axis=0)).max(axis=1)
    k = int(np.argmax(jumps_mm))
    one, other = in_order[k], in_order[k + 1]
    return Finding(
        "shifted_slices",
        f"{one.name} and {other.name} are shifted sideways against each other by "
        f"{jumps_mm[k]:.2f} mm, so the slices don't form one straight stack",
        "keep the files of one acquisition in the folder",
        (one.file, other.file),
    )


def _lay_grid(
    in_order: Sequence[CTSlice],
    axes_lps: Float64[np.ndarray, "3 3"],
    levels: Levels,
    shift_mm: Float64[np.ndarray, "n 2"],
) -> Placement:
    """Return the smallest grid that holds every pixel of every slice."""
    first = in_order[0]
    pixel_mm = first.pixel_spacing_mm[::-1]  # along (i, j)
    origin_mm = shift_mm.min(axis=0)
    shift_ij = (shift_mm - origin_mm) / pixel_mm
    # a tilted stack of regular slices needs no interpolation along the normal
    columns, rows = np.array([first.columns, first.rows]) + np.ceil(
        shift_ij.max(axis=0) - GRID_ROUNDING
    ).astype(int)
    affine_lps = geometry.affine_lps_from_dicom(
        axes_lps[:2].ravel(),
        first.pixel_spacing_mm,
        first.position_lps + origin_mm @ axes_lps[:2],
        levels.spacing_mm,
    )
    return Placement(
        tuple(in_order),
        affine_lps,
        (int(columns), int(rows), levels.count),
        levels,
        shift_ij,
        levels.is_resampled or bool(shift_mm.any()),
    )
