"""cdam-med, the command: parses, calls, prints. Heavy imports happen inside the commands."""

from typing import Annotated

import typer

from cdam_med.cli.check import check
from cdam_med.cli.command import Commands, option
from cdam_med.cli.concept import concept
from cdam_med.cli.evaluate import benchmark, evaluate
from cdam_med.cli.explain import demo, explain
from cdam_med.cli.info import info, methods
from cdam_med.cli.prepare import download, prepare
from cdam_med.cli.terminal import print_result
from cdam_med.cli.train import train, train_head

__all__ = ["app", "main"]

app = typer.Typer(
    name="cdam-med",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line."""
    app()


def _print_version(asked: bool) -> bool:
    if asked:
        from importlib import metadata

        print_result(metadata.version("cdam-med"))
        raise typer.Exit
    return asked


@app.callback()
def cdam_med(
    version: Annotated[
        bool,
        option(
            "Show the version and exit.", None, "--version", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """See which parts of a CT a vision transformer's prediction rests on.

    From a chest CT series and its nodules to signed attribution maps in patient space.
    Research only, not for diagnosis.
    """


app.command(epilog="Example: cdam-med demo --out first-case")(demo)
app.command(epilog="Example: cdam-med check /data/LIDC-IDRI-0001")(check)
app.command(
    epilog="Example: cdam-med explain /data/series --lidc-xml 069.xml --out cases; or a point: "
    "cdam-med explain ct.nii.gz --at -72.5,40,190.2 --frame ras --out cases"
)(explain)
app.add_typer(prepare)
app.command(epilog="Example: cdam-med train slices --weights vit_small.safetensors --out model")(
    train
)
app.command(
    "train-head",
    epilog="Example: cdam-med train-head images/train images/val --weights hub --out classifier",
)(train_head)
app.add_typer(evaluate)
app.add_typer(concept)
app.command(epilog="Example: cdam-med methods --json")(methods)
app.command("estimators", hidden=True)(methods)  # its name until 0.2
app.add_typer(benchmark)
app.add_typer(download)
app.command(epilog="Example: cdam-med info --json")(info)
