"""Models that are explained: timm backbones with nodule heads, and how they are stored."""

from cdam_med.attribution.class_token import ClassTokenModel, class_token_model
from cdam_med.models.backbone import PAPER_BACKBONES, BackboneSpec
from cdam_med.models.nodule_vit import ModelConfig, NoduleViT
from cdam_med.models.store import load_model

__all__ = [
    "PAPER_BACKBONES",
    "BackboneSpec",
    "ClassTokenModel",
    "ModelConfig",
    "NoduleViT",
    "class_token_model",
    "load_model",
]
