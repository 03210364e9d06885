"""What a case explains: outputs of a model, and what is derived from them, each with its unit."""

import difflib
from collections.abc import Sequence
from dataclasses import replace

from cdam_med.attribution.asked_targets import each_target, name_or_column
from cdam_med.attribution.combinations import Combination, DerivedTarget, PerImage
from cdam_med.attribution.concept import Concept
from cdam_med.errors import TargetError
from cdam_med.models.slice_model import OUTPUT_UNIT, SliceModel
from cdam_med.targets import MALIGNANCY_PROBABILITY, Target

ALL = "all"
"""As targets: every output."""

MOST = 50
"""Outputs that ``all`` stands for at most: each makes several files and a row of the overview."""


def case_targets(
    model: SliceModel, targets: object
) -> tuple[tuple[str | DerivedTarget, ...], tuple[Target, ...]]:
    """Return what is asked for as estimators take it, and what each is.

    Parameters
    ----------
    model : SliceModel
        The model.
    targets : object
        ``"all"``, or names and columns of outputs, combinations and concepts.

    Raises
    ------
    TargetError
        A name or column is unknown, two are named alike, or there are too many outputs to take all.
    """
    if targets is None or (isinstance(targets, str) and targets == ALL):
        if len(model.targets) > MOST:
            raise TargetError(
                f"{model.name} has {len(model.targets)} outputs, and a case of all would hold as "
                "many maps: name those to explain, targets=['name', ...] or columns."
            )
        return model.target_names, model.targets
    asked = tuple(_target(model, target) for target in each_target(targets))
    described = tuple(_describe(model, target) for target in asked)
    names = [target.name for target in described]
    if len(set(names)) < len(names):
        raise TargetError(f"Targets must be named once each, not {', '.join(names)}.")
    taken = {*model.target_names, MALIGNANCY_PROBABILITY}
    for target, name in zip(asked, names, strict=True):
        if isinstance(target, DerivedTarget) and name in taken:
            raise TargetError(
                f"The label {name!r} is the name of an output: label the concept or combination "
                "otherwise."
            )
    return asked, described


def _target(model: SliceModel, target: object) -> str | DerivedTarget:
    """Return an output by its name, also where a column was asked for."""
    if isinstance(target, DerivedTarget):
        return target
    if isinstance(target, PerImage):
        raise TargetError(
            "PerImage is for batches of images, and the slices of a nodule are explained for the "
            "same targets: name one for all."
        )
    asked, names = name_or_column(target), model.target_names
    if isinstance(asked, str) and asked not in names:
        close = difflib.get_close_matches(asked, names, n=1)
        hint = f"did you mean {close[0]!r}? There are" if close else "choose 'all' or some of"
        raise TargetError(f"Unknown target {asked!r}; {hint} {', '.join(names[:MOST])}.")
    return names[model.description.target_columns(asked)[0]]


def _describe(model: SliceModel, target: str | DerivedTarget) -> Target:
    by_name = {each.name: each for each in model.targets}
    if isinstance(target, str):
        return by_name[target]
    if isinstance(target, Concept):
        return concept_target(target)
    described = Target(target.label, OUTPUT_UNIT, "a function of the outputs", "", "")
    if not isinstance(target, Combination):
        return described
    names = [_target(model, key) for key in target.weights]
    units = {by_name[name].unit for name in names if isinstance(name, str)}
    terms = zip(target.weights.values(), names, strict=True)
    return replace(
        described,
        unit=units.pop() if len(units) == 1 else OUTPUT_UNIT,
        description=" ".join(f"{weight:+g} {name}" for weight, name in terms),
    )


def concept_target(concept: Concept) -> Target:
    """Describe a concept as a target: named by its label, in units of the similarity.

    Parameters
    ----------
    concept : Concept
        The concept.
    """
    kind = concept.similarity.replace("_", " ")
    parts: Sequence[str] = (kind, concept.source) if concept.source else (kind,)
    return Target(
        concept.label,
        "similarity",
        f"how like the mean of {len(concept.examples)} examples ({', '.join(parts)})",
        "unlike",
        "alike",
    )
