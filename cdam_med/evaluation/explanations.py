"""Judge estimators: every measure of every estimator's maps, as one long table.

Maps are made once for each estimator and kept for all measures; what doesn't depend on a map (what
the model says without a box, ablations, mosaics) is made once for all estimators. An estimator
that refuses the model, and a measure that the examples don't allow, are left out and named with the
reason; the others go on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, combinations, islice, zip_longest

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cdam_med.attribution.estimator import Estimator
from cdam_med.attribution.registry import ESTIMATORS, estimator
from cdam_med.errors import MethodError
from cdam_med.evaluation.examples import Examples
from cdam_med.evaluation.intervals import mean_intervals
from cdam_med.evaluation.judged import Judged, Trial
from cdam_med.evaluation.map_making import explain_each
from cdam_med.evaluation.measured import Measure, Measured
from cdam_med.evaluation.measures import choose_measures
from cdam_med.evaluation.metrics.ablation_agreement import pooled_pearson
from cdam_med.evaluation.metrics.class_sensitivity import TargetCorrelations, target_matrix
from cdam_med.evaluation.metrics.faithfulness import PerturbationCurves
from cdam_med.evaluation.report.results import (
    Curves,
    LeftOut,
    PooledCorrelation,
    Results,
    Row,
    ShownMaps,
)
from data_prep.errors import InputError

Progress = Callable[[int, int, str], None]
"""Called with the number of steps done, of all steps, and what comes next."""

SHOWN_IMAGES = 6
"""Images whose maps are kept to be shown: the first ones of each label, in turn."""


def evaluate_explanations(
    model: object,
    examples: Examples,
    estimators: Sequence[str | Estimator] | None = None,
    *,
    measures: Sequence[str] | None = None,
    shifted: Examples | None = None,
    neighbours: Examples | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Results:
    """Measure the maps of estimators.

    Parameters
    ----------
    model : VisionTransformer or object with `class_token_model`
        What is explained.
    examples : Examples
        What it is explained on.
    estimators : sequence of str or Estimator, optional
        Names in the registry, or estimators with settings of their own; all unless given.
    measures : sequence of str, optional
        Names in `cdam_med.evaluation.measures.MEASURES`; all unless given.
    shifted : Examples, optional
        The same images with the object out of the centre, matched by id.
    neighbours : Examples, optional
        Images that should be explained alike, such as the next slices, matched by id.
    seed : int
        Of everything random.
    progress : callable, optional
        Is told the progress.

    Returns
    -------
    Results
        Its `summary` has means, intervals and differences.

    Raises
    ------
    MethodError
        If there is no such estimator or measure, or one estimator is given twice.
    InputError
        If the model can't be described or the images aren't what it takes, or images that are
        to be matched aren't among the examples.
    """
    chosen = _choose_estimators(estimators)
    named_measures = choose_measures(measures)
    for other in (shifted, neighbours):
        if other is not None and not set(other.ids) <= set(examples.ids):
            raise InputError(
                "Shifted and neighbouring examples must have ids of the examples: make them of "
                "the same nodules."
            )
    trial = Trial(model, examples, shifted, neighbours, seed)
    trial.targets, trial.grid  # noqa: B018  # a model that can't be explained ends here
    record = _Record(trial, {}, progress, total=len(chosen) * (1 + len(named_measures)))
    for each in chosen:
        _judge(record, each, named_measures)
    return record.results(tuple(chosen))


@dataclass(eq=False)
class _Record:
    """What has been found so far."""

    trial: Trial
    patches: dict[str, Float[Tensor, "image rows columns"]]
    progress: Progress | None
    total: int
    done: int = 0
    rows: list[Row] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    curves: dict[str, Curves] = field(default_factory=dict)
    matrices: dict[str, TargetCorrelations] = field(default_factory=dict)
    shown: dict[str, Float[Tensor, "image rows columns"]] = field(default_factory=dict)

    def tell(self, what: str, steps: int = 1) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total, what)
        self.done += steps

    def add(self, name: str, found: Measured) -> None:
        each = zip(found.ids, found.groups, found.labels, found.values.tolist(), strict=True)
        self.rows += [Row(name, found.metric, found.resolution, *values) for values in each]

    @cached_property
    def shown_images(self) -> list[int]:
        """Which images are shown."""
        labels = self.trial.examples.labels
        of_label: dict[str, list[int]] = {}
        for index, label in enumerate(labels):
            of_label.setdefault(label, []).append(index)
        in_turn = chain.from_iterable(zip_longest(*of_label.values()))
        first = islice((index for index in in_turn if index is not None), SHOWN_IMAGES)
        return sorted(first, key=lambda index: (labels[index], index))

    def results(self, estimators: tuple[Estimator, ...]) -> Results:
        self.tell("done", steps=0)
        trial = self.trial
        shown = trial.examples.select(self.shown_images)
        targets = tuple(trial.targets[index] for index in self.shown_images)
        return Results(
            estimators=tuple(e for e in estimators if e.name in self.patches),
            rows=tuple(self.rows),
            left_out=tuple(self.left_out),
            curves=self.curves,
            matrices=self.matrices,
            pooled=tuple(_pooled(self.patches, trial)),
            shown=ShownMaps(shown, targets, self.shown),
            seed=trial.seed,
        )


def _judge(record: _Record, each: Estimator, measures: Mapping[str, Measure]) -> None:
    """Make the maps of an estimator and take every measure of them."""
    trial = record.trial
    record.tell(f"{each.title}: maps")
    try:
        explained = explain_each(
            each, trial.model, trial.examples.images, trial.targets, seed=trial.seed
        )
        judged = Judged(trial, each, explained)
        record.patches[each.name] = judged.patches
    except (InputError, RuntimeError) as error:  # e.g. no memory for it
        record.left_out.append(LeftOut(each.name, "", _reason(error)))
        record.done += len(measures)
        return
    record.shown[each.name] = judged.maps[record.shown_images]
    for name, measure in measures.items():
        record.tell(f"{each.title}: {name.replace('_', ' ')}")
        try:
            for found in measure(judged):
                record.add(each.name, found)
        except (InputError, RuntimeError) as error:
            record.left_out.append(LeftOut(each.name, name, _reason(error)))
    if (curves := judged.shown_curves) is not None:
        record.curves[each.name] = _mean_curves(curves, trial)
    if "target_correlations" in vars(judged):  # asked for by a measure
        record.matrices[each.name] = target_matrix(
            judged.target_correlations, trial.output_names, trial.examples.groups, seed=trial.seed
        )


def _mean_curves(curves: PerturbationCurves, trial: Trial) -> Curves:
    parts = [
        np.array([(step.value, step.low, step.high) for step in found]).T
        for found in (
            mean_intervals(outputs, trial.examples.groups, seed=trial.seed)
            for outputs in (curves.most_first, curves.least_first)
        )
    ]
    return Curves(curves.shares, *parts[0], *parts[1])


def _pooled(
    patches: Mapping[str, Float[Tensor, "image rows columns"]], trial: Trial
) -> Iterator[PooledCorrelation]:
    """Yield the correlations of every two estimators as in the first paper's table."""
    for one, other in combinations(patches, 2):
        interval = pooled_pearson(
            patches[one], patches[other], trial.examples.groups, seed=trial.seed
        )
        yield PooledCorrelation(one, other, interval)


def _choose_estimators(asked: Sequence[str | Estimator] | None) -> list[Estimator]:
    chosen = [
        estimator(each) if isinstance(each, str) else each
        for each in (ESTIMATORS if asked is None else asked)
    ]
    names = [each.name for each in chosen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MethodError(
            f"The estimator {twice[0]} is given twice: judge its settings one after the other."
        )
    if not chosen:
        raise MethodError(f"No estimator is asked for: choose from {', '.join(ESTIMATORS)}.")
    return chosen


def _reason(error: Exception) -> str:
    """Return why something can't be done, on one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
