"""What explaining a CT needs of a model, besides its ViT: how slices become images, and names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cdam_med.attribution.class_token import ClassTokenModel, class_token_model
from cdam_med.attribution.hooks import set_aside
from cdam_med.attribution.verification import weights_sha256
from cdam_med.data.image_folder import data_config
from cdam_med.data.transforms import InputSpec, standardised
from cdam_med.errors import ModelError, TargetError
from cdam_med.targets import Target
from data_prep.crop import DEFAULT_SIZE_MM
from data_prep.errors import InputError

OUTPUT_UNIT = "output"
"""Unit of an output of which nobody has said what it is."""


@dataclass(frozen=True, eq=False)
class SliceModel:
    """A model that can be shown slices of a CT.

    Parameters
    ----------
    model : object
        What methods are given: it takes grey images in [0, 1], one channel.
    description : ClassTokenModel
        The same, described.
    name : str
        Short name that is shown in reports.
    input : InputSpec
        How slices become images.
    views : tuple of str
        Views whose central slices predictions are the mean of.
    targets : tuple of Target
        What its outputs are, in their order.
    weights_sha256 : str
        Hash of all weights.
    config : mapping
        What the record says of it; fits into JSON.
    """

    model: object
    description: ClassTokenModel
    name: str
    input: InputSpec
    views: tuple[str, ...]
    targets: tuple[Target, ...]
    weights_sha256: str
    config: Mapping[str, object]

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(target.name for target in self.targets)


def slice_model(
    model: Any,
    *,
    input: InputSpec | None = None,
    target_names: Sequence[str] | Mapping[str, str] | None = None,
    views: Sequence[str] = ("axial",),
    name: str | None = None,
) -> SliceModel:
    """Return a model with all that explaining a CT needs of it.

    What isn't given is taken from the model where it says so, else from defaults: a field of view
    of 64 mm, the lung window, ImageNet's mean and standard deviation. The record of a case has what
    was used, and what of it was given.

    Parameters
    ----------
    model : NoduleViT, ViT or object with `class_token_model`
        A `NoduleViT` or `SliceModel`, which brings everything with it, or what
        `cdam_med.class_token_model` takes.
    input : InputSpec, optional
        How slices become images.
    target_names : sequence or mapping of str, optional
        Names of the outputs in their order; as a mapping with the unit of each. Names of classes
        that the model has, else ``output_0`` and so on.
    views : sequence of str
        Views that the model was trained on.
    name : str, optional
        Short name for reports; the model's class unless given.

    Raises
    ------
    ModelError
        If the model can't be described, or takes no square images.
    TargetError
        If there aren't as many different names as outputs.
    InputError
        If the model brings its own, or `input` doesn't fit it.
    """
    if isinstance(model, SliceModel) or hasattr(model, "slice_model"):
        if input is not None or target_names is not None:
            raise InputError(
                f"{type(model).__name__} has an input and target names of its own: leave input and "
                "target_names out."
            )
        described: SliceModel = model if isinstance(model, SliceModel) else model.slice_model()
        return described
    plain = class_token_model(model)
    spec = _whole_input(plain, input)
    channels = spec.channels or plain.adapter.patches.channels

    def prepare(images: Tensor) -> Tensor:
        return plain.prepare(standardised(images, spec, channels))

    targets = _targets(plain, target_names, _output_count(plain, spec, channels))
    names = tuple(target.name for target in targets)
    own = replace(plain, prepare=prepare, target_names=names)
    modules = [model] if isinstance(model, nn.Module) else [plain.vit, plain.readout, plain.forward]
    return SliceModel(
        model=own,
        description=own,
        name=plain.name if name is None else name,
        input=spec,
        views=tuple(views),
        targets=targets,
        weights_sha256=weights_sha256(*(m for m in modules if isinstance(m, nn.Module))),
        config={
            "class": f"{type(model).__module__}.{type(model).__qualname__}",
            "vit": plain.name,
            "input": spec.model_dump(mode="json"),
            "input_given": [] if input is None else sorted(input.model_fields_set),
            "views": list(views),
        },
    )


def _whole_input(model: ClassTokenModel, given: InputSpec | None) -> InputSpec:
    """Return an input in which what isn't given is the model's own or a default."""
    patches, size = model.adapter.patches, model.adapter.usual_size
    if size is not None and (len(set(size)) > 1 or len(size) != 2):
        raise ModelError(
            f"{model.name} takes images of {' x '.join(map(str, size))}, and slices are cut as "
            "squares: choose a model for square images."
        )
    known: dict[str, Any] = {"field_of_view_mm": DEFAULT_SIZE_MM, "channels": patches.channels}
    known["image_size"] = None if size is None else size[0]
    if given is not None:
        known |= {field: getattr(given, field) for field in given.model_fields_set}
    if known["image_size"] is None:
        raise InputError(
            f"{model.name} takes images of more than one size: say which as "
            "input=InputSpec(field_of_view_mm=64, image_size=...), see cdam_med.data.transforms."
        )
    channels, statistics = known["channels"] or patches.channels, data_config(model.vit)
    for field in ("mean", "std"):
        own = statistics[field]
        known.setdefault(field, own if len(own) == channels else sum(own) / len(own))
        if not isinstance(known[field], float) and len(known[field]) != channels:
            raise InputError(
                f"input has {len(known[field])} numbers as {field} for {channels} channel(s): give "
                "one for each, or one for all."
            )
    return InputSpec(**known)


def _output_count(model: ClassTokenModel, spec: InputSpec, channels: int) -> int:
    if model.readout is not None:
        return model.output_count
    images = torch.zeros(1, channels, spec.image_size, spec.image_size)
    with torch.no_grad(), set_aside(model.module.modules(), "training", False):
        return model.outputs(model.check_images(images)).shape[1]


def _targets(
    model: ClassTokenModel, names: Sequence[str] | Mapping[str, str] | None, count: int
) -> tuple[Target, ...]:
    """Return what the outputs are, as far as somebody has said."""
    if names is None:
        own = model.target_names or model.adapter.class_names
        names = own or [f"output_{column}" for column in range(count)]
    if isinstance(names, str) or len(names) != count or len(set(names)) < count:
        raise TargetError(
            f"{model.name} has {count} output(s), and target_names are {list(names)[:10]}: give "
            "one for each, all different."
        )
    units = names if isinstance(names, Mapping) else {}
    return tuple(
        Target(name, units.get(name, OUTPUT_UNIT), f"output {column} of the model", "", "")
        for column, name in enumerate(names)
    )
