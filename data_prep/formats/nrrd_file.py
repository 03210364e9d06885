"""NRRD files (``.nrrd``, ``.nhdr``) as stored values in RAS millimetres.

Format: https://teem.sourceforge.net/nrrd/format.html. Read here rather than by SimpleITK 2.5, which
takes an image without a stated space or origin, or in metres, for LPS millimetres, and follows a
data file's name anywhere on the disk.
"""

import bz2
import gzip
import io
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from data_prep.dicom.units import says_hu
from data_prep.errors import ImageError
from data_prep.formats.stored import (
    StoredImage,
    check_affine,
    check_shape,
    damage_named,
    data_file_beside,
    read_lines,
    read_values,
)
from data_prep.rounding import cosine_rounding
from data_prep.text import printable

_INTEGERS = {
    "i1": "signed char,int8,int8_t",
    "u1": "uchar,unsigned char,uint8,uint8_t",
    "i2": "short,short int,signed short,signed short int,int16,int16_t",
    "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
    "i4": "int,signed int,int32,int32_t",
    "u4": "uint,unsigned int,uint32,uint32_t",
    "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
    "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
    "f4": "float",
    "f8": "double",
}
_DTYPES = {name: code for code, names in _INTEGERS.items() for name in names.split(",")}
_BYTE_ORDERS = {"little": "<", "big": ">"}
# signs that turn the file's space into RAS
_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
_MILLIMETRES = {"", "mm", "millimeter", "millimeters", "millimetre", "millimetres"}
_VECTOR = re.compile(r"\(([^()]*)\)|none")
_ALIASES = {
    "datafile": "data file",
    "lineskip": "line skip",
    "byteskip": "byte skip",
    "sampleunits": "sample units",
}


def read_nrrd(path: Path) -> StoredImage:
    """Read a NRRD file, its values attached or in one file beside it.

    Raises
    ------
    ImageError
        See `data_prep.formats.read_image`.
    """
    name = printable(path.name)
    with damage_named(name), path.open("rb") as file:
        fields = _fields(file, name)
        shape, directions = _axes(fields, name)
        affine = _affine(fields, directions, name)
        dtype = _dtype(fields, name)
        detached = fields.get("data file")
        if detached is None:
            stored_bytes = path.stat().st_size - file.tell()
            values = _values(file, fields, shape, dtype, name=name, stored_bytes=stored_bytes)
        else:
            data_path = data_file_beside(path, detached)
            stored_bytes = data_path.stat().st_size
            with data_path.open("rb") as data:
                values = _values(data, fields, shape, dtype, name=name, stored_bytes=stored_bytes)
    unit = fields.get("sample units", "").strip('" ')
    quantity = "" if not unit or says_hu(unit) else f"sample units {printable(unit)[:40]}"
    return StoredImage(name, values, affine, quantity=quantity)


def _fields(file: io.BufferedIOBase, name: str) -> dict[str, str]:
    """Return the fields of the header by their names in small letters."""
    if file.read(7) != b"NRRD000":
        raise _damaged(name, "no NRRD signature at its start")
    # only where the values follow does the header need its empty line
    lines = read_lines(file, lambda line: not line, name=name, may_end=True)
    fields: dict[str, str] = {}
    for line in lines[1:]:
        field, separator, value = line.partition(": ")
        # "key:=value" lines are free notes, "#" lines comments
        if not separator or line.startswith("#") or ":=" in field:
            continue
        field = field.strip().lower()
        field = _ALIASES.get(field, field)
        if field in fields:
            raise _damaged(name, f"two fields {printable(field)[:40]!a}")
        fields[field] = value.strip()
    if "sizes" not in fields:
        raise _damaged(name, "no sizes")
    return fields


def _axes(fields: dict[str, str], name: str) -> tuple[tuple[int, int, int], list[str]]:
    """Return size and written direction of the three axes that run in space.

    An axis of one entry without a direction (one channel, one point in time) is none.
    """
    sizes = _integers(fields, "sizes", name)
    if _integers(fields, "dimension", name) not in ([], [len(sizes)]):
        raise _damaged(name, "another number of sizes than of dimensions")
    directions = [found[1] for found in _VECTOR.finditer(fields.get("space directions", ""))]
    if directions and len(directions) != len(sizes):
        raise _damaged(name, "another number of directions than of dimensions")
    axes = [
        (size, direction)
        for size, direction in zip(sizes, directions or [""] * len(sizes), strict=True)
        if direction is not None or size != 1
    ]
    written = [direction for _, direction in axes if direction is not None]
    if len(axes) != 3 or len(written) != 3:
        raise ImageError(
            "not_3d",
            f"{name} holds no single volume of numbers (sizes "
            f"{printable(fields['sizes'])[:40]}; vectors, layers or time "
            "points): export one volume as a three-dimensional image.",
        )
    return check_shape(name, tuple(size for size, _ in axes)), written


def _integers(fields: dict[str, str], field: str, name: str) -> list[int]:
    try:
        return [int(number) for number in fields.get(field, "").split()]
    except ValueError as error:
        raise _damaged(name, f"{field} that are no whole numbers") from error


def _affine(fields: dict[str, str], directions: list[str], name: str) -> Float64[np.ndarray, "4 4"]:
    space = re.sub(r"[\s-]+", "-", fields.get("space", "").lower())
    origin = _VECTOR.fullmatch(fields.get("space origin", ""))
    if space not in _SPACES or not all(directions) or origin is None or origin[1] is None:
        raise ImageError(
            "no_orientation",
            f"{name} doesn't say where its voxels lie in the patient (space, space directions "
            f"and space origin are needed; its space is {printable(space)[:40] or 'not stated'}): "
            "write it again with an orientation.",
        )
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    if any(unit.strip().lower() not in _MILLIMETRES for unit in units):
        raise ImageError(
            "bad_spacing",
            f"{name} is not in millimetres (space units "
            f"{printable(' '.join(units))[:40]}): export the image again, in millimetres.",
        )
    try:
        vectors = [[float(one) for one in text.split(",")] for text in (*directions, origin[1])]
    except ValueError as error:
        raise _damaged(name, "directions that are no numbers") from error
    if {len(vector) for vector in vectors} != {3}:
        raise _damaged(name, "directions in other than three dimensions")
    affine = np.eye(4)
    affine[:3] = np.transpose(vectors) * np.array(_SPACES[space], dtype=np.float64)[:, np.newaxis]
    affine += 0.0  # no negative zeros
    shortest_mm = float(np.linalg.norm(affine[:3, :3], axis=0).min())
    written = [one for text in directions for one in text.split(",")]
    rounding = cosine_rounding(written, shortest_mm) if shortest_mm > 0 else 0.0
    return check_affine(name, affine, rounding=rounding)


def _dtype(fields: dict[str, str], name: str) -> np.dtype:
    code = _DTYPES.get(fields.get("type", "").lower())
    if code is None:
        raise _unsupported(name, f"the type {printable(fields.get('type', ''))[:40]!a}")
    if code.endswith("1"):
        return np.dtype(code)
    order = _BYTE_ORDERS.get(fields.get("endian", "").lower())
    if order is None:
        raise _damaged(name, "no order of bytes (endian)")
    return np.dtype(order + code)


def _values(
    file: io.BufferedIOBase,
    fields: dict[str, str],
    shape: tuple[int, int, int],
    dtype: np.dtype,
    *,
    name: str,
    stored_bytes: int,
) -> np.ndarray:
    encoding = fields.get("encoding", "").lower()
    line_skip, byte_skip = (
        (_integers(fields, field, name) or [0])[0] for field in ("line skip", "byte skip")
    )
    start = file.tell()
    for _ in range(line_skip):
        if not file.readline():
            break
    stored_bytes -= file.tell() - start
    stream: io.BufferedIOBase
    if encoding == "raw":
        stream = file
    elif encoding in ("gzip", "gz"):
        stream = gzip.GzipFile(fileobj=file)
    elif encoding in ("bzip2", "bz2"):
        stream = bz2.BZ2File(file)
    else:
        raise _unsupported(name, f"the encoding {printable(encoding)[:40]!a}")
    return read_values(
        stream,
        shape,
        dtype,
        name=name,
        stored_bytes=stored_bytes,
        is_compressed=encoding != "raw",
        skip=byte_skip,
    )


def _unsupported(name: str, what: str) -> ImageError:
    return ImageError(
        "unsupported_image",
        f"{name} has {what}, which isn't read: save it with encoding raw or gzip as short, "
        "unsigned char or float.",
    )


def _damaged(name: str, what: str) -> ImageError:
    return ImageError(
        "unreadable_image", f"{name} can't be read as NRRD: it has {what}; export it again."
    )
