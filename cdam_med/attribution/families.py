"""The families of vision transformers that are understood, one adapter each."""

from torch import nn

from cdam_med.attribution.huggingface_vit import HuggingFaceAdapter
from cdam_med.attribution.monai_vit import MonaiAdapter
from cdam_med.attribution.timm_vit import TimmAdapter
from cdam_med.attribution.torchvision_vit import TorchvisionAdapter
from cdam_med.attribution.vit import VitAdapter
from cdam_med.errors import ModelError

ADAPTERS: tuple[type[VitAdapter], ...] = (
    TimmAdapter,
    MonaiAdapter,
    HuggingFaceAdapter,
    TorchvisionAdapter,
)
"""The first that takes a module is its adapter."""


def adapter_of(module: object) -> VitAdapter:
    """Return the adapter of a vision transformer.

    Parameters
    ----------
    module : Module
        A model of one of the known families.

    Raises
    ------
    ModelError
        If it is of none.
    """
    for adapter in ADAPTERS:
        if isinstance(module, nn.Module) and adapter.takes(module):
            return adapter(module)
    raise ModelError(
        f"{type(module).__name__} is not a vision transformer of a known family, and holds none: "
        "pass a ViT of timm, transformers, torchvision or MONAI, a module around one, or a model "
        "whose method class_token_model() returns a ClassTokenModel."
    )


def vit_within(model: object) -> nn.Module | None:
    """Return the one vision transformer of a known family that a module is or holds, or None.

    Parameters
    ----------
    model : object
        A model: a Sequential with a head, one of PEFT's, a wrapper of one's own.

    Raises
    ------
    ModelError
        If it holds several; they are listed.
    """
    found = _vits_within(model, "model") if isinstance(model, nn.Module) else {}
    if len(found) > 1:
        names = list(found.values())
        raise ModelError(
            f"{type(model).__name__} holds {len(found)} vision transformers ({', '.join(names)}), "
            f"and a map is of one: pass ClassTokenModel({names[0]}, lambda images: images, None, "
            "forward=model) for that of the first."
        )
    return next(iter(found), None)


def _vits_within(module: nn.Module, name: str) -> dict[nn.Module, str]:
    """Return the outermost ViTs, each once, with what they are called from the model on."""
    if any(adapter.takes(module) for adapter in ADAPTERS):
        return {module: name}
    found: dict[nn.Module, str] = {}
    for child_name, child in module.named_children():
        place = f"{name}[{child_name}]" if child_name.isdigit() else f"{name}.{child_name}"
        found |= {vit: found.get(vit, at) for vit, at in _vits_within(child, place).items()}
    return found
