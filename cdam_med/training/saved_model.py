"""Folders of trained models: each appears whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError

from cdam_med.models.nodule_vit import NoduleViT
from data_prep.disk import write_file
from data_prep.errors import OutputError
from data_prep.text import printable
from data_prep.written import written_folder

TEST_NODULES = "test_nodules.txt"
"""File of a fold's model: names of the nodules of patients that it never saw, one a line."""


def save_model_folder(
    folder: Path, model: NoduleViT, texts: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """Write a model in half precision, and texts beside it.

    Parameters
    ----------
    folder
        Missing parents are made.
    model
        Is left in half precision.
    texts
        Content of further files by their names; one of them may take the place of the model's
        own ``README.md``.
    overwrite
        Replace a model folder.

    Raises
    ------
    OutputError
        If the place is taken or can't be written to.
    """
    with written_folder(folder, "model", overwrite=overwrite) as staged:
        try:
            model.half().save_pretrained(staged)
        except SafetensorError as error:  # its own for a full disk, too
            raise OutputError(
                f"Can't write {printable(str(folder))}: {printable(str(error))}; free some space "
                f"or choose another place."
            ) from error
        for name, text in texts.items():
            write_file(staged / name, text.encode())


def save_fold_model(
    folder: Path, model: NoduleViT, test_nodules: Sequence[str], *, overwrite: bool = False
) -> None:
    """Write the model of one fold of a cross-validation, with what it may be judged on.

    Parameters
    ----------
    folder
        Missing parents are made.
    model
        Is left in half precision.
    test_nodules
        Names of the nodules of patients that it never saw.
    overwrite
        Replace a model folder.

    Raises
    ------
    OutputError
        If the place is taken or can't be written to.
    """
    note = (
        "# Model of one fold of a cross-validation\n\n"
        f"It was trained without the patients of the nodules named in {TEST_NODULES}; judge it on "
        "these. Malignancy is the opinion of radiologists, not a cancer outcome. Research only, "
        "not for diagnosis.\n"
    )
    names = "".join(f"{name}\n" for name in test_nodules)
    save_model_folder(folder, model, {"README.md": note, TEST_NODULES: names}, overwrite=overwrite)
