"""Options and messages of every command that reads a CT series: what to repair, what was done."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from cdam_med.cli.command import INPUT
from cdam_med.cli.terminal import print_warning

if TYPE_CHECKING:
    from data_prep import CTVolume

RepairOption = Annotated[
    str,
    typer.Option(
        metavar="NAME,...",
        help="Problems to repair, e.g. missing_slices; see 'cdam-med check'.",
        rich_help_panel=INPUT,
    ),
]
RefuseOption = Annotated[
    str,
    typer.Option(
        metavar="NAME,...",
        help="Problems to refuse that are repaired otherwise, e.g. localizer.",
        rich_help_panel=INPUT,
    ),
]


def names(text: str) -> tuple[str, ...]:
    """Split names with commas between; none if the text is empty.

    Parameters
    ----------
    text : str
        As given on the command line.
    """
    return tuple(name.strip() for name in text.split(",") if name.strip())


def print_problems(volume: "CTVolume") -> None:
    """Print what was repaired or noted when a volume was read, as warnings.

    Parameters
    ----------
    volume : CTVolume
        The volume.
    """
    for problem in volume.problems:
        print_warning(f"{problem.name}: {problem.message}")


@contextmanager
def printed_warnings(category: type[Warning]) -> Iterator[None]:
    """Print Python warnings of a kind as sentences, once the block has run.

    Parameters
    ----------
    category : type
        The kind; others stay as they are.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", category)
        yield
    for warning in caught:
        if issubclass(warning.category, category):
            print_warning(str(warning.message))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


@contextmanager
def without_series_warnings() -> Iterator[None]:
    """Keep back the reader's own Python warnings: `print_problems` says the same."""
    from data_prep.problems import SeriesWarning

    with warnings.catch_warnings(action="ignore", category=SeriesWarning):
        yield
