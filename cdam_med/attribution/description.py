"""From any model that a user has to what an attribution needs to know of it."""

from typing import Any

from torch import Tensor, nn

from cdam_med.attribution.class_token import ClassTokenModel
from cdam_med.attribution.families import adapter_of, vit_within
from cdam_med.attribution.wrappers import refuse_wrapper
from cdam_med.errors import ModelError


def class_token_model(model: object) -> ClassTokenModel:
    """Return what an attribution needs to know of a model.

    Parameters
    ----------
    model : Module, ClassTokenModel or object with the method
        A ViT of timm, transformers, torchvision or MONAI, a module that holds one, or a model
        with a method ``class_token_model()`` that returns a `ClassTokenModel`.

    Raises
    ------
    ModelError
        If it isn't known how the outputs are read from tokens; the model and the reason are named.
    """
    if isinstance(model, ClassTokenModel):
        return model
    if hasattr(model, "class_token_model"):
        return _of_description(model)
    refuse_wrapper(model)
    vit = vit_within(model)
    adapter = adapter_of(model if vit is None else vit)
    around = model if isinstance(model, nn.Module) and model is not vit else None
    return ClassTokenModel(
        adapter.module,
        _unchanged,
        adapter.readout if around is None else None,
        readout_tokens=adapter.readout_tokens,
        pooling=adapter.pooling,
        forward=adapter.own_outputs if around is None else around,
    )


def _of_description(model: Any) -> ClassTokenModel:
    """Return what a model says of itself."""
    described = model.class_token_model
    if callable(described):
        described = described()
    if not isinstance(described, ClassTokenModel):
        raise ModelError(
            f"class_token_model() of {type(model).__name__} gives {type(described).__name__}, and "
            "must give a ClassTokenModel: return ClassTokenModel(vit, prepare, readout)."
        )
    return described


def _unchanged(images: Tensor) -> Tensor:
    return images
