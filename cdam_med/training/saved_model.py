"""Folders of trained models: each appears whole or not at all."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from cdam_med.models.nodule_vit import NoduleViT
from data_prep.disk import write_file
from data_prep.errors import OutputError

TEST_NODULES = "test_nodules.txt"
"""File of a fold's model: names of the nodules of patients that it never saw, one a line."""


def check_new_folder(folder: Path) -> None:
    """Refuse a place that can't be used before hours are spent on what is to go there.

    Parameters
    ----------
    folder
        Where the model is to go; missing parents are made later.

    Raises
    ------
    OutputError
        If it exists, or can't be made.
    """
    if folder.exists() or folder.is_symlink():
        raise OutputError(f"{folder} exists already; choose another folder for the model.")
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"{folder} can't be made in {parent}; choose a folder that you may write to."
        )


@contextmanager
def new_model_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder to fill, which takes its place only when the block ends well.

    Parameters
    ----------
    folder
        The place; must not exist. Missing parents are made.

    Yields
    ------
    Path
        The folder to fill, on the same file system.

    Raises
    ------
    OutputError
        If the place is taken or can't be written to.
    """
    check_new_folder(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".cdam-med-", dir=folder.parent) as aside:
            # one level down: the temporary folder is closed to all but its owner
            staged = Path(aside) / "model"
            staged.mkdir()
            yield staged
            staged.rename(folder)


def save_model_folder(folder: Path, model: NoduleViT, texts: Mapping[str, str]) -> None:
    """Write a model in half precision, and texts beside it.

    Parameters
    ----------
    folder
        Must not exist; missing parents are made.
    model
        Is left in half precision.
    texts
        Content of further files by their names; one of them may take the place of the model's
        own ``README.md``.

    Raises
    ------
    OutputError
        If the place is taken or can't be written to.
    """
    with new_model_folder(folder) as staged:
        model.half().save_pretrained(staged)
        for name, text in texts.items():
            write_file(staged / name, text.encode())


def save_fold_model(folder: Path, model: NoduleViT, test_nodules: Sequence[str]) -> None:
    """Write the model of one fold of a cross-validation, with what it may be judged on.

    Parameters
    ----------
    folder
        Must not exist; missing parents are made.
    model
        Is left in half precision.
    test_nodules
        Names of the nodules of patients that it never saw.

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
    save_model_folder(folder, model, {"README.md": note, TEST_NODULES: names})


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn an error of the file system into a sentence.

    Parameters
    ----------
    place
        What is being written.

    Raises
    ------
    OutputError
        In place of the error.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"Can't write {place}: {reason.lower()}; free some space or choose another place."
        ) from error
