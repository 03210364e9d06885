"""What a case's page says: predictions, readers, what a score is, and how the page is read."""

import textwrap

from cdam_med.export.content import DISPLAY_QUANTILE, CaseContent, TargetResult
from cdam_med.export.slice_drawing import (
    DEAD_ZONE,
    colour_words,
    format_score,
    is_control,
    output_name,
    shown,
)
from cdam_med.models.slice_model import OUTPUT_UNIT

_NOTE_LETTERS = 76


def notes(content: CaseContent) -> list[tuple[str, str]]:
    """Return the lines beside the pictures, each with its weight."""
    method, readers = content.method, len(content.nodule.readers)
    squares = {"patch": "the model's patches", "pixel": "the slice's pixels"}[method.resolution]
    own = " and ".join(method.model_views)
    further = [view for view in method.views if view not in method.model_views]
    said = [
        f"{colour_words(method).capitalize()}. {method.meaning}",
        "A method that explains the model must do better than this control."
        if is_control(method)
        else "The maps show what an output leans on, not that it is right.",
        f"The map is of {own} slices one by one, which the model predicts from; the same map is "
        "shown cut in three planes, and it is the one to open first in a viewer.",
        f"Squares are {squares}, {_patch_text(content)}. Scores under {DEAD_ZONE:.0%} of the end "
        "of the scale stay clear.",
        f"A target's scale ends at the score that {DISPLAY_QUANTILE:.1%} of the voxels stay under; "
        "those beyond it have the end's colour, and the table counts them.",
        "Colour bar: left half as over dark lung, right half as over bright tissue.",
        f"Readers: consensus and range of {readers}." if readers else "No readers' ratings.",
        "Off image: share of the scores on class and register tokens, which have no place in the "
        "image.",
        f"Model {shown(content.model.name)}, weights {content.model.weights_sha256[:12]}; "
        f"{shown(method.name)}, {shown(method.path)}. Series: the first digits of "
        "series_uid_sha256 in case.json.",
        f"Predictions: {shown(method.prediction_rule, 160)}.",
    ]
    if content.crop.mask is not None:
        drawn_by = "outlined by at least half of the readers" if readers else "outline"
        said.insert(4, f"White line: {drawn_by}.")
    if len(method.views) > 1:
        untrained = f"; the model wasn't trained on {' and '.join(further)} ones" * bool(further)
        said.insert(3, f"Third row: each plane with the map of its own slices{untrained}.")
    of = " (a control)" if is_control(method) else f" of the {output_name(content.results[0])}"
    heading = f"{method.title}{of}"
    lines = [(heading, "bold")]
    for note in said:
        wrapped = textwrap.wrap(
            note, _NOTE_LETTERS, initial_indent="\N{BULLET} ", subsequent_indent="   "
        )
        lines += [(line, "normal") for line in wrapped]
    return lines


def prediction_text(content: CaseContent, result: TargetResult) -> str:
    """Write a prediction in its own unit."""
    prediction = content.predictions[result.target.name]
    if result.target.unit == "logit":
        return f"{prediction:+.2f}".replace("-", "\N{MINUS SIGN}")
    if result.target.unit == OUTPUT_UNIT:
        return f"{prediction:.3g}".replace("-", "\N{MINUS SIGN}")
    return f"{prediction:.1f}{' mm' if result.target.unit == 'mm' else ''}"


def readers_text(content: CaseContent, target: str) -> str:
    """Write the readers' consensus of a target and how far they lie apart."""
    consensus = content.nodule.ratings.get(target)
    if consensus is None:
        return "\N{EN DASH}"
    spread = content.nodule.rating_range(target)
    return f"{consensus:.1f}" + (f" ({spread[0]:.3g} to {spread[1]:.3g})" if spread else "")


def scale_text(result: TargetResult) -> str:
    """Say what the ends of the readers' scale mean."""
    target = result.target
    if not target.low:
        return f"in {shown(target.unit)}"
    if target.unit == "logit":
        return f"0: undecided; readers 1 {target.low}, 5 {target.high}"
    if target.unit.startswith("rating "):
        first, last = target.unit.removeprefix("rating ").split("-")
        return f"{first} {target.low}, {last} {target.high}"
    return f"in {target.unit}"


def beyond_text(result: TargetResult) -> str:
    """Say how many voxels the colour scale doesn't reach, and how far they go."""
    return (
        f"{result.voxels_beyond_limit} voxels beyond {format_score(result.symmetric_limit)[1:]}, "
        f"largest {format_score(result.largest_score)}"
    )


def words_of(result: TargetResult) -> str:
    """Name a target in words."""
    return shown(result.target.name.replace("_", " "), 24)


def capital(words: str) -> str:
    """Begin with a capital, and leave all others as they are."""
    return words[:1].upper() + words[1:]


def _patch_text(content: CaseContent) -> str:
    sizes: dict[str, list[str]] = {}
    for view, (height, width) in content.method.patch_size_mm.items():
        sizes.setdefault(f"{height:.3g} x {width:.3g} mm", []).append(view)
    if len(sizes) == 1:
        return next(iter(sizes))
    return ", ".join(f"{size} ({', '.join(views)})" for size, views in sizes.items())
