"""Concepts on disk: the vector as the one tensor of a safetensors file, all else in its header."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from cdam_med.attribution.concept import Concept, Similarity
from cdam_med.errors import TargetError
from data_prep.disk import output_error, write_file, write_new_file
from data_prep.errors import OutputError
from data_prep.text import printable
from data_prep.written import check_parent

_HEADER, _VECTOR = "cdam_med.concept.1", "vector"


def save_concept(concept: Concept, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a concept to a safetensors file.

    Parameters
    ----------
    concept : Concept
        What is stored.
    path : str or Path
        A file; its folder must exist.
    overwrite : bool
        Replace a file that holds a concept.

    Raises
    ------
    OutputError
        If something is there that isn't to be replaced, or the file can't be written.
    """
    record = _Record(
        label=concept.label,
        model=concept.model,
        weights_sha256=concept.weights_sha256,
        examples=concept.examples,
        similarity=concept.similarity,
        source=concept.source,
    )
    vector = concept.vector.detach().cpu().contiguous()
    header = {_HEADER: record.model_dump_json()}
    place = Path(path)
    check_concept_file(place, overwrite=overwrite)
    write = write_file if os.path.lexists(place) else write_new_file
    try:
        write(place, save({_VECTOR: vector}, metadata=header))
    except OSError as error:
        raise output_error("the concept", place, error) from error


def check_concept_file(place: Path, *, overwrite: bool) -> None:
    """Refuse a place for a concept before it is made.

    Parameters
    ----------
    place : Path
        Where it is to go.
    overwrite : bool
        A concept may be there, but nothing else.

    Raises
    ------
    OutputError
        If the place is taken or can't be written to.
    """
    check_parent(place)
    if not os.path.lexists(place):
        return
    shown = printable(str(place))
    if not overwrite:
        raise OutputError(
            f"{shown} is there already; choose another place, or replace it by overwrite=True."
        )
    try:
        is_concept = not place.is_symlink() and load_concept(place) is not None
    except TargetError:
        is_concept = False
    if not is_concept:
        raise OutputError(
            f"{shown} is no concept that cdam-med wrote, and isn't replaced; choose another place "
            f"or move it away."
        )


def load_concept(path: str | Path) -> Concept:
    """Read a concept that `save_concept` wrote; nothing in the file is executed.

    Parameters
    ----------
    path : str or Path
        A file.

    Raises
    ------
    TargetError
        If the file is missing or isn't such a file.
    """
    try:
        with safe_open(Path(path), framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            vector = file.get_tensor(_VECTOR) if _VECTOR in file.keys() else None  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TargetError(
            f"{path} can't be read as a concept ({error}): give a file that save_concept wrote."
        ) from error
    if header is None or vector is None or vector.ndim != 1 or not vector.is_floating_point():
        raise TargetError(
            f"{path} is a safetensors file, but holds no concept: give one that save_concept wrote."
        )
    try:
        record = _Record.model_validate_json(header)
    except ValidationError as error:
        raise TargetError(
            f"The header of {path} is not that of a concept: make it anew with save_concept."
        ) from error
    return Concept(vector=vector, **dict(record))


class _Record(BaseModel):
    """What is stored beside the vector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    model: str
    weights_sha256: str
    examples: tuple[str, ...]
    similarity: Similarity
    source: str
