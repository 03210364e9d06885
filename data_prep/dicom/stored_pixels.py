"""How the pixels of a file are stored, from its header: where, in which cells, with what padding.

All that can be wrong with them and shows without decoding is refused here.
"""

import numpy as np
from pydicom.uid import ExplicitVRBigEndian

from data_prep.dicom.elements import to_uid
from data_prep.dicom.header import Header
from data_prep.dicom.pixels import MAX_MATRIX_SIZE, MAX_VOXELS, StoredPixels
from data_prep.dicom.syntaxes import NATIVE_SYNTAXES, choose_decoder, find_frames, package_of
from data_prep.problems import SeriesError
from data_prep.text import printable


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
        what = f"claims {columns} x {rows} x {n_frames} voxels, more than {MAX_VOXELS}"
        raise header.refusal("too_large", what, "the header is damaged, or it is no patient's CT")
    cell = _pixel_cell(header)
    _check_syntax(header, cell)
    if header.transfer_syntax_uid not in NATIVE_SYNTAXES:
        return [cell._replace(fragments=one) for one in _locate_fragments(header, n_frames)]
    cell_length = cell.bits_allocated // 8
    frame_length = rows * columns * cell_length
    _check_pixel_length(header, frame_length * n_frames, min(rows, columns) * cell_length)
    first = header.pixel_offset or 0
    return [cell._replace(offset=first + frame * frame_length) for frame in range(n_frames)]


def matrix_size(header: Header) -> tuple[int, int]:
    """Return rows and columns, or raise ``no_pixels`` or ``size_mismatch``."""
    if header.pixel_offset is None:
        what = "holds no pixel data, or is cut off before it"
        raise header.refusal("no_pixels", what, "fetch the file again")
    rows, columns = header.integer("Rows") or 0, header.integer("Columns") or 0
    if not (0 < rows <= MAX_MATRIX_SIZE and 0 < columns <= MAX_MATRIX_SIZE):
        what = f"claims {rows} rows and {columns} columns, a CT has 1 to {MAX_MATRIX_SIZE} of each"
        raise header.refusal("size_mismatch", what, _DAMAGED_HEADER)
    return rows, columns


_DAMAGED_HEADER = "the header is damaged; fetch the file again"
_CUT_OFF = "the file is cut off; fetch it again"


def _pixel_cell(header: Header) -> StoredPixels:
    allocated, stored, high_bit, representation = (
        header.integer(keyword)
        for keyword in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    )
    if high_bit is None and stored is not None:
        high_bit = stored - 1
    if (
        allocated not in (8, 16)
        or stored is None
        or high_bit is None
        or representation not in (0, 1)
        or not 1 <= stored <= high_bit + 1 <= allocated
        # whether such bytes are swapped depends on the writer (PS3.5 A.3 and its history)
        or (allocated == 8 and header.transfer_syntax_uid == ExplicitVRBigEndian)
    ):
        what = (
            f"stores pixels in a way that isn't read (bits allocated {allocated}, stored {stored}, "
            f"high bit {high_bit}, representation {representation}; expected 8 or 16 allocated)"
        )
        raise header.refusal("unsupported_pixels", what, "export the series again")
    is_signed = representation == 1
    return StoredPixels(
        header.transfer_syntax_uid,
        header.is_little_endian,
        0,
        (),
        allocated,
        stored,
        high_bit,
        is_signed,
        _padding(header, allocated, is_signed),
    )


def _check_syntax(header: Header, cell: StoredPixels) -> None:
    uid = to_uid(header.transfer_syntax_uid)
    if uid in NATIVE_SYNTAXES or choose_decoder(uid, cell.bits_stored) is not None:
        return
    remedy = "convert the series to Explicit VR Little Endian"
    package = package_of(uid, cell.bits_stored)
    if package is not None:
        remedy = f"install {package}, or {remedy}"
    what = f"is in the transfer syntax {printable(uid.name)}, which can't be decoded here"
    raise header.refusal("unsupported_syntax", what, remedy)


def _locate_fragments(header: Header, n_frames: int) -> list[tuple[tuple[int, int], ...]]:
    table = header.attributes.get("ExtendedOffsetTable", b"")
    offsets = np.frombuffer(table, "<u8").tolist() if len(table) % 8 == 0 else ()
    try:
        with header.file.open() as stream:
            return find_frames(stream, header.pixel_offset or 0, n_frames, offsets)
    except SeriesError:  # a ValueError as well, but already the answer
        raise
    except EOFError as error:
        what = "ends before its pixels do"
        raise header.refusal("truncated_pixels", what, _CUT_OFF) from error
    except OSError as error:
        raise header.file.unreadable(f"can't be read ({error.strerror})") from error
    except ValueError as error:
        what = f"holds pixels that can't be decoded ({error})"
        remedy = "the file is damaged; fetch it again"
        raise header.refusal("unreadable_pixels", what, remedy) from error


def _check_pixel_length(header: Header, expected: int, shortest_line: int) -> None:
    """Accept padding behind the pixels (PS3.5 8.1.1, note), less than a row or column has.

    More may as well be a row or column that the header doesn't count: then pixels would shear.
    """
    excess = -1 if header.pixel_length is None else header.pixel_length - expected
    # an odd length is padded by one byte (PS3.5 7.1.1)
    if not 0 <= excess < max(2, shortest_line):
        claimed = "no" if header.pixel_length is None else header.pixel_length
        what = (
            f"announces {claimed} bytes of pixels where its rows, columns and bits make {expected}"
        )
        raise header.refusal("size_mismatch", what, _DAMAGED_HEADER)
    missing = (header.pixel_offset or 0) + expected - header.file_size
    if missing > 0:
        what = f"ends {missing} bytes before its pixels do"
        raise header.refusal("truncated_pixels", what, _CUT_OFF)


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
