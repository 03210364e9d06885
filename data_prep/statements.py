"""What must be said of every result, in one place."""

from importlib import metadata

RESEARCH_ONLY = "Research only, not for diagnosis."

RATINGS_NOTE = (
    "LIDC-IDRI's malignancy ratings are radiologists' opinions from the images, not pathology."
)
"""Said of labels and of models that were trained on them."""

RATINGS_NOTE_SHORT = "LIDC malignancy ratings are radiologists' opinions."
"""The same, for a line on a page."""


def version_of(distribution: str) -> str:
    """Return the version of a distribution such as ``"cdam-med"``, or that it isn't installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed (run from its source tree)"
