"""NIfTI files that every viewer places alike.

Viewers disagree on which of the two affines of a header counts, and on what to do where they
differ; so both are the same here, with code 1 (scanner coordinates). Nothing is ever scaled by
the header, so a zero stays exactly zero. Format: NIfTI-1.1,
https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h.
"""

import gzip
import re
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float64, Shaped

from data_prep import geometry
from data_prep.disk import write_file
from data_prep.errors import OutputError
from data_prep.volume import ORTHOGONALITY_TOLERANCE

RESEARCH_ONLY = "RESEARCH ONLY"

_NIFTI_DTYPES: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.float32): np.dtype("<f4"),
    np.dtype(np.int16): np.dtype("<i2"),
    np.dtype(np.bool_): np.dtype("u1"),
}
_SCANNER_CODE = 1
_DESCRIP_LENGTH = 79
_SAFE_NAME = re.compile(r"[A-Za-z0-9_.-]+\.nii\.gz")
# 3D Slicer opens a file of such a name as a label map (qSlicerVolumesIOOptionsWidget)
_LABEL_MAP_NAME = re.compile(r"(\b|_)[Ll]abels?(\b|_)|[Ss]eg")


def write_nifti(
    path: str | PathLike[str],
    array: Shaped[np.ndarray, "i j k"],
    affine: Float64[np.ndarray, "4 4"],
    *,
    description: str,
    symmetric_limit: float | None = None,
) -> None:
    """Write an array and its place in the patient as a compressed NIfTI file.

    The same content gives the same bytes. The file is written aside and renamed.

    Parameters
    ----------
    path : path-like
        The file: ASCII letters, digits, ``_.-``, ending in ``.nii.gz``. Unless ``array`` is a
        mask, without ``label`` or ``seg``, which 3D Slicer takes for a label map.
    array : ndarray
        float32 for maps, int16 for HU, bool for masks (written as uint8); stored as it is.
    affine : ndarray
        Voxel index to RAS mm, axes perpendicular. A rest of shear as small as the rounding of
        DICOM's direction cosines is taken out, as the quaternion form can't hold it.
    description : str
        What the file holds, ASCII; ``RESEARCH ONLY`` is appended, 79 characters in all.
    symmetric_limit : float, optional
        Viewers shall show values from ``-symmetric_limit`` to ``+symmetric_limit`` (``cal_min``,
        ``cal_max``).

    Raises
    ------
    OutputError
        Values that are not finite, or a sheared affine.
    ValueError
        A file name, description, limit or type of array that a program should not ask for.
    OSError
        The file can't be written.
    """
    path = Path(path)
    _check_name(path.name, is_mask=array.dtype == np.bool_)
    _check_values(path.name, array)
    if symmetric_limit is not None and not 0 <= symmetric_limit < np.inf:
        raise ValueError(f"symmetric_limit of {path.name} is {symmetric_limit}, not 0 or more")
    rigid_affine = _without_shear(path.name, affine)
    stored = array.astype(_NIFTI_DTYPES[array.dtype])
    # no header is taken over from another file: it would bring that file's scaling along
    image: Any = nib.Nifti1Image(stored, rigid_affine)  # type: ignore[no-untyped-call]
    image.set_qform(rigid_affine, code=_SCANNER_CODE)
    image.set_sform(rigid_affine, code=_SCANNER_CODE)
    image.header.set_xyzt_units(xyz="mm")
    image.header["descrip"] = _descrip(description)
    if symmetric_limit is not None:
        image.header["cal_min"] = -symmetric_limit
        image.header["cal_max"] = symmetric_limit
    write_file(path, gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))


def _check_name(name: str, *, is_mask: bool) -> None:
    if not _SAFE_NAME.fullmatch(name):
        raise ValueError(f"file name {name!r} must be ASCII letters, digits or _.-, then .nii.gz")
    if not is_mask and _LABEL_MAP_NAME.search(name):
        raise ValueError(f"3D Slicer takes {name!r} for a label map; leave 'label' and 'seg' out")


def _check_values(name: str, array: Shaped[np.ndarray, "i j k"]) -> None:
    if array.dtype not in _NIFTI_DTYPES:
        raise ValueError(f"array of {name} must be float32, int16 or bool, not {array.dtype}")
    if array.size == 0:
        raise ValueError(f"array of {name} must hold voxels; its shape is {array.shape}")
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        # 3D Slicer shows these as the strongest negative value
        what = f"{name} can't be written: {bad} of {array.size} values are NaN or infinite"
        raise OutputError(f"{what}; check the model's weights and the scan.")


def _without_shear(name: str, affine: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "4 4"]:
    """Put the nearest perpendicular axes in, or refuse where they would move the image."""
    if not np.isfinite(affine).all() or affine[3].tolist() != [0, 0, 0, 1]:
        raise ValueError(f"affine of {name} must be finite with last row 0 0 0 1")
    spacing = geometry.spacing_mm(affine)
    if not np.all(spacing > 0):
        raise ValueError(f"affine of {name} must have a positive spacing on each axis")
    shear = geometry.shear(affine)
    if shear > ORTHOGONALITY_TOLERANCE:
        raise OutputError(
            f"{name} can't be written: its grid is sheared (cosine {shear:.2g} between two axes), "
            "which viewers straighten silently; resample the scan to perpendicular axes first."
        )
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    rigid = affine.copy()
    rigid[:3, :3] = (left @ right) * spacing
    return rigid


def _descrip(description: str) -> bytes:
    text = f"{description}; {RESEARCH_ONLY}"
    if not text.isascii() or not text.isprintable() or len(text) > _DESCRIP_LENGTH:
        raise ValueError(
            f"description must be printable ASCII of at most "
            f"{_DESCRIP_LENGTH - len(RESEARCH_ONLY) - 2} characters, not {description!r}"
        )
    return text.encode("ascii")
