"""Stored pixels of CT slices -> Hounsfield units, written straight into one array."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Integer, Num
from pydicom import dcmread
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from data_prep.dicom.headers import PARSE_ERRORS, file_name
from data_prep.dicom.slices import NATIVE_SYNTAXES, CTSlice
from data_prep.errors import SeriesError

MAX_VOXELS = 2**31
"""Most voxels of a volume (4 GiB of int16), four times the largest chest CT in use."""

_INT16 = np.iinfo(np.int16)


def read_hu(
    slices: Sequence[CTSlice],
) -> tuple[Num[np.ndarray, "i j k"], Bool[np.ndarray, "i j k"] | None]:
    """Decode slices of one matrix size into Hounsfield units.

    The result is int16 if every slope and intercept is integral and every value fits, else
    float32 (which holds every integer that a header may make possible, see
    `data_prep.dicom.slices.MAX_ABSOLUTE_HU`). Slices lie one after the other in memory, rows
    within them, so nothing is rearranged; besides the result there is one slice in memory.

    Parameters
    ----------
    slices
        In the order of ``k``.

    Returns
    -------
    hu : ndarray
        Hounsfield units as the file says, also in the padding.
    outside : ndarray or None
        True where the stored value is a padding value; None where no voxel is.

    Raises
    ------
    SeriesError
        ``too_large``, ``truncated_pixels`` or ``unreadable_pixels``.
    """
    shape = (len(slices), slices[0].rows, slices[0].columns)
    if np.prod(shape, dtype=np.int64) > MAX_VOXELS:
        raise SeriesError(
            "too_large",
            f"The series claims {shape[2]} x {shape[1]} x {shape[0]} voxels "
            f"({file_name(slices[0].path)} and others), more than {MAX_VOXELS}: its headers are "
            "damaged, or it is no patient's CT.",
            (slices[0].path,),
        )
    is_integral = all(
        one.pixels.slope.is_integer() and one.pixels.intercept.is_integer() for one in slices
    )
    hu = np.empty(shape, np.int16 if is_integral else np.float32)
    outside = None
    for k, one in enumerate(slices):
        stored = _read_stored(one)
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


def _read_stored(one: CTSlice) -> Integer[np.ndarray, "j i"]:
    """Return the stored values of a slice, sign and unused bits sorted out (PS3.5 8.1.1)."""
    pixels = one.pixels
    if pixels.transfer_syntax_uid in NATIVE_SYNTAXES:
        stored = _read_native(one)
    else:
        stored = _read_encoded(one)
    # The high bit goes to the top of the cell, and back with its sign: this drops what older
    # scanners keep in the unused bits.
    stored <<= pixels.bits_allocated - 1 - pixels.high_bit
    stored >>= pixels.bits_allocated - pixels.bits_stored
    return stored


def _read_native(one: CTSlice) -> Integer[np.ndarray, "j i"]:
    stored = np.empty((one.rows, one.columns), _cell_dtype(one).newbyteorder("<"))
    try:
        with one.path.open("rb") as stream:
            stream.seek(one.pixels.offset)
            count = stream.readinto(stored.data.cast("B"))
    except OSError as error:
        raise _unreadable(one) from error
    if count != stored.nbytes:
        raise SeriesError(
            "truncated_pixels",
            f"{file_name(one.path)} became shorter while it was read: wait until the copy to the "
            "folder is complete.",
            (one.path,),
        )
    return stored.astype(_cell_dtype(one), copy=False)


def _read_encoded(one: CTSlice) -> Integer[np.ndarray, "j i"]:
    dtype = _cell_dtype(one)
    try:
        decoder = get_decoder(UID(one.pixels.transfer_syntax_uid))
        decoded, _ = decoder.as_array(dcmread(one.path, force=True), index=0, raw=True)
    except (OSError, *PARSE_ERRORS, RuntimeError) as error:
        raise _unreadable(one) from error
    # a decoder trusts the compressed stream, which may contradict the header
    if decoded.shape != (one.rows, one.columns) or decoded.dtype.newbyteorder("=") != dtype:
        raise _unreadable(one)
    return np.array(decoded, dtype=dtype)


def _cell_dtype(one: CTSlice) -> np.dtype:
    return np.dtype(f"{'i' if one.pixels.is_signed else 'u'}{one.pixels.bits_allocated // 8}")


def _unreadable(one: CTSlice) -> SeriesError:
    return SeriesError(
        "unreadable_pixels",
        f"The pixels of {file_name(one.path)} can't be decoded: the file is damaged; fetch it "
        "again.",
        (one.path,),
    )
