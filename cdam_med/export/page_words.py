"""What a case's page says: predictions, readers, what a score is, and how the page is read."""

import textwrap

from cdam_med.explanation import DISPLAY_QUANTILE, ExplainedNodule, TargetMap
from cdam_med.models.slice_model import OUTPUT_UNIT
from data_prep.drawing import DEAD_ZONE
from data_prep.text import printable

_NOTE_LETTERS = 76
_MINUS = "\N{MINUS SIGN}"
_LETTERS_END = 0x530
"""First letter behind Latin, Greek and Cyrillic, which matplotlib's own font has."""


def notes(case: ExplainedNodule) -> list[tuple[str, str]]:
    """Return the lines beside the pictures, each with its weight."""
    method, readers = case.method, len(case.nodule.readers)
    views = tuple(case.attribution.views)
    model_views = case.attribution.model_views
    squares = {"patch": "the model's patches", "pixel": "the slice's pixels"}[method.resolution]
    own = " and ".join(model_views)
    further = [view for view in views if view not in model_views]
    said = [
        f"{colour_words(case).capitalize()}. {method.meaning}",
        "A method that explains the model must do better than this control."
        if case.is_control
        else "The maps show what an output leans on, not that it is right.",
        f"The map is of {own} slices one by one, which the model predicts from; the same map is "
        "shown cut in three planes, and it is the one to open first in a viewer.",
        f"Squares are {squares}, {_patch_text(case)}. Scores under {DEAD_ZONE:.0%} of the end "
        "of the scale stay clear.",
        f"A target's scale ends at the score that {DISPLAY_QUANTILE:.1%} of the voxels stay under; "
        "those beyond it have the end's colour, and the table counts them.",
        "Colour bar: left half as over dark lung, right half as over bright tissue.",
        f"Readers: consensus and range of {readers}." if readers else "No readers' ratings.",
        "Off image: share of the scores on class and register tokens, which have no place in the "
        "image.",
        f"Model {shown(case.model.name)}, weights {case.model.weights_sha256[:12]}; "
        f"{shown(method.name)}, {shown(case.path)}. Series: the first digits of "
        "series_uid_sha256 in case.json.",
        f"Predictions: {shown(case.prediction_rule, 160)}.",
    ]
    if case.crop.mask is not None:
        drawn_by = "outlined by at least half of the readers" if readers else "outline"
        said.insert(4, f"White line: {drawn_by}.")
    if len(views) > 1:
        untrained = f"; the model wasn't trained on {' and '.join(further)} ones" * bool(further)
        said.insert(3, f"Third row: each plane with the map of its own slices{untrained}.")
    of = " (a control)" if case.is_control else f" of the {output_name(case.maps[0])}"
    heading = f"{method.title}{of}"
    lines = [(heading, "bold")]
    for note in said:
        wrapped = textwrap.wrap(
            note, _NOTE_LETTERS, initial_indent="\N{BULLET} ", subsequent_indent="   "
        )
        lines += [(line, "normal") for line in wrapped]
    return lines


def prediction_text(case: ExplainedNodule, result: TargetMap) -> str:
    """Write a prediction in its own unit."""
    prediction = case.predictions[result.target.name]
    if result.target.unit == "logit":
        return f"{prediction:+.2f}".replace("-", _MINUS)
    if result.target.unit == OUTPUT_UNIT:
        return f"{prediction:.3g}".replace("-", _MINUS)
    return f"{prediction:.1f}{' mm' if result.target.unit == 'mm' else ''}"


def readers_text(case: ExplainedNodule, target: str) -> str:
    """Write the readers' consensus of a target and how far they lie apart."""
    consensus = case.nodule.ratings.get(target)
    if consensus is None:
        return "\N{EN DASH}"
    given = [reader.ratings[target] for reader in case.nodule.readers if target in reader.ratings]
    return f"{consensus:.1f}" + (f" ({min(given):.3g} to {max(given):.3g})" if given else "")


def scale_text(result: TargetMap) -> str:
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


def beyond_text(result: TargetMap) -> str:
    """Say how many voxels the colour scale doesn't reach, and how far they go."""
    return (
        f"{result.voxels_beyond} voxels beyond {format_score(result.limit)[1:]}, "
        f"largest {format_score(result.largest)}"
    )


def capital(words: str) -> str:
    """Begin with a capital, and leave all others as they are."""
    return words[:1].upper() + words[1:]


def colour_words(case: ExplainedNodule) -> str:
    """Say what the colours of the maps stand for, as a part of a sentence."""
    if case.method.is_signed:
        return "orange above zero, blue below"
    return "the stronger the colour, the larger the score"


def target_words(result: TargetMap, length: int = 24) -> str:
    """Name a target in words."""
    return shown(result.target.name.replace("_", " "), length)


def output_name(result: TargetMap) -> str:
    """Name the output that a target's map is about."""
    unit = result.target.unit
    kind = " rating" if unit.startswith("rating") else " logit" * (unit == "logit")
    return f"{target_words(result, 30)}{kind}"


def shown(text: str, length: int = 60) -> str:
    """Return text in letters that the page's font has, as long as the page has room for."""
    plain = "".join(
        letter
        if ord(letter) < _LETTERS_END
        else letter.encode("ascii", "backslashreplace").decode()
        for letter in printable(text)
    )
    return plain if len(plain) <= length else f"{plain[: length - 3]}..."


def format_score(score: float) -> str:
    """Write a score with its sign and two digits; a true minus, and no sign for zero."""
    return f"{score:+.2g}".replace("-", _MINUS) if score else "0"


def _patch_text(case: ExplainedNodule) -> str:
    sizes: dict[str, list[str]] = {}
    for name, view in case.attribution.views.items():
        height, width = view.patch_size_mm
        sizes.setdefault(f"{height:.3g} x {width:.3g} mm", []).append(name)
    if len(sizes) == 1:
        return next(iter(sizes))
    return ", ".join(f"{size} ({', '.join(views)})" for size, views in sizes.items())
