"""The nodules that readers outlined, as both commands need them; no torch is loaded for it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cdam_med.cli.terminal import print_line
from data_prep import CTVolume, InputError, Nodule
from data_prep.lidc import LeftOutFinding, read_xml_findings
from data_prep.written import check_folder


def check_cases(out: Path, nodules: Sequence[Nodule], *, overwrite: bool) -> None:
    """Refuse places of case folders that can't be used, before the model is loaded.

    Parameters
    ----------
    out : Path
        Where the case folders go, each under its nodule's id.
    nodules : sequence of Nodule
        The nodules.
    overwrite : bool
        Whether earlier case folders are replaced.

    Raises
    ------
    OutputError
        A place is taken or can't be written to.
    """
    for nodule in nodules:
        check_folder(out / nodule.nodule_id, "case", overwrite=overwrite)


def read_annotations(
    path: Path, volume: CTVolume, min_readers: int
) -> tuple[list[Nodule], str, list[LeftOutFinding]]:
    """Read the nodules of a volume from LIDC-IDRI's XML, and print what else is marked there.

    Parameters
    ----------
    path : Path
        The XML file.
    volume : CTVolume
        The CT that it belongs to.
    min_readers : int
        Nodules outlined by fewer readers are left out.

    Returns
    -------
    nodules : list of Nodule
        At least one.
    sha256 : str
        Hash of the file.
    left_out : list of LeftOutFinding
        What else is marked.

    Raises
    ------
    InputError
        The file can't be read, belongs to another series, or holds no such nodule.
    """
    nodules, left_out = read_xml_findings(path, volume, min_readers=min_readers)
    for finding in left_out:
        print_line(f"Left out, {finding.reason}: {finding.message}")
    if not nodules:
        raise InputError(
            f"No nodule in {path} was outlined by {min_readers} readers or more; lower "
            f"--min-readers, or name a point by --at."
        )
    return nodules, hashlib.sha256(path.read_bytes()).hexdigest(), left_out
