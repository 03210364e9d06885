"""Hooks on the parts of a model while it runs, and its attributes set aside: the only ones here.

Another thread may use the same model meanwhile: a hook acts on the calls of the thread that set it,
and lets those of all others through. Hooks inside a module that was compiled in place would not
be run, so such modules take their uncompiled way while one is set.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import local
from typing import Any, TypeAlias

from torch import Tensor, nn

Arguments: TypeAlias = tuple[tuple[Any, ...], Mapping[str, Any]]
"""What a module is called with: positional arguments and keyword arguments."""

Before: TypeAlias = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Arguments | None]
"""Takes a module and what it is called with; may return what takes its place."""

After: TypeAlias = Callable[[nn.Module, Tensor], Tensor | None]
"""Takes a module and what it returns; may return what takes its place."""


class _Place(local):
    """The explanation that a thread is in, each with a key of its own."""

    def __init__(self) -> None:
        self.key: object = object()


_PLACE = _Place()


@contextmanager
def explanation() -> Iterator[None]:
    """Keep hooks that were set outside from acting within: a target may run the model itself."""
    outer, _PLACE.key = _PLACE.key, object()
    try:
        yield
    finally:
        _PLACE.key = outer


@contextmanager
def before_calls(
    root: nn.Module, modules: Iterable[nn.Module], hook: Before, *, first: bool = False
) -> Iterator[None]:
    """See or change what parts of a model, `root`, are called with by this thread.

    The hook runs behind those of others, or with `first` before them.
    """
    own = _PLACE.key

    def guarded(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return hook(module, args, kwargs) if _PLACE.key is own else None

    with _uncompiled(root, set(modules)) as (stack, parts):
        for part in parts:
            handle = part.register_forward_pre_hook(guarded, with_kwargs=True, prepend=first)
            stack.callback(handle.remove)
        yield


@contextmanager
def after_calls(root: nn.Module, modules: Iterable[nn.Module], hook: After) -> Iterator[None]:
    """See or change what parts of a model, `root`, return to this thread, behind other hooks."""
    own = _PLACE.key

    def guarded(module: nn.Module, _: tuple[Any, ...], output: Any) -> Any:
        return hook(module, output) if _PLACE.key is own else None

    with _uncompiled(root, set(modules)) as (stack, parts):
        for part in parts:
            stack.callback(part.register_forward_hook(guarded).remove)
        yield


@contextmanager
def _uncompiled(
    root: nn.Module, watched: set[nn.Module]
) -> Iterator[tuple[ExitStack, set[nn.Module]]]:
    compiled = [
        part
        for part in root.modules()
        if part._compiled_call_impl is not None and not watched.isdisjoint(part.modules())
    ]
    with set_aside(compiled, "_compiled_call_impl", None), ExitStack() as stack:
        yield stack, watched


@contextmanager
def set_aside(things: Iterable[object], attribute: str, value: object) -> Iterator[None]:
    """Give an attribute of those that have it another value, and each its own back, also on error.

    With ``"training"`` modules are put in evaluation mode, with ``"requires_grad"`` parameters are
    frozen.
    """
    before = [(thing, getattr(thing, attribute)) for thing in things if hasattr(thing, attribute)]
    try:
        for thing, _ in before:
            setattr(thing, attribute, value)
        yield
    finally:
        for thing, own in before:
            setattr(thing, attribute, own)
