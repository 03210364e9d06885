"""Judge estimators: every measure of every estimator's maps, as one long table.

Maps are made once for each estimator and kept for all measures; what doesn't depend on a map (what
the model says without a box, ablations, mosaics) is made once for all estimators. An estimator
that refuses the model, and a measure that the examples don't allow, are left out and named with the
reason; the others go on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice, zip_longest

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cdam_med.attribution.estimator import Estimator
from cdam_med.attribution.registry import ESTIMATORS, estimator
from cdam_med.errors import CdamError, MethodError
from cdam_med.evaluation.examples import Examples
from cdam_med.evaluation.intervals import mean_intervals
from cdam_med.evaluation.judged import Judged, Trial
from cdam_med.evaluation.judgement import Judgement
from cdam_med.evaluation.judgement_store import JudgementStore, run_sha256
from cdam_med.evaluation.map_making import explain_each
from cdam_med.evaluation.measured import Measure, Measured
from cdam_med.evaluation.measures import choose_measures
from cdam_med.evaluation.metrics.ablation_agreement import pooled_pearson
from cdam_med.evaluation.metrics.class_sensitivity import target_matrix
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

SHOWN_CURVES = "mif_lif"
"""Measure whose curves are drawn."""

SHOWN_IMAGES = 6
"""Images whose maps are kept to be shown: the first ones of each label, in turn."""


def evaluate_explanations(  # noqa: PLR0913  what a run is made of
    model: object,
    examples: Examples,
    estimators: Sequence[str | Estimator] | None = None,
    *,
    measures: Sequence[str] | None = None,
    shifted: Examples | None = None,
    neighbours: Examples | None = None,
    seed: int = 0,
    store: JudgementStore | None = None,
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
    store : JudgementStore, optional
        Where what is found of each estimator is kept, and looked for before it is judged.
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
    OutputError
        If what is found can't be kept.
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
    run = "" if store is None else run_sha256(trial, tuple(named_measures))
    teller = _Teller(progress, total=len(chosen) * (1 + len(named_measures)))
    judgements = []
    for number, each in enumerate(chosen):
        kept = None if store is None else store.read(each, run)
        found = _judge(trial, each, named_measures, teller) if kept is None else kept
        teller.done = (number + 1) * (1 + len(named_measures))
        if store is not None and kept is None:
            store.write(each, run, found)
        judgements.append(found)
    teller.tell("done")
    return _results(trial, chosen, judgements)


@dataclass(eq=False)
class _Teller:
    """Tells how far the work has come."""

    progress: Progress | None
    total: int
    done: int = 0

    def tell(self, what: str, steps: int = 0) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total, what)
        self.done += steps


def _judge(
    trial: Trial, each: Estimator, measures: Mapping[str, Measure], teller: _Teller
) -> Judgement:
    """Make the maps of an estimator and take every measure of them."""
    teller.tell(f"{each.title}: maps", steps=1)
    try:
        explained = explain_each(
            each, trial.model, trial.examples.images, trial.targets, seed=trial.seed
        )
        judged = Judged(trial, each, explained)
        maps = judged.patches
    except (InputError, CdamError, RuntimeError) as error:  # e.g. no memory for it
        left_out = (LeftOut(each.name, "", _reason(error)),)
        return Judgement(each.name, (), left_out, None, None, None, None, may_go_well=True)
    rows: list[Row] = []
    refusals: dict[str, Exception] = {}
    for name, measure in measures.items():
        teller.tell(f"{each.title}: {name.replace('_', ' ')}", steps=1)
        try:
            for found in measure(judged):
                rows += _rows(each.name, found)
        except (InputError, CdamError, RuntimeError) as error:
            refusals[name] = error
    curves, matrix = None, None
    if SHOWN_CURVES in measures and SHOWN_CURVES not in refusals:
        curves = _mean_curves(judged.curves("patch", "signed", "blur"), trial)
    if "target_correlations" in vars(judged):  # asked for by a measure
        matrix = target_matrix(
            judged.target_correlations, trial.output_names, trial.examples.groups, seed=trial.seed
        )
    return Judgement(
        estimator=each.name,
        rows=tuple(rows),
        left_out=tuple(LeftOut(each.name, name, _reason(e)) for name, e in refusals.items()),
        maps=maps,
        shown=judged.maps[_shown_images(trial.examples)],
        curves=curves,
        matrix=matrix,
        may_go_well=not all(
            isinstance(error, InputError | CdamError) for error in refusals.values()
        ),
    )


def _rows(name: str, found: Measured) -> list[Row]:
    each = zip(found.ids, found.groups, found.labels, found.values.tolist(), strict=True)
    return [Row(name, found.metric, found.resolution, *values) for values in each]


def _shown_images(examples: Examples) -> list[int]:
    """Return which images are shown."""
    of_label: dict[str, list[int]] = {}
    for index, label in enumerate(examples.labels):
        of_label.setdefault(label, []).append(index)
    in_turn = chain.from_iterable(zip_longest(*of_label.values()))
    first = islice((index for index in in_turn if index is not None), SHOWN_IMAGES)
    return sorted(first, key=lambda index: (examples.labels[index], index))


def _results(
    trial: Trial, estimators: Sequence[Estimator], judgements: Sequence[Judgement]
) -> Results:
    indices = _shown_images(trial.examples)
    targets = tuple(trial.targets[index] for index in indices)
    maps = {each.estimator: each.maps for each in judgements if each.maps is not None}
    shown = {each.estimator: each.shown for each in judgements if each.shown is not None}
    return Results(
        estimators=tuple(each for each in estimators if each.name in maps),
        rows=tuple(chain.from_iterable(each.rows for each in judgements)),
        left_out=tuple(chain.from_iterable(each.left_out for each in judgements)),
        curves={each.estimator: each.curves for each in judgements if each.curves is not None},
        matrices={each.estimator: each.matrix for each in judgements if each.matrix is not None},
        pooled=tuple(_pooled(maps, trial)),
        shown=ShownMaps(trial.examples.select(indices), targets, shown),
        seed=trial.seed,
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
    return text if isinstance(error, InputError | CdamError) else f"{type(error).__name__}: {text}"
