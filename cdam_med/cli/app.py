"""The commands and what they have in common: help, version, errors."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cdam_med.cli.benchmark import benchmark
from cdam_med.cli.check import check
from cdam_med.cli.concept import concept
from cdam_med.cli.demo import demo
from cdam_med.cli.download import download
from cdam_med.cli.estimators import estimators
from cdam_med.cli.evaluate import evaluate
from cdam_med.cli.explain import explain
from cdam_med.cli.prepare import prepare
from cdam_med.cli.terminal import print_error
from cdam_med.cli.train import train
from cdam_med.cli.train_head import train_head

INPUT_ERROR_CODE = 2
"""Exit code for input that can't be used; click's own usage errors have the same."""


class InputErrorGroup(TyperGroup):
    """Commands whose input errors end as one sentence on stderr, without a traceback."""

    def invoke(self, ctx: Any) -> object:
        """Run a command.

        Parameters
        ----------
        ctx : Context
            As typer gives it (the type is of its private click).
        """
        try:
            return super().invoke(ctx)
        except ValueError as error:
            # imported here: data_prep brings the DICOM libraries along, which help doesn't need
            from data_prep.errors import InputError

            if not isinstance(error, InputError):
                raise
            print_error(str(error))
            raise typer.Exit(INPUT_ERROR_CODE) from error


app = typer.Typer(
    name="cdam-med",
    cls=InputErrorGroup,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> bool:
    if asked:
        from importlib import metadata

        typer.echo(metadata.version("cdam-med"))
        raise typer.Exit
    return asked


@app.callback()
def cdam_med(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """See which parts of a CT a vision transformer's prediction rests on.

    From a chest CT series and its nodules to signed attribution maps in patient space.
    Research only, not for diagnosis.
    """


app.command()(demo)
app.command()(check)
app.add_typer(benchmark)
app.add_typer(concept)
app.add_typer(download)
app.add_typer(evaluate)
app.add_typer(prepare)
app.command()(train)
app.command("train-head")(train_head)
app.command()(explain)
app.command()(estimators)
