"""cdam-med: class-discriminative attention maps of vision transformers on CT.

The public names are loaded when they are first used, so that importing the package, and asking
the command line for help, costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdam_med.attribution.cdam import CdamScores, cdam_scores
    from cdam_med.attribution.class_token import ClassTokenModel, class_token_model
    from cdam_med.attribution.registry import estimator
    from cdam_med.data.views import VIEW_NAMES
    from cdam_med.errors import TargetError, ViewError
    from cdam_med.models.nodule_vit import ModelConfig, NoduleViT
    from cdam_med.models.store import load_model
    from cdam_med.pipeline import Explanation, explain, predict
    from cdam_med.targets import TARGET_NAMES, TARGETS

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
    "predict",
]

_HOME = {
    "estimator": "cdam_med.attribution.registry",
    "TARGETS": "cdam_med.targets",
    "TARGET_NAMES": "cdam_med.targets",
    "VIEW_NAMES": "cdam_med.data.views",
    "CdamScores": "cdam_med.attribution.cdam",
    "ClassTokenModel": "cdam_med.attribution.class_token",
    "Explanation": "cdam_med.pipeline",
    "ModelConfig": "cdam_med.models.nodule_vit",
    "NoduleViT": "cdam_med.models.nodule_vit",
    "TargetError": "cdam_med.errors",
    "ViewError": "cdam_med.errors",
    "cdam_scores": "cdam_med.attribution.cdam",
    "class_token_model": "cdam_med.attribution.class_token",
    "explain": "cdam_med.pipeline",
    "load_model": "cdam_med.models.store",
    "predict": "cdam_med.pipeline",
}


def __getattr__(name: str) -> object:
    value: object
    if name == "__version__":
        from data_prep.versions import version_of

        value = version_of("cdam-med")
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
