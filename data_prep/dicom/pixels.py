"""CT slices, how their pixels are stored, and stored pixels -> HU, written into one array."""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, Num

from data_prep.dicom.elements import PARSE_ERRORS
from data_prep.dicom.files import DicomFile
from data_prep.dicom.syntaxes import NATIVE_SYNTAXES, decode
from data_prep.problems import Finding, SeriesError

_INT16 = np.iinfo(np.int16)

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


@dataclass(frozen=True, eq=False)
class CTSlice:
    """One CT image that can be placed and decoded.

    Parameters
    ----------
    file
        The file.
    frame
        Which frame of an enhanced multi-frame object, from 0; None for a single-frame image.
    sop_instance_uid
        SOPInstanceUID; the frames of an object share it.
    frame_of_reference_uid
        Empty where the file doesn't say.
    rows, columns
        Matrix size.
    position_lps
        ImagePositionPatient, shape (3,): centre of the first pixel in mm.
    orientation_lps
        ImageOrientationPatient, shape (6,): direction cosines, without the rounding of three
        decimals.
    pixel_spacing_mm
        PixelSpacing, shape (2,): between rows, between columns.
    pixels
        How the pixels are stored.
    instance_number
        InstanceNumber, or InStackPositionNumber of a frame; None where absent or no number.
    series_count
        How many images the acquisition or series has, as the file says (ImagesInAcquisition or
        NumberOfSeriesRelatedInstances); None where it doesn't, and for frames.
    phase_keys
        Every one of `data_prep.dicom.header.PHASE_KEYWORDS`, the most telling first, and its
        printable text, empty where the file doesn't say.
    position_rounding_mm, orientation_rounding
        How far each number of the position, shape (3,), and any of the orientation may be off by
        the digits that it is written with.
    left_open
        Which word of the header leaves open whether the values are HU; empty where they are.
    """

    file: DicomFile
    frame: int | None
    sop_instance_uid: str
    frame_of_reference_uid: str
    rows: int
    columns: int
    position_lps: np.ndarray
    orientation_lps: np.ndarray
    pixel_spacing_mm: np.ndarray
    pixels: StoredPixels
    instance_number: int | None = None
    series_count: int | None = None
    phase_keys: Mapping[str, str] = field(default_factory=dict)
    position_rounding_mm: np.ndarray = field(default_factory=lambda: np.zeros(3))
    orientation_rounding: float = 0.0
    left_open: str = ""

    @property
    def name(self) -> str:
        """The file's name, and which of its frames, as they may be shown."""
        return self.file.name if self.frame is None else f"{self.file.name} frame {self.frame + 1}"

    def refusal(self, name: str, what: str, remedy: str) -> SeriesError:
        """Return a refusal of this slice; `what` goes on after its name."""
        return SeriesError(Finding(name, f"{self.name} {what}", remedy, (self.file,)))


def with_default_rescale(slices: Sequence[CTSlice]) -> list[CTSlice]:
    """Give slices whose rescale is missing the usual one; what is there stays.

    The intercept becomes `DEFAULT_INTERCEPT` for unsigned pixels, 0 for signed ones; the slope 1.
    Whether air and tissue then lie where they belong is for the caller to check.
    """

    def repaired(one: CTSlice) -> CTSlice:
        pixels = one.pixels
        if not pixels.rescale_is_missing:
            return one
        intercept = pixels.intercept or (0.0 if pixels.is_signed else DEFAULT_INTERCEPT)
        return replace(one, pixels=pixels._replace(intercept=intercept, rescale_is_missing=False))

    return [repaired(one) for one in slices]


def read_hu(
    slices: Sequence[CTSlice],
) -> tuple[Num[np.ndarray, "i j k"], Bool[np.ndarray, "i j k"] | None]:
    """Decode slices of one matrix size into Hounsfield units.

    The result is int16 if every slope and intercept is integral and every value fits, else
    float32 (which holds every integer that a header may make possible, see
    `data_prep.dicom.stored_pixels.MAX_ABSOLUTE_HU`). Slices lie one after the other in memory,
    rows within them, so nothing is rearranged; besides the result there is one slice in memory,
    and of a multi-frame object in an archive the whole object.

    Parameters
    ----------
    slices
        In the order of ``k``; none whose rescale is missing.

    Returns
    -------
    hu : ndarray
        Hounsfield units as the file says, also in the padding.
    outside : ndarray or None
        True where the stored value is a padding value; None where no voxel is.

    Raises
    ------
    SeriesError
        ``no_rescale``, ``too_large``, ``truncated_pixels``, ``unreadable_pixels`` or
        ``unreadable_file``.
    """
    shape = (len(slices), slices[0].rows, slices[0].columns)
    _check(slices, shape)
    is_integral = all(
        one.pixels.slope.is_integer() and one.pixels.intercept.is_integer() for one in slices
    )
    try:
        hu = np.empty(shape, np.int16 if is_integral else np.float32)
    except MemoryError as error:
        what = f"and others make {' x '.join(map(str, shape[::-1]))} voxels, more than memory holds"
        raise slices[0].refusal("too_large", what, "give it more memory") from error
    outside = None
    # pydicom's decoders warn of streams that bend the standard; what matters is checked
    with warnings.catch_warnings(action="ignore"):
        for _, of_one_file in groupby(enumerate(slices), key=lambda pair: pair[1].file):
            for k, one, stored in _read_file(list(of_one_file)):
                if one.pixels.padding is not None:
                    low, high = one.pixels.padding
                    is_padding = (stored >= low) & (stored <= high)
                    if is_padding.any():
                        outside = np.zeros(shape, np.bool_) if outside is None else outside
                        outside[k] = is_padding
                if hu.dtype == np.int16 and not _fits_int16(stored, one):
                    hu = hu.astype(np.float32)
                _rescale(stored, one, out=hu[k])
    return hu.T, None if outside is None else outside.T


def _check(slices: Sequence[CTSlice], shape: tuple[int, int, int]) -> None:
    if np.prod(shape, dtype=np.int64) > MAX_VOXELS:
        what = (
            f"and others claim {shape[2]} x {shape[1]} x {shape[0]} voxels, more than {MAX_VOXELS}"
        )
        remedy = "their headers are damaged, or it is no patient's CT"
        raise slices[0].refusal("too_large", what, remedy)
    for one in slices:
        if one.pixels.rescale_is_missing:
            what = "lacks RescaleSlope or RescaleIntercept, which make Hounsfield units of values"
            raise one.refusal("no_rescale", what, "export the original series again")


def _fits_int16(stored: Integer[np.ndarray, "j i"], one: CTSlice) -> bool:
    ends = [
        int(end) * one.pixels.slope + one.pixels.intercept for end in (stored.min(), stored.max())
    ]
    return min(ends) >= _INT16.min and max(ends) <= _INT16.max


def _rescale(
    stored: Integer[np.ndarray, "j i"], one: CTSlice, *, out: Num[np.ndarray, "j i"]
) -> None:
    """Write ``slope * stored + intercept`` (PS3.3 C.11.1.1.2), which `out` can hold."""
    slope, intercept = one.pixels.slope, one.pixels.intercept
    if slope == 1 and out.dtype == np.int16 and stored.itemsize == 2:
        # Modulo 2**16 throughout, and so right, as the sum fits; eight times as fast.
        offset = np.array(int(intercept)).astype(np.int16)
        np.add(stored.view(np.int16), offset, out=out)
    else:
        out[...] = stored.astype(np.float64) * slope + intercept


def _read_file(
    numbered: Sequence[tuple[int, CTSlice]],
) -> Iterator[tuple[int, CTSlice, Integer[np.ndarray, "j i"]]]:
    """Yield the stored values of slices of one file, which is opened once."""
    first = numbered[0][1]
    try:
        with first.file.open() as stream:
            for k, one in numbered:
                yield k, one, _read_stored(stream, one)
    except OSError as error:
        raise _unreadable(first) from error


def _read_stored(stream: io.BufferedIOBase, one: CTSlice) -> Integer[np.ndarray, "j i"]:
    """Return the stored values of a slice, sign and unused bits sorted out (PS3.5 8.1.1)."""
    pixels = one.pixels
    if pixels.transfer_syntax_uid in NATIVE_SYNTAXES:
        stored = _read_native(stream, one)
    else:
        stored = _read_encoded(stream, one)
    # The high bit goes to the top of the cell, and back with its sign: this drops what older
    # scanners keep in the unused bits.
    stored <<= pixels.bits_allocated - 1 - pixels.high_bit
    stored >>= pixels.bits_allocated - pixels.bits_stored
    return stored


def _read_native(stream: io.BufferedIOBase, one: CTSlice) -> Integer[np.ndarray, "j i"]:
    order: Literal["<", ">"] = "<" if one.pixels.is_little_endian else ">"
    stored = np.empty((one.rows, one.columns), one.pixels.cell_dtype.newbyteorder(order))
    stream.seek(one.pixels.offset)
    if stream.readinto(stored.data.cast("B")) != stored.nbytes:
        raise _truncated(one)
    return stored.astype(one.pixels.cell_dtype, copy=False)


def _read_encoded(stream: io.BufferedIOBase, one: CTSlice) -> Integer[np.ndarray, "j i"]:
    parts = []
    for start, length in one.pixels.fragments:
        stream.seek(start)
        parts.append(stream.read(length))
        if len(parts[-1]) != length:
            raise _truncated(one)
    try:
        return decode(
            b"".join(parts),
            one.pixels.transfer_syntax_uid,
            shape=(one.rows, one.columns),
            dtype=one.pixels.cell_dtype,
            bits_stored=one.pixels.bits_stored,
        )
    except (*PARSE_ERRORS, RuntimeError) as error:
        raise _unreadable(one) from error


def _truncated(one: CTSlice) -> SeriesError:
    what = "became shorter while it was read"
    return one.refusal("truncated_pixels", what, "wait until the copy to the folder is complete")


def _unreadable(one: CTSlice) -> SeriesError:
    what = "holds pixels that can't be decoded"
    return one.refusal("unreadable_pixels", what, "the file is damaged; fetch it again")
