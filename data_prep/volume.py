"""A CT volume in patient space, checked when it is made."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import NamedTuple

import numpy as np

from data_prep import geometry
from data_prep.errors import InputError
from data_prep.problems import Problem

AIR_HU = -1000
"""Value of voxels that no image reaches, and of air."""

ORTHOGONALITY_TOLERANCE = 1e-4
"""How far the cosine between two array axes may be from 0: 0.05 mm over 500 mm."""

_HU_DTYPES = (np.dtype(np.int16), np.dtype(np.float32))


class SourceImage(NamedTuple):
    """An image behind a volume whose slices are no longer the images one by one.

    Its UID (``""`` for a frame of a multi-frame image), and where the centre of its first pixel
    lies on the volume's grid, in voxels, fractional.
    """

    sop_instance_uid: str
    first_ijk: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class CTVolume:
    """CT numbers on a regular grid, with the affine that places them in the patient.

    The arrays are read-only; a caller's array is viewed, not copied.

    Parameters
    ----------
    hu
        Hounsfield units, shape (i, j, k), int16 or (where the rescale isn't integral) float32.
        From DICOM: i = image column, j = image row, k = slice, sorted along the normal of
        ImageOrientationPatient. Every value is finite.
    affine
        (4, 4) float64: voxel index to RAS millimetres; its axes are perpendicular.
    series_uid
        SeriesInstanceUID, or any name of the series where the volume isn't from DICOM.
    sop_instance_uids
        SOPInstanceUID of each slice k, ``""`` for an interpolated one; empty where the volume
        isn't from single-frame DICOM images, or was resampled from them.
    outside
        Boolean (i, j, k): voxels that hold a padding value, that is lie outside of what was
        reconstructed. Their HU is what the file says, or air where the volume was resampled. None
        where there are none.
    problems
        What was repaired or noted when the volume was read; empty for a series without fault.
    interpolated_slices
        Ascending k of slices that no image stands behind: they fill a gap.
    images
        The images in the order of k, where a repair filled gaps, resampled or straightened them;
        empty where the slices are the images.
    frame_uid
        FrameOfReferenceUID; empty where it isn't known.

    Raises
    ------
    InputError
        If the parts don't fit together: the message names the part.

    Examples
    --------
    >>> volume = CTVolume(np.zeros((4, 3, 2), np.int16), np.diag([-0.7, -0.7, 2.5, 1.0]), "1.2.3")
    >>> volume.shape, volume.axcodes, volume.spacing_mm
    ((4, 3, 2), ('L', 'P', 'S'), array([0.7, 0.7, 2.5]))
    """

    hu: np.ndarray
    affine: np.ndarray
    series_uid: str
    sop_instance_uids: tuple[str, ...] = ()
    outside: np.ndarray | None = None
    problems: tuple[Problem, ...] = ()
    interpolated_slices: tuple[int, ...] = ()
    images: tuple[SourceImage, ...] = ()
    frame_uid: str = ""

    def __post_init__(self) -> None:
        _check_hu(self.hu)
        _check_affine(self.affine)
        _check_uids(self.sop_instance_uids, self.hu.shape[2], self.interpolated_slices)
        object.__setattr__(self, "hu", _read_only(self.hu))
        object.__setattr__(self, "affine", _read_only(self.affine.copy()))
        if self.outside is not None:
            if self.outside.shape != self.hu.shape or self.outside.dtype != np.bool_:
                raise InputError(
                    f"outside must be a boolean array shaped like hu {self.hu.shape}, "
                    f"not {self.outside.dtype} {self.outside.shape}."
                )
            object.__setattr__(self, "outside", _read_only(self.outside))

    def __repr__(self) -> str:
        """Shape, spacing and orientation; identifiers stay out."""
        shape = " x ".join(map(str, self.shape))
        spacing = " x ".join(f"{mm:.3g}" for mm in self.spacing_mm)
        axes, unit = "".join(self.axcodes), f"HU as {self.hu.dtype}"
        return f"CTVolume({shape} voxels of {spacing} mm, axes {axes}, {unit})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along (i, j, k)."""
        i, j, k = self.hu.shape
        return i, j, k

    @property
    def spacing_mm(self) -> np.ndarray:
        """Distance between neighbouring voxels along (i, j, k), shape (3,)."""
        return geometry.spacing_mm(self.affine)

    @property
    def axcodes(self) -> tuple[str, str, str]:
        """Direction that each array axis runs closest to, e.g. ``("L", "P", "S")``."""
        return geometry.axcodes(self.affine)

    @property
    def image_uids(self) -> frozenset[str]:
        """SOPInstanceUIDs of the images behind the volume, also where it was resampled."""
        known = {*self.sop_instance_uids, *(image.sop_instance_uid for image in self.images)}
        return frozenset(known - {""})

    @cached_property
    def sha256(self) -> str:
        """Hash of voxel type, shape, affine and voxels, whatever the order in memory.

        `outside` and the UIDs don't enter.
        """
        digest = sha256(f"{self.hu.dtype.name} {self.shape}\n".encode())
        digest.update(np.ascontiguousarray(self.affine, dtype="<f8").data)
        little_endian = self.hu.dtype.newbyteorder("<")
        for k in range(self.shape[2]):
            # transposed: a slice from DICOM lies row by row, and isn't copied
            slice_hu = self.hu[:, :, k].T
            digest.update(np.ascontiguousarray(slice_hu, dtype=little_endian).data)
        return digest.hexdigest()


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _check_uids(uids: tuple[str, ...], n_slices: int, interpolated: tuple[int, ...]) -> None:
    if not uids:
        return
    images = [uid for k, uid in enumerate(uids) if k not in interpolated]
    if len(uids) != n_slices or len(set(images)) != len(images) or "" in images:
        raise InputError(
            f"sop_instance_uids must hold a different UID for each of the {n_slices} slices (none "
            f"for an interpolated one), or be empty; there are {len(uids)} "
            f"({len(set(images))} different)."
        )


def _check_hu(hu: np.ndarray) -> None:
    if hu.ndim != 3 or 0 in hu.shape:
        raise InputError(f"hu must be a filled (i, j, k) array, not one of shape {hu.shape}.")
    if hu.dtype not in _HU_DTYPES:
        raise InputError(f"hu must be int16 or float32, not {hu.dtype}.")
    # slice by slice: a mask of a whole volume would cost as much memory as the volume
    if hu.dtype == np.float32 and not all(
        np.isfinite(hu[:, :, k]).all() for k in range(hu.shape[2])
    ):
        raise InputError("hu holds values that are not finite (NaN or infinity).")


def _check_affine(affine: np.ndarray) -> None:
    if affine.shape != (4, 4) or affine.dtype != np.float64:
        raise InputError(f"affine must be (4, 4) float64, not {affine.dtype} {affine.shape}.")
    if not np.isfinite(affine).all() or affine[3].tolist() != [0, 0, 0, 1]:
        raise InputError(f"affine must be finite with last row 0 0 0 1, not {affine.tolist()}.")
    if not np.all(geometry.spacing_mm(affine) > 0):
        raise InputError(f"affine must have positive spacings, not {affine.tolist()}.")
    if geometry.shear(affine) > ORTHOGONALITY_TOLERANCE:
        raise InputError(f"affine must have perpendicular axes (no tilt), not {affine.tolist()}.")
