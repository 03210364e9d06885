"""What a map is held to: every metric, and the groups by which they are asked for."""

import csv
import difflib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from types import MappingProxyType

from cdam_med.errors import MethodError
from cdam_med.evaluation.experiment import Metric
from cdam_med.evaluation.metrics import (
    class_sensitivity,
    compactness,
    curves,
    localisation,
    removal,
    sanity,
)

_ORDER = (
    "cost", *curves.GROUPS, *removal.GROUPS, "compactness", "class_sensitivity", "localisation",
    "localisation_shifted", "grid_pointing", *sanity.GROUPS,
)  # fmt: skip
_MODULES = (curves, removal, compactness, class_sensitivity, localisation, sanity)
_TABLE = files(__name__).joinpath("metrics.csv").read_text(encoding="utf-8")
_WORDS = {words["name"]: words for words in csv.DictReader(_TABLE.splitlines())}

GROUPS: Mapping[str, tuple[Metric, ...]] = MappingProxyType(
    {
        group: tuple(
            Metric(**_WORDS[name], compute=compute)  # type: ignore[arg-type]  # words of a table
            for module in _MODULES
            for name, compute in module.GROUPS.get(group, {}).items()
        )
        for group in _ORDER
    }
)
"""Metrics that are computed together, by the name under which they are asked for."""

_BY_NAME = {metric.name: metric for group in GROUPS.values() for metric in group}
METRICS: Mapping[str, Metric] = MappingProxyType({name: _BY_NAME[name] for name in _WORDS})
"""Every metric by its name, in the order of ``metrics.csv``, which is the report's."""

SECTIONS = tuple(dict.fromkeys(metric.section for metric in METRICS.values()))
"""Parts of the report, in order."""


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
