"""MetaImage files (``.mha``, ``.mhd``; LUNA16's form) as stored values in RAS millimetres.

Format: https://docs.itk.org/en/latest/learn/metaio.html. Its millimetres are LPS, as everywhere
in ITK; ``AnatomicalOrientation`` counts in no reader, and not here.

Read here rather than by SimpleITK 2.5, which ends the whole process at ``NDims = 100`` or ``-1``,
returns noise for values whose compression is damaged or lacks ``CompressedDataSize``, follows a
data file's name anywhere on the disk, and doesn't tell a place that is stated from a default.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from data_prep.errors import ImageError
from data_prep.formats.stored import (
    StoredImage,
    ZlibStream,
    check_affine,
    check_shape,
    damage_named,
    data_file_beside,
    read_lines,
    read_values,
)
from data_prep.geometry import affine_lps_to_ras
from data_prep.rounding import cosine_rounding
from data_prep.text import printable

_DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_SEPARATOR = re.compile("[=:]")
_ALIASES = {
    "Position": "Offset",
    "Origin": "Offset",
    "Orientation": "TransformMatrix",
    "Rotation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
# fields that would change the values
_NEUTRAL = {"ElementToIntensityFunctionSlope": 1.0, "ElementToIntensityFunctionOffset": 0.0}
_MILLIMETRES = ("mm", "?", "")
_CT_MODALITIES = ("", "MET_MOD_CT", "MET_MOD_OTHER", "MET_MOD_UNKNOWN")


def read_meta(path: Path) -> StoredImage:
    """Read a MetaImage, its values attached or in one file beside it.

    Raises
    ------
    ImageError
        See `data_prep.formats.read_image`.
    """
    name = printable(path.name)
    with damage_named(name), path.open("rb") as file:
        fields = _fields(file, name)
        if _text(fields, "ElementNumberOfChannels", "1") != "1":
            raise ImageError("not_3d", f"{name} holds vectors or colours: give the CT.")
        sizes = tuple(int(n) for n in _numbers(fields, "DimSize", name))
        if _numbers(fields, "NDims", name) not in ([], [len(sizes)]):
            raise _damaged(name, "another number of sizes (DimSize) than of dimensions (NDims)")
        shape = check_shape(name, sizes)
        rounding = cosine_rounding(fields.get("TransformMatrix", "").split())
        affine = check_affine(name, _affine(fields, name), rounding=rounding)
        _check_neutral(fields, name)
        dtype = _dtype(fields, name)
        data_file = _text(fields, "ElementDataFile", "")
        if data_file.upper() == "LOCAL":
            stored_bytes = path.stat().st_size - file.tell()
            values = _values(file, fields, shape, dtype, name=name, stored_bytes=stored_bytes)
        else:
            data_path = data_file_beside(path, data_file)
            stored_bytes = data_path.stat().st_size
            with data_path.open("rb") as data:
                values = _values(data, fields, shape, dtype, name=name, stored_bytes=stored_bytes)
    modality = _text(fields, "Modality", "").upper()
    quantity = "" if modality in _CT_MODALITIES else f"modality {printable(modality)[:40]}"
    return StoredImage(name, values, affine, quantity=quantity)


def _check_neutral(fields: Mapping[str, str], name: str) -> None:
    """Refuse fields by which the values or millimetres would be others than are read."""
    for field, neutral in _NEUTRAL.items():
        if _numbers(fields, field, name) not in ([], [neutral]):
            raise _unsupported(name, f"{field} = {fields[field]}")
    if _text(fields, "DistanceUnits", "").lower() not in _MILLIMETRES:
        raise _unsupported(name, f"DistanceUnits = {fields['DistanceUnits']}")
    if not _is_true(fields, "BinaryData", default="True"):
        raise _unsupported(name, "BinaryData = False")


def _fields(file: io.BufferedIOBase, name: str) -> dict[str, str]:
    """Return the fields of the header; ElementDataFile is the last."""
    lines = read_lines(
        file,
        lambda line: _SEPARATOR.split(line, 1)[0].strip() == "ElementDataFile",
        name=name,
    )
    fields: dict[str, str] = {}
    for line in lines:
        field, *rest = (part.strip() for part in _SEPARATOR.split(line, 1))
        value = "".join(rest)
        field = _ALIASES.get(field, field)
        if field in fields:
            raise _damaged(name, f"two fields {printable(field)[:40]!a}")
        fields[field] = value
    return fields


def _text(fields: Mapping[str, str], field: str, default: str) -> str:
    return fields.get(field, default)


def _is_true(fields: Mapping[str, str], field: str, *, default: str = "False") -> bool:
    return _text(fields, field, default)[:1] in ("T", "t", "1")


def _numbers(fields: Mapping[str, str], field: str, name: str) -> list[float]:
    try:
        # a Fortran program writes 0.5D0
        text = fields.get(field, "").upper().replace("D", "E")
        numbers = [float(number) for number in text.split()]
    except ValueError as error:
        raise _damaged(name, f"a {field} that isn't numbers") from error
    if not np.isfinite(numbers).all():
        raise _damaged(name, f"a {field} that isn't finite")
    return numbers


def _affine(fields: Mapping[str, str], name: str) -> Float64[np.ndarray, "4 4"]:
    matrix = _numbers(fields, "TransformMatrix", name)
    origin_lps = _numbers(fields, "Offset", name)
    spacing = _numbers(fields, "ElementSpacing", name) or _numbers(fields, "ElementSize", name)
    missing = [
        field
        for field, numbers, count in (
            ("TransformMatrix", matrix, 9),
            ("Offset", origin_lps, 3),
            ("ElementSpacing", spacing, 3),
        )
        if len(numbers) != count
    ]
    if missing:
        raise ImageError(
            "no_orientation",
            f"{name} doesn't say where its voxels lie in the patient (no {missing[0]} for three "
            "axes): write it again with an orientation.",
        )
    affine_lps = np.eye(4)
    # the file lists the direction of one array axis after the other
    affine_lps[:3, :3] = np.array(matrix).reshape(3, 3).T * spacing
    affine_lps[:3, 3] = origin_lps
    return affine_lps_to_ras(affine_lps)


def _dtype(fields: Mapping[str, str], name: str) -> np.dtype:
    element_type = _text(fields, "ElementType", "")
    code = _DTYPES.get(element_type)
    if code is None:
        raise _unsupported(name, f"ElementType = {element_type}")
    return np.dtype((">" if _is_true(fields, "BinaryDataByteOrderMSB") else "<") + code)


def _values(
    file: io.BufferedIOBase,
    fields: Mapping[str, str],
    shape: tuple[int, int, int],
    dtype: np.dtype,
    *,
    name: str,
    stored_bytes: int,
) -> np.ndarray:
    is_compressed = _is_true(fields, "CompressedData")
    skip = _numbers(fields, "HeaderSize", name) or [0.0]
    stream = io.BufferedReader(ZlibStream(file)) if is_compressed else file
    return read_values(
        stream,
        shape,
        dtype,
        name=name,
        stored_bytes=stored_bytes,
        is_compressed=is_compressed,
        skip=int(skip[0]),
    )


def _unsupported(name: str, what: str) -> ImageError:
    return ImageError(
        "unsupported_image",
        f"{name} says {printable(what)[:80]!a}, which isn't read: save it again with binary "
        "values of a common type.",
    )


def _damaged(name: str, what: str) -> ImageError:
    return ImageError(
        "unreadable_image", f"{name} can't be read as MetaImage: it has {what}; export it again."
    )
