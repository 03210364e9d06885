"""What the numbers of a CT image are: Hounsfield units, or what else its header says.

A header says it in several places, and one that says something else is enough for a refusal.

References
----------
PS3.3 C.11.1 (Modality LUT, Rescale Type), C.7.6.16.2.9 and .11 (pixel value transformation, real
world values), C.8.16.1.4 and C.8.15.2 (what a derived image was derived to), C.8.2.1.1.1
(multi-energy CT); PS3.17 JJJJ.3 explains the last. HU is ``[hnsf'U]`` in UCUM.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from data_prep.text import printable

_HU = re.compile(r"(ct)?(hu|hnsfu|houn[ds]*f[ie]*lds?|hu?houn[ds]*f[ie]*lds?|ctnumbers?)(units?)?")
"""Letters of what workstations write for HU, e.g. ``Houndsfield Unit``."""

_LEFT_OPEN = ("US", "UNSPECIFIED", "UNKNOWN", "HU_MOD")
"""Rescale types that say no unit, and HU in which something was suppressed or highlighted."""

_DERIVED_LEFT_OPEN = ("ADDITION", "MAT_MODIFIED")
"""The same among the values of ImageType."""

_OTHER_QUANTITIES = (
    *("SUBTRACTION", "DIVISION", "MULTIPLICATION", "STD_DEVIATION", "T_TEST", "Z_SCORE"),
    *("RCBF", "RCBV", "CBF", "CBV", "MTT", "TTP", "TMAX"),
    *("MAT_SPECIFIC", "MAT_FRACTIONAL", "MAT_VALUE_BASED", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY"),
)
"""Values of ImageType and FrameType behind the second whose pixels aren't HU."""

_MAX_DIFFERENCE_HU = 0.5


class RealWorldMapping(NamedTuple):
    """A mapping from stored to real world values: ``slope * stored + intercept`` in `unit`.

    Slope and intercept are None where the values come from a table.
    """

    unit: str
    slope: float | None
    intercept: float | None


def says_hu(unit: str) -> bool:
    """Tell whether the name of a unit means Hounsfield units, however it is spelled.

    Examples
    --------
    >>> says_hu("Houndsfield Unit"), says_hu("[hnsf'U]"), says_hu("HU_MOD"), says_hu("mg/ml")
    (True, True, False, False)
    """
    return _HU.fullmatch("".join(filter(str.isalpha, unit.lower()))) is not None


def other_quantity(
    rescale_type: str, image_type: Iterable[str], mappings: Sequence[RealWorldMapping]
) -> str:
    """Return how a header says that its values aren't HU; empty where it doesn't.

    Parameters
    ----------
    rescale_type
        RescaleType; empty stands for HU in a CT (PS3.3 C.8.2.1).
    image_type
        Values of ImageType and FrameType.
    mappings
        From its RealWorldValueMappingSequence.

    Examples
    --------
    >>> other_quantity("HU", ["DERIVED", "PRIMARY", "PERFUSION", "RCBF"], [])
    'image type RCBF'
    """
    if not _may_be_hu(rescale_type):
        return f"rescale type {printable(rescale_type)}"
    for value in image_type:
        if value.strip().upper() in _OTHER_QUANTITIES:
            return f"image type {value.strip().upper()}"
    units = list(dict.fromkeys(mapping.unit for mapping in mappings if mapping.unit))
    if units and not any(map(says_hu, units)):
        return f"real world values in {printable(', '.join(units))}"
    return ""


def _may_be_hu(rescale_type: str) -> bool:
    text = rescale_type.strip()
    return not text or says_hu(text) or text.upper() in _LEFT_OPEN


def left_open(
    rescale_type: str, image_type: Iterable[str], mappings: Sequence[RealWorldMapping]
) -> str:
    """Return which word of a header leaves open whether its values are plain HU, if one does.

    The parameters are those of `other_quantity`.
    """
    text = rescale_type.strip().upper()
    if text in _LEFT_OPEN and not any(says_hu(mapping.unit) for mapping in mappings):
        return f"rescale type {text}"
    derived = (value.strip().upper() for value in image_type)
    return next((f"image type {value}" for value in derived if value in _DERIVED_LEFT_OPEN), "")


def contradicts(
    slope: float, intercept: float, bits_stored: int, mappings: Sequence[RealWorldMapping]
) -> bool:
    """Tell whether the one mapping to HU among real world values isn't the rescale."""
    to_hu = [mapping for mapping in mappings if says_hu(mapping.unit)]
    if len(to_hu) != 1 or to_hu[0].slope is None or to_hu[0].intercept is None:
        return False  # several ranges, or a table
    difference = abs(to_hu[0].slope - slope) * 2.0**bits_stored
    return bool(difference + abs(to_hu[0].intercept - intercept) > _MAX_DIFFERENCE_HU)
