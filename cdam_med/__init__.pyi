from .attribution.cdam import CdamScores, cdam_scores
from .attribution.class_token import ClassTokenModel, class_token_model
from .attribution.registry import estimator, method
from .data.views import VIEW_NAMES
from .errors import TargetError, ViewError
from .models.nodule_vit import ModelConfig, NoduleViT
from .models.store import load_model
from .pipeline import Explanation, explain, predict
from .targets import TARGET_NAMES, TARGETS

__version__: str

__all__ = [
    "TARGETS",
    "TARGET_NAMES",
    "VIEW_NAMES",
    "CdamScores",
    "ClassTokenModel",
    "Explanation",
    "ModelConfig",
    "NoduleViT",
    "TargetError",
    "ViewError",
    "cdam_scores",
    "class_token_model",
    "estimator",
    "explain",
    "load_model",
    "method",
    "predict",
]
