"""The border to other people's models: what their code raises becomes an error of ours."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cdam_med.errors import CdamError, ModelError

_OF_A_MODEL = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
"""What a model's own code raises where it can't go on."""


@contextmanager
def errors_named(model: str) -> Iterator[None]:
    """Turn what a model's own code raises into an error that names the model.

    Memory that ran out isn't the model's fault, and stays as it is.

    Parameters
    ----------
    model : str
        Its name.

    Raises
    ------
    ModelError
        Instead of an error of torch or of the model's own code.
    """
    try:
        yield
    except (CdamError, torch.OutOfMemoryError):
        raise
    except _OF_A_MODEL as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{model} failed when it was run to be explained ({type(error).__name__}: "
            f"{reason[:300]}). See that it takes one such image by itself, in evaluation mode, and "
            "that its parts are plain torch modules, neither quantised nor exported."
        ) from error
