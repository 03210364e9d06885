"""The list of methods: names for the API, the command line and the docs.

One line a method, in the order in which tables list them. Their files are imported when a
method is first asked for, so that names can be listed and checked without loading torch.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from cdam_med.errors import MethodError

if TYPE_CHECKING:
    from cdam_med.attribution.method import Method

_HOMES = {
    "cdam": "cdam:Cdam",
    "smooth_cdam": "averaged:SmoothCdam",
    "smooth_cdam_normed": "averaged:SmoothCdamNormed",
    "integrated_cdam": "integrated:IntegratedCdam",
    "integrated_cdam_block_input": "averaged:IntegratedCdamBlockInput",
    "integrated_cdam_normed": "averaged:IntegratedCdamNormed",
    "attention_map": "methods.attention:AttentionMap",
    "attention_rollout": "methods.attention:AttentionRollout",
    "relevance_propagation": "methods.attention:RelevancePropagation",
    "partial_lrp": "methods.partial_lrp:PartialLrp",
    "integrated_gradients": "methods.pixel_methods:IntegratedGradients",
    "smoothgrad": "methods.pixel_methods:SmoothGrad",
    "input_x_gradient": "methods.pixel_methods:InputXGradient",
    "token_ablation": "methods.token_ablation:TokenAblation",
    "grad_cam": "methods.grad_cam:GradCam",
    "legrad": "methods.legrad:LeGrad",
    "occlusion": "methods.pixel_methods:Occlusion",
    "random": "methods.controls:RandomMap",
    "centre_prior": "methods.controls:CentrePrior",
    "intensity": "methods.controls:Intensity",
}
"""File and class of each method by its name; the file below this package."""


class _Methods(Mapping[str, "type[Method]"]):
    """Classes by name, each imported when it is looked up."""

    def __getitem__(self, name: str) -> "type[Method]":
        module, kind = _HOMES[name].split(":")
        found: type[Method] = getattr(import_module(f"cdam_med.attribution.{module}"), kind)
        return found

    def __contains__(self, name: object) -> bool:
        return name in _HOMES

    def __iter__(self) -> Iterator[str]:
        return iter(_HOMES)

    def __len__(self) -> int:
        return len(_HOMES)


METHODS: Mapping[str, "type[Method]"] = _Methods()
"""Every method by its name."""


def check_method(name: str) -> None:
    """Refuse the name of a method that there isn't; the nearest is named."""
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise MethodError(
            f"There is no method {name!r}: {hint}The methods are {', '.join(METHODS)}."
        )


def method(name: str, **settings: object) -> "Method":
    """Return a method by its name.

    Parameters
    ----------
    name : str
        Name in the registry.
    **settings
        Settings of the method that are to differ from its defaults.

    Raises
    ------
    MethodError
        If there is no such method, or it has no such setting, or not with that value.
    """
    check_method(name)
    made = METHODS[name]
    known = {field.name for field in dataclasses.fields(cast(Any, made))}
    if unknown := sorted(settings.keys() - known):
        raise MethodError(
            f"The method {name} has no setting {unknown[0]!r}: it has "
            f"{', '.join(sorted(known)) or 'none'}."
        )
    return cast("Callable[..., Method]", made)(**settings)


estimator = method
"""Another name of `method` until 0.2."""
