"""``cdam-med demo``: the main job on the CT extract and the model that ship with the package."""

from pathlib import Path
from typing import Annotated

import typer

from cdam_med.cli.command import JsonOption, OverwriteOption, as_command
from cdam_med.cli.terminal import working


@as_command
def demo(
    out: Annotated[Path, typer.Option(help="Where the case folder goes.")] = Path("cdam-med-demo"),
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Explain a nodule of a real CT that ships with the package, without any network.

    The CT is an extract of LIDC-IDRI (CC BY 3.0), the model a small one trained on LIDC-IDRI.
    """
    with working("Reading the CT extract"):
        from cdam_med.cli.annotations import check_cases, read_annotations
        from cdam_med.demo import extract_path, xml_path
        from data_prep import read_series

        volume = read_series(extract_path())
        nodules, annotation_sha256, _ = read_annotations(xml_path(), volume, min_readers=3)
        check_cases(out, nodules, overwrite=overwrite)
    with working("Loading the model"):
        from cdam_med.cli.cases import explain_nodules
        from cdam_med.models.store import load_model

        model = load_model("demo")
    explain_nodules(
        volume,
        nodules,
        model,
        out=out,
        overwrite=overwrite,
        annotation_sha256=annotation_sha256,
        as_json=as_json,
    )
