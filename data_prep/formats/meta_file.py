"""MetaImage files (``.mha``, ``.mhd``; LUNA16's form) as stored values in RAS millimetres.

Format: https://docs.itk.org/en/latest/learn/metaio.html. Its millimetres are LPS, as everywhere
in ITK; ``AnatomicalOrientation`` counts in no reader, and not here.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from data_prep.dicom.files import printable
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
_ALIASES = {
    "Position": "Offset",
    "Origin": "Offset",
    "Orientation": "TransformMatrix",
    "Rotation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
# fields that would change the values, and the only ones that don't
_NEUTRAL = {
    "BinaryData": ("true",),
    "HeaderSize": ("0",),
    "ElementToIntensityFunctionSlope": ("1",),
    "ElementToIntensityFunctionOffset": ("0",),
    "DistanceUnits": ("mm", "?", ""),
}


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
        shape = check_shape(name, tuple(int(n) for n in _numbers(fields, "DimSize", name)))
        affine = check_affine(name, _affine(fields, name))
        for field, allowed in _NEUTRAL.items():
            if _text(fields, field, allowed[0]).lower() not in allowed:
                raise _unsupported(name, f"{field} = {fields[field]}")
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
    return StoredImage(name, values, affine)


def _fields(file: io.BufferedIOBase, name: str) -> dict[str, str]:
    """Return the fields of the header; ElementDataFile is the last."""
    lines = read_lines(
        file,
        lambda line: line.partition("=")[0].strip() == "ElementDataFile",
        name=name,
    )
    fields: dict[str, str] = {}
    for line in lines:
        field, _, value = (part.strip() for part in line.partition("="))
        field = _ALIASES.get(field, field)
        if field in fields:
            raise _damaged(name, f"two fields {printable(field)[:40]!a}")
        fields[field] = value
    return fields


def _text(fields: Mapping[str, str], field: str, default: str) -> str:
    return fields.get(field, default)


def _numbers(fields: Mapping[str, str], field: str, name: str) -> list[float]:
    try:
        numbers = [float(number) for number in fields.get(field, "").split()]
    except ValueError as error:
        raise _damaged(name, f"a {field} that isn't numbers") from error
    if not np.isfinite(numbers).all():
        raise _damaged(name, f"a {field} that isn't finite")
    return numbers


def _affine(fields: Mapping[str, str], name: str) -> Float64[np.ndarray, "4 4"]:
    matrix = _numbers(fields, "TransformMatrix", name)
    origin_lps = _numbers(fields, "Offset", name)
    spacing = _numbers(fields, "ElementSpacing", name)
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
    is_big = _text(fields, "BinaryDataByteOrderMSB", "False").lower() == "true"
    return np.dtype((">" if is_big else "<") + code)


def _values(
    file: io.BufferedIOBase,
    fields: Mapping[str, str],
    shape: tuple[int, int, int],
    dtype: np.dtype,
    *,
    name: str,
    stored_bytes: int,
) -> np.ndarray:
    is_compressed = _text(fields, "CompressedData", "False").lower() == "true"
    stream = io.BufferedReader(ZlibStream(file)) if is_compressed else file
    return read_values(
        stream,
        shape,
        dtype,
        name=name,
        stored_bytes=stored_bytes,
        is_compressed=is_compressed,
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
