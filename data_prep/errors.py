"""Errors that a caller can act on: each names the thing, what was expected and the remedy."""

from pathlib import Path


class InputError(ValueError):
    """Input that can't be used as it is.

    The message is one sentence for a person: what is wrong, with which thing, and what to do.
    The command line prints it and ends with exit code 2.
    """


class SeriesError(InputError):
    """A DICOM series that can't be placed in patient space without guessing.

    Parameters
    ----------
    reason : str
        Stable name of the problem, e.g. ``"missing_slices"``; scripts may rely on it.
    message : str
        The sentence for a person.
    files : tuple of Path
        The files concerned, fewest that show the problem.
    """

    def __init__(self, reason: str, message: str, files: tuple[Path, ...] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.files = files


class AnnotationError(InputError):
    """Annotations that can't be read or don't belong to the volume."""


class CropError(InputError):
    """A nodule that can't be cropped as asked."""


class OutputError(InputError):
    """A result that can't be written as asked."""
