"""The LIDC-IDRI rating scales, and how several readers' ratings become one."""

from collections.abc import Mapping, Sequence
from math import fsum
from statistics import median
from types import MappingProxyType

RATING_RANGES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "malignancy": (1, 5),
        "subtlety": (1, 5),
        "calcification": (1, 6),
        "margin": (1, 5),
        "lobulation": (1, 5),
        "spiculation": (1, 5),
        "texture": (1, 5),
        "sphericity": (1, 5),
        "internal_structure": (1, 5),
    }
)
"""Lowest and highest rating of each characteristic.

The scale of ``internal_structure`` ends at 4 (soft tissue, fluid, fat, air), but one reading in
the archive holds a 5; it isn't a biomarker here, so that reading is kept as it is.
"""

BIOMARKERS = (
    "subtlety",
    "calcification",
    "margin",
    "lobulation",
    "spiculation",
    "diameter",
    "texture",
    "sphericity",
)
"""Names of the biomarkers; ``diameter`` is measured on the outline, the others are rated."""


def consensus_ratings(readers: Sequence[Mapping[str, int | float]]) -> dict[str, float]:
    """Join the readers' ratings of one nodule: malignancy by median, biomarkers by mean.

    Parameters
    ----------
    readers
        The ratings of each reader, at least one; the order doesn't matter.

    Returns
    -------
    dict
        ``malignancy`` (1 to 5, halves where an even number of readers is divided) and the
        `BIOMARKERS`, ``diameter`` in millimetres.

    Examples
    --------
    >>> reader = dict.fromkeys(BIOMARKERS, 2)
    >>> consensus = consensus_ratings([reader | {"malignancy": rating} for rating in (1, 5, 4, 5)])
    >>> consensus["malignancy"], consensus["margin"]
    (4.5, 2.0)
    """
    consensus = {"malignancy": float(median(reader["malignancy"] for reader in readers))}
    for name in BIOMARKERS:
        # fsum is exact, so the order of the readers can't change the last digit
        consensus[name] = fsum(reader[name] for reader in readers) / len(readers)
    return consensus
