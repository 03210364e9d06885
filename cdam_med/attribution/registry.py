"""The list of estimators: names for the API, the command line and the docs.

One import a file, one line an estimator, in the order in which tables list them.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

from cdam_med.attribution.cdam import Cdam
from cdam_med.attribution.estimator import Estimator
from cdam_med.attribution.estimators.attention_map import AttentionMap
from cdam_med.attribution.estimators.attention_rollout import AttentionRollout
from cdam_med.attribution.estimators.controls import CentrePrior, Intensity, RandomMap
from cdam_med.attribution.estimators.grad_cam import GradCam
from cdam_med.attribution.estimators.input_x_gradient import InputXGradient
from cdam_med.attribution.estimators.integrated_gradients import IntegratedGradients
from cdam_med.attribution.estimators.legrad import LeGrad
from cdam_med.attribution.estimators.occlusion import Occlusion
from cdam_med.attribution.estimators.partial_lrp import PartialLrp
from cdam_med.attribution.estimators.relevance_propagation import RelevancePropagation
from cdam_med.attribution.estimators.smoothgrad import SmoothGrad
from cdam_med.attribution.estimators.token_ablation import TokenAblation
from cdam_med.attribution.integrated import IntegratedCdam
from cdam_med.attribution.integrated_block_input import IntegratedCdamBlockInput
from cdam_med.attribution.integrated_normed import IntegratedCdamNormed
from cdam_med.attribution.smooth import SmoothCdam
from cdam_med.attribution.smooth_normed import SmoothCdamNormed
from cdam_med.errors import MethodError

_LISTED: tuple[type[Estimator], ...] = (
    Cdam,
    SmoothCdam,
    SmoothCdamNormed,
    IntegratedCdam,
    IntegratedCdamBlockInput,
    IntegratedCdamNormed,
    AttentionMap,
    AttentionRollout,
    RelevancePropagation,
    PartialLrp,
    IntegratedGradients,
    SmoothGrad,
    InputXGradient,
    TokenAblation,
    GradCam,
    LeGrad,
    Occlusion,
    RandomMap,
    CentrePrior,
    Intensity,
)

ESTIMATORS: Mapping[str, type[Estimator]] = MappingProxyType({each.name: each for each in _LISTED})
"""Every estimator by its name."""


def estimator(name: str, **settings: object) -> Estimator:
    """Return an estimator by its name.

    Parameters
    ----------
    name : str
        Name in the registry.
    **settings
        Settings of the estimator that are to differ from its defaults.

    Raises
    ------
    MethodError
        If there is no such estimator, or it has no such setting, or not with that value.
    """
    if name not in ESTIMATORS:
        close = difflib.get_close_matches(name, ESTIMATORS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise MethodError(
            f"There is no estimator {name!r}: {hint}The estimators are {', '.join(ESTIMATORS)}."
        )
    made = ESTIMATORS[name]
    known = {field.name for field in dataclasses.fields(cast(Any, made))}
    if unknown := sorted(settings.keys() - known):
        raise MethodError(
            f"The estimator {name} has no setting {unknown[0]!r}: it has "
            f"{', '.join(sorted(known)) or 'none'}."
        )
    return cast(Callable[..., Estimator], made)(**settings)
