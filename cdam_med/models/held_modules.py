"""Modules that a function or an object holds: a model's readout may be a lambda over its head.

Whoever explains such a model has to put these modules in evaluation mode too, for dropout in a head
would make every map another.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from types import CodeType, FunctionType, MethodType

from torch import Tensor, nn

_HOLDING_NONE = (str, Tensor)
"""What there may be thousands of, as of a concept's examples, and no modules in."""


def modules_in(things: Sequence[object]) -> list[nn.Module]:
    """Return the modules among things and in whatever they hold or call, each once.

    They are found in attributes and methods, in lists, tuples and dicts, in partial functions, and
    in all that a function refers to: variables of functions around it, defaults, and global names,
    also by way of functions of the same file. They aren't found in an object that is an attribute
    of another, but for the fields of dataclasses.

    Parameters
    ----------
    things : sequence of object
        Modules, functions, methods, and objects that hold them.
    """
    modules: list[nn.Module] = []
    left, seen = list(things), dict[int, object]()  # things too, lest an address be used again
    while left:
        thing = left.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, nn.Module):
            modules.append(thing)
        else:
            left.extend(_held_by(thing))
    return modules


def _held_by(thing: object) -> list[object]:
    """Return what a thing holds in which there may be modules."""
    match thing:
        case FunctionType():
            return _referred_to(thing)
        case MethodType():
            return [thing.__self__, thing.__func__]
        case partial():
            return [thing.func, *thing.args, *thing.keywords.values()]
        case list() | tuple():
            return [value for value in thing if not isinstance(value, _HOLDING_NONE)]
        case dict():
            return [value for value in thing.values() if not isinstance(value, _HOLDING_NONE)]
        case type():
            return []
    values = list(getattr(thing, "__dict__", {}).values())
    if dataclasses.is_dataclass(thing):
        return values
    return [value for value in values if isinstance(value, nn.Module)]


def _referred_to(function: FunctionType) -> list[object]:
    """Return what a function refers to, of global names modules and functions of its file alone."""
    held = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # a variable that has no value yet
            continue
    known = function.__globals__
    for name in _names_in(function.__code__):
        value = known.get(name)
        of_file = isinstance(value, FunctionType) and value.__globals__ is known
        if of_file or isinstance(value, nn.Module):
            held.append(value)
    return held


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:  # functions and comprehensions within
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
