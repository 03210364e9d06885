"""What all commands have in common: how much they say, how they end, options they share."""

import functools
import inspect
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cdam_med.cli.terminal import Manner, print_done, print_error, print_warning, speaking
from data_prep.text import printable

INPUT_ERROR_CODE = 2
"""Exit code for input that can't be used; click's own usage errors have the same."""

INPUT, RUNNING = "The CT", "Running"
"""Panels of options that several commands have: how a CT is read, and what changes no result."""

JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON.", rich_help_panel=RUNNING),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="auto (a CUDA GPU, else the processor), cpu, cuda, cuda:1, mps.",
        rich_help_panel=RUNNING,
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace what an earlier run wrote there, if nothing was added to it.",
        rich_help_panel=RUNNING,
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Go on with a run that was stopped.", rich_help_panel=RUNNING),
]
_QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="No progress: results and errors alone.", rich_help_panel=RUNNING
    ),
]
_VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="How long each step takes; where an error arose.",
        rich_help_panel=RUNNING,
    ),
]


_UsageError: Any = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


class Commands(TyperGroup):
    """All commands; typer's own errors, which repeat what was typed, are made printable."""

    def make_context(self, *args: Any, **settings: Any) -> Any:
        """Parse what stands before the command's name, as typer does."""
        with _printable_errors():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: Any) -> Any:
        """Parse the rest and run the command, as typer does."""
        with _printable_errors():
            return super().invoke(ctx)


@contextmanager
def _printable_errors() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        error.message = printable(error.message)
        raise


def as_command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a command: with ``--quiet`` and ``--verbose``, and errors in one sentence.

    An `InputError` or `CdamError` ends the command with one sentence on stderr and code 2.

    Parameters
    ----------
    function : callable
        Its parameters are the command's other options.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*, quiet: bool, verbose: bool, **options: Any) -> None:
        manner = Manner(quiet=quiet, verbose=verbose, options=tuple(signature.parameters))
        with speaking(manner), warnings.catch_warnings():
            warnings.showwarning = _print_python_warning  # type: ignore[assignment]
            try:
                function(**options)
            except ValueError as error:
                # imported here: data_prep brings the DICOM libraries along, which help doesn't need
                from cdam_med.errors import CdamError
                from data_prep.errors import InputError

                if not isinstance(error, InputError | CdamError):
                    raise
                if verbose:
                    traceback.print_exc()
                print_error(str(error))
                raise typer.Exit(INPUT_ERROR_CODE) from error
            print_done()

    added = {"quiet": _QuietOption, "verbose": _VerboseOption}
    run.__annotations__ = {**function.__annotations__, **added}
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]  # what typer reads
        parameters=[
            *signature.parameters.values(),
            *(
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=of
                )
                for name, of in added.items()
            ),
        ]
    )
    return run


def _print_python_warning(message: Warning | str, *_: object) -> None:
    print_warning(" ".join(str(message).split()))


def choose_device(name: str) -> str:
    """Return the device to compute on.

    Parameters
    ----------
    name : str
        As PyTorch has it; ``"auto"`` for a CUDA GPU where there is one, else the processor.

    Raises
    ------
    InputError
        There is no such device here.
    """
    import torch

    from data_prep.errors import InputError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # PyTorch raises all three
        raise InputError(
            f"Device {name!r} isn't available on this computer; use --device auto or cpu."
        ) from error
    return name
