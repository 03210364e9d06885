"""CT slices -> a regular stack in patient space, from their positions alone.

Only ImagePositionPatient, ImageOrientationPatient and PixelSpacing count. InstanceNumber,
SliceLocation, SliceThickness, SpacingBetweenSlices and GantryDetectorTilt are free to be wrong.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from data_prep import geometry
from data_prep.dicom.headers import file_name
from data_prep.dicom.slices import CTSlice
from data_prep.errors import SeriesError

POSITION_TOLERANCE_MM = 0.1
"""How far a slice may lie from its place in the regular stack, in each direction.

Scanners and exporters round positions, the coarsest to 0.1 mm (1.25 mm steps as 1.3, 2.5, 3.8):
each is then wrong by up to 0.05 mm, and so are the two ends that the regular stack is laid
through. A larger difference is not rounding.
"""

POSITION_TOLERANCE_SPACINGS = 0.1
"""The same along the normal as a share of the slice spacing, for very thin slices; the smaller
of the two tolerances holds."""

DUPLICATE_TOLERANCE_MM = 0.01
"""Slices nearer to each other than this along the normal lie at the same position: no CT is
reconstructed that finely."""

PIXEL_SPACING_TOLERANCE = 1e-4
"""Relative difference of pixel spacings that is rounding: 0.05 mm over 500 mm."""


def place_slices(slices: Sequence[CTSlice]) -> tuple[list[CTSlice], Float64[np.ndarray, "4 4"]]:
    """Sort slices along their normal and return them with the affine of their stack.

    The affine's slice axis is the normal ``row x column`` of ImageOrientationPatient; its spacing
    is the mean over the stack, as in ITK.

    Parameters
    ----------
    slices
        All slices of one series, in any order.

    Returns
    -------
    tuple
        The slices in the order of ``k``, and the affine from ``(i, j, k)`` to LPS mm.

    Raises
    ------
    SeriesError
        If the slices don't form a regular stack. Reasons: ``bad_orientation``,
        ``mixed_matrix_size``, ``mixed_orientation``, ``mixed_pixel_spacing``,
        ``mixed_frame_of_reference``, ``single_slice``, ``duplicate_slices``, ``gantry_tilt``,
        ``shifted_slices``, ``variable_spacing``, ``missing_slices``.

    References
    ----------
    PS3.3 C.7.6.2.1.1 (Image Position and Image Orientation).
    """
    first = slices[0]
    try:
        row, column, normal = geometry.slice_axes_lps(first.orientation_lps)
    except ValueError as error:
        raise SeriesError(
            "bad_orientation",
            f"ImageOrientationPatient of {file_name(first.path)} isn't two unit vectors at a right "
            "angle, so the slices can't be placed: export the original series again.",
            (first.path,),
        ) from error
    _check_uniform(slices)
    if len(slices) == 1:
        raise SeriesError(
            "single_slice",
            f"The series consists of one slice, {file_name(first.path)}, and the distance to a "
            "next one is unknown (SliceThickness is not spacing): give a series of two or more.",
            (first.path,),
        )
    in_order = sorted(slices, key=lambda one: (float(one.position_lps @ normal), one.path))
    offsets_lps = np.stack([one.position_lps for one in in_order]) - in_order[0].position_lps
    _check_distinct(in_order, offsets_lps @ normal)
    _check_straight(in_order, offsets_lps @ np.column_stack([row, column, normal]))
    _check_regular(in_order, offsets_lps @ normal)
    affine_lps = geometry.affine_lps_from_dicom(
        first.orientation_lps,
        first.pixel_spacing_mm,
        in_order[0].position_lps,
        float(offsets_lps[-1] @ normal) / (len(slices) - 1),
    )
    return in_order, affine_lps


def _check_uniform(slices: Sequence[CTSlice]) -> None:
    """Refuse slices that differ in what a stack has only one of."""
    first = slices[0]
    for other in slices[1:]:
        cosine_error = np.abs(other.orientation_lps - first.orientation_lps).max()
        spacing_error = np.abs(other.pixel_spacing_mm / first.pixel_spacing_mm - 1).max()
        frames = {first.frame_of_reference_uid, other.frame_of_reference_uid} - {""}
        size, other_size = (first.rows, first.columns), (other.rows, other.columns)
        for differs, reason, what in (
            (
                cosine_error > geometry.ORIENTATION_TOLERANCE,
                "mixed_orientation",
                "orientation",
            ),
            (size != other_size, "mixed_matrix_size", f"matrix size ({size} and {other_size})"),
            (
                spacing_error > PIXEL_SPACING_TOLERANCE,
                "mixed_pixel_spacing",
                f"pixel spacing ({first.pixel_spacing_mm.tolist()} and "
                f"{other.pixel_spacing_mm.tolist()} mm)",
            ),
            (len(frames) > 1, "mixed_frame_of_reference", "frame of reference"),
        ):
            if differs:
                raise _refusal(
                    reason,
                    first,
                    other,
                    f"differ in {what}, so they don't form one volume: keep the files of one "
                    "acquisition in the folder.",
                )


def _check_distinct(in_order: Sequence[CTSlice], along_mm: Float64[np.ndarray, " k"]) -> None:
    """Refuse two slices at one position, and two files of one image."""
    is_duplicate = np.diff(along_mm) < DUPLICATE_TOLERANCE_MM
    if is_duplicate.any():
        k = int(np.argmax(is_duplicate))
        raise _refusal(
            "duplicate_slices",
            in_order[k],
            in_order[k + 1],
            f"lie at the same position ({along_mm[k]:.2f} mm from the first slice): the series "
            "holds copies, two time points or two reconstructions; keep one of each position.",
        )
    by_uid: dict[str, CTSlice] = {}
    for one in in_order:
        twin = by_uid.setdefault(one.sop_instance_uid, one)
        if twin is not one:
            raise _refusal(
                "duplicate_slices",
                twin,
                one,
                "have the same SOPInstanceUID and different positions: one of them is wrong; "
                "fetch the series again.",
            )


def _check_straight(in_order: Sequence[CTSlice], offsets_mm: Float64[np.ndarray, "k 3"]) -> None:
    """Refuse slices that don't lie straight above one another.

    Parameters
    ----------
    in_order
        The slices.
    offsets_mm
        Position relative to the first slice along row, column and normal.
    """
    sideways_mm = offsets_mm[:, :2]
    if np.abs(sideways_mm).max() <= POSITION_TOLERANCE_MM:
        return
    per_mm = sideways_mm[-1] / offsets_mm[-1, 2]
    bend_mm = np.abs(sideways_mm - offsets_mm[:, 2:] * per_mm).max(axis=1)
    if bend_mm.max() <= POSITION_TOLERANCE_MM:
        angle = np.degrees(np.arctan(np.linalg.norm(per_mm)))
        raise _refusal(
            "gantry_tilt",
            in_order[0],
            in_order[-1],
            f"show a gantry tilt of {angle:.2f} degrees (the positions run askew to the slices), "
            "which this version doesn't correct: use a reconstruction without tilt.",
        )
    k = int(np.argmax(np.abs(sideways_mm).max(axis=1) > POSITION_TOLERANCE_MM))
    raise _refusal(
        "shifted_slices",
        in_order[k - 1],
        in_order[k],
        "are shifted sideways against each other, so the slices don't form one straight stack: "
        "keep the files of one acquisition in the folder.",
    )


def _check_regular(in_order: Sequence[CTSlice], along_mm: Float64[np.ndarray, " k"]) -> None:
    """Refuse gaps and changes of the spacing; `along_mm` grows and starts at 0."""
    steps_mm = np.diff(along_mm)
    # The smallest steps are those where nothing is missing, give or take the rounding.
    spacing_mm = float(np.median(steps_mm[steps_mm < 1.5 * steps_mm.min()]))
    tolerance_mm = min(POSITION_TOLERANCE_MM, POSITION_TOLERANCE_SPACINGS * spacing_mm)
    counts = np.rint(steps_mm / spacing_mm)
    # Both ends of a step are rounded; over a gap, the error of the spacing adds up as well.
    uneven = np.abs(steps_mm - counts * spacing_mm) > 2 * tolerance_mm * counts
    if (counts > 1).any() and not uneven.any():
        k = int(np.argmax(counts > 1))
        raise _refusal(
            "missing_slices",
            in_order[k],
            in_order[k + 1],
            f"lie {steps_mm[k]:.2f} mm apart where {spacing_mm:.2f} mm are usual; in all "
            f"{int((counts - 1).sum())} slice(s) are missing: fetch the series again.",
        )
    regular_mm = np.linspace(0, along_mm[-1], len(along_mm))
    if uneven.any() or np.abs(along_mm - regular_mm).max() > tolerance_mm:
        k = int(np.argmax(np.abs(steps_mm - spacing_mm)))
        raise _refusal(
            "variable_spacing",
            in_order[k],
            in_order[k + 1],
            f"lie {steps_mm[k]:.2f} mm apart and others {spacing_mm:.2f} mm: the spacing varies, "
            "which this version doesn't resample; use a reconstruction with one spacing.",
        )


def _refusal(reason: str, one: CTSlice, other: CTSlice, what: str) -> SeriesError:
    return SeriesError(
        reason,
        f"{file_name(one.path)} and {file_name(other.path)} {what}",
        (one.path, other.path),
    )
