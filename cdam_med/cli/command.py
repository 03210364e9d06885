"""What all commands have in common: how they end, and options that several of them have."""

import functools
import inspect
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from cdam_med.cli.terminal import Manner, print_done, print_error, print_warning, speaking
from data_prep.text import printable

INPUT_ERROR_CODE = 2
"""Exit code for input that can't be used; click's own usage errors have the same."""

INPUT, RUNNING = "The CT", "Running"
"""Panels of options that several commands have: how a CT is read, and what changes no result."""


def option(text: str, panel: str | None = None, *names: str, **settings: Any) -> Any:
    """Return typer's option with a help text, in a panel of the help."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **settings)


Frame = Literal["ras", "lps"]
JsonOption = Annotated[bool, option("Print the result as JSON.", RUNNING, "--json")]
DeviceOption = Annotated[
    str, option("auto (a CUDA GPU, else the processor), cpu, cuda, cuda:1, mps.", RUNNING)
]
OverwriteOption = Annotated[
    bool,
    option(
        "Replace what an earlier run wrote there, if nothing was added to it.",
        RUNNING,
        "--overwrite",
    ),
]
ResumeOption = Annotated[bool, option("Go on with a run that was stopped.", RUNNING, "--resume")]
RepairOption = Annotated[
    str,
    option(
        "Problems to repair, e.g. missing_slices; see 'cdam-med check'.", INPUT, metavar="NAME,..."
    ),
]
RefuseOption = Annotated[
    str,
    option(
        "Problems to refuse that are repaired otherwise, e.g. localizer.",
        INPUT,
        metavar="NAME,...",
    ),
]
_ADDED = {
    "quiet": Annotated[
        bool, option("No progress: results and errors alone.", RUNNING, "--quiet", "-q")
    ],
    "verbose": Annotated[
        bool,
        option("How long each step takes; where an error arose.", RUNNING, "--verbose", "-v"),
    ],
}
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

    run.__annotations__ = {**function.__annotations__, **_ADDED}
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, keyword, default=False, annotation=of)
        for name, of in _ADDED.items()
    ]
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]  # what typer reads
        parameters=[*signature.parameters.values(), *added]
    )
    return run


def _print_python_warning(message: Warning | str, *_: object) -> None:
    print_warning(" ".join(str(message).split()))


def names(text: str) -> tuple[str, ...]:
    """Split names with commas between; none if the text is empty."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def choose_device(name: str) -> str:
    """Return the device to compute on: as PyTorch has it, or ``"auto"`` for the best there is."""
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
