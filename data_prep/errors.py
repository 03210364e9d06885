"""Errors that a caller can act on: each names the thing, what was expected and the remedy."""


class InputError(ValueError):
    """Input that can't be used as it is.

    The message is one sentence for a person: what is wrong, with which thing, and what to do.
    The command line prints it and ends with exit code 2.
    """


class NamedError(InputError):
    """Input that can't be used, for a reason with a stable name.

    Parameters
    ----------
    reason : str
        The name; scripts may rely on it.
    message : str
        The sentence for a person.
    """

    def __init__(self, reason: str, message: str, *args: object) -> None:
        # everything in args, so that the error can be sent from another process (pickled)
        super().__init__(reason, message, *args)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class ImageError(NamedError):
    """An image file (NIfTI, NRRD, MetaImage) that can't be read without guessing.

    Its reason is e.g. ``"no_orientation"``; see `data_prep.formats.read_image`.
    """


class AnnotationError(InputError):
    """Annotations that can't be read or don't belong to the volume."""


class MaskError(NamedError, AnnotationError):
    """A mask that can't be read or doesn't belong to the volume.

    Its reason is e.g. ``"outside_volume"``; see `data_prep.masks.nodules_from_masks`.
    """


class NoduleTableError(NamedError, AnnotationError):
    """A table of nodules that can't be read or doesn't belong to the volume.

    Its reason is e.g. ``"no_frame"``; see `data_prep.nodule_table`. The message names the row.
    """


class NoduleTableWarning(UserWarning):
    """Columns of a table of nodules aren't used, or rows of it are left out."""


class CropError(InputError):
    """A nodule that can't be cropped as asked."""


class OutputError(InputError):
    """A result that can't be written as asked."""
