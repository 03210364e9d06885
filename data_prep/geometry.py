"""Affines between voxel indices, RAS and LPS millimetres: pure functions on numpy arrays.

Conventions
-----------
An *affine* is a (4, 4) float64 matrix that takes a voxel index ``(i, j, k)`` to the centre of that
voxel in millimetres. Inside this project millimetres are always RAS (x to the patient's Right,
y to Anterior, z to Superior), as in nibabel. DICOM, ITK and LUNA16 use LPS (Left, Posterior,
Superior); a variable in that frame carries ``_lps`` in its name.
"""

from itertools import permutations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Num, Shaped

AXIS_TIE_TOLERANCE = 1e-6
"""Two axis orders whose summed cosines differ by less than this are a tie (see
`closest_canonical_axes`); float rounding stays below 1e-14, a real difference above."""

ORIENTATION_TOLERANCE = 1e-4
"""How far the direction cosines of a slice may be from unit length and from a right angle.

Decimal strings hold at least six digits of a cosine in practice; an error of 1e-4 moves the far
corner of a 500 mm image by 0.05 mm.
"""

_LPS_RAS_SIGNS = np.array([-1.0, -1.0, 1.0])


class AxisOrder(NamedTuple):
    """For each new axis of an array, the old one it is taken from, and whether it is flipped."""

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]


def apply_affine(
    affine: Float64[np.ndarray, "4 4"], points: Num[np.ndarray, "*batch 3"]
) -> Float64[np.ndarray, "*batch 3"]:
    """Map points by an affine: voxel indices to millimetres, or back with its inverse.

    Examples
    --------
    >>> affine = np.diag([0.5, 0.5, 2.0, 1.0])
    >>> apply_affine(affine, np.array([[10, 20, 3], [0, 0, 0]]))
    array([[ 5., 10.,  6.],
           [ 0.,  0.,  0.]])
    """
    return np.asarray(points @ affine[:3, :3].T + affine[:3, 3], dtype=np.float64)


def inverse_affine(affine: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "4 4"]:
    """Return the affine that undoes `affine`: millimetres to (fractional) voxel indices.

    The last row is exactly (0, 0, 0, 1).

    Examples
    --------
    >>> affine = np.array([[0.5, 0, 0, -10], [0, 0.5, 0, 4], [0, 0, 2, 7], [0, 0, 0, 1]])
    >>> apply_affine(inverse_affine(affine), np.array([-5.0, 14.0, 13.0]))
    array([10., 20.,  3.])
    """
    inverse = np.eye(4)
    inverse[:3, :3] = np.linalg.inv(affine[:3, :3])
    inverse[:3, 3] = -inverse[:3, :3] @ affine[:3, 3]
    return inverse


def affine_lps_to_ras(affine_lps: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "4 4"]:
    """Turn an affine to LPS millimetres into the same affine to RAS millimetres.

    Examples
    --------
    >>> affine_lps = np.array([[0.7, 0, 0, -166], [0, 0.7, 0, -171], [0, 0, 2, 5], [0, 0, 0, 1]])
    >>> affine_lps_to_ras(affine_lps) @ [0, 0, 0, 1]
    array([166., 171.,   5.,   1.])
    """
    affine = affine_lps.copy()
    affine[:3] *= _LPS_RAS_SIGNS[:, np.newaxis]
    return affine + 0.0  # no negative zeros


def affine_ras_to_lps(affine: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "4 4"]:
    """Turn an affine to RAS millimetres into the same affine to LPS millimetres.

    Examples
    --------
    >>> affine = np.diag([-0.7, -0.7, 2.0, 1.0])
    >>> np.diag(affine_ras_to_lps(affine))
    array([0.7, 0.7, 2. , 1. ])
    """
    return affine_lps_to_ras(affine)  # the change of frame is its own inverse


def points_lps_to_ras(points_lps: Num[np.ndarray, "*batch 3"]) -> Float64[np.ndarray, "*batch 3"]:
    """Turn points or directions in LPS millimetres into RAS millimetres.

    Examples
    --------
    >>> points_lps_to_ras(np.array([10.0, -20.0, 30.0]))
    array([-10.,  20.,  30.])
    """
    return np.asarray(points_lps * _LPS_RAS_SIGNS + 0.0, dtype=np.float64)  # no negative zeros


def points_ras_to_lps(
    points_xyz_mm: Num[np.ndarray, "*batch 3"],
) -> Float64[np.ndarray, "*batch 3"]:
    """Turn points or directions in RAS millimetres into LPS millimetres.

    Examples
    --------
    >>> points_ras_to_lps(np.array([-10.0, 20.0, 30.0]))
    array([ 10., -20.,  30.])
    """
    return points_lps_to_ras(points_xyz_mm)


def spacing_mm(affine: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "3"]:
    """Return the distance in millimetres between neighbouring voxels along each array axis.

    Examples
    --------
    >>> spacing_mm(np.array([[0, 0, 2.5, 0], [0.7, 0, 0, 0], [0, -0.7, 0, 0], [0, 0, 0, 1]]))
    array([0.7, 0.7, 2.5])
    """
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0), dtype=np.float64)


def direction_cosines(affine: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "3 3"]:
    """Return the unit vectors, one column an array axis, in which the array axes run.

    Examples
    --------
    >>> direction_cosines(np.diag([-0.7, -0.7, 2.5, 1.0]))
    array([[-1.,  0.,  0.],
           [ 0., -1.,  0.],
           [ 0.,  0.,  1.]])
    """
    return np.asarray(affine[:3, :3] / spacing_mm(affine) + 0.0, dtype=np.float64)


def shear(affine: Float64[np.ndarray, "4 4"]) -> float:
    """Return the greatest cosine between two array axes: 0 where all are perpendicular."""
    cosines = direction_cosines(affine)
    return float(np.abs(cosines.T @ cosines - np.eye(3)).max())


def closest_canonical_axes(affine: Float64[np.ndarray, "4 4"]) -> AxisOrder:
    """Return the reordering after which the array axes run closest to R+, A+ and S+.

    Among the 48 permutations with flips it is the one whose direction matrix lies nearest to the
    identity (greatest trace, that is least Frobenius distance). An oblique array stays oblique.
    On a tie, e.g. a turn by 45 degrees, the first of ``itertools.permutations`` wins, so that
    axes move as little as possible; an axis exactly perpendicular to its target isn't flipped.

    Examples
    --------
    A usual axial CT: columns run to the left, rows to the back.

    >>> closest_canonical_axes(np.diag([-0.7, -0.7, 2.5, 1.0]))
    AxisOrder(order=(0, 1, 2), flips=(True, True, False))
    """
    cosines = direction_cosines(affine)
    best: tuple[int, ...] = ()
    best_trace = -np.inf
    for order in permutations(range(3)):
        trace = sum(abs(cosines[new, old]) for new, old in enumerate(order))
        if trace > best_trace + AXIS_TIE_TOLERANCE:
            best, best_trace = order, trace
    first, second, third = best
    flip = [bool(cosines[new, old] < -AXIS_TIE_TOLERANCE) for new, old in enumerate(best)]
    return AxisOrder((first, second, third), (flip[0], flip[1], flip[2]))


def reorder_array(
    array: Shaped[np.ndarray, "_ _ _"], axis_order: AxisOrder
) -> Shaped[np.ndarray, "_ _ _"]:
    """Reorder and flip the axes of an array; the result is a view, nothing is copied.

    Examples
    --------
    >>> array = np.arange(6).reshape(1, 2, 3)
    >>> reorder_array(array, AxisOrder((2, 1, 0), (True, False, False)))[:, 0, 0]
    array([2, 1, 0])
    """
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in axis_order.flips)
    return array.transpose(axis_order.order)[steps]


def reorder_affine(
    affine: Float64[np.ndarray, "4 4"], shape: tuple[int, int, int], axis_order: AxisOrder
) -> Float64[np.ndarray, "4 4"]:
    """Return the affine of an array after `reorder_array`: every voxel stays where it was.

    `affine` and `shape` are those before the reordering.

    Examples
    --------
    >>> affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    >>> reorder_affine(affine, (11, 21, 5), closest_canonical_axes(affine))
    array([[  1.,   0.,   0., -10.],
           [  0.,   1.,   0., -20.],
           [  0.,   0.,   2.,   0.],
           [  0.,   0.,   0.,   1.]])
    """
    new_to_old = np.zeros((4, 4))
    new_to_old[3, 3] = 1
    for new, (old, flip) in enumerate(zip(*axis_order, strict=True)):
        new_to_old[old, new] = -1 if flip else 1
        new_to_old[old, 3] = shape[old] - 1 if flip else 0
    return affine @ new_to_old + 0.0


def axcodes(affine: Float64[np.ndarray, "4 4"]) -> tuple[str, str, str]:
    """Return the letters of the directions that the array axes run closest to, e.g. ``LPS``.

    Examples
    --------
    >>> axcodes(np.diag([-0.7, -0.7, 2.5, 1.0]))
    ('L', 'P', 'S')
    """
    letters = ["", "", ""]
    order, flips = closest_canonical_axes(affine)
    for pair, old, flip in zip(("RL", "AP", "SI"), order, flips, strict=True):
        letters[old] = pair[flip]
    return letters[0], letters[1], letters[2]


def slice_axes_lps(
    orientation_lps: Float64[np.ndarray, "6"],
) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3"], Float64[np.ndarray, "3"]]:
    """Return the unit vectors of a DICOM image: along a row, down a column, and their normal.

    Rounding in the file is removed: the vectors are exactly orthonormal.

    Parameters
    ----------
    orientation_lps
        ImageOrientationPatient (PS3.3 C.7.6.2.1.1): the cosines of the first row, then of the
        first column.

    Returns
    -------
    tuple of ndarray
        ``row`` (the direction in which the column index grows), ``column`` (in which the row
        index grows) and ``row x column``.

    Raises
    ------
    ValueError
        If the cosines aren't unit vectors at a right angle, within `ORIENTATION_TOLERANCE`.

    Examples
    --------
    >>> slice_axes_lps(np.array([1.0, 0, 0, 0, 0, -1]))[2]
    array([0., 1., 0.])
    """
    row, column = orientation_lps[:3], orientation_lps[3:]
    errors = [np.linalg.norm(row) - 1, np.linalg.norm(column) - 1, row @ column]
    # "not <" rather than ">", so that NaN is refused as well
    if not np.max(np.abs(errors)) < ORIENTATION_TOLERANCE:
        raise ValueError(f"direction cosines {orientation_lps.tolist()} are not orthonormal")
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    column = column / np.linalg.norm(column)
    return row, column, np.cross(row, column) + 0.0


def affine_lps_from_dicom(
    orientation_lps: Float64[np.ndarray, "6"],
    pixel_spacing_mm: Float64[np.ndarray, "2"],
    first_position_lps: Float64[np.ndarray, "3"],
    slice_spacing_mm: float,
) -> Float64[np.ndarray, "4 4"]:
    """Build the affine of a stack of DICOM images (PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1).

    Parameters
    ----------
    orientation_lps
        ImageOrientationPatient.
    pixel_spacing_mm
        PixelSpacing: first the distance between rows, then between columns (PS3.3 10.7.1.3).
    first_position_lps
        ImagePositionPatient of slice ``k = 0``: the centre of its first pixel.
    slice_spacing_mm
        Distance from one slice to the next along the normal ``row x column``.

    Returns
    -------
    ndarray
        Takes ``(i = column index, j = row index, k = slice)`` to LPS millimetres.

    Examples
    --------
    >>> orientation_lps = np.array([1.0, 0, 0, 0, 1, 0])
    >>> affine_lps_from_dicom(
    ...     orientation_lps, np.array([0.8, 0.7]), np.array([-166.0, -171, 5]), 2.5
    ... )
    array([[   0.7,    0. ,    0. , -166. ],
           [   0. ,    0.8,    0. , -171. ],
           [   0. ,    0. ,    2.5,    5. ],
           [   0. ,    0. ,    0. ,    1. ]])
    """
    row, column, normal = slice_axes_lps(orientation_lps)
    affine_lps = np.eye(4)
    affine_lps[:3, 0] = row * pixel_spacing_mm[1]
    affine_lps[:3, 1] = column * pixel_spacing_mm[0]
    affine_lps[:3, 2] = normal * slice_spacing_mm
    affine_lps[:3, 3] = first_position_lps
    return affine_lps
