"""NRRD and MetaImage files: a text header, then values, as stored values in RAS millimetres.

NRRD (``.nrrd``, ``.nhdr``): https://teem.sourceforge.net/nrrd/format.html. MetaImage (``.mha``,
``.mhd``; LUNA16's form): https://docs.itk.org/en/latest/learn/metaio.html; its millimetres are LPS,
as everywhere in ITK, and ``AnatomicalOrientation`` counts in no reader, and not here.
"""

# Not read by SimpleITK 2.5: it ends the whole process at a MetaImage of ``NDims = 100`` or ``-1``,
# returns noise where ``CompressedDataSize`` is missing or the compression is damaged, takes a NRRD
# without a stated space or origin, or in metres, for LPS millimetres, and follows a data file's
# name anywhere on the disk.

import bz2
import gzip
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from data_prep.dicom.units import says_hu
from data_prep.errors import ImageError
from data_prep.formats.stored import (
    StoredImage,
    ZlibStream,
    check_affine,
    check_shape,
    damage_named,
    read_lines,
    read_values,
)
from data_prep.geometry import affine_lps_to_ras
from data_prep.rounding import cosine_rounding
from data_prep.text import printable

_NRRD_TYPES = {
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
_NRRD_DTYPES = {name: code for code, names in _NRRD_TYPES.items() for name in names.split(",")}
_NRRD_SPACES = {  # signs that turn the file's space into RAS
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
_NRRD_MILLIMETRES = {"", "mm", "millimeter", "millimeters", "millimetre", "millimetres"}
_NRRD_VECTOR = re.compile(r"\(([^()]*)\)|none")
_NRRD_ALIASES = {
    "datafile": "data file",
    "lineskip": "line skip",
    "byteskip": "byte skip",
    "sampleunits": "sample units",
}
_META_DTYPES = {
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
_META_SEPARATOR = re.compile("[=:]")
_META_ALIASES = {
    "Position": "Offset",
    "Origin": "Offset",
    "Orientation": "TransformMatrix",
    "Rotation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
# by other values, voxels or millimetres would be others than are read
_META_NEUTRAL = {
    "ElementToIntensityFunctionSlope": 1.0,
    "ElementToIntensityFunctionOffset": 0.0,
}
_META_MILLIMETRES = ("mm", "?", "")
_META_CT = ("", "MET_MOD_CT", "MET_MOD_OTHER", "MET_MOD_UNKNOWN")


@dataclass(frozen=True)
class _Header:
    """The fields of a header, and the errors of its file."""

    path: Path
    format: str
    fields: Mapping[str, str]

    @property
    def name(self) -> str:
        return printable(self.path.name)

    def text(self, field: str, default: str = "") -> str:
        return self.fields.get(field, default)

    def is_true(self, field: str, default: str = "False") -> bool:
        return self.text(field, default)[:1] in ("T", "t", "1")

    def numbers(self, field: str) -> list[float]:
        try:
            # a Fortran program writes 0.5D0
            numbers = [float(one) for one in self.text(field).upper().replace("D", "E").split()]
        except ValueError as error:
            raise self.damaged(f"a field {field} that isn't numbers") from error
        if not np.isfinite(numbers).all():
            raise self.damaged(f"a field {field} that isn't finite")
        return numbers

    def integers(self, field: str) -> list[int]:
        numbers = self.numbers(field)
        if any(number % 1 for number in numbers):
            raise self.damaged(f"a field {field} that isn't whole numbers")
        return [int(number) for number in numbers]

    def damaged(self, what: str) -> ImageError:
        message = f"{self.name} can't be read as {self.format}: it has {what}; export it again."
        return ImageError("unreadable_image", message)

    def unsupported(self, field: str) -> ImageError:
        return ImageError(
            "unsupported_image",
            f"{self.name} has {field} = {printable(self.text(field))[:40]!a}, which isn't read: "
            "save it with raw or gzip encoding, as short, unsigned char or float.",
        )

    def data_path(self, named: str) -> Path:
        """Return the data file that the header names, in its own folder or below it."""
        if "%" in named or named.upper().split(" ")[0] == "LIST":
            what = f"{self.name} spreads its values over several files: save the image as one file."
            raise ImageError("unsupported_image", what)
        parts = named.replace("\\", "/").split("/")
        shown = f"{printable(named)[:80]!a}"
        if ".." in parts or "" in parts or ":" in named or not named.isprintable():
            what = (
                f"{self.name} names a data file outside of its own folder ({shown}): put it there."
            )
            raise ImageError("data_elsewhere", what)
        path = self.path.parent.joinpath(*parts)
        if not path.is_file():
            what = f"The data file {shown} of {self.name} isn't there: put both into one folder."
            raise ImageError("not_found", what)
        return path


def _header(path: Path, form: str, pairs: Iterable[tuple[str, str]]) -> _Header:
    """Return a header whose fields are each there once."""
    fields: dict[str, str] = {}
    for field, value in pairs:
        if field in fields:
            raise _Header(path, form, {}).damaged(f"two fields {printable(field)[:40]!a}")
        fields[field] = value
    return _Header(path, form, fields)


def read_nrrd(path: Path) -> StoredImage:
    """Read a NRRD file, its values attached or in one file beside it."""
    name = printable(path.name)
    with damage_named(name), path.open("rb") as file:
        header = _nrrd_header(file, path)
        shape, directions = _nrrd_axes(header)
        affine = _nrrd_affine(header, directions)
        dtype = _nrrd_dtype(header)
        if "data file" not in header.fields:
            values = _nrrd_values(file, header, shape, dtype)
        else:
            with header.data_path(header.text("data file")).open("rb") as data:
                values = _nrrd_values(data, header, shape, dtype)
    unit = header.text("sample units").strip('" ')
    quantity = "" if not unit or says_hu(unit) else f"sample units {printable(unit)[:40]}"
    return StoredImage(name, values, affine, quantity=quantity)


def _nrrd_header(file: io.BufferedReader, path: Path) -> _Header:
    """Read the header, its fields by their names in small letters."""
    if file.read(7) != b"NRRD000":
        raise _Header(path, "NRRD", {}).damaged("no NRRD signature at its start")
    # only where the values follow does the header need its empty line
    lines = read_lines(file, lambda line: not line, name=printable(path.name), may_end=True)
    pairs = []
    for line in lines[1:]:
        field, separator, value = line.partition(": ")
        # "key:=value" lines are free notes, "#" lines comments
        if separator and not line.startswith("#") and ":=" not in field:
            field = field.strip().lower()
            pairs.append((_NRRD_ALIASES.get(field, field), value.strip()))
    header = _header(path, "NRRD", pairs)
    if "sizes" not in header.fields:
        raise header.damaged("no sizes")
    return header


def _nrrd_axes(header: _Header) -> tuple[tuple[int, int, int], list[str]]:
    """Return size and written direction of the three axes that run in space.

    An axis of one entry without a direction (one channel, one point in time) is none.
    """
    sizes = header.integers("sizes")
    if header.integers("dimension") not in ([], [len(sizes)]):
        raise header.damaged("another number of sizes than of dimensions")
    directions = [found[1] for found in _NRRD_VECTOR.finditer(header.text("space directions"))]
    if directions and len(directions) != len(sizes):
        raise header.damaged("another number of directions than of dimensions")
    axes = [
        (size, direction)
        for size, direction in zip(sizes, directions or [""] * len(sizes), strict=True)
        if direction is not None or size != 1
    ]
    written = [direction for _, direction in axes if direction is not None]
    if len(axes) != 3 or len(written) != 3:
        shown = printable(header.text("sizes"))[:40]
        what = (
            f"{header.name} holds no single volume of numbers (sizes {shown}): export one volume."
        )
        raise ImageError("not_3d", what)
    return check_shape(header.name, tuple(size for size, _ in axes)), written


def _nrrd_affine(header: _Header, directions: list[str]) -> Float64[np.ndarray, "4 4"]:
    space = re.sub(r"[\s-]+", "-", header.text("space").lower())
    origin = _NRRD_VECTOR.fullmatch(header.text("space origin"))
    if space not in _NRRD_SPACES or not all(directions) or origin is None or origin[1] is None:
        raise ImageError(
            "no_orientation",
            f"{header.name} doesn't say where its voxels lie in the patient (space, space "
            "directions and space origin are needed; its space is "
            f"{printable(space)[:40] or 'not stated'}): write it again with an orientation.",
        )
    units = re.findall(r'"([^"]*)"', header.text("space units"))
    if any(unit.strip().lower() not in _NRRD_MILLIMETRES for unit in units):
        shown = printable(" ".join(units))[:40]
        what = (
            f"{header.name} is not in millimetres (space units {shown}): export it in millimetres."
        )
        raise ImageError("bad_spacing", what)
    try:
        vectors = [[float(one) for one in text.split(",")] for text in (*directions, origin[1])]
    except ValueError as error:
        raise header.damaged("directions that are no numbers") from error
    if {len(vector) for vector in vectors} != {3}:
        raise header.damaged("directions in other than three dimensions")
    affine = np.eye(4)
    signs = np.array(_NRRD_SPACES[space], dtype=np.float64)
    affine[:3] = np.transpose(vectors) * signs[:, np.newaxis] + 0.0  # no negative zeros
    shortest_mm = float(np.linalg.norm(affine[:3, :3], axis=0).min())
    written = [one for text in directions for one in text.split(",")]
    rounding = cosine_rounding(written, shortest_mm) if shortest_mm > 0 else 0.0
    return check_affine(header.name, affine, rounding=rounding)


def _nrrd_dtype(header: _Header) -> np.dtype:
    code = _NRRD_DTYPES.get(header.text("type").lower())
    if code is None:
        raise header.unsupported("type")
    order = {"little": "<", "big": ">"}.get(header.text("endian").lower())
    if order is None and not code.endswith("1"):
        raise header.damaged("no order of bytes (endian)")
    return np.dtype((order or "") + code)


def _nrrd_values(
    file: io.BufferedReader, header: _Header, shape: tuple[int, int, int], dtype: np.dtype
) -> np.ndarray:
    line_skip, byte_skip = (
        (header.integers(field) or [0])[0] for field in ("line skip", "byte skip")
    )
    for _ in range(line_skip):
        if not file.readline():
            break
    stream: io.BufferedIOBase = file
    encoding = header.text("encoding").lower()
    if encoding in ("gzip", "gz"):
        stream = gzip.GzipFile(fileobj=file)
    elif encoding in ("bzip2", "bz2"):
        stream = bz2.BZ2File(file)
    elif encoding != "raw":
        raise header.unsupported("encoding")
    return read_values(file, stream, shape, dtype, name=header.name, skip=byte_skip)


def read_meta(path: Path) -> StoredImage:
    """Read a MetaImage, its values attached or in one file beside it."""
    name = printable(path.name)
    with damage_named(name), path.open("rb") as file:
        header = _meta_header(file, path)
        if header.text("ElementNumberOfChannels", "1") != "1":
            raise ImageError("not_3d", f"{name} holds vectors or colours: give the CT.")
        sizes = header.integers("DimSize")
        if header.integers("NDims") not in ([], [len(sizes)]):
            raise header.damaged("another number of sizes (DimSize) than of dimensions (NDims)")
        shape = check_shape(name, tuple(sizes))
        rounding = cosine_rounding(header.text("TransformMatrix").split())
        affine = check_affine(name, _meta_affine(header), rounding=rounding)
        _check_meta(header)
        data_file = header.text("ElementDataFile")
        if data_file.upper() == "LOCAL":
            values = _meta_values(file, header, shape)
        else:
            with header.data_path(data_file).open("rb") as data:
                values = _meta_values(data, header, shape)
    modality = header.text("Modality").upper()
    quantity = "" if modality in _META_CT else f"modality {printable(modality)[:40]}"
    return StoredImage(name, values, affine, quantity=quantity)


def _meta_header(file: io.BufferedReader, path: Path) -> _Header:
    """Read the header; ElementDataFile is its last field."""
    pairs = []

    def is_last(line: str) -> bool:
        field, *rest = (part.strip() for part in _META_SEPARATOR.split(line, maxsplit=1))
        pairs.append((_META_ALIASES.get(field, field), "".join(rest)))
        return field == "ElementDataFile"

    read_lines(file, is_last, name=printable(path.name))
    return _header(path, "MetaImage", pairs)


def _check_meta(header: _Header) -> None:
    """Refuse fields by which the values or millimetres would be others than are read."""
    for field, neutral in _META_NEUTRAL.items():
        if header.numbers(field) not in ([], [neutral]):
            raise header.unsupported(field)
    if header.text("DistanceUnits").lower() not in _META_MILLIMETRES:
        raise header.unsupported("DistanceUnits")
    if not header.is_true("BinaryData", "True"):
        raise header.unsupported("BinaryData")
    if header.text("ElementType") not in _META_DTYPES:
        raise header.unsupported("ElementType")


def _meta_affine(header: _Header) -> Float64[np.ndarray, "4 4"]:
    matrix, origin_lps = header.numbers("TransformMatrix"), header.numbers("Offset")
    spacing = header.numbers("ElementSpacing") or header.numbers("ElementSize")
    for field, numbers, count in (
        ("TransformMatrix", matrix, 9),
        ("Offset", origin_lps, 3),
        ("ElementSpacing", spacing, 3),
    ):
        if len(numbers) != count:
            what = f"{header.name} doesn't say where its voxels lie (no {field} for three axes)"
            raise ImageError("no_orientation", f"{what}: write it again with an orientation.")
    affine_lps = np.eye(4)
    # the file lists the direction of one array axis after the other
    affine_lps[:3, :3] = np.array(matrix).reshape(3, 3).T * spacing
    affine_lps[:3, 3] = origin_lps
    return affine_lps_to_ras(affine_lps)


def _meta_values(
    file: io.BufferedReader, header: _Header, shape: tuple[int, int, int]
) -> np.ndarray:
    order = ">" if header.is_true("BinaryDataByteOrderMSB") else "<"
    dtype = np.dtype(order + _META_DTYPES[header.text("ElementType")])
    is_compressed = header.is_true("CompressedData")
    skip = (header.integers("HeaderSize") or [0])[0]
    stream = io.BufferedReader(ZlibStream(file)) if is_compressed else file
    return read_values(file, stream, shape, dtype, name=header.name, skip=skip)
