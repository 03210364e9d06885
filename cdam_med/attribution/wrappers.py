"""torch's own wrappers around a model, which don't show its parts."""

from collections.abc import Mapping

from cdam_med.errors import ModelError

_MODULE = "pass its .module"

_WRAPPERS: Mapping[str, str] = {
    "torch._dynamo.eval_frame.OptimizedModule": (
        "compile it in place with its own .compile() instead of torch.compile, or pass ._orig_mod"
    ),
    "torch.nn.parallel.data_parallel.DataParallel": _MODULE,
    "torch.nn.parallel.distributed.DistributedDataParallel": _MODULE,
    "torch.optim.swa_utils.AveragedModel": _MODULE,
}
"""Modules of torch that hold a model and don't show its parts, and what to do."""


def refuse_wrapper(model: object) -> None:
    """Refuse a model inside one of torch's wrappers, and say how to get it out.

    Parameters
    ----------
    model : object
        What somebody wants explained, or a part of it.

    Raises
    ------
    ModelError
        If it is one.
    """
    for kind in type(model).__mro__:
        if (remedy := _WRAPPERS.get(f"{kind.__module__}.{kind.__qualname__}")) is not None:
            raise ModelError(
                f"{type(model).__name__} is a wrapper around a model or a block, whose parts can't "
                f"be explained through it: {remedy}."
            )
