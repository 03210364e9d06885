"""Errors of the model side: each names the thing, what was expected and the remedy.

They know nothing of `data_prep`, so that attribution stands on its own. Data that can't be used is
a `data_prep.InputError`. Both are a `ValueError`; the command line ends with exit code 2 for both.
"""


class CdamError(ValueError):
    """A model, images, a target or a setting that can't be used as it is.

    The message is one sentence for a person: what is wrong, with which thing, and what to do.
    """


class ModelError(CdamError):
    """A model that can't be explained, or can't be loaded, as it is."""


class TargetError(CdamError):
    """A target that the model doesn't have."""


class ViewError(CdamError):
    """A view (plane of slices) that doesn't exist, or that no map was made for."""


class MethodError(CdamError):
    """An attribution method or measure that doesn't exist, or a setting of it that can't be."""
