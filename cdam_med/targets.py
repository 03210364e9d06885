"""What is predicted and explained: the malignancy of a nodule and eight biomarkers.

This registry drives the heads, the command line, the case folder and the docs. Order and names
are those of the paper's CT experiments; scales are the LIDC-IDRI rating scales.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cdam_med.errors import TargetError


@dataclass(frozen=True)
class Target:
    """One output of the model; its scores have its unit, `low` and `high` anchor its scale.

    The name is snake-cased, and also used in names of files.
    """

    name: str
    unit: str
    description: str
    low: str
    high: str


MALIGNANCY = Target(
    "malignancy",
    "logit",
    "likelihood of malignancy in the opinion of the readers (their median, 3 left out)",
    "benign",
    "malignant",
)

MALIGNANCY_PROBABILITY = "malignancy_probability"
"""Name, among predictions, of the logistic function of the malignancy logit; it isn't a target."""

BIOMARKERS = (
    Target("subtlety", "rating 1-5", "how easily the nodule is seen", "subtle", "obvious"),
    Target("calcification", "rating 1-6", "pattern of calcification", "popcorn", "absent"),
    Target("margin", "rating 1-5", "how sharp the edge is", "poorly defined", "sharp"),
    Target("lobulation", "rating 1-5", "degree of lobulation", "none", "marked"),
    Target("spiculation", "rating 1-5", "degree of spiculation", "none", "marked"),
    Target("diameter", "mm", "largest axial diameter of the outline", "small", "large"),
    Target("texture", "rating 1-5", "solidity", "ground glass", "solid"),
    Target("sphericity", "rating 1-5", "three-dimensional roundness", "linear", "round"),
)

_LABEL = re.compile(r"[A-Za-z0-9_-]{1,60}")

TARGETS = (MALIGNANCY, *BIOMARKERS)
TARGET_NAMES = tuple(target.name for target in TARGETS)


def choose_targets(targets: str | Sequence[str]) -> tuple[str, ...]:
    """Return names of targets, in the order asked for; ``"all"`` are all, none may come twice."""
    if targets == "all":
        return TARGET_NAMES
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    for name in names:
        if name not in TARGET_NAMES:
            raise unknown_target(name, TARGET_NAMES)
    if not names or len(set(names)) < len(names):
        raise TargetError(
            f"Targets must be named once each, not {', '.join(names) or 'left empty'}; "
            f"choose 'all' or some of {', '.join(TARGET_NAMES)}."
        )
    return names


def unknown_target(name: str, known: Sequence[str]) -> TargetError:
    """Return the error of a target that there isn't, with the nearest that there is."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? There are" if close else "choose 'all' or some of"
    return TargetError(f"Unknown target {name!r}; {hint} {', '.join(known)}.")


def check_concept_label(label: str) -> None:
    """Refuse a label of a concept that can't be part of a file's name, or is a target's name."""
    taken = (*TARGET_NAMES, MALIGNANCY_PROBABILITY)
    if not _LABEL.fullmatch(label) or label in taken:
        raise TargetError(
            f"The concept's label {label[:50]!r} names its files: use ASCII letters, digits, _ and "
            f"-, and none of {', '.join(taken)}."
        )
