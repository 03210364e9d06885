"""What every command prints with: results on stdout, errors and progress on stderr."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 1.0
"""Work that is done sooner than this shows no progress bar."""

LINE_EVERY_S = 60.0
"""Where stderr is a file or a pipe, a line of progress is printed this often."""


def print_error(message: str) -> None:
    """Print the sentence of an error on stderr.

    Parameters
    ----------
    message : str
        As the error has it; printed as it is, whatever brackets it holds.
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

    typer.echo(line, err=True)


@contextmanager
def working(label: str) -> Iterator[None]:
    """Show on a terminal that something is going on, as long as the block runs.

    Parameters
    ----------
    label : str
        What is going on.
    """
    from rich.console import Console

    with Console(stderr=True).status(label):
        yield


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal's stderr, from the second that the work takes too long.

    Where stderr is no terminal, a line is printed now and then.

    Parameters
    ----------
    label : str
        What is going on.

    Yields
    ------
    callable
        To be called with the steps done and the number of all steps.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(label, total=None)
    began = spoken = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal spoken
        now = time.monotonic()
        if not console.is_terminal:
            if now - spoken >= LINE_EVERY_S:
                print_line(f"{label}: {done} of {total}")
                spoken = now
            return
        bar.update(task, completed=done, total=total)
        if now - began > PATIENCE_S:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()


def _print_note(kind: str, message: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(kind, message, markup=False, soft_wrap=True)
