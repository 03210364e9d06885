"""Which nodules are meant by a line such as ``spiculation >= 4 and diameter < 10``.

The language is comparisons of a rating with a number, joined by ``and``, and nothing else. A query
is parsed and compared here; no part of it is ever executed.
"""

import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from cdam_med.errors import TargetError

_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}

_COMPARISON = re.compile(
    r"\s*([A-Za-z_]\w*)\s*(>=|<=|==|!=|>|<|=)\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*", re.ASCII
)


@dataclass(frozen=True)
class RatingQuery:
    """A condition on the ratings of a nodule: comparisons (name, sign, number) that all hold."""

    text: str
    comparisons: tuple[tuple[str, str, float], ...]

    def __call__(self, ratings: Mapping[str, float | int | None]) -> bool:
        """Say whether a nodule is meant; one whose rating is missing (None or NaN) never is."""
        check_names((name for name, _, _ in self.comparisons), ratings)
        found = [(ratings[name], sign, value) for name, sign, value in self.comparisons]
        return all(
            rating is not None and rating == rating and _COMPARISONS[sign](rating, value)
            for rating, sign, value in found
        )


def parse_query(text: str, *, names: Collection[str] | None = None) -> RatingQuery:
    """Parse a query over ratings.

    Parameters
    ----------
    text : str
        Comparisons of a name with a number, joined by ``and``.
    names : collection of str, optional
        Names that may occur; any unless given.

    Raises
    ------
    TargetError
        If it isn't such a query, or a name in it is unknown; the part at fault is quoted.

    Examples
    --------
    >>> spiculated = parse_query("spiculation >= 4 and diameter < 10")
    >>> spiculated({"spiculation": 5, "diameter": 8.2})
    True
    >>> spiculated({"spiculation": 5, "diameter": None})
    False
    """
    comparisons = []
    for part in re.split(r"\band\b", text, flags=re.IGNORECASE):
        found = _COMPARISON.fullmatch(part)
        if found is None:
            raise TargetError(
                f"{part.strip()!r} in the query {text!r} is no comparison: write a name, one of "
                ">= <= > < == != and a number, such as 'spiculation >= 4', joined by 'and'."
            )
        name, sign, value = found.groups()
        comparisons.append((name, sign, float(value)))
    if names is not None:
        check_names((name for name, _, _ in comparisons), names)
    return RatingQuery(text, tuple(comparisons))


def check_names(asked: Iterable[str], known: Collection[str]) -> None:
    """Refuse a name of a rating that there isn't; those that exist are listed."""
    for name in asked:
        if name not in known:
            raise TargetError(f"There is no rating {name!r}: there are {', '.join(sorted(known))}.")
