"""What is predicted and explained: the malignancy of a nodule and eight biomarkers.

This registry drives the heads, the command line, the case folder and the docs. Order and names
are those of the paper's CT experiments; scales are the LIDC-IDRI rating scales.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One output of the model.

    Parameters
    ----------
    name : str
        Snake-cased name, also used in file names.
    unit : str
        Unit of the output, and so of its attribution scores.
    description : str
        What the number says; ``low`` and ``high`` anchor its scale.
    low, high : str
        Meaning of the lowest and the highest value.
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

TARGETS = (MALIGNANCY, *BIOMARKERS)
TARGET_NAMES = tuple(target.name for target in TARGETS)
