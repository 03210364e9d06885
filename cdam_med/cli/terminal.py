"""What every command prints with: results on stdout, errors and progress on stderr.

Nothing is printed in another way: what is in a line may come from a file, so each is made printable
here, and no markup or emoji code in it counts.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import TYPE_CHECKING

from data_prep.text import printable

if TYPE_CHECKING:
    from rich.table import Table

PATIENCE_S = 1.0
"""Work that is done sooner than this shows no progress bar."""

LINE_EVERY_S = 60.0
"""Where stderr is a file or a pipe, a line of progress is printed at least this often."""


@dataclass
class Manner:
    """How the command that runs speaks.

    Parameters
    ----------
    quiet : bool
        No progress: results, warnings and errors alone.
    verbose : bool
        Also how long each step took.
    options : sequence of str
        The command's parameters by their Python names, see `in_options`.
    began : float
        When the command began, by the monotonic clock.
    has_steps : bool
        Whether it has told of a step.
    """

    quiet: bool = False
    verbose: bool = False
    options: Sequence[str] = ()
    began: float = field(default_factory=time.monotonic)
    has_steps: bool = False


_manner = Manner()


@contextmanager
def speaking(manner: Manner) -> Iterator[None]:
    """Let a command speak in its manner while it runs.

    Parameters
    ----------
    manner : Manner
        That of the command.
    """
    global _manner
    before, _manner = _manner, manner
    try:
        yield
    finally:
        _manner = before


def in_options(message: str) -> str:
    """Return a message of the package in the words of the command: ``stack=`` is ``--stack``.

    Parameters
    ----------
    message : str
        With Python's arguments: ``series_uid=``, ``overwrite=True``, ``repair={'gantry_tilt'}``.
    """
    if not _manner.options:
        return message
    argument = re.compile(rf"\b({'|'.join(_manner.options)})=(?:True|\{{'(\w+)'\}}|'(\w+)')?")

    def option(found: re.Match[str]) -> str:
        name, *values = found.groups()
        value = next(filter(None, values), "")
        return f"--{name.replace('_', '-')}" + (f" {value}" if value else "")

    return argument.sub(option, message)


def print_result(line: str = "") -> None:
    """Print a line of a result on stdout; names from outside in it can't steer the terminal.

    Parameters
    ----------
    line : str
        One line.
    """
    import typer

    typer.echo(printable(line))


def print_text(text: str = "", *, style: str = "") -> None:
    """Print a result on stdout as a paragraph, broken into the terminal's lines.

    Parameters
    ----------
    text : str
        The paragraph.
    style : str
        As rich has it, such as ``"bold"``.
    """
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(Text(printable(text), style=style))


def print_table(table: "Table") -> None:
    """Print a table on stdout.

    Parameters
    ----------
    table : Table
        rich's; its cells are safe already.
    """
    from rich.console import Console

    Console(highlight=False).print(table)


def print_error(message: str) -> None:
    """Print the sentence of an error on stderr.

    Parameters
    ----------
    message : str
        As the error has it; printed on one line, whatever brackets it holds.
    """
    _print_note("Error:", message)


def print_warning(message: str) -> None:
    """Print the sentence of a warning on stderr.

    Parameters
    ----------
    message : str
        As the warning has it.
    """
    _print_note("Warning:", message)


def print_line(line: str) -> None:
    """Print a line of progress on stderr, from any process.

    Parameters
    ----------
    line : str
        What is going on.
    """
    import typer

    if not _manner.quiet:
        typer.echo(printable(line), err=True)


def line_printer() -> Callable[[str], None]:
    """Return what prints a line of progress in this command's manner in another process too."""
    return _say_nothing if _manner.quiet else print_line


def _say_nothing(_: str) -> None:
    pass


def print_json(content: object) -> None:
    """Print the result of a command for a machine, on stdout.

    Parameters
    ----------
    content : object
        Of lists, dicts, strings and numbers.
    """
    import json

    import typer

    typer.echo(json.dumps(content, indent=1))


def print_done() -> None:
    """Say that a command is done, where nobody saw its progress go by."""
    if _manner.has_steps and not _is_terminal():
        print_line(f"Done in {time.monotonic() - _manner.began:.0f} s.")


@contextmanager
def working(label: str) -> Iterator[None]:
    """Show that something is going on, as long as the block runs.

    Parameters
    ----------
    label : str
        What is going on.
    """
    from rich.console import Console
    from rich.text import Text

    with _timed(label):
        if _manner.quiet:
            yield
        elif _is_terminal():
            with Console(stderr=True).status(Text(printable(label))):
                yield
        else:
            with _lines(label, lambda: "still at it"):
                yield


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal's stderr, from the second that the work takes too long.

    Where stderr is no terminal, a line is printed at once and then every minute.

    Parameters
    ----------
    label : str
        What is going on.

    Yields
    ------
    callable
        To be called with the steps done and the number of all steps.
    """
    with _timed(label):
        if _manner.quiet:
            yield lambda done, total: None
        elif _is_terminal():
            with _bar(label) as advance:
                yield advance
        else:
            began = time.monotonic()
            steps = (0, 0)

            def note(done: int, total: int) -> None:
                nonlocal steps
                steps = (done, total)

            with _lines(label, lambda: _share(*steps, time.monotonic() - began)):
                yield note


def _share(done: int, total: int, passed_s: float) -> str:
    if not done:
        return "still at the first step"
    return f"{done} of {total}, about {passed_s / done * (total - done):.0f} s left"


@contextmanager
def _timed(label: str) -> Iterator[None]:
    _manner.has_steps = True
    began = time.monotonic()
    yield
    if _manner.verbose:
        print_line(f"{label}: {time.monotonic() - began:.1f} s")


@contextmanager
def _lines(label: str, state: Callable[[], str]) -> Iterator[None]:
    """Print what is going on at once, and every minute from a thread, whatever the block does."""
    print_line(f"{label} ...")
    is_over = Event()

    def tell() -> None:
        while not is_over.wait(LINE_EVERY_S):
            print_line(f"{label}: {state()}")

    teller = Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        is_over.set()
        teller.join()


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(printable(label), total=None)
    began = time.monotonic()

    def advance(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if time.monotonic() - began > PATIENCE_S:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()


def _is_terminal() -> bool:
    from rich.console import Console

    return Console(stderr=True).is_terminal


def _print_note(kind: str, message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    console.print(Text(f"{kind} {printable(in_options(message))}"), soft_wrap=True)
