"""The images of a cohort folder: written from a crop, read against the manifest."""

import gzip
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float64, Int16
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from data_prep.cohort.protocol import Protocol
from data_prep.cohort.rows import CohortNodule, file_places
from data_prep.crop import Crop, outline_on_crop
from data_prep.disk import file_sha256
from data_prep.errors import InputError
from data_prep.geometry import apply_affine, spacing_mm
from data_prep.nifti import write_nifti
from data_prep.nodules import Nodule
from data_prep.volume import CTVolume

GEOMETRY_TOLERANCE_MM = 1e-3
"""How far a file's grid may be from the manifest's: NIfTI holds the affine as float32."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "crop": np.dtype("<i2"),
    "mask": np.dtype("u1"),
    "readers": np.dtype("<i2"),
}
_HEADER_BYTES = 352
_BLOCK = 2**20


@dataclass(frozen=True, eq=False)
class CohortImages:
    """The images of one nodule, all on the same grid.

    Parameters
    ----------
    hu
        Hounsfield units rounded to whole numbers, int16 (i, j, k); the axes run closest to R+, A+
        and S+. Air where the scan doesn't reach.
    affine
        (4, 4) float64: voxel index to RAS millimetres.
    mask
        Consensus of the readers, boolean; None where there is none.
    reader_count
        How many readers outlined a voxel, int16; None where there is none.
    """

    hu: np.ndarray
    affine: np.ndarray
    mask: np.ndarray | None
    reader_count: np.ndarray | None

    @property
    def crop(self) -> Crop:
        """The same as a crop, HU as float32; which voxels lie outside the scan isn't kept."""
        return Crop(self.hu.astype(np.float32), self.affine, self.mask, padding=None)


def whole_hu(crop: Crop) -> tuple[Int16[np.ndarray, "i j k"], bool]:
    """Round a crop's HU to whole numbers.

    Returns
    -------
    tuple
        The HU, and whether some lay beyond what int16 holds and were clipped.
    """
    limits = np.iinfo(np.int16)
    rounded = np.rint(crop.hu)
    is_clipped = bool((rounded < limits.min).any() or (rounded > limits.max).any())
    return np.clip(rounded, limits.min, limits.max).astype(np.int16), is_clipped


def reader_count(volume: CTVolume, nodule: Nodule, crop: Crop) -> Int16[np.ndarray, "i j k"] | None:
    """Count, voxel by voxel of a crop, the readers who outlined it.

    A reader with two outlines in a nodule counts once where the source says who drew them.

    Returns
    -------
    ndarray or None
        None where no reader's outline is known.
    """
    by_reader: dict[int, Bool[np.ndarray, "i j k"]] = {}
    for number, reader in enumerate(nodule.readers):
        if reader.outline is None:
            continue
        # sessions count from 1: those who aren't named are counted down from 0
        key = -number if reader.reading_session is None else reader.reading_session
        mask = outline_on_crop(volume, reader.outline, crop)
        by_reader[key] = by_reader[key] | mask if key in by_reader else mask
    if not by_reader:
        return None
    count: np.ndarray = np.stack(list(by_reader.values())).sum(axis=0, dtype=np.int16)
    return count


def write_images(folder: Path, nodule_id: str, images: CohortImages) -> dict[str, str]:
    """Write the images of a nodule into a cohort folder.

    Parameters
    ----------
    folder
        The cohort folder; its folders for crops and masks exist.
    nodule_id
        Name of the nodule within the cohort.
    images
        What to write.

    Returns
    -------
    dict
        SHA-256 of the files by kind, ``""`` for one that isn't there.

    Raises
    ------
    OSError
        If a file can't be written.
    """
    arrays = {
        "crop": (images.hu, "cdam-med cohort CT in HU"),
        "mask": (images.mask, "cdam-med cohort consensus mask"),
        "readers": (images.reader_count, "cdam-med cohort count of readers"),
    }
    hashes = {}
    for kind, place in file_places(nodule_id).items():
        array, description = arrays[kind]
        hashes[kind] = ""
        if array is not None:
            write_nifti(folder / place, array, images.affine, description=description)
            hashes[kind] = file_sha256(folder / place)
    return hashes


def most_image_bytes(protocol: Protocol) -> int:
    """Return more bytes than any image of a cohort has, also if it can't be compressed."""
    n_bytes = _HEADER_BYTES + protocol.n_voxels**3 * 2
    return n_bytes + n_bytes // 100 + _BLOCK


def read_image_file(
    path: Path, *, kind: str, nodule: CohortNodule, protocol: Protocol
) -> tuple[np.ndarray, Float64[np.ndarray, "4 4"]]:
    """Read an image of a nodule, if it is what the manifest and the protocol say.

    Parameters
    ----------
    path
        The file.
    kind
        ``"crop"``, ``"mask"`` or ``"readers"``.
    nodule
        Its row of the manifest.
    protocol
        The cohort's.

    Returns
    -------
    tuple of ndarray
        Voxels (i, j, k), int16 or (mask) uint8, and the affine to RAS millimetres.

    Raises
    ------
    InputError
        If the file is missing, no NIfTI file, or has another grid, type or place. No more
        memory is taken than the protocol's cube needs.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise InputError(f"{path} is no regular file.")
        n_bytes = _HEADER_BYTES + protocol.n_voxels**3 * _DTYPES[kind].itemsize
        with gzip.open(path) as file:
            # a few compressed bytes may claim to be a terabyte
            data = file.read(n_bytes + 1)
        if len(data) != n_bytes:
            raise InputError(
                f"{path} doesn't hold the {n_bytes} bytes of a cube of {protocol.n_voxels} voxels "
                f"along each edge."
            )
        image: Any = nib.Nifti1Image.from_bytes(data)
        _check_header(path, image, kind, nodule, protocol)
        array = np.asarray(image.dataobj)
    except InputError:
        raise
    except (
        OSError,
        EOFError,
        ValueError,
        OverflowError,
        zlib.error,
        ImageFileError,
        HeaderDataError,
    ) as error:
        raise InputError(f"{path} can't be read as NIfTI: {type(error).__name__}.") from error
    most = {"crop": None, "mask": 1, "readers": nodule.n_readers}[kind]
    if most is not None and array.size and not 0 <= array.min() <= array.max() <= most:
        raise InputError(f"{path} holds values that aren't between 0 and {most}.")
    return array, np.asarray(image.affine, dtype=np.float64)


def _check_header(
    path: Path, image: Any, kind: str, nodule: CohortNodule, protocol: Protocol
) -> None:
    """Refuse an image of another size, type or place before its voxels are read."""
    header, n = image.header, protocol.n_voxels
    if image.shape != (n, n, n):
        raise InputError(f"{path} has {image.shape} voxels, not {(n, n, n)}.")
    if header.get_data_dtype() != _DTYPES[kind]:
        raise InputError(f"{path} holds {header.get_data_dtype()}, not {_DTYPES[kind]}.")
    slope, intercept = header.get_slope_inter()
    if slope not in (None, 1) or intercept not in (None, 0):
        raise InputError(f"{path} scales its values.")
    qform, sform = header.get_qform(coded=True), header.get_sform(coded=True)
    if qform[1] != 1 or sform[1] != 1 or not np.isfinite([qform[0], sform[0]]).all():
        raise InputError(f"{path} doesn't say where it lies: its forms don't have code 1.")
    corners = np.array(list(np.ndindex(2, 2, 2))) * (n - 1.0)
    q_corners, s_corners = apply_affine(qform[0], corners), apply_affine(sform[0], corners)
    if np.abs(q_corners - s_corners).max() > GEOMETRY_TOLERANCE_MM * n:
        raise InputError(f"{path} has two forms that differ.")
    middle_mm = s_corners.mean(axis=0)
    if np.abs(middle_mm - nodule.center_xyz_mm).max() > GEOMETRY_TOLERANCE_MM:
        raise InputError(
            f"{path} lies around {np.round(middle_mm, 3).tolist()} mm, not around "
            f"{list(nodule.center_xyz_mm)} mm (RAS)."
        )
    if np.abs(spacing_mm(sform[0]) - protocol.spacing_mm).max() > GEOMETRY_TOLERANCE_MM:
        raise InputError(f"{path} has other voxels than {protocol.spacing_mm:g} mm.")
