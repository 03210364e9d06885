"""Whether values look like Hounsfield units: air, soft tissue and bone where they belong."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Num, Shaped

from data_prep.dicom.pixels import CTSlice
from data_prep.problems import Finding

SAMPLES_PER_EDGE = 64
"""Of each slice about so many pixels squared are looked at."""

MIN_SAMPLES = 10_000
"""Fewer voxels are no scan of a patient, and aren't judged."""

AIR_RANGE_HU = (-1100, -800)
"""Air around the patient or in the trachea, also where it is a little off or cut at -1024."""

SOFT_TISSUE_HU = (-150, 150)
"""Fat (about -100), water, muscle and blood without much contrast medium."""

DENSE_HU = 150
"""Bone and contrast medium lie above."""

MIN_SHARE = 1e-4
"""Of the voxels; less of a tissue is none."""

FEW, MANY = 1e-2, 5e-2
"""Where fewer voxels are soft tissue and more lie below air, all lie too low: padding that isn't
declared lies there as well, but around a patient."""

MIN_RANGE_HU = 200
"""Between the darkest and the brightest voxel of a patient lies much more."""


def sample_hu(
    hu: Num[np.ndarray, "i j k"], outside: Bool[np.ndarray, "i j k"] | None
) -> Shaped[np.ndarray, " n"]:
    """Return evenly spaced voxels of every slice, without padding."""
    steps = [max(1, round(size / SAMPLES_PER_EDGE)) for size in hu.shape[:2]]
    part = (slice(None, None, steps[0]), slice(None, None, steps[1]))
    values = hu[part]
    return values.ravel() if outside is None else values[~outside[part]]


def describe_implausible(values: Shaped[np.ndarray, " n"]) -> str:
    """Return what is odd about the values of a CT; empty where nothing is.

    Parameters
    ----------
    values
        In HU, without padding.

    Examples
    --------
    Stored values that lack their intercept:

    >>> values = np.repeat([24, 1064, 1500], [9000, 6000, 200])
    >>> describe_implausible(values)
    'the darkest voxels lie at 24 HU, where air is -1000: an intercept of -1024 may be missing'
    """
    if len(values) < MIN_SAMPLES:
        return ""
    lowest, middle = np.percentile(values, (0.1, 50))
    least, greatest = values.min(), values.max()
    if float(greatest) - float(least) < MIN_RANGE_HU:
        return f"all voxels lie between {least:g} and {greatest:g} HU"
    if _share(values, *AIR_RANGE_HU) < MIN_SHARE:
        if lowest < AIR_RANGE_HU[0]:
            return (
                f"there is no air at about -1000 HU, and the darkest voxels lie at {lowest:g} HU: "
                "the rescale may be wrong, or padding isn't declared"
            )
        return (
            f"the darkest voxels lie at {lowest:g} HU, where air is -1000: an intercept of -1024 "
            "may be missing"
        )
    soft_share = _share(values, *SOFT_TISSUE_HU)
    if soft_share < FEW and np.mean(values < AIR_RANGE_HU[0]) > MANY:
        return (
            f"half of the voxels lie below {middle:g} HU, the darkest at {lowest:g}, where air is "
            "-1000: an intercept may have been applied twice"
        )
    if soft_share < MIN_SHARE:
        low_hu, high_hu = SOFT_TISSUE_HU
        return f"nothing lies between {low_hu} and {high_hu} HU, where fat and soft tissue are"
    if np.mean(values > DENSE_HU) < MIN_SHARE:
        return f"nothing is denser than {DENSE_HU} HU, and so there is no bone"
    return ""


def find_implausible(
    values: Shaped[np.ndarray, " n"], slices: Sequence[CTSlice], *, lacks_rescale: bool
) -> list[Finding]:
    """Find that values don't look like HU: ``implausible_hu``, ``not_hu`` or ``no_rescale``.

    Parameters
    ----------
    values
        From `sample_hu`.
    slices
        Where they are from.
    lacks_rescale
        Whether the usual rescale was taken because the files have none: then they must look right.
    """
    odd = describe_implausible(values)
    if not odd:
        return []
    unspecified = next((one for one in slices if one.left_open), None)
    if unspecified is not None:
        what = (
            f"{unspecified.name} leaves open whether its values are Hounsfield units "
            f"({unspecified.left_open}), and they don't look like them: {odd}"
        )
        return [Finding("not_hu", what, "choose the series with CT numbers", (unspecified.file,))]
    file = slices[0].file
    if lacks_rescale:
        what = f"{file.name} lacks its rescale, and with the usual one {odd}"
        remedy = "export the original series again"
        return [Finding("no_rescale", what, remedy, (file,), can_repair=False)]
    what = f"The values of {file.name} and others don't look like Hounsfield units: {odd}"
    return [Finding("implausible_hu", what, "check the rescale", (file,))]


def _share(values: np.ndarray, low: int, high: int) -> float:
    return float(np.mean((values >= low) & (values <= high)))
