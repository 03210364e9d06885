"""DICOM files below a folder: found, told from other files, and their headers read.

Nothing here knows what a CT is. The pixels stay on disk: a header keeps where they lie in the
file, so that they can be read later without parsing the file again.
"""

import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float64
from pydicom import Dataset, dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from data_prep.errors import SeriesError

_TEXT_KEYWORDS = (
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "NumberOfFrames",
    "PixelSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
)
_BINARY_KEYWORDS = (
    "SamplesPerPixel",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
)
# All that is read of a header: nothing else, and so no patient's name, is ever kept.
_TAGS = {keyword: Tag(keyword) for keyword in (*_TEXT_KEYWORDS, *_BINARY_KEYWORDS)}

PARSE_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    RecursionError,
    MemoryError,
    EOFError,
    struct.error,
)
"""What pydicom raises on bytes that aren't what they claim to be."""

_DICOM_SUFFIXES = {".dcm", ".dicom", ".ima"}
_PIXEL_DATA_TAG = b"\xe0\x7f\x10\x00"
_UNDEFINED_LENGTH = 0xFFFFFFFF
_HEAD_BYTES = 1024  # covers the preamble and, in practice, the transfer syntax


@dataclass(frozen=True, eq=False)
class Header:
    """What is known of a DICOM file before its pixels are read.

    Parameters
    ----------
    path
        The file.
    attributes
        Values by keyword, encoded as in the file.
    is_little_endian
        Order of bytes in the binary ones.
    transfer_syntax_uid
        Empty where the file doesn't say.
    pixel_offset
        Where the value of PixelData starts in the file; None if there is none.
    pixel_length
        Length of PixelData in bytes; None if there is none, or if it is encapsulated.
    file_size
        In bytes.
    """

    path: Path
    attributes: Mapping[str, bytes]
    is_little_endian: bool
    transfer_syntax_uid: str
    pixel_offset: int | None
    pixel_length: int | None
    file_size: int

    def text(self, keyword: str) -> str:
        r"""Return a text attribute: empty where absent, several values joined by ``\``."""
        return self.attributes.get(keyword, b"").decode("ascii", "replace").strip(" \0")

    def numbers(self, keyword: str, count: int) -> Float64[np.ndarray, " count"] | None:
        """Return an attribute of `count` finite numbers, None where it is absent or empty.

        Raises
        ------
        SeriesError
            ``bad_header`` if it holds anything else.
        """
        text = self.text(keyword)
        if not text:
            return None
        try:
            numbers = np.array([float(value) for value in text.split("\\")])
        except ValueError as error:
            raise self._bad_value(keyword, f"{count} number(s)") from error
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise self._bad_value(keyword, f"{count} number(s)")
        return numbers

    def integer(self, keyword: str) -> int | None:
        """Return an attribute that holds one integer, None where it is absent or empty.

        Binary ones (US, or US or SS) are read as unsigned, whatever the file says of their sign.

        Raises
        ------
        SeriesError
            ``bad_header`` if it holds anything else.
        """
        if keyword in _BINARY_KEYWORDS:
            value = self.attributes.get(keyword, b"")
            if len(value) not in (0, 2):
                raise self._bad_value(keyword, "one 16-bit integer")
            return (
                int.from_bytes(value, "little" if self.is_little_endian else "big")
                if value
                else None
            )
        number = self.numbers(keyword, 1)
        if number is None:
            return None
        if not float(number[0]).is_integer():
            raise self._bad_value(keyword, "an integer")
        return int(number[0])

    def _bad_value(self, keyword: str, expected: str) -> SeriesError:
        return SeriesError(
            "bad_header",
            f"{keyword} of {file_name(self.path)} doesn't hold {expected}: the file is damaged "
            "or not made to the standard; fetch it again.",
            (self.path,),
        )


def printable(text: str) -> str:
    r"""Return text from a file or a file's name without control characters.

    Examples
    --------
    >>> printable("CT\x1b[31m")
    'CT?[31m'
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def file_name(path: Path) -> str:
    """Return a file's own name as it may be shown."""
    return printable(path.name)


def find_files(folder: Path) -> list[Path]:
    """Return every regular file below a folder, each once, in a fixed order.

    Links are followed; a folder or file that is reached twice (a loop of links) counts once.

    Raises
    ------
    SeriesError
        ``unreadable_file`` if a folder can't be listed, or if a link with a DICOM file's name
        leads nowhere.
    """

    def refuse(error: OSError) -> None:
        raise _unreadable(Path(error.filename), f"can't be listed ({error.strerror})") from error

    seen: set[tuple[int, int]] = set()

    def is_new(status: os.stat_result) -> bool:
        identity = (status.st_dev, status.st_ino)
        is_first = identity not in seen
        seen.add(identity)
        return is_first

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if not is_new(Path(parent).stat()):
            folders.clear()
            continue
        folders.sort()
        for path in (Path(parent, name) for name in sorted(names)):
            try:
                status = path.stat()
            except OSError as error:  # a link that leads nowhere
                if _is_named_as_dicom(path):
                    raise _unreadable(path, f"can't be reached ({error.strerror})") from error
                continue
            if stat.S_ISREG(status.st_mode) and is_new(status):
                files.append(path)
    return files


def read_headers(paths: Sequence[Path]) -> Iterator[Header]:
    """Yield the header of each DICOM file; files of another kind, and DICOMDIR, are passed over.

    Raises
    ------
    SeriesError
        ``unreadable_file`` for a file that can't be opened, or that is DICOM by its content or
        name and yet can't be parsed; ``unsupported_syntax`` for a deflated file.
    """
    for path in paths:
        header = _read_header(path)
        if header is not None:
            yield header


def _read_header(path: Path) -> Header | None:
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
            has_prefix = head[128:132] == b"DICM"
            if not has_prefix and not _starts_like_bare_dataset(head):
                _check_may_be_passed_over(path)
                return None
            _check_not_deflated(path, head)
            stream.seek(0)
            # force: files without preamble and prefix are still sent by old systems
            dataset = dcmread(
                stream, stop_before_pixels=True, force=True, specific_tags=list(_TAGS.values())
            )
            header = _to_header(path, stream, dataset)
            storage_class = dataset.file_meta.get("MediaStorageSOPClassUID")
    except SeriesError:  # a ValueError as well, but already the answer
        raise
    except OSError as error:
        raise _unreadable(path, f"can't be read ({error.strerror})") from error
    except PARSE_ERRORS as error:
        if not has_prefix:
            _check_may_be_passed_over(path)
            return None
        raise _unreadable(path, "can't be parsed as DICOM") from error
    if storage_class == MediaStorageDirectoryStorage:
        return None
    if not header.text("SOPClassUID") or not header.text("SeriesInstanceUID"):
        if not has_prefix:
            _check_may_be_passed_over(path)
            return None
        raise _unreadable(path, "says neither what it is nor of which series")
    return header


def _check_may_be_passed_over(path: Path) -> None:
    """Accept that a file isn't DICOM, unless its name says that it is."""
    if _is_named_as_dicom(path):
        raise _unreadable(path, "is named as DICOM but doesn't hold any")


def _is_named_as_dicom(path: Path) -> bool:
    # "._x.dcm" is what macOS leaves beside x.dcm on foreign disks
    return path.suffix.lower() in _DICOM_SUFFIXES and not path.name.startswith(".")


def _starts_like_bare_dataset(head: bytes) -> bool:
    """Tell whether the first element is of group 0002 or 0008 in little endian."""
    return len(head) > 8 and head[:2] in (b"\x02\x00", b"\x08\x00") and head[3] == 0


def _check_not_deflated(path: Path, head: bytes) -> None:
    # Asked before parsing: pydicom would inflate the whole file, whatever its size.
    if DeflatedExplicitVRLittleEndian.encode() in head:
        raise SeriesError(
            "unsupported_syntax",
            f"{file_name(path)} is in the deflated transfer syntax, which this version doesn't "
            "read: convert the series to Explicit VR Little Endian (e.g. with dcmconv +te).",
            (path,),
        )


def _to_header(path: Path, stream: BinaryIO, dataset: Dataset) -> Header:
    _, is_little_endian = dataset.original_encoding
    offset, length = _pixel_extent(stream, dataset)
    attributes = {}
    for keyword, tag in _TAGS.items():
        if tag in dataset:
            # not yet converted by pydicom, which takes longer than reading the file
            attributes[keyword] = bytes(dataset.get_item(tag).value or b"")
    return Header(
        path,
        attributes,
        bool(is_little_endian),
        str(dataset.file_meta.get("TransferSyntaxUID", "")),
        offset,
        length,
        os.fstat(stream.fileno()).st_size,
    )


def _pixel_extent(stream: BinaryIO, dataset: Dataset) -> tuple[int | None, int | None]:
    """Return offset and length of PixelData, at whose tag pydicom has stopped (PS3.5 7.1)."""
    is_implicit, is_little = dataset.original_encoding
    order = "<" if is_little else ">"
    element = stream.read(8 if is_implicit else 12)
    tag = _PIXEL_DATA_TAG if is_little else struct.pack(">HH", 0x7FE0, 0x0010)
    if element[:4] != tag:
        return None, None
    (length,) = struct.unpack(f"{order}I", element[-4:])
    return stream.tell(), None if length == _UNDEFINED_LENGTH else length


def _unreadable(path: Path, what: str) -> SeriesError:
    return SeriesError(
        "unreadable_file",
        f"{file_name(path)} {what}: fetch the file again, or take it out of the folder if it "
        "doesn't belong to the series.",
        (path,),
    )
