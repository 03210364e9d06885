"""What ``cdam-med check`` says of what is no series: a table of nodules, a case folder, nothing."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdam_med.cli.terminal import print_result
from data_prep.errors import InputError, NoduleTableError, NoduleTableWarning
from data_prep.text import printable

if TYPE_CHECKING:
    from data_prep.nodule_table import NoduleTable
    from data_prep.reports import PathReport

_MOST_RECORD_BYTES = 2**24
_MOST_NAMED = 5


def find_cases(path: Path) -> list[Path]:
    """Return the case folders of ``explain`` at a path: itself, or those directly below it.

    Parameters
    ----------
    path : Path
        A path of any kind.
    """
    if (path / "case.json").is_file():
        return [path]
    below = sorted(path.iterdir()) if path.is_dir() else []
    cases = [folder for folder in below if (folder / "case.json").is_file()]
    return cases if len(cases) == sum(not folder.name.startswith(".") for folder in below) else []


def check_case(folder: Path) -> dict[str, Any]:
    """Say what is in a case folder and whether it is as it was written.

    Parameters
    ----------
    folder : Path
        A folder with a ``case.json``.

    Returns
    -------
    dict
        Values that fit into JSON; ``faults`` is empty for a sound folder.
    """
    from data_prep.written import differences

    report: dict[str, Any] = {"case": printable(folder.name)}
    try:
        with (folder / "case.json").open("rb") as file:
            record = json.loads(file.read(_MOST_RECORD_BYTES))
        if record["format"] != "cdam-med case":
            raise KeyError("format")
        files = [printable(name) for name in record["files"]]
        report |= {
            "nodule": printable(str(record["nodule"]["nodule_id"])),
            "center_ras_mm": [float(mm) for mm in record["nodule"]["center_ras_mm"]],
            "model": printable(str(record["model"]["name"])),
            "method": printable(str(record["method"]["name"])),
            "targets": [printable(name) for name in record["targets"]],
            "created_utc": printable(str(record["created_utc"])),
            "files": files,
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return report | {"faults": ["case.json can't be read as the record of a case folder"]}
    changed = differences(folder, "case")
    if changed is None:
        missing = [f"{name} (missing)" for name in files if not (folder / name).is_file()]
        return report | {"faults": ["there is no record of the files' hashes", *missing]}
    return report | {"faults": [printable(name) for name in changed]}


def print_case(report: dict[str, Any]) -> None:
    """Print what `check_case` found.

    Parameters
    ----------
    report : dict
        From it.
    """
    print_result(f"{'refused' if report['faults'] else 'ok':<9} case folder {report['case']}")
    if "nodule" in report:
        x, y, z = report["center_ras_mm"]
        print_result(f"          nodule {report['nodule']} at ({x:.1f}, {y:.1f}, {z:.1f}) mm RAS")
        print_result(f"          model {report['model']}, method {report['method']}")
        print_result(f"          {', '.join(report['targets'])}; {len(report['files'])} files")
    for fault in report["faults"]:
        print_result(f"          {fault}")


def check_table(path: Path) -> dict[str, Any]:
    """Say what a table of nodules holds, and which of it isn't used.

    Parameters
    ----------
    path : Path
        A CSV file.

    Returns
    -------
    dict
        Values that fit into JSON.

    Raises
    ------
    InputError
        It can't be read as a table of nodules.
    """
    import warnings

    from data_prep.nodule_table import describe_unused, read_nodule_table

    frame: str | None = None
    with warnings.catch_warnings(action="ignore", category=NoduleTableWarning):
        try:
            table = read_nodule_table(path)
            frame = ", ".join(sorted({row.frame for row in table.rows}))
        except NoduleTableError as error:
            if error.reason != "no_frame":
                raise
            table = read_nodule_table(path, frame="ras")
    return {
        "table": table.name,
        "rows": len(table.rows),
        "series": _count(table, "series_uid"),
        "patients": _count(table, "patient_id"),
        "frame": frame,
        "ratings": sorted({name for row in table.rows for name in row.ratings}),
        "unused": describe_unused(table),
        "left_out": [row.message(table.name) for row in table.left_out],
    }


def print_table(report: dict[str, Any]) -> None:
    """Print what `check_table` found.

    Parameters
    ----------
    report : dict
        From it.
    """
    print_result(
        f"{report['table']}: {report['rows']} nodules; {report['series']} series and "
        f"{report['patients']} patients are named"
    )
    frame = report["frame"] or "not stated: give it to 'prepare series' by --frame ras or lps"
    print_result(f"          frame {frame}; ratings: {', '.join(report['ratings']) or 'none'}")
    if report["unused"]:
        print_result(f"          {report['unused']}")
    for message in report["left_out"][1:_MOST_NAMED]:
        print_result(f"          {message}")


def nothing_found(path: Path, report: "PathReport") -> InputError:
    """Return the error of a path without a series, an image or a mask.

    Parameters
    ----------
    path : Path
        The path.
    report : PathReport
        What was found there.
    """
    name = printable(str(path))
    if (path / "manifest.csv").is_file():
        return InputError(
            f"{name} holds a manifest.csv but no cohort.json, the record of a cohort folder: it "
            "isn't whole; copy it again, or prepare it anew."
        )
    tables = sorted(path.glob("*.csv"))
    if tables:
        return InputError(
            f"{name} holds no series ({report.n_files} files), but {printable(tables[0].name)}: "
            "give the path of the table to look at it, or the folder of the CT."
        )
    what = f"holds no series ({report.n_files} files)" if path.is_dir() else "is no file of a CT"
    return InputError(
        f"{name} {what}: expected DICOM files of any names, NIfTI (.nii, .nii.gz), NRRD (.nrrd, "
        ".nhdr) or MetaImage (.mha, .mhd) files, a zip archive or DICOMDIR; or a table of nodules "
        "(.csv), a cohort folder (with cohort.json) or a case folder (with case.json)."
    )


def _count(table: "NoduleTable", owner: str) -> int:
    return len({getattr(row, owner) for row in table.rows} - {""})
