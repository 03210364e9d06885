"""Transfer syntaxes: how a file's pixels are encoded, and what decodes them.

=====================================  =============================  ==========================
transfer syntax                        decoders, the first installed  package
=====================================  =============================  ==========================
Implicit, Explicit VR Little Endian    (none needed)
Explicit VR Big Endian (retired)       (none needed)
Deflated Explicit VR Little Endian     zlib
RLE Lossless                           pydicom
JPEG 2000, High-Throughput JPEG 2000   openjpeg; gdcm (not HT)        pylibjpeg[openjpeg]
JPEG-LS, lossless and near-lossless    charls; gdcm                   pyjpegls
JPEG Lossless (process 14, also SV1)   gdcm; libjpeg                  python-gdcm
JPEG Baseline, JPEG Extended (8 bit)   gdcm; libjpeg                  python-gdcm
JPEG Extended (12 bit)                 libjpeg                        pylibjpeg-libjpeg (GPL)
=====================================  =============================  ==========================

One decoder is chosen before the first pixel is read, and no other is tried if it fails: results
don't depend on what else is installed. Only the lossy syntaxes could differ between decoders.
"""

import io
import os
import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Integer
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from data_prep.dicom.elements import to_uid

NATIVE_SYNTAXES = (
    "",
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
)
"""Uncompressed transfer syntaxes; a file that names none is in one of them."""

MAX_FRAGMENTS = 2**17
"""Most fragments of encapsulated pixels in a file, and so most frames."""

_ONE_SEGMENT = b"\1\0\0\0"
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"

_OPENJPEG = ("pylibjpeg", "pylibjpeg[openjpeg]")
_LIBJPEG = ("pylibjpeg", "pylibjpeg-libjpeg")
_CHARLS = ("pyjpegls", "pyjpegls")
_GDCM = ("gdcm", "python-gdcm")
_DECODERS: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType(
    {
        RLELossless: (("pydicom", "pydicom"),),
        JPEG2000Lossless: (_OPENJPEG, _GDCM),
        JPEG2000: (_OPENJPEG, _GDCM),
        HTJ2KLossless: (_OPENJPEG,),
        HTJ2KLosslessRPCL: (_OPENJPEG,),
        HTJ2K: (_OPENJPEG,),
        JPEGLSLossless: (_CHARLS, _GDCM),
        JPEGLSNearLossless: (_CHARLS, _GDCM),
        JPEGLossless: (_GDCM, _LIBJPEG),
        JPEGLosslessSV1: (_GDCM, _LIBJPEG),
        JPEGBaseline8Bit: (_GDCM, _LIBJPEG),
        JPEGExtended12Bit: (_GDCM, _LIBJPEG),
    }
)


def choose_decoder(transfer_syntax_uid: str, bits_stored: int) -> str | None:
    """Return pydicom's name of the decoder that is used, None where none is installed."""
    candidates = _candidates(transfer_syntax_uid, bits_stored)
    if not candidates:
        return None
    available = get_decoder(transfer_syntax_uid).available_plugins
    return next((name for name, _ in candidates if name in available), None)


def package_of(transfer_syntax_uid: str, bits_stored: int) -> str | None:
    """Return the package to install for a transfer syntax, None where none helps."""
    candidates = _candidates(transfer_syntax_uid, bits_stored)
    return candidates[0][1] if candidates else None


def _candidates(transfer_syntax_uid: str, bits_stored: int) -> tuple[tuple[str, str], ...]:
    if transfer_syntax_uid == JPEGExtended12Bit and bits_stored > 8:
        return (_LIBJPEG,)  # gdcm's wrapper decodes 8 bits only
    return _DECODERS.get(transfer_syntax_uid, ())


def decode(
    frame: bytes,
    transfer_syntax_uid: str,
    *,
    shape: tuple[int, int],
    dtype: np.dtype,
    bits_stored: int,
) -> Integer[np.ndarray, "j i"]:
    """Decode one frame of one sample a pixel.

    Parameters
    ----------
    frame
        The compressed stream, its fragments joined.
    transfer_syntax_uid
        One that `choose_decoder` knows a decoder for.
    shape
        Rows and columns.
    dtype
        Of the pixel cell.
    bits_stored
        As in the header.

    Raises
    ------
    ValueError
        If the stream says that it holds another image; asked before it is decoded, since decoders
        take its word for how much memory is needed.
    RuntimeError
        If the stream is damaged.
    """
    uid = to_uid(transfer_syntax_uid)
    if uid == RLELossless:
        excess = _rle_length(frame) - shape[0] * shape[1]
        is_of_size = 0 <= excess < min(shape)  # some writers pad
    else:
        is_of_size = _size_in_stream(frame) == (*shape, 1)
    if not is_of_size:
        raise ValueError("the compressed stream is of another size than its header says")
    options: dict[str, Any] = {
        "rows": shape[0],
        "columns": shape[1],
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": 8 * dtype.itemsize,
        "bits_stored": bits_stored,
        "pixel_representation": int(dtype.kind == "i"),
        "pixel_keyword": "PixelData",
    }
    decoded, _ = get_decoder(uid).as_array(
        b"".join((_ITEM, bytes(4), _ITEM, struct.pack("<I", len(frame)), frame, _SEQUENCE_END)),
        index=0,
        raw=True,
        decoding_plugin=choose_decoder(uid, bits_stored) or "",
        **options,
    )
    return np.array(decoded, dtype)


def _size_in_stream(frame: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and samples that a JPEG, JPEG-LS or JPEG 2000 stream declares.

    References
    ----------
    ITU-T T.81 B.2.2 (SOF), T.87 C.2.2 (SOF55), T.800 A.5.1 (SIZ).
    """
    if frame[4:8] == b"jP  ":  # in a file of its own, against PS3.5 A.4.4
        frame = frame[max(0, frame.find(b"\xff\x4f\xff\x51")) :]
    if frame[:4] == b"\xff\x4f\xff\x51" and len(frame) >= 42:
        x_end, y_end, x_start, y_start = struct.unpack_from(">4I", frame, 8)
        (samples,) = struct.unpack_from(">H", frame, 40)
        return y_end - y_start, x_end - x_start, samples
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns, samples = struct.unpack_from(">HHB", frame, at + 5)
            return rows, columns, samples
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _rle_length(frame: bytes) -> int:
    """Return how many bytes the first segment of an RLE frame decodes to (PS3.5 G.3).

    All segments are as long; the first, of the most significant bytes, has the longest runs.
    """
    start, end = struct.unpack_from("<II", frame, 4)
    segment = frame[start:end] if frame[:4] != _ONE_SEGMENT else frame[start:]
    at = length = 0
    while at < len(segment):
        control = segment[at]
        if control < 128:
            length += min(control + 1, len(segment) - at - 1)
            at += control + 2
        else:
            length += 257 - control if control > 128 else 0
            at += 2 if control > 128 else 1
    return length


def find_frames(
    stream: io.BufferedIOBase, pixel_offset: int, n_frames: int, frame_offsets: Sequence[int] = ()
) -> list[tuple[tuple[int, int], ...]]:
    """Find the fragments of each frame of encapsulated pixels.

    Parameters
    ----------
    stream
        The file.
    pixel_offset
        Where the value of PixelData starts.
    n_frames
        NumberOfFrames.
    frame_offsets
        The Extended Offset Table, if there is one.

    Returns
    -------
    list
        For each frame the start in the file and length of each of its fragments.

    Raises
    ------
    EOFError
        If the file ends before the last fragment does.
    ValueError
        If the fragments can't be told to be `n_frames` frames.

    References
    ----------
    PS3.5 A.4 (encapsulation, Basic Offset Table), PS3.3 C.7.6.3.1.8 (Extended Offset Table).
    """
    fragments, table = _read_fragments(stream, pixel_offset)
    offsets = list(frame_offsets or table)
    if n_frames == 1:
        return [tuple(fragments)]
    if len(fragments) == n_frames:
        return [(fragment,) for fragment in fragments]
    if len(offsets) != n_frames:
        raise ValueError(f"{len(fragments)} fragments without a table for {n_frames} frames")
    starts = {start - fragments[0][0]: n for n, (start, _) in enumerate(fragments)}
    bounds = [*(starts.get(offset, -1) for offset in offsets), len(fragments)]
    if bounds[0] != 0 or any(low >= high for low, high in pairwise(bounds)):
        raise ValueError("the table of frames contradicts the fragments")
    return [tuple(fragments[low:high]) for low, high in pairwise(bounds)]


def _read_fragments(
    stream: io.BufferedIOBase, pixel_offset: int
) -> tuple[list[tuple[int, int]], list[int]]:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(pixel_offset)
    fragments: list[tuple[int, int]] = []
    table: list[int] = []
    is_table = True
    while header := stream.read(8):
        if header[:4] == _SEQUENCE_END:
            break
        if len(header) < 8:
            raise EOFError
        if header[:4] != _ITEM or len(fragments) == MAX_FRAGMENTS:
            raise ValueError("the pixels aren't fragments as they should be")
        length = int.from_bytes(header[4:], "little")
        if stream.tell() + length > size:
            raise EOFError
        if is_table:
            if length > 4 * MAX_FRAGMENTS or length % 4:
                raise ValueError("the table of frames isn't one")
            table = np.frombuffer(stream.read(length), "<u4").tolist()
            is_table = False
            continue
        fragments.append((stream.tell(), length))
        stream.seek(length, os.SEEK_CUR)
    if not fragments:
        raise EOFError
    return fragments, table
