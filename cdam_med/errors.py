"""Errors of the model side: each names the thing, what was expected and the remedy."""

from data_prep.errors import InputError


class ModelError(InputError):
    """A model that can't be explained, or can't be loaded, as it is."""


class TargetError(InputError):
    """A target that the model doesn't have."""


class ViewError(InputError):
    """A view (plane of slices) that doesn't exist, or that no map was made for."""


class MethodError(InputError):
    """An attribution method or measure that doesn't exist, or a setting of it that can't be."""
