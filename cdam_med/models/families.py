"""The families of vision transformers that are understood, one adapter each."""

from torch import nn

from cdam_med.errors import ModelError
from cdam_med.models.monai_vit import MonaiAdapter
from cdam_med.models.timm_vit import TimmAdapter
from cdam_med.models.vit import VitAdapter

ADAPTERS: tuple[type[VitAdapter], ...] = (TimmAdapter, MonaiAdapter)
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
        f"{type(module).__name__} is not a timm VisionTransformer, Eva or Beit, nor MONAI's ViT: "
        "pass one, or a model whose method class_token_model() returns a ClassTokenModel."
    )
