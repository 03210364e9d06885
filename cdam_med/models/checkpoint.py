"""Trained models on disk: a folder with ``config.json`` and ``model.safetensors``."""

from pathlib import Path

import torch
from pydantic import ValidationError

from cdam_med.demo import model_path
from cdam_med.errors import ModelError
from cdam_med.models.nodule_vit import CONFIG_FILE, WEIGHTS_FILE, ModelConfig, NoduleViT

DEMO = "demo"
"""Name of the small model that ships with the package."""


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
    if str(name_or_path) == DEMO:
        return _load_folder(model_path()).to(device)
    return _load_folder(Path(name_or_path)).to(device)


def _load_folder(folder: Path) -> NoduleViT:
    if not folder.is_dir():
        raise ModelError(
            f"There is no model {str(folder)!r}; give {DEMO!r} or a folder with {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}."
        )
    model = NoduleViT(_read_config(folder / CONFIG_FILE))
    # not from_pretrained: it prints to the terminal
    return NoduleViT._load_as_safetensor(model, str(folder / WEIGHTS_FILE), "cpu", strict=True)


def _read_config(path: Path) -> ModelConfig:
    """Read a model's configuration as `save_pretrained` writes it."""
    try:
        return ModelConfig.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(
            f"There is no {path}; a model folder has {CONFIG_FILE} and {WEIGHTS_FILE}."
        ) from error
    except OSError as error:
        raise ModelError(
            f"{path} can't be read ({error.strerror or error}): give a folder whose files you may "
            "read."
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
