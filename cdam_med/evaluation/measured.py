"""A metric of one estimator: values of images under a name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from cdam_med.attribution.estimator import Resolution
from cdam_med.evaluation.examples import Examples
from cdam_med.evaluation.judged import Judged


@dataclass(frozen=True, eq=False)
class Measured:
    """Values under one name.

    Parameters
    ----------
    metric : str
        Name of the metric; what stands behind ``"/"`` is a variant of it.
    resolution : {"patch", "pixel"}
        Resolution of the maps that were measured.
    values : ndarray
        One value an image; NaN where there is none.
    ids, groups, labels : tuple of str
        Of each image.
    """

    metric: str
    resolution: Resolution
    values: Float[np.ndarray, " image"]
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    labels: tuple[str, ...]


Measure: TypeAlias = Callable[[Judged], Iterator[Measured]]
"""Maps of an estimator -> metrics; raises an `InputError` that says why it can't."""


def measured(
    metric: str,
    resolution: Resolution,
    values: Float[np.ndarray, " image"],
    examples: Examples,
) -> Measured:
    """Return values of examples under a name.

    Parameters
    ----------
    metric : str
        Name of the metric.
    resolution : {"patch", "pixel"}
        Resolution of the maps.
    values : ndarray
        One for each image.
    examples : Examples
        The images.
    """
    return Measured(metric, resolution, values, examples.ids, examples.groups, examples.labels)
