"""Hooks on the parts of a model while it runs, the only ones in this package.

Another thread may use the same model meanwhile: a hook acts on the calls of the thread that set it,
and lets those of all others through. Hooks inside a module that was compiled in place would not
be run, so such modules take their uncompiled way while one is set.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from threading import local
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

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


def before_calls(
    root: nn.Module, modules: Iterable[nn.Module], hook: Before, *, first: bool = False
) -> AbstractContextManager[None]:
    """See or change what modules are called with while the context is open.

    Parameters
    ----------
    root : Module
        The model that the modules are parts of.
    modules : iterable of Module
        Where to look; one that is there twice counts once.
    hook : callable
        Called before each call of one of them by this thread.
    first : bool
        Whether before the hooks of others instead of behind them.
    """
    own = _PLACE.key

    def guarded(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return hook(module, args, kwargs) if _PLACE.key is own else None

    return _hooked(
        root,
        set(modules),
        lambda part: part.register_forward_pre_hook(guarded, with_kwargs=True, prepend=first),
    )


def after_calls(
    root: nn.Module, modules: Iterable[nn.Module], hook: After
) -> AbstractContextManager[None]:
    """See or change what modules return while the context is open.

    Parameters
    ----------
    root : Module
        The model that the modules are parts of.
    modules : iterable of Module
        Where to look; one that is there twice counts once.
    hook : callable
        Called after each call of one of them by this thread, behind the hooks of others.
    """
    own = _PLACE.key

    def guarded(module: nn.Module, _: tuple[Any, ...], output: Any) -> Any:
        return hook(module, output) if _PLACE.key is own else None

    return _hooked(root, set(modules), lambda part: part.register_forward_hook(guarded))


@contextmanager
def _hooked(
    root: nn.Module, parts: set[nn.Module], register: Callable[[nn.Module], RemovableHandle]
) -> Iterator[None]:
    handles = [register(part) for part in parts]
    with _uncompiled(root, parts):
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def set_aside(modules: Iterable[nn.Module], attribute: str, value: object) -> Iterator[None]:
    """Give an attribute of modules another value, and each its own back, also on error.

    Parameters
    ----------
    modules : iterable of Module
        Those that lack the attribute are left alone.
    attribute : str
        Its name.
    value : object
        What it is meanwhile.
    """
    before = [(part, getattr(part, attribute)) for part in modules if hasattr(part, attribute)]
    try:
        for part, _ in before:
            setattr(part, attribute, value)
        yield
    finally:
        for part, own in before:
            setattr(part, attribute, own)


@contextmanager
def _uncompiled(root: nn.Module, watched: set[nn.Module]) -> Iterator[None]:
    compiled = [
        part
        for part in root.modules()
        if part._compiled_call_impl is not None and not watched.isdisjoint(part.modules())
    ]
    with set_aside(compiled, "_compiled_call_impl", None):
        yield
