"""``cdam-med download``: public data from its archive."""

from pathlib import Path
from typing import Annotated

import typer

from cdam_med.cli.command import JsonOption, as_command
from cdam_med.cli.repairs import names
from cdam_med.cli.terminal import (
    print_error,
    print_json,
    print_line,
    print_result,
    progress_bar,
    working,
)

BYTES_PER_STEP = 10**6

download = typer.Typer(
    name="download", no_args_is_help=True, help="Load public data from its archive."
)


@download.callback()
def _group() -> None:
    """Keep the name of the data a word of the command, though there is only one."""


@download.command(
    "lidc", epilog="Example: cdam-med download lidc --out /data/LIDC-IDRI --patients LIDC-IDRI-0001"
)
@as_command
def download_lidc(
    out: Annotated[Path, typer.Option(help="Folder for the series; it may hold some already.")],
    patients: Annotated[
        str, typer.Option(metavar="ID,...", help="Only these, e.g. LIDC-IDRI-0001; else all 1,010.")
    ] = "",
    endpoint_url: Annotated[
        str | None, typer.Option(help="Another S3 server, e.g. a hospital's mirror.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Series loaded at a time.")] = 4,
    as_json: JsonOption = False,
) -> None:
    """Load CT series of LIDC-IDRI (CC BY 3.0) from the Imaging Data Commons.

    What is there and whole isn't loaded again; start anew after an interruption. Needs the extra
    'download'.
    """
    with working("Looking the series up"):
        from data_prep.download import download_series
        from data_prep.errors import InputError
        from data_prep.remote_series import list_lidc_series

        series = list_lidc_series(names(patients) or None)
    total = sum(one.size_bytes for one in series)
    print_line(f"{len(series)} series, {total / 1e9:.2f} GB.")
    loaded = dict.fromkeys(series, 0)
    with progress_bar("Downloading (MB)") as advance:

        def tell(one: object, n_bytes: int) -> None:
            loaded[one] = n_bytes  # type: ignore[index]
            advance(sum(loaded.values()) // BYTES_PER_STEP, total // BYTES_PER_STEP)

        report = download_series(series, out, endpoint_url=endpoint_url, jobs=jobs, progress=tell)
    if as_json:
        print_json(
            {
                "folder": str(out),
                "downloaded": len(report.downloaded),
                "skipped": len(report.skipped),
                "failed": [failed.message for failed in report.failed],
            }
        )
    else:
        print_result(
            f"{len(report.downloaded)} series loaded, {len(report.skipped)} were there: {out}. "
            "LIDC-IDRI: doi 10.7937/K9/TCIA.2015.LO9QL9SX, CC BY 3.0."
        )
    for failed in report.failed:
        print_error(failed.message)
    if report.failed:
        raise InputError(
            f"{len(report.failed)} of {len(series)} series could not be loaded; start again to "
            "load the rest."
        )
