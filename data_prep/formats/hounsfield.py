"""From an image file's values to Hounsfield units, or a refusal."""

import numpy as np

from data_prep.errors import ImageError
from data_prep.formats.stored import StoredImage

MAX_ABSOLUTE_HU = 2**24
"""float32 holds every integer up to here, and metal artefacts end far below."""

AIRLESS_HU = -20.0
"""Every CT has a voxel below: air, lung, fat or noise. What has none is a mask, an image scaled
to 0..1 or 0..255, or values stored without their rescale."""


def to_hu(stored: StoredImage) -> np.ndarray:
    """Return Hounsfield units: int16 where every value is integral and fits, else float32.

    Raises
    ------
    ImageError
        ``single_slice``, ``not_finite`` or ``not_hu``.
    """
    if stored.quantity:
        raise ImageError(
            "not_hu",
            f"{stored.name} says that its values are no Hounsfield units ({stored.quantity}): give "
            "the CT itself.",
        )
    if min(stored.values.shape) < 2:
        size = " x ".join(str(n) for n in stored.values.shape)
        raise ImageError(
            "single_slice",
            f"{stored.name} holds a single slice ({size} voxels), from which no nodule can be "
            "cropped: give the whole volume.",
        )
    low, high, is_integral = _survey(stored)
    if low > AIRLESS_HU or max(-low, high) > MAX_ABSOLUTE_HU:
        raise ImageError(
            "not_hu",
            f"{stored.name} holds values from {low:g} to {high:g}, which are no Hounsfield units "
            "(air is -1000, water 0): give the CT itself, neither a mask nor an image with "
            "another scale.",
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
            raise ImageError(
                "not_finite",
                f"{stored.name} holds values that are NaN or infinite: export the image again.",
            )
        if is_integral and not is_integer_type:
            is_integral = bool((values == np.rint(values)).all())
    return low, high, is_integral
