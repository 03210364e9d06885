"""Data elements at the top level of a DICOM stream (PS3.5 section 7), without their sequences.

A walk that reads the few values asked for and steps over everything else: a third of the time of
a full parser, in memory and time that no header can blow up.
"""

import io
import os
import struct
import zlib
from collections.abc import Collection
from dataclasses import dataclass

from pydicom import config
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
)

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

HEAD_BYTES = 4096
"""Covers the preamble and the file meta information of any file in practice."""

MAX_VALUE_BYTES = 2**16
"""Longest value of a single element that is kept; a longer one is stepped over."""

MAX_INFLATED_BYTES = 2**29
"""Largest deflated data set that is read (1,000 frames of 512 x 512): all of it is in memory."""

MAX_RATIO = 100
"""How many times its compressed size something inflated may have, where that is more than
`MIN_BOMB_BYTES`; no CT compresses that well."""

MIN_BOMB_BYTES = 2**26
"""What may always be inflated: an empty image compresses without limit."""

PIXEL_DATA = 0x7FE00010
UNDEFINED_LENGTH = 0xFFFFFFFF

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
# Their length takes four bytes, after two that are reserved (PS3.5 7.1.2)
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_META_GROUP = 0x0002
_TRANSFER_SYNTAX = 0x00020010
_MAX_DEPTH = 1000
_DEFLATED_ELEMENT = b"\x02\x00\x10\x00UI\x16\x00" + DeflatedExplicitVRLittleEndian.encode()
_CHUNK_BYTES = 2**20


@dataclass(frozen=True, eq=False)
class Elements:
    """What a walk found.

    Parameters
    ----------
    values
        By tag, encoded as in the file; empty where the element is there and its value isn't kept
        (a sequence of undefined length, or more than `MAX_VALUE_BYTES`).
    meta
        Values of the file meta information (group 0002), by tag.
    is_implicit, is_little_endian
        Encoding of the data set.
    pixel_offset, pixel_length
        Where the value of PixelData starts and its length in bytes; None without PixelData. The
        length is None as well if it is undefined (encapsulated).
    """

    values: dict[int, bytes]
    meta: dict[int, bytes]
    is_implicit: bool
    is_little_endian: bool
    pixel_offset: int | None
    pixel_length: int | None

    @property
    def transfer_syntax_uid(self) -> str:
        """Empty where the file doesn't say."""
        return self.meta.get(_TRANSFER_SYNTAX, b"").decode("ascii", "replace").strip(" \0")


def to_uid(text: str) -> UID:
    """Return a UID, whose ``name`` is known for the standard's, without a warning if it is none."""
    return UID(text, validation_mode=config.IGNORE)


def has_prefix(head: bytes) -> bool:
    """Tell whether the first bytes of a file are those of a DICOM file (PS3.10 7.1)."""
    return head[128:132] == b"DICM"


def start_of_meta(head: bytes) -> int:
    """Return where the file meta information starts: old files lack preamble and prefix."""
    return 132 if has_prefix(head) else 0


def starts_like_bare_dataset(head: bytes) -> bool:
    """Tell whether the first element is of group 0002 or 0008, as in a file without preamble."""
    return len(head) > 8 and (
        (head[:2] in (b"\x02\x00", b"\x08\x00") and head[3] == 0)
        or (head[:2] == b"\x00\x08" and head[2] == 0)
    )


def read_elements(stream: io.BufferedIOBase, tags: Collection[int]) -> Elements:
    """Walk over the top level of a DICOM stream up to its pixels.

    Parameters
    ----------
    stream
        From its beginning; with or without preamble and file meta information.
    tags
        Elements whose values are kept.

    Raises
    ------
    ValueError
        If the bytes can't be a DICOM data set.
    """
    stream.seek(start_of_meta(stream.read(132)))
    meta = read_meta(stream)
    is_implicit, is_little = _guess_encoding(stream, meta)
    values: dict[int, bytes] = {}
    walk = _Walk(stream, is_little)
    while (found := walk.next_element(is_implicit)) is not None:
        tag, length, inner_is_implicit = found
        if tag == PIXEL_DATA:
            known_length = None if length == UNDEFINED_LENGTH else length
            return Elements(values, meta, is_implicit, is_little, stream.tell(), known_length)
        if tag in tags:
            values[tag] = b""
        if length == UNDEFINED_LENGTH:
            walk.skip_sequence(inner_is_implicit)
        elif tag in tags and length <= MAX_VALUE_BYTES:
            values[tag] = stream.read(length)
        else:
            stream.seek(length, os.SEEK_CUR)
    return Elements(values, meta, is_implicit, is_little, None, None)


def read_meta(stream: io.BufferedIOBase) -> dict[int, bytes]:
    """Read the file meta information, always in explicit little endian (PS3.10 7.1).

    The stream is left at the first element of the data set.
    """
    meta: dict[int, bytes] = {}
    walk = _Walk(stream, is_little_endian=True)
    start = stream.tell()
    while (found := walk.next_element(is_implicit=False)) is not None:
        tag, length, _ = found
        if tag >> 16 != _META_GROUP or length > MAX_VALUE_BYTES:
            break
        meta[tag] = stream.read(length)
        start = stream.tell()
    stream.seek(start)
    return meta


def is_deflated(head: bytes) -> bool:
    """Tell whether the first bytes of a file name the deflated transfer syntax."""
    return DeflatedExplicitVRLittleEndian.encode() in head and (
        _DEFLATED_ELEMENT in head[: _end_of_meta(head)]
    )


def _end_of_meta(head: bytes) -> int:
    stream = io.BytesIO(head)
    stream.seek(start_of_meta(head))
    read_meta(stream)
    return stream.tell()


def inflate(stream: io.BufferedIOBase, head: bytes) -> bytes:
    """Return a file in the deflated transfer syntax as one in Explicit VR Little Endian.

    Parameters
    ----------
    stream
        The file.
    head
        Its first bytes, which hold the file meta information.

    Raises
    ------
    ValueError
        If the data set is damaged, or inflates to more than `MAX_INFLATED_BYTES` or `MAX_RATIO`.

    References
    ----------
    PS3.5 A.5: all that follows the file meta information is deflated (RFC 1951).
    """
    end = _end_of_meta(head)
    uid = ExplicitVRLittleEndian.encode().ljust(22, b"\0")
    content = bytearray(head[:end].replace(_DEFLATED_ELEMENT, _DEFLATED_ELEMENT[:8] + uid))
    stream.seek(end)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    n_read = 0
    try:
        while not inflater.eof and (chunk := stream.read(_CHUNK_BYTES // 16)):
            n_read += len(chunk)
            while chunk and not inflater.eof:
                content += inflater.decompress(chunk, _CHUNK_BYTES)
                chunk = inflater.unconsumed_tail
                if len(content) > min(MAX_INFLATED_BYTES, max(MIN_BOMB_BYTES, MAX_RATIO * n_read)):
                    raise ValueError("inflates to more than is read")
    except zlib.error as error:
        raise ValueError("is damaged") from error
    return bytes(content)


def _guess_encoding(stream: io.BufferedIOBase, meta: dict[int, bytes]) -> tuple[bool, bool]:
    """Return whether the data set is implicit and whether it is little endian, by its bytes.

    What the meta information says of it is often missing, and sometimes wrong.
    """
    start = stream.tell()
    first = stream.read(6)
    stream.seek(start)
    uid = meta.get(_TRANSFER_SYNTAX, b"").decode("ascii", "replace").strip(" \0")
    is_big = uid == ExplicitVRBigEndian or (not uid and first[:1] == b"\0")
    return not _is_vr(first[4:6]), not is_big


def _is_vr(two: bytes) -> bool:
    return len(two) == 2 and two.isalpha() and two.isupper()


class _Walk:
    """Steps from element to element of a stream."""

    def __init__(self, stream: io.BufferedIOBase, is_little_endian: bool) -> None:
        order = "<" if is_little_endian else ">"
        self._stream = stream
        self._header = struct.Struct(f"{order}HHL").unpack
        self._short = struct.Struct(f"{order}H").unpack
        self._long = struct.Struct(f"{order}L").unpack

    def next_element(self, is_implicit: bool | None) -> tuple[int, int, bool | None] | None:
        """Return tag, length and whether what lies inside is implicit; None at the end.

        Parameters
        ----------
        is_implicit
            None where it isn't known: then the bytes decide.
        """
        header = self._stream.read(8)
        if len(header) < 8:
            return None
        group, element, length = self._header(header)
        tag = group << 16 | element
        vr = header[4:6]
        if is_implicit or group == 0xFFFE or not _is_vr(vr):
            return tag, length, is_implicit
        if vr not in _LONG_VRS:
            return tag, self._short(header[6:])[0], False
        more = self._stream.read(4)
        if len(more) < 4:
            return None
        # Within UN of undefined length everything is implicit (PS3.5 6.2.2), by the standard
        return tag, self._long(more)[0], None if vr == b"UN" else False

    def skip_sequence(self, is_implicit: bool | None) -> None:
        """Go behind a sequence, or encapsulated pixels, of undefined length."""
        inside = [is_implicit]
        while inside:
            found = self.next_element(inside[-1])
            if found is None:
                return
            tag, length, inner_is_implicit = found
            if tag == _SEQUENCE_END:
                inside.pop()
            elif length != UNDEFINED_LENGTH:
                self._stream.seek(length, os.SEEK_CUR)
            elif tag != _ITEM:
                if len(inside) == _MAX_DEPTH:
                    raise ValueError("sequences are nested too deeply")
                inside.append(inner_is_implicit)
