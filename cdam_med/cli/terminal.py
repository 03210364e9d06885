"""What every command prints with: results on stdout, errors and progress on stderr.

Nothing is printed in another way: what is in a line may come from a file, so each is made printable
here, and no markup or emoji code in it counts.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from data_prep.text import printable

if TYPE_CHECKING:
    from rich.console import Console
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
    """Let a command speak in its manner while it runs."""
    global _manner
    before, _manner = _manner, manner
    try:
        yield
    finally:
        _manner = before


def in_options(message: str) -> str:
    """Return a message of the package in the words of the command: ``stack=`` is ``--stack``.

    Python's arguments are ``series_uid=``, ``overwrite=True``, ``repair={'gantry_tilt'}``.
    """
    if not _manner.options:
        return message
    argument = re.compile(rf"\b({'|'.join(_manner.options)})=(?:True|\{{'(\w+)'\}}|'(\w+)')?")

    def as_option(found: re.Match[str]) -> str:
        name, *values = found.groups()
        return " ".join([f"--{name.replace('_', '-')}", *filter(None, values)])

    return argument.sub(as_option, message)


def print_result(*lines: str) -> None:
    """Print lines of a result on stdout; names from outside in them can't steer the terminal."""
    import typer

    for line in lines:
        typer.echo(printable(line))


def print_outcome(content: object, *lines: str, as_json: bool) -> None:
    """Print a result on stdout, for a machine or in lines for a person."""
    import json

    import typer

    if as_json:
        typer.echo(json.dumps(content, indent=1))
    else:
        print_result(*lines)


def print_text(text: str, *, style: str = "") -> None:
    """Print a result on stdout as a paragraph, broken into the terminal's lines."""
    from rich.text import Text

    _console().print(Text(printable(text), style=style))


def print_table(table: "Table") -> None:
    """Print a table, whose cells are printable already, on stdout."""
    _console().print(table)


def print_error(message: str) -> None:
    """Print the sentence of an error on one line of stderr."""
    _print_note("Error:", message)


def print_warning(message: str) -> None:
    """Print the sentence of a warning on one line of stderr."""
    _print_note("Warning:", message)


def _print_note(kind: str, message: str) -> None:
    from rich.text import Text

    text = Text(f"{kind} {printable(in_options(message))}")
    _console(stderr=True).print(text, soft_wrap=True)


def print_line(line: str) -> None:
    """Print a line of progress on stderr, from any process."""
    import typer

    if not _manner.quiet:
        typer.echo(printable(line), err=True)


def line_printer() -> Callable[[str], None]:
    """Return what prints a line of progress in this command's manner in another process too."""
    return _say_nothing if _manner.quiet else print_line


def _say_nothing(_: str) -> None:
    pass


def print_done() -> None:
    """Say that a command is done, where nobody saw its progress go by."""
    if _manner.has_steps and not _console(stderr=True).is_terminal:
        print_line(f"Done in {time.monotonic() - _manner.began:.0f} s.")


@contextmanager
def working(label: str) -> Iterator[None]:
    """Show that something is going on, as long as the block runs."""
    from rich.text import Text

    console = _console(stderr=True)
    with _timed(label):
        if _manner.quiet:
            shown: Any = nullcontext()
        elif console.is_terminal:
            shown = console.status(Text(printable(label)))
        else:
            shown = _lines(label, lambda: "still at it")
        with shown:
            yield


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal's stderr, from the second that the work takes too long.

    Yields what is to be called with the steps done and the number of all steps. Where stderr is no
    terminal, a line is printed at once and then every minute.
    """
    with _timed(label):
        if _console(stderr=True).is_terminal and not _manner.quiet:
            with _bar(label) as advance:
                yield advance
            return
        began = time.monotonic()
        steps = (0, 0)

        def note(done: int, total: int) -> None:
            nonlocal steps
            steps = (done, total)

        def state() -> str:
            done, total = steps
            if not done:
                return "still at the first step"
            left_s = (time.monotonic() - began) / done * (total - done)
            return f"{done} of {total}, about {left_s:.0f} s left"

        with nullcontext() if _manner.quiet else _lines(label, state):
            yield note


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
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=_console(stderr=True), transient=True)
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


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)
