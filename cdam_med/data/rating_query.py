"""Which nodules are meant by a line such as ``spiculation >= 4 and diameter < 10``.

The language is comparisons of a rating with a number, joined by ``and``, and nothing else. A query
is parsed and compared here; no part of it is ever executed.
"""

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
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

LONGEST_QUERY = 1000
"""In characters."""


@dataclass(frozen=True)
class Comparison:
    """A rating compared with a number.

    Parameters
    ----------
    name : str
        Name of the rating.
    sign : str
        ``>=``, ``<=``, ``==``, ``!=``, ``>``, ``<`` or ``=``.
    value : float
        The number.
    """

    name: str
    sign: str
    value: float


@dataclass(frozen=True)
class RatingQuery:
    """A condition on the ratings of a nodule.

    Parameters
    ----------
    text : str
        The query as it was written.
    comparisons : tuple of Comparison
        All of them must hold.
    """

    text: str
    comparisons: tuple[Comparison, ...]

    def __call__(self, ratings: Mapping[str, float | int | None]) -> bool:
        """Say whether a nodule is meant; one whose rating is missing (None or NaN) never is.

        Parameters
        ----------
        ratings : mapping of str to float
            Ratings of the nodule by name.

        Raises
        ------
        TargetError
            If there is no rating of a name in the query; those that exist are listed.
        """
        return all([_holds(each, ratings) for each in self.comparisons])


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
    if len(text) > LONGEST_QUERY:
        raise TargetError(
            f"The query has {len(text)} characters, where {LONGEST_QUERY} are the most: join fewer "
            "comparisons."
        )
    comparisons = []
    for part in re.split(r"\band\b", text, flags=re.IGNORECASE):
        found = _COMPARISON.fullmatch(part)
        if found is None:
            raise TargetError(
                f"{part.strip()!r} in the query {text!r} is no comparison: write a name, one of "
                ">= <= > < == != and a number, such as 'spiculation >= 4', joined by 'and'."
            )
        name, sign, value = found.groups()
        if names is not None and name not in names:
            raise TargetError(_unknown(name, names))
        comparisons.append(Comparison(name, sign, float(value)))
    return RatingQuery(text, tuple(comparisons))


def _holds(comparison: Comparison, ratings: Mapping[str, float | int | None]) -> bool:
    if comparison.name not in ratings:
        raise TargetError(_unknown(comparison.name, ratings))
    rating = ratings[comparison.name]
    if rating is None or math.isnan(rating):
        return False
    return _COMPARISONS[comparison.sign](rating, comparison.value)


def _unknown(name: str, names: Collection[str]) -> str:
    return f"There is no rating {name!r}: there are {', '.join(sorted(names))}."
