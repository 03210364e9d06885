"""Models and concepts on disk: safetensors with their settings; nothing in a file is executed.

A model is a folder with ``config.json`` and ``model.safetensors``; a concept is one file, whose
vector is the one tensor and whose header holds all else.
"""

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from cdam_med.attribution.concept import Concept, Similarity
from cdam_med.demo import model_path
from cdam_med.errors import ModelError, TargetError
from cdam_med.models.nodule_vit import CONFIG_FILE, WEIGHTS_FILE, ModelConfig, NoduleViT
from data_prep.disk import check_parent, output_error, write_file, write_new_file, written_folder
from data_prep.errors import OutputError
from data_prep.text import printable

DEMO = "demo"
"""Name of the small model that ships with the package."""

_HEADER, _VECTOR = "cdam_med.concept.1", "vector"


def load_model(name_or_path: str | Path, *, device: str | torch.device = "cpu") -> NoduleViT:
    """Load a trained model, ready for use (evaluation mode, float32).

    Parameters
    ----------
    name_or_path
        ``"demo"`` for the model that ships with the package, or a folder that
        ``NoduleViT.save_pretrained`` wrote.
    device
        Where the model is to run.

    Raises
    ------
    ModelError
        If there is no such model, its configuration isn't valid, or its weights aren't in
        safetensors or don't fit the configuration.
    """
    folder = model_path() if str(name_or_path) == DEMO else Path(name_or_path)
    if not folder.is_dir():
        raise ModelError(
            f"There is no model {str(folder)!r}; give {DEMO!r} or a folder with {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}."
        )
    path = folder / CONFIG_FILE
    try:
        config = ModelConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError(
            f"{path} can't be read ({error.strerror or error}): give a folder with {CONFIG_FILE} "
            f"and {WEIGHTS_FILE}."
        ) from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'the file'}: {each['msg']}"
            for each in error.errors()
        )
        raise ModelError(
            f"{path} is no configuration of a cdam-med model ({problems}); take it from the "
            "folder that the model was saved in."
        ) from error
    # not from_pretrained: it prints to the terminal
    weights = str(folder / WEIGHTS_FILE)
    return NoduleViT._load_as_safetensor(NoduleViT(config), weights, "cpu", strict=True).to(device)


def save_model(
    folder: Path, model: NoduleViT, texts: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """Write a model, which is left in half precision, and texts beside it, by file name.

    One of them may take the place of the model's own ``README.md``. The folder appears whole or
    not at all; an `OutputError` says if the place is taken or can't be written to.
    """
    with written_folder(folder, "model", overwrite=overwrite) as staged:
        try:
            model.half().save_pretrained(staged)
        except SafetensorError as error:  # its own for a full disk, too
            raise OutputError(
                f"Can't write {printable(str(folder))}: {printable(str(error))}; free some space "
                "or choose another place."
            ) from error
        for name, text in texts.items():
            write_file(staged / name, text.encode())


class _Record(BaseModel):
    """What is stored beside a concept's vector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    model: str
    weights_sha256: str
    examples: tuple[str, ...]
    similarity: Similarity
    source: str


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
    known = {each.name: getattr(concept, each.name) for each in fields(concept)}
    vector = known.pop("vector").detach().cpu().contiguous()
    header = {_HEADER: _Record(**known).model_dump_json()}
    place = Path(path)
    check_concept_file(place, overwrite=overwrite)
    write = write_file if os.path.lexists(place) else write_new_file
    try:
        write(place, save({_VECTOR: vector}, metadata=header))
    except OSError as error:
        raise output_error("the concept", place, error) from error


def check_concept_file(place: Path, *, overwrite: bool) -> None:
    """Refuse a place for a concept that is taken, unless by a concept that may be replaced."""
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
            header = (file.metadata() or {}).get(_HEADER, "")
            vector = file.get_tensor(_VECTOR) if _VECTOR in file.keys() else None  # noqa: SIM118
            record = _Record.model_validate_json(header)
    except (SafetensorError, OSError) as error:
        raise TargetError(
            f"{path} can't be read as a concept ({error}): give a file that save_concept wrote."
        ) from error
    except ValidationError as error:
        raise TargetError(
            f"{path} holds no concept with a header of save_concept: give one that it wrote."
        ) from error
    if vector is None or vector.ndim != 1 or not vector.is_floating_point():
        raise TargetError(f"{path} holds no concept: give one that save_concept wrote.")
    return Concept(vector=vector, **dict(record))
