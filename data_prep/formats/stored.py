"""Voxels of an image file: sizes judged first, read with bounded memory, then turned into HU."""

import io
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float64

from data_prep.errors import ImageError
from data_prep.geometry import direction_cosines, shear, spacing_mm
from data_prep.rounding import without_rounding
from data_prep.text import printable
from data_prep.volume import ORTHOGONALITY_TOLERANCE

MAX_VOXELS = 2**31
"""More than any patient's CT has: 2048 x 2048 pixels in 512 slices."""

MAX_HEADER_BYTES = 1 << 22
"""A text header is never longer."""

SPACING_RANGE_MM = (0.01, 100.0)
"""Outside of it a spacing is no CT's in millimetres: the unit is another, or it is damaged."""

MAX_ABSOLUTE_HU = 2**24
"""float32 holds every integer up to here, and metal artefacts end far below."""

AIRLESS_HU = -20.0
"""Every CT has a voxel below: air, lung, fat or noise. What has none is a mask, an image scaled
to 0..1 or 0..255, or values stored without their rescale."""

_MAX_INFLATION = 1032
"""Deflate can't make more bytes than this from one (zlib's technical details)."""

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image file before its values mean anything.

    Parameters
    ----------
    name
        The file's own name, printable.
    values
        As stored, shape (i, j, k), the first axis fastest in memory; any number type.
    affine
        Voxel index to RAS millimetres, perpendicular axes.
    slope, intercept
        From stored values to the meant ones.
    quantity
        What the header says that the values are, where that is no CT number; empty otherwise.
    """

    name: str
    values: np.ndarray
    affine: Float64[np.ndarray, "4 4"]
    slope: float = 1.0
    intercept: float = 0.0
    quantity: str = ""

    @property
    def is_scaled(self) -> bool:
        """Whether the stored values aren't the meant ones."""
        return (self.slope, self.intercept) != (1.0, 0.0)

    def slice_values(self, k: int) -> Float64[np.ndarray, "i j"]:
        """Return the meant values of slice k."""
        stored: np.ndarray = self.values[:, :, k].astype(np.float64)
        return stored * self.slope + self.intercept if self.is_scaled else stored


def to_hu(stored: StoredImage) -> np.ndarray:
    """Return Hounsfield units: int16 where every value is integral and fits, else float32."""
    if stored.quantity:
        what = f"{stored.name} says that its values are no HU ({stored.quantity}): give the CT."
        raise ImageError("not_hu", what)
    if min(stored.values.shape) < 2:
        size = " x ".join(str(n) for n in stored.values.shape)
        raise ImageError(
            "single_slice",
            f"{stored.name} is a single slice ({size} voxels): give the whole volume.",
        )
    low, high, is_integral = _survey(stored)
    if low > AIRLESS_HU or max(-low, high) > MAX_ABSOLUTE_HU:
        raise ImageError(
            "not_hu",
            f"{stored.name} holds values from {low:g} to {high:g}, which are no Hounsfield units "
            "(air is -1000, water 0): give the CT, no mask and no other scale.",
        )
    limits = np.iinfo(np.int16)
    is_short = is_integral and limits.min <= low and high <= limits.max
    dtype = np.dtype(np.int16 if is_short else np.float32)
    if stored.values.dtype == dtype and not stored.is_scaled:
        return stored.values
    hu = np.empty(stored.values.shape, dtype=dtype, order="F")
    for k in range(hu.shape[2]):
        hu[:, :, k] = stored.slice_values(k)
    return hu


def _survey(stored: StoredImage) -> tuple[float, float, bool]:
    """Return the lowest and the highest value, and whether all are integers."""
    low, high, is_integral = np.inf, -np.inf, True
    is_integer_type = stored.values.dtype.kind in "iu" and not stored.is_scaled
    for k in range(stored.values.shape[2]):
        values = stored.values[:, :, k] if is_integer_type else stored.slice_values(k)
        # NaN and infinity show in the extremes
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        if not (np.isfinite(values.min()) and np.isfinite(values.max())):
            what = f"{stored.name} holds NaN or infinite values: export the image again."
            raise ImageError("not_finite", what)
        if is_integral and not is_integer_type:
            is_integral = bool((values == np.rint(values)).all())
    return low, high, is_integral


def check_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the size along three axes, or refuse what is no volume."""
    while len(shape) > 3 and shape[-1] == 1:  # one point in time is no fourth dimension
        shape = shape[:-1]
    size = " x ".join(str(n) for n in shape)
    if len(shape) != 3:
        raise ImageError(
            "not_3d", f"{name} has {len(shape)} dimensions ({size}): export one volume."
        )
    if min(shape) < 1:
        raise ImageError("unreadable_image", f"{name} claims {size} voxels: its header is damaged.")
    i, j, k = (int(n) for n in shape)
    if i * j * k > MAX_VOXELS:
        what = f"{name} claims {size} voxels, more than any CT ({MAX_VOXELS}): fetch it again."
        raise ImageError("too_large", what)
    return i, j, k


def check_affine(
    name: str, affine: Float64[np.ndarray, "4 4"], *, rounding: float = 0.0
) -> Float64[np.ndarray, "4 4"]:
    """Return an affine to RAS millimetres that a volume can have, or refuse the file's.

    Axes that aren't perpendicular because each cosine is off by up to `rounding` become so.
    """
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        what = f"{name} has axes that span no space ({affine[:3].tolist()}): export it again."
        raise ImageError("no_orientation", what)
    spacing = spacing_mm(affine)
    if spacing.min() < SPACING_RANGE_MM[0] or spacing.max() > SPACING_RANGE_MM[1]:
        shown = ", ".join(f"{mm:g}" for mm in spacing)
        raise ImageError(
            "bad_spacing",
            f"{name} has a spacing of {shown} mm, expected {SPACING_RANGE_MM[0]:g} to "
            f"{SPACING_RANGE_MM[1]:g}: export the image again, in millimetres.",
        )
    cosines = without_rounding(direction_cosines(affine), rounding)
    affine = affine.copy()
    affine[:3, :3] = cosines * spacing
    if shear(affine) > ORTHOGONALITY_TOLERANCE:
        raise ImageError(
            "sheared_axes",
            f"{name} has axes that aren't perpendicular (cosine {shear(affine):.2g}; a tilted "
            "gantry): resample it to perpendicular axes, or give the DICOM series.",
        )
    return affine


def read_values(
    file: io.BufferedReader,
    stream: io.BufferedIOBase,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    *,
    name: str,
    skip: int = 0,
) -> np.ndarray:
    """Read exactly the values that a header claims, shape (i, j, k), the first axis fastest.

    Behind them, less than a row or column may follow: padding, as in DICOM (PS3.5 8.1.1). More
    may as well be a row or column that the header doesn't count.

    Parameters
    ----------
    file
        The file on the disk that holds the values.
    stream
        `file`, or what inflates it; stands at the first value or what is to be skipped.
    shape, dtype
        As `check_shape` returned it, and with the byte order of the file.
    name
        The file's printable name.
    skip
        Bytes before the first value; -1 if the values are the last bytes of an uncompressed file.
    """
    n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    is_compressed = stream is not file
    # judged before memory is taken; what is compressed is read for its true length
    stored_bytes = os.fstat(file.fileno()).st_size
    if n_bytes > stored_bytes * (_MAX_INFLATION if is_compressed else 1) + _CHUNK_BYTES:
        raise _cut_off(name, n_bytes)
    try:
        content = np.empty(n_bytes, dtype=np.uint8)  # pages that aren't filled take no memory
    except MemoryError as error:
        what = f"{name} needs {n_bytes} bytes of memory, more than there are."
        raise ImageError("too_large", what) from error
    if skip == -1 and not is_compressed:
        skip = max(0, stored_bytes - file.tell() - n_bytes)
    if skip < 0:
        what = f"{name} says that {skip} bytes come before its values: save it again."
        raise ImageError("unsupported_image", what)
    view, filled = content.data, 0
    with damage_named(name):
        while skip:
            chunk = stream.read(min(_CHUNK_BYTES, skip))
            if not chunk:
                raise _cut_off(name, n_bytes)
            skip -= len(chunk)
        while filled < n_bytes:
            chunk = stream.read(min(_CHUNK_BYTES, n_bytes - filled))
            if not chunk:
                raise _cut_off(name, n_bytes)
            view[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        shortest_line = min(shape[:2]) * dtype.itemsize
        rest = stream.read(shortest_line)  # also checks the checksum of a compressed stream
    if len(rest) == shortest_line:
        what = f"{name} holds more than the {n_bytes} bytes that its header makes: export it again."
        raise ImageError("size_mismatch", what)
    return content.view(dtype).reshape(shape, order="F")


@contextmanager
def damage_named(name: str) -> Iterator[None]:
    """Turn errors of reading and inflating within the block into an `ImageError`."""
    try:
        yield
    except EOFError as error:
        raise ImageError("truncated_pixels", f"{name} is cut off: fetch the file again.") from error
    except (OSError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or printable(str(error))
        raise ImageError(
            "unreadable_image", f"{name} can't be read ({reason}): fetch it again."
        ) from error


class ZlibStream(io.RawIOBase):
    """Inflates a zlib or gzip stream while it is read."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        super().__init__()
        self._file = file
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: either header

    def readable(self) -> bool:
        """Tell that it can be read from."""
        return True

    def readinto(self, buffer: object) -> int:
        """Fill a buffer as far as the next piece goes; 0 at the end of the stream."""
        target = memoryview(cast(bytearray, buffer)).cast("B")
        while not self._inflate.eof:
            compressed = self._inflate.unconsumed_tail or self._file.read(_CHUNK_BYTES)
            if not compressed:
                raise EOFError("the compressed stream is cut off")
            piece = self._inflate.decompress(compressed, len(target))
            if piece:
                target[: len(piece)] = piece
                return len(piece)
        return 0


def read_lines(
    file: io.BufferedIOBase, is_last: Callable[[str], bool], *, name: str, may_end: bool = False
) -> list[str]:
    """Return the lines of a text header up to the last one; the file stands behind it.

    With `may_end`, the end of the file ends the header as well.
    """
    lines: list[str] = []
    left = MAX_HEADER_BYTES
    with damage_named(name):
        while left > 0:
            line = file.readline(left)
            left -= len(line)
            if not line and may_end:
                return lines
            if not line:
                break
            lines.append(line.decode("utf-8", "replace").rstrip("\r\n"))
            if is_last(lines[-1]):
                return lines
    what = f"The header of {name} has no end: it is cut off or no such file; fetch it again."
    raise ImageError("unreadable_image", what)


def _cut_off(name: str, n_bytes: int) -> ImageError:
    what = f"{name} holds fewer than the {n_bytes} bytes that its header claims: fetch it again."
    return ImageError("truncated_pixels", what)
