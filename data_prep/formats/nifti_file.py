"""NIfTI-1 and NIfTI-2 files, plain or compressed, as stored values in RAS millimetres.

Format: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h and nifti2.h. The header is
judged before any voxel is read.
"""

import gzip
import io
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float64
from nibabel.spatialimages import HeaderDataError

from data_prep.errors import ImageError
from data_prep.formats.stored import (
    StoredImage,
    check_affine,
    check_shape,
    damage_named,
    read_values,
)
from data_prep.geometry import apply_affine
from data_prep.text import printable

AFFINE_TOLERANCE_MM = 0.05
"""How far the two affines of a header may place a corner apart: float32 and the quaternion form
round by less than a tenth of this."""

_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_MAGIC = {348: b"n+1\0", 540: b"n+2\0"}
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # not stated, metre, millimetre, micrometre
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_EXTENSION_BYTES = 1 << 26
_OTHER_INTENTS = (*range(2, 25), 1002, 1003)  # nifti1.h: statistics, labels, names of regions


def read_nifti(path: Path) -> StoredImage:
    """Read a NIfTI file (``.nii``, ``.nii.gz``).

    Values as stored with the header's slope and intercept; the affine of sform where there is
    one, else of qform. A compressed file is told by its content, whatever its name.
    """
    name = printable(path.name)
    with damage_named(name), path.open("rb") as file:
        is_compressed = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        return _read(file, gzip.GzipFile(fileobj=file) if is_compressed else file, name)


def _read(file: io.BufferedReader, stream: io.BufferedIOBase, name: str) -> StoredImage:
    header = _header(stream, name)
    try:
        dtype = np.dtype(header.get_data_dtype())
        sizes = tuple(int(n) for n in header.get_data_shape())
        slope, intercept = header.get_slope_inter()
        forms = [header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]]
    except (HeaderDataError, ValueError, KeyError) as error:
        raise _damaged(name, printable(str(error))[:80]) from error
    if dtype.fields is not None:
        raise ImageError("not_3d", f"{name} is a colour image, not CT numbers: give the CT.")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        what = f"{name} stores numbers of type {dtype}, which aren't read: save it as int16."
        raise ImageError("unsupported_image", what)
    shape = check_shape(name, sizes)
    to_mm = np.diag([*[_MM_PER_UNIT[int(header["xyzt_units"]) & 7]] * 3, 1.0])
    affine = _affine([to_mm @ form for form in forms if form is not None], shape, name)
    skip = float(header["vox_offset"]) - int(header["sizeof_hdr"])
    if not 0 <= skip <= _MAX_EXTENSION_BYTES or skip % 1:
        raise _damaged(name, "its values start at an impossible byte")
    values = read_values(file, stream, shape, dtype, name=name, skip=int(skip))
    intent = int(header["intent_code"])
    return StoredImage(
        name,
        values,
        affine,
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        f"intent code {intent}" if intent in _OTHER_INTENTS else "",
    )


def _header(stream: io.BufferedIOBase, name: str) -> Any:
    """Return nibabel's header; its form, unit of length and slope are known ones."""
    first = stream.read(4)
    size = next(
        (n for n in _HEADERS if first in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), None
    )
    block = first + stream.read(size - 4 if size else 0)
    if size is None or len(block) != size:
        raise _damaged(name, "it doesn't start with a NIfTI header")
    # the four bytes stand at the end of a NIfTI-1 header, behind the size in NIfTI-2
    if (block[344:348] if size == 348 else block[4:8]) != _MAGIC[size]:
        what = f"{name} is an Analyze file or one of a pair (.hdr, .img): save it as one .nii file."
        raise ImageError("unsupported_image", what)
    header: Any = _HEADERS[size](block, check=False)  # type: ignore[no-untyped-call]
    if int(header["xyzt_units"]) & 7 not in _MM_PER_UNIT or np.isinf(header["scl_slope"]):
        raise _damaged(name, "it has an unknown unit of length or an infinite slope")
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # nifti1.h: qfac 0 stands for 1
    return header


def _affine(
    forms: list[np.ndarray], shape: tuple[int, int, int], name: str
) -> Float64[np.ndarray, "4 4"]:
    """Return the affine to RAS millimetres that both forms of the header agree on."""
    affines = [check_affine(name, np.asarray(form, dtype=np.float64)) for form in forms]
    if not affines:
        what = f"{name} says no place (qform_code and sform_code are 0): write it again with one."
        raise ImageError("no_orientation", what)
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)
    moved = apply_affine(affines[0], corners) - apply_affine(affines[-1], corners)
    apart_mm = float(np.linalg.norm(moved, axis=1).max())
    if not apart_mm <= AFFINE_TOLERANCE_MM:
        raise ImageError(
            "conflicting_orientations",
            f"{name} holds two orientations (sform and qform) that place a corner {apart_mm:.3g} "
            "mm apart: write it again with one.",
        )
    return affines[0]


def _damaged(name: str, what: str) -> ImageError:
    message = f"{name} can't be read as NIfTI ({what}): export the image again."
    return ImageError("unreadable_image", message)
