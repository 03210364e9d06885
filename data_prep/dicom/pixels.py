"""Stored pixels of CT slices -> Hounsfield units, written straight into one array."""

import io
import warnings
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal

import numpy as np
from jaxtyping import Bool, Integer, Num

from data_prep.dicom.elements import PARSE_ERRORS
from data_prep.dicom.slices import CTSlice
from data_prep.dicom.stored_pixels import MAX_VOXELS
from data_prep.dicom.syntaxes import NATIVE_SYNTAXES, decode
from data_prep.problems import SeriesError

__all__ = ["MAX_VOXELS", "read_hu"]

_INT16 = np.iinfo(np.int16)


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
        raise SeriesError(
            "too_large",
            f"The series of {slices[0].name} has {shape[2]} x {shape[1]} x {shape[0]} voxels, more "
            "than there is memory for: give it more memory.",
            (slices[0].file.path,),
        ) from error
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
    first = slices[0]
    if np.prod(shape, dtype=np.int64) > MAX_VOXELS:
        raise SeriesError(
            "too_large",
            f"The series claims {shape[2]} x {shape[1]} x {shape[0]} voxels ({first.name} and "
            f"others), more than {MAX_VOXELS}: its headers are damaged, or it is no patient's CT.",
            (first.file.path,),
        )
    for one in slices:
        if one.pixels.rescale_is_missing:
            raise SeriesError(
                "no_rescale",
                f"{one.name} lacks RescaleSlope or RescaleIntercept, so its stored values can't "
                "be turned into Hounsfield units: export the original series again.",
                (one.file.path,),
            )


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
    return SeriesError(
        "truncated_pixels",
        f"{one.name} became shorter while it was read: wait until the copy to the folder is "
        "complete.",
        (one.file.path,),
    )


def _unreadable(one: CTSlice) -> SeriesError:
    return SeriesError(
        "unreadable_pixels",
        f"The pixels of {one.name} can't be decoded: the file is damaged; fetch it again.",
        (one.file.path,),
    )
