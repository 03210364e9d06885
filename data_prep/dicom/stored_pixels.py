"""How the pixels of a file are stored, from its header: where, in which cells, with what padding.

All that can be wrong with them and shows without decoding is refused here.
"""

from typing import NamedTuple

import numpy as np
from pydicom.uid import ExplicitVRBigEndian

from data_prep.dicom.elements import to_uid
from data_prep.dicom.headers import Header
from data_prep.dicom.syntaxes import NATIVE_SYNTAXES, choose_decoder, find_frames, package_of
from data_prep.problems import SeriesError
from data_prep.text import printable

MAX_MATRIX_SIZE = 4096
"""Most rows or columns: twice the largest clinical CT matrix. A header can claim any size, and
a compressed file can't be held to it by its length."""

MAX_VOXELS = 2**31
"""Most voxels of a volume (4 GiB of int16), four times the largest chest CT in use."""

MAX_ABSOLUTE_HU = 2**24
"""Largest CT number that a header may make possible: the integers that float32 holds exactly."""

DEFAULT_INTERCEPT = -1024.0
"""Of unsigned pixels whose rescale is missing, where one is taken: what nearly all CTs use."""


class StoredPixels(NamedTuple):
    """How the pixels of a slice are stored, and what makes them HU.

    Parameters
    ----------
    transfer_syntax_uid
        Says whether and how they are compressed.
    is_little_endian
        Order of the bytes of native pixels.
    offset
        Where the first pixel of a native frame lies in the file.
    fragments
        Start and length of the parts of a compressed frame; empty for a native one.
    bits_allocated, bits_stored, high_bit, is_signed
        The pixel cell (PS3.5 8.1.1).
    padding
        Lowest and highest stored value that mean "not part of the image" (PS3.3 C.7.5.1.1.2).
    slope, intercept
        HU = slope * stored value + intercept (PS3.3 C.11.1.1.2).
    rescale_is_missing
        Whether the file says too little to make HU of its stored values.
    """

    transfer_syntax_uid: str
    is_little_endian: bool
    offset: int
    fragments: tuple[tuple[int, int], ...]
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    padding: tuple[int, int] | None
    slope: float = 1.0
    intercept: float = 0.0
    rescale_is_missing: bool = False

    @property
    def cell_dtype(self) -> np.dtype:
        """Type of a pixel cell, in this machine's order of bytes."""
        return np.dtype(f"{'i' if self.is_signed else 'u'}{self.bits_allocated // 8}")


def refusal(header: Header, reason: str, what: str, frame: int | None = None) -> SeriesError:
    """Return the refusal of a file, or of one of its frames; `what` goes on after its name."""
    name = header.file.name if frame is None else f"Frame {frame + 1} of {header.file.name}"
    return SeriesError(reason, f"{name} {what}", (header.file.path,))


def matrix_size(header: Header) -> tuple[int, int]:
    """Return rows and columns.

    Raises
    ------
    SeriesError
        ``no_pixels``; ``size_mismatch`` where no CT has so many.
    """
    if header.pixel_offset is None:
        raise refusal(
            header,
            "no_pixels",
            "holds no pixel data, or is cut off before it: fetch the file again.",
        )
    rows, columns = header.integer("Rows") or 0, header.integer("Columns") or 0
    if not (0 < rows <= MAX_MATRIX_SIZE and 0 < columns <= MAX_MATRIX_SIZE):
        raise refusal(
            header,
            "size_mismatch",
            f"claims {rows} rows and {columns} columns, a CT has 1 to {MAX_MATRIX_SIZE} of each: "
            "the header is damaged; fetch the file again.",
        )
    return rows, columns


def locate_frames(header: Header, n_frames: int) -> list[StoredPixels]:
    """Find the pixels of each frame of a file; their rescale is left to be set.

    Raises
    ------
    SeriesError
        ``no_pixels``, ``size_mismatch``, ``too_large``, ``unsupported_pixels``,
        ``unsupported_syntax``, ``truncated_pixels``, ``unreadable_pixels`` or ``bad_header``.
    """
    rows, columns = matrix_size(header)
    if rows * columns * n_frames > MAX_VOXELS:
        raise refusal(
            header,
            "too_large",
            f"claims {columns} x {rows} x {n_frames} voxels, more than {MAX_VOXELS}: the header "
            "is damaged, or it is no patient's CT.",
        )
    cell = _pixel_cell(header)
    _check_syntax(header, cell)
    if header.transfer_syntax_uid not in NATIVE_SYNTAXES:
        fragments = _locate_fragments(header, n_frames)
        return [cell._replace(fragments=one) for one in fragments]
    cell_length = cell.bits_allocated // 8
    frame_length = rows * columns * cell_length
    _check_pixel_length(header, frame_length * n_frames, min(rows, columns) * cell_length)
    first = header.pixel_offset or 0
    return [cell._replace(offset=first + frame * frame_length) for frame in range(n_frames)]


def _pixel_cell(header: Header) -> StoredPixels:
    bits_allocated = header.integer("BitsAllocated")
    bits_stored = header.integer("BitsStored")
    high_bit = header.integer("HighBit")
    representation = header.integer("PixelRepresentation")
    if high_bit is None and bits_stored is not None:
        high_bit = bits_stored - 1
    if (
        bits_allocated not in (8, 16)
        or bits_stored is None
        or high_bit is None
        or representation not in (0, 1)
        or not 1 <= bits_stored <= high_bit + 1 <= bits_allocated
        # whether such bytes are swapped depends on the writer (PS3.5 A.3 and its history)
        or (bits_allocated == 8 and header.transfer_syntax_uid == ExplicitVRBigEndian)
    ):
        raise refusal(
            header,
            "unsupported_pixels",
            f"stores pixels in a way that isn't read (bits allocated {bits_allocated}, stored "
            f"{bits_stored}, high bit {high_bit}, representation {representation}; expected 8 "
            "or 16 allocated): export the series again.",
        )
    is_signed = representation == 1
    return StoredPixels(
        header.transfer_syntax_uid,
        header.is_little_endian,
        0,
        (),
        bits_allocated,
        bits_stored,
        high_bit,
        is_signed,
        _padding(header, bits_allocated, is_signed),
    )


def _check_syntax(header: Header, cell: StoredPixels) -> None:
    uid = to_uid(header.transfer_syntax_uid)
    if uid in NATIVE_SYNTAXES or choose_decoder(uid, cell.bits_stored) is not None:
        return
    remedy = "convert the series to Explicit VR Little Endian"
    package = package_of(uid, cell.bits_stored)
    if package is not None:
        remedy = f"install {package}, or {remedy}"
    raise refusal(
        header,
        "unsupported_syntax",
        f"is in the transfer syntax {printable(uid.name)}, which can't be decoded here: {remedy}.",
    )


def _locate_fragments(header: Header, n_frames: int) -> list[tuple[tuple[int, int], ...]]:
    table = header.attributes.get("ExtendedOffsetTable", b"")
    offsets = np.frombuffer(table, "<u8").tolist() if len(table) % 8 == 0 else ()
    try:
        with header.file.open() as stream:
            return find_frames(stream, header.pixel_offset or 0, n_frames, offsets)
    except SeriesError:  # a ValueError as well, but already the answer
        raise
    except EOFError as error:
        raise refusal(
            header,
            "truncated_pixels",
            "ends before its pixels do: the file is cut off; fetch it again.",
        ) from error
    except OSError as error:
        raise refusal(
            header, "unreadable_file", f"can't be read ({error.strerror}): fetch it again."
        ) from error
    except ValueError as error:
        raise refusal(
            header,
            "unreadable_pixels",
            f"holds pixels that can't be decoded ({error}): the file is damaged; fetch it again.",
        ) from error


def _check_pixel_length(header: Header, expected: int, shortest_line: int) -> None:
    """Accept padding behind the pixels (PS3.5 8.1.1, note), less than a row or column has.

    More may as well be a row or column that the header doesn't count: then pixels would shear.
    """
    excess = -1 if header.pixel_length is None else header.pixel_length - expected
    # an odd length is padded by one byte (PS3.5 7.1.1)
    if not 0 <= excess < max(2, shortest_line):
        claimed = "no" if header.pixel_length is None else header.pixel_length
        raise refusal(
            header,
            "size_mismatch",
            f"announces {claimed} bytes of pixels where its rows, columns and bits make "
            f"{expected}: the header is damaged; fetch the file again.",
        )
    missing = (header.pixel_offset or 0) + expected - header.file_size
    if missing > 0:
        raise refusal(
            header,
            "truncated_pixels",
            f"ends {missing} bytes before its pixels do: the file is cut off; fetch it again.",
        )


def _padding(header: Header, bits_allocated: int, is_signed: bool) -> tuple[int, int] | None:
    """Return the range of padding values as stored values read them.

    Scanners write the value with the wrong sign (63536 in place of -2000 among signed pixels),
    so only its bits count.
    """
    value = header.integer("PixelPaddingValue")
    if value is None:
        return None
    limit = header.integer("PixelPaddingRangeLimit")

    def reinterpreted(number: int) -> int:
        cells = 1 << bits_allocated
        bits = number % cells
        return bits - cells if is_signed and bits >= cells // 2 else bits

    low, high = sorted(reinterpreted(end) for end in (value, value if limit is None else limit))
    return low, high
