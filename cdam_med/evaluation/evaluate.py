"""Evaluate methods: every metric of every method's maps, as one long table.

Maps are made once for each method and kept for all metrics; what doesn't depend on a map (what
the model says without a box, ablations, mosaics) is made once for all methods. A method that
refuses the model, and metrics that the examples don't allow, are left out and named with the
reason; the others go on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice, zip_longest

import numpy as np

from cdam_med.attribution import registry
from cdam_med.attribution.method import Method
from cdam_med.errors import CdamError, MethodError
from cdam_med.evaluation.examples import Examples
from cdam_med.evaluation.experiment import Experiment, Explanations, Metric, explain
from cdam_med.evaluation.metrics import choose_metrics
from cdam_med.evaluation.metrics.class_sensitivity import target_correlations
from cdam_med.evaluation.metrics.curves import curves_of
from cdam_med.evaluation.results import Arrays, LeftOut, Results, Row, with_intervals
from cdam_med.evaluation.store import Store, run_sha256
from data_prep.errors import InputError

Progress = Callable[[int, int, str], None]
"""Called with the number of steps done, of all steps, and what comes next."""

SHOWN_CURVES = "mif_lif"
"""Metric whose curves are drawn."""

SHOWN_IMAGES = 6
"""Images whose maps are kept to be shown: the first ones of each label, in turn."""


def evaluate(  # noqa: PLR0913  what a run is made of
    model: object,
    examples: Examples,
    methods: Sequence[str | Method] | None = None,
    *,
    metrics: Sequence[str] | None = None,
    shifted: Examples | None = None,
    neighbours: Examples | None = None,
    seed: int = 0,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Results:
    """Evaluate the maps of methods.

    Parameters
    ----------
    model : VisionTransformer or object with `class_token_model`
        What is explained.
    examples : Examples
        What it is explained on.
    methods : sequence of str or Method, optional
        Names in the registry, or methods with settings of their own; all unless given.
    metrics : sequence of str, optional
        Names in `cdam_med.evaluation.metrics.GROUPS`; all unless given.
    shifted : Examples, optional
        The same images with the object out of the centre, matched by id.
    neighbours : Examples, optional
        Images that should be explained alike, such as the next slices, matched by id.
    seed : int
        Of everything random.
    store : Store, optional
        Where what is found of each method is kept, and looked for first.
    progress : callable, optional
        Is told the progress.

    Returns
    -------
    Results
        Its `summary` has means, intervals and differences.

    Raises
    ------
    MethodError
        If there is no such method or metric, or one method is given twice.
    CdamError
        If the model can't be described or the images aren't what it takes.
    InputError
        If images that are to be matched aren't among the examples.
    OutputError
        If what is found can't be kept.
    """
    chosen, groups = _methods(methods), choose_metrics(metrics)
    for other in (shifted, neighbours):
        if other is not None and not set(other.ids) <= set(examples.ids):
            raise InputError(
                "Shifted and neighbouring examples must have ids of the examples: make them of "
                "the same nodules."
            )
    experiment = Experiment(model, examples, shifted, neighbours, seed)
    empty = _nothing(experiment)  # a model that can't be explained ends here
    run = "" if store is None else run_sha256(experiment, list(groups))
    steps = 1 + len(groups)
    parts = []
    for number, method in enumerate(chosen):

        def tell(what: str, done: int, before: int = number * steps) -> None:
            if progress is not None:
                progress(before + done, len(chosen) * steps, what)

        found = None if store is None else store.read(method, run, empty)
        if found is None:
            found, is_final = _evaluate_method(experiment, method, groups, empty, tell)
            if store is not None and is_final:
                store.write(method, run, found)
        parts.append(found)
    if progress is not None:
        progress(len(chosen) * steps, len(chosen) * steps, "done")
    return Results.joined(parts)


def _evaluate_method(
    experiment: Experiment,
    method: Method,
    groups: Mapping[str, Sequence[Metric]],
    empty: Results,
    tell: Callable[[str, int], None],
) -> tuple[Results, bool]:
    """Return what is found of a method, and whether another attempt would find the same."""
    name, examples = method.name, experiment.examples
    tell(f"{method.title}: maps", 0)
    try:
        made = explain(
            method, experiment.model, examples.images, experiment.targets, seed=experiment.seed
        )
        explanations = Explanations(experiment, method, *made)
        maps = explanations.patches
    except (InputError, CdamError, RuntimeError) as error:  # e.g. no memory for it
        return replace(empty, left_out=(LeftOut(name, "", _reason(error)),)), False
    rows: list[Row] = []
    refusals: dict[str, Exception] = {}
    for done, (group, members) in enumerate(groups.items(), start=1):
        tell(f"{method.title}: {group.replace('_', ' ')}", done)
        try:
            for metric in members:
                for found in metric(explanations):
                    label = f"{metric.name}/{found.variant}" if found.variant else metric.name
                    rows += _rows((name, label, found.resolution), found.examples, found.values)
        except (InputError, CdamError, RuntimeError) as error:
            refusals[group] = error
    computed = set(groups) - refusals.keys()
    part = replace(
        empty,
        methods=(method,),
        rows=tuple(rows),
        left_out=tuple(LeftOut(name, each, _reason(error)) for each, error in refusals.items()),
        maps={name: maps},
        shown={name: explanations.maps[_shown_images(examples)]},
        curves={name: _mean_curves(explanations)} if SHOWN_CURVES in computed else {},
        matrices={name: _matrix(explanations)}
        if "class_sensitivity" in computed and experiment.has_names
        else {},
    )
    is_final = all(isinstance(error, InputError | CdamError) for error in refusals.values())
    return part, is_final


def _rows(names: tuple[str, str, str], examples: Examples, values: np.ndarray) -> list[Row]:
    each = zip(examples.ids, examples.groups, examples.labels, values.tolist(), strict=True)
    return [Row._make((*names, *words)) for words in each]


def _nothing(experiment: Experiment) -> Results:
    """Return results without any method."""
    indices = _shown_images(experiment.examples)
    targets = tuple(experiment.targets[index] for index in indices)
    experiment.grid  # noqa: B018  # refuses volumes
    return Results(
        methods=(),
        rows=(),
        left_out=(),
        maps={},
        groups=experiment.examples.groups,
        examples=replace(experiment.examples.select(indices), targets=targets),
        shown={},
        curves={},
        matrices={},
        output_names=experiment.output_names,
        seed=experiment.seed,
    )


def _shown_images(examples: Examples) -> list[int]:
    """Return which images are shown."""
    of_label: dict[str, list[int]] = {}
    for index, label in enumerate(examples.labels):
        of_label.setdefault(label, []).append(index)
    in_turn = chain.from_iterable(zip_longest(*of_label.values()))
    first = islice((index for index in in_turn if index is not None), SHOWN_IMAGES)
    return sorted(first, key=lambda index: (examples.labels[index], index))


def _mean_curves(explanations: Explanations) -> Arrays:
    experiment = explanations.experiment
    curves = curves_of(explanations, "patch", "signed", "blur")
    found = {"shares": curves.shares}
    for name in ("most_first", "least_first"):
        ends = with_intervals(
            getattr(curves, name), experiment.examples.groups, seed=experiment.seed
        )
        found |= {name: ends["mean"], f"{name}_low": ends["low"], f"{name}_high": ends["high"]}
    return found


def _matrix(explanations: Explanations) -> Arrays:
    experiment = explanations.experiment
    values = explanations.once(target_correlations)
    flat = values.reshape(len(values), -1)
    found = with_intervals(flat, experiment.examples.groups, seed=experiment.seed)
    return {key: each.reshape(values.shape[1:]) for key, each in found.items()}


def _methods(asked: Sequence[str | Method] | None) -> list[Method]:
    chosen = [
        registry.method(each) if isinstance(each, str) else each
        for each in (registry.METHODS if asked is None else asked)
    ]
    names = [each.name for each in chosen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MethodError(
            f"The method {twice[0]} is given twice: evaluate its settings one after the other."
        )
    if not chosen:
        raise MethodError(f"No method is asked for: choose from {', '.join(registry.METHODS)}.")
    return chosen


def _reason(error: Exception) -> str:
    """Return why something can't be done, on one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError | CdamError) else f"{type(error).__name__}: {text}"
