"""Elements of the readers' XML: found by their names, their text checked."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.errors import AnnotationError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def element_name(element: "Element") -> str:
    """Return the element's name in lower case, without its namespace."""
    return element.tag.rpartition("}")[2].lower()


def children(parent: "Element", name: str) -> Iterator["Element"]:
    """Yield the children of that name, whatever their namespace and the case of letters."""
    return (child for child in parent if element_name(child) == name.lower())


def holds(parent: "Element", name: str) -> bool:
    """Tell whether there is a child of that name."""
    # not any(): an element without children counts as false
    return next(children(parent, name), None) is not None


def child_of(parent: "Element", name: str, path: Path) -> "Element":
    """Return the first child of that name; AnnotationError if there is none."""
    child = next(children(parent, name), None)
    if child is None:
        raise AnnotationError(
            f"A {element_name(parent)} element in {path} has no {name}; get the file from the "
            "archive again."
        )
    return child


def text_of(element: "Element", path: Path) -> str:
    """Return the text of an element; AnnotationError if it is empty."""
    text = (element.text or "").strip()
    if not text:
        raise AnnotationError(
            f"A {element_name(element)} element in {path} is empty; get the file from the "
            "archive again."
        )
    return text


def integer_of(element: "Element", path: Path) -> int:
    """Return the whole number that an element holds; AnnotationError if it is none."""
    text = text_of(element, path)
    # int() alone would take other alphabets' digits and underscores, and any length
    if not text.removeprefix("-").isdecimal() or not text.isascii() or len(text) > 9:
        raise AnnotationError(
            f"A {element_name(element)} element in {path} holds {shown(text)} where a whole "
            "number is expected; correct it, or get the file from the archive again."
        )
    return int(text)


def number_of(element: "Element", path: Path) -> float:
    """Return the number that an element holds; AnnotationError if it is none."""
    text = text_of(element, path)
    try:
        return float(text)
    except ValueError:
        raise AnnotationError(
            f"A {element_name(element)} element in {path} holds {shown(text)} where a number is "
            f"expected; correct it, or get the file from the archive again."
        ) from None


def shown(text: str) -> str:
    """Quote a string from a file so that it is safe in a one-line message."""
    return ascii(text if len(text) <= 70 else f"{text[:70]}...")
