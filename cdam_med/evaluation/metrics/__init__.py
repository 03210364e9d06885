"""What a map is held to: every metric, and the groups by which they are asked for."""

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from cdam_med.errors import MethodError
from cdam_med.evaluation.experiment import Metric
from cdam_med.evaluation.metrics import curves, removal
from cdam_med.evaluation.metrics.class_sensitivity import CLASS_SENSITIVITY, GRID_POINTING
from cdam_med.evaluation.metrics.compactness import COMPACTNESS, COST
from cdam_med.evaluation.metrics.localisation import LOCALISATION, LOCALISATION_SHIFTED
from cdam_med.evaluation.metrics.sanity import CONSISTENCY, INPUT_INDEPENDENCE, RANDOMISATION

GROUPS: Mapping[str, tuple[Metric, ...]] = MappingProxyType(
    {
        "cost": COST,
        **curves.GROUPS,
        **removal.GROUPS,
        "compactness": COMPACTNESS,
        "class_sensitivity": CLASS_SENSITIVITY,
        "localisation": LOCALISATION,
        "localisation_shifted": LOCALISATION_SHIFTED,
        "grid_pointing": GRID_POINTING,
        "randomisation": RANDOMISATION,
        "input_independence": INPUT_INDEPENDENCE,
        "consistency": CONSISTENCY,
    }
)
"""Metrics that are computed together, by the name under which they are asked for."""

SECTIONS = (
    "Correctness", "Compactness", "Class sensitivity", "Localisation", "Sanity", "Cost",
)  # fmt: skip
"""Parts of the report, in order."""

_ALL = [metric for group in GROUPS.values() for metric in group]
METRICS: Mapping[str, Metric] = MappingProxyType(
    {metric.name: metric for part in SECTIONS for metric in _ALL if metric.section == part}
)
"""Every metric by its name, in the report's order."""


def metric_of(name: str) -> Metric:
    """Return the metric of a name in the tables, whichever variant of it."""
    return METRICS[name.split("/")[0]]


def choose_metrics(names: Sequence[str] | None) -> dict[str, tuple[Metric, ...]]:
    """Return groups of metrics by their names; all unless given.

    Raises
    ------
    MethodError
        If there is no such group.
    """
    asked = list(GROUPS if names is None else dict.fromkeys(names))
    for name in asked:
        if name not in GROUPS:
            close = difflib.get_close_matches(name, GROUPS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise MethodError(
                f"There are no metrics {name!r}: {hint}The metrics are {', '.join(GROUPS)}."
            )
    return {name: GROUPS[name] for name in asked}
