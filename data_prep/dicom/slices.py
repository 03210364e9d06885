"""One DICOM header -> one CT slice: its place and how its pixels are stored, or why not."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameSingleBitSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from data_prep.dicom.headers import Header, file_name, printable
from data_prep.errors import SeriesError

MAX_MATRIX_SIZE = 4096
"""Most rows or columns: twice the largest clinical CT matrix. A header can claim any size, and
a compressed file can't be held to it by its length."""

MAX_ABSOLUTE_HU = 2**24
"""Largest CT number that a header may make possible: the integers that float32 holds exactly."""

NATIVE_SYNTAXES = ("", ImplicitVRLittleEndian, ExplicitVRLittleEndian)
"""Uncompressed little-endian transfer syntaxes; a file that names none is one of them."""

_ENHANCED_CT_CLASSES = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_CT_CLASSES = (CTImageStorage, *_ENHANCED_CT_CLASSES)
_SECONDARY_CAPTURE_CLASSES = (
    SecondaryCaptureImageStorage,
    MultiFrameSingleBitSecondaryCaptureImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
)
_HU_RESCALE_TYPES = ("", "HU", "HU_MOD", "US")  # PS3.3 C.11.1.1.2; absent means HU for a CT


class StoredPixels(NamedTuple):
    """How a slice's pixels are stored, and what makes them HU.

    Parameters
    ----------
    transfer_syntax_uid
        Says whether and how they are compressed.
    offset
        Where the value of PixelData starts in the file.
    bits_allocated, bits_stored, high_bit, is_signed
        The pixel cell (PS3.5 8.1.1).
    slope, intercept
        HU = slope * stored value + intercept (PS3.3 C.11.1.1.2).
    padding
        Lowest and highest stored value that mean "not part of the image" (PS3.3 C.7.5.1.1.2).
    """

    transfer_syntax_uid: str
    offset: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class CTSlice:
    """One CT image that can be placed and decoded.

    Parameters
    ----------
    path
        The file.
    sop_instance_uid
        SOPInstanceUID.
    frame_of_reference_uid
        Empty where the file doesn't say.
    rows, columns
        Matrix size.
    position_lps
        ImagePositionPatient, shape (3,): centre of the first pixel in mm.
    orientation_lps
        ImageOrientationPatient, shape (6,): direction cosines.
    pixel_spacing_mm
        PixelSpacing, shape (2,): between rows, between columns.
    pixels
        How the pixels are stored.
    """

    path: Path
    sop_instance_uid: str
    frame_of_reference_uid: str
    rows: int
    columns: int
    position_lps: np.ndarray
    orientation_lps: np.ndarray
    pixel_spacing_mm: np.ndarray
    pixels: StoredPixels


def is_ct_image(header: Header) -> bool:
    """Tell whether a file is a CT image by its SOP class, single- or multi-frame."""
    return header.text("SOPClassUID") in _CT_CLASSES


def describe_kind(header: Header) -> str:
    """Return what a file is, for a sentence: its SOP class and modality."""
    kind = UID(header.text("SOPClassUID")).name
    return printable(f"{kind}, modality {header.text('Modality') or 'not stated'}")


def to_ct_slice(header: Header) -> CTSlice:
    """Check one header of the chosen series and return what the reader needs of it.

    Raises
    ------
    SeriesError
        If the file isn't a CT slice that can be placed and decoded. Reasons: ``not_ct``,
        ``secondary_capture``, ``enhanced_multiframe``, ``localizer``, ``colour``, ``not_hu``,
        ``no_uid``, ``no_position``, ``no_pixel_spacing``, ``size_mismatch``, ``no_pixels``,
        ``truncated_pixels``, ``unsupported_pixels``, ``unsupported_syntax``, ``no_rescale``,
        ``bad_rescale``, ``bad_header``.
    """
    _check_kind(header)
    if not header.text("SOPInstanceUID"):
        raise _refusal(header, "no_uid", "has no SOPInstanceUID: export the series again.")
    if header.pixel_offset is None:
        raise _refusal(
            header,
            "no_pixels",
            "holds no pixel data, or is cut off before it: fetch the file again.",
        )
    rows, columns = header.integer("Rows") or 0, header.integer("Columns") or 0
    if not (0 < rows <= MAX_MATRIX_SIZE and 0 < columns <= MAX_MATRIX_SIZE):
        raise _refusal(
            header,
            "size_mismatch",
            f"claims {rows} rows and {columns} columns, a CT has 1 to {MAX_MATRIX_SIZE} of each: "
            "the header is damaged; fetch the file again.",
        )
    position_lps = header.numbers("ImagePositionPatient", 3)
    orientation_lps = header.numbers("ImageOrientationPatient", 6)
    pixel_spacing_mm = header.numbers("PixelSpacing", 2)
    if position_lps is None or orientation_lps is None:
        raise _refusal(
            header,
            "no_position",
            "has no ImagePositionPatient or no ImageOrientationPatient, so it can't be placed "
            "in the patient: export the original series again.",
        )
    if pixel_spacing_mm is None or not (pixel_spacing_mm > 0).all():
        raise _refusal(
            header,
            "no_pixel_spacing",
            "has no positive PixelSpacing, so its scale is unknown: export the original series "
            "again.",
        )
    return CTSlice(
        header.path,
        header.text("SOPInstanceUID"),
        header.text("FrameOfReferenceUID"),
        rows,
        columns,
        position_lps,
        orientation_lps,
        pixel_spacing_mm,
        _stored_pixels(header, rows, columns, header.pixel_offset),
    )


def _check_kind(header: Header) -> None:
    sop_class = header.text("SOPClassUID")
    image_type = header.text("ImageType").upper().split("\\")
    checks = (
        (
            sop_class in _SECONDARY_CAPTURE_CLASSES,
            "secondary_capture",
            "is a secondary capture, not a slice: take it out of the folder.",
        ),
        (
            sop_class in _ENHANCED_CT_CLASSES or (header.integer("NumberOfFrames") or 1) > 1,
            "enhanced_multiframe",
            (
                "holds several frames, which this version doesn't read: export the series "
                "as single-frame CT images."
            ),
        ),
        (
            sop_class != CTImageStorage,
            "not_ct",
            f"is not a CT image ({describe_kind(header)}): give a CT series.",
        ),
        (
            "LOCALIZER" in image_type,
            "localizer",
            "is a localizer (scout view), not a slice: take it out of the folder.",
        ),
        (
            (header.integer("SamplesPerPixel") or 1) != 1,
            "colour",
            "is a colour image, not CT numbers: take it out of the folder.",
        ),
        (
            header.text("RescaleType").upper() not in _HU_RESCALE_TYPES,
            "not_hu",
            (
                f"holds values of type {printable(header.text('RescaleType'))}, not "
                "Hounsfield units: choose the series with CT numbers."
            ),
        ),
    )
    for is_wrong, reason, sentence in checks:
        if is_wrong:
            raise _refusal(header, reason, sentence)


def _stored_pixels(header: Header, rows: int, columns: int, offset: int) -> StoredPixels:
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
    ):
        raise _refusal(
            header,
            "unsupported_pixels",
            f"stores pixels in a way that isn't read (bits allocated {bits_allocated}, stored "
            f"{bits_stored}, high bit {high_bit}, representation {representation}; expected 8 "
            "or 16 allocated): export the series again.",
        )
    _check_syntax(header)
    if header.transfer_syntax_uid in NATIVE_SYNTAXES:
        _check_pixel_length(header, rows * columns * bits_allocated // 8)
    is_signed = representation == 1
    slope, intercept = _rescale(header, bits_stored, is_signed)
    return StoredPixels(
        header.transfer_syntax_uid,
        offset,
        bits_allocated,
        bits_stored,
        high_bit,
        is_signed,
        slope,
        intercept,
        _padding(header, bits_allocated, is_signed),
    )


def _check_syntax(header: Header) -> None:
    uid = UID(header.transfer_syntax_uid)
    if uid in NATIVE_SYNTAXES:
        return
    remedy = "convert the series to Explicit VR Little Endian"
    try:
        decoder = get_decoder(uid)
    except NotImplementedError:
        pass
    else:
        if decoder.is_available:
            return
        needs = "; ".join(decoder.missing_dependencies)
        remedy = f"install one of its decoders ({needs}), or {remedy}"
    raise _refusal(
        header,
        "unsupported_syntax",
        f"is in the transfer syntax {printable(uid.name)}, which can't be decoded here: {remedy}.",
    )


def _check_pixel_length(header: Header, expected: int) -> None:
    # an odd length is padded by one byte (PS3.5 7.1.1)
    if header.pixel_length not in (expected, expected + expected % 2):
        raise _refusal(
            header,
            "size_mismatch",
            f"announces {header.pixel_length} bytes of pixels where its rows, columns and bits "
            f"make {expected}: the header is damaged; fetch the file again.",
        )
    missing = (header.pixel_offset or 0) + expected - header.file_size
    if missing > 0:
        raise _refusal(
            header,
            "truncated_pixels",
            f"ends {missing} bytes before its pixels do: the file is cut off; fetch it again.",
        )


def _rescale(header: Header, bits_stored: int, is_signed: bool) -> tuple[float, float]:
    slope, intercept = header.numbers("RescaleSlope", 1), header.numbers("RescaleIntercept", 1)
    if slope is None and intercept is None and is_signed:
        return 1.0, 0.0  # without a rescale the stored values are the output (PS3.3 C.11.1)
    if slope is None or intercept is None:
        raise _refusal(
            header,
            "no_rescale",
            "lacks RescaleSlope or RescaleIntercept, so its stored values can't be turned into "
            "Hounsfield units: export the original series again.",
        )
    largest = abs(slope[0]) * 2.0**bits_stored + abs(intercept[0])
    if slope[0] == 0 or largest > MAX_ABSOLUTE_HU:
        raise _refusal(
            header,
            "bad_rescale",
            f"has rescale slope {slope[0]:g} and intercept {intercept[0]:g}, which can't give "
            "Hounsfield units: export the original series again.",
        )
    return float(slope[0]), float(intercept[0])


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


def _refusal(header: Header, reason: str, what: str) -> SeriesError:
    return SeriesError(reason, f"{file_name(header.path)} {what}", (header.path,))
