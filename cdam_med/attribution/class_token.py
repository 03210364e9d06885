"""What an attribution needs to know of a model: a ViT, and how its tokens become outputs.

Mostly outputs are read from the class token, after which the classes are named. Models that pool
all tokens instead are described here too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.attribution.asked_targets import each_target, name_or_column
from cdam_med.attribution.hooks import after_calls
from cdam_med.attribution.huggingface_vit import HuggingFaceAdapter
from cdam_med.attribution.monai_vit import MonaiAdapter
from cdam_med.attribution.timm_vit import TimmAdapter
from cdam_med.attribution.torchvision_vit import TorchvisionAdapter
from cdam_med.attribution.vit import Pooling, VitAdapter, errors_named, is_named, outputs_in
from cdam_med.errors import CdamError, ModelError, TargetError

ADAPTERS = (TimmAdapter, MonaiAdapter, HuggingFaceAdapter, TorchvisionAdapter)
"""The families of vision transformers that are understood."""

ReadoutFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""What `readout` is given and its outputs, ``(batch, output)`` -> one number an image."""

_WRAPPERS = ("torch.DataParallel", "torch.DistributedDataParallel", "torch.AveragedModel")


@dataclass(frozen=True)
class ClassTokenModel:
    """A ViT whose outputs are read from its class token alone, or from all tokens by a pooling.

    Parameters
    ----------
    vit : Module
        A model of one of the families in `ADAPTERS`.
    prepare : callable
        User's images ``(batch, channel, height, width)`` -> what `vit` takes, as many images.
    readout : callable or None
        Class token after the final norm, or what the pooling gives, ``(batch, dim)`` -> raw
        outputs ``(batch, target)``. ``None`` where it isn't known; then `forward` must be given,
        and what runs a part of the model alone isn't possible.
    target_names : tuple of str, optional
        Names of the outputs, in their order: one for each, all different.
    readout_tokens : int
        How many leading tokens the outputs are read from. A distilled DeiT has two; its readout
        is given both side by side, ``(batch, 2 * dim)``. Not used with a pooling.
    pooling : Pooling, optional
        How all tokens become one vector, where outputs aren't read from leading tokens.
    forward : callable, optional
        The model's own whole pass, of which `vit` is a part: what `prepare` gives -> raw outputs.
        ``vit.forward_features`` and `readout` unless given.
    derived : tuple of callable
        Further outputs behind the model's own, see `with_outputs`.
    own_count : int, optional
        How many outputs the model has, where only a whole pass tells.

    Raises
    ------
    ModelError
        If `vit` is of no known family, or has no class token and no pooling is given.
    """

    vit: nn.Module
    prepare: Callable[[Tensor], Tensor]
    readout: Callable[[Tensor], Tensor] | None
    target_names: tuple[str, ...] | None = None
    readout_tokens: int = 1
    pooling: Pooling | None = None
    forward: Callable[[Tensor], Any] | None = None
    derived: tuple[ReadoutFunction, ...] = ()
    own_count: int | None = None

    def __post_init__(self) -> None:
        """Refuse a ViT without a class token, and a model without outputs."""
        if self.pooling is None and self.adapter.n_prefix < self.readout_tokens:
            raise ModelError(
                f"{self.name} has no class token, and a class-discriminative attention map is the "
                "share of each token in it: choose a ViT with one, or name its pooling."
            )
        if self.readout is None and self.forward is None:
            raise ModelError(f"{self.name} has no outputs: give its readout or its forward.")

    @property
    def adapter(self) -> VitAdapter:
        """The ViT as attributions see those of any family."""
        return adapter_of(self.vit)

    @property
    def name(self) -> str:
        """How messages call the model."""
        around = "" if self.module is self.vit else f"{type(self.module).__name__} around "
        return around + self.adapter.name

    @property
    def module(self) -> nn.Module:
        """The outermost module that is known: the one around the ViT, or the ViT."""
        return self.forward if isinstance(self.forward, nn.Module) else self.vit

    @property
    def rows_read(self) -> slice:
        """Which tokens that leave the last block reach the readout."""
        if self.pooling is not None:
            return slice(self.pooling.first, None)
        return slice(self.readout_tokens)

    def read(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch target"]:
        """Return the raw outputs for the tokens that leave the last block, at least those read."""
        if self.pooling is None:
            tokens = tokens[:, : self.readout_tokens]
        return self.outputs_of(self.pooled(self.adapter.norm(tokens)))

    def outputs(
        self, prepared: Float[Tensor, "batch channel *size"]
    ) -> Float[Tensor, "batch target"]:
        """Return the raw outputs for images as the ViT takes them: the model's own whole pass.

        A `ModelError` says if the pass fails or gives other than ``(batch, target)``.
        """
        if self.forward is None:
            return self.outputs_of(self.features(prepared))
        final: list[Tensor] = []
        norms = [self.adapter.norm] if self.derived else []
        with (
            errors_named(self.name),
            after_calls(self.module, norms, lambda _, tokens: final.append(tokens)),
        ):
            own = self._checked(outputs_in(self.forward(prepared)), prepared)
            return self._with_derived(self.pooled(final[-1]), own) if self.derived else own

    def features(
        self, prepared: Float[Tensor, "batch channel *size"]
    ) -> Float[Tensor, "batch feature"]:
        """Return what `readout` is given for images as the ViT takes them."""
        with errors_named(self.name):
            return self.pooled(self.adapter.forward_features(prepared))

    def pooled(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch feature"]:
        """Return what `readout` is given, from the tokens after the final norm."""
        if self.pooling is not None:
            return self.pooling.function(tokens)
        return tokens[:, : self.readout_tokens].flatten(1)

    def outputs_of(self, features: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch target"]:
        """Return what `readout` gives; refuse other than ``(batch, target)`` with a gradient."""
        if self.readout is None:
            raise ModelError(
                f"How {self.name} reads its outputs from tokens isn't known, so that no part of it "
                "can be run alone: give a readout, or choose a method that runs the whole model, "
                "such as cdam or occlusion."
            )
        with errors_named(self.name):
            own = self._checked(self.readout(features), features)
            return self._with_derived(features, own)

    def _checked(self, outputs: object, given: Tensor) -> Float[Tensor, "batch target"]:
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(given):
            found = _shape_or_class(outputs)
            raise ModelError(
                f"{self.name} gives {found} for {len(given)} image(s), and outputs must be a "
                "tensor (batch, target): describe it by a ClassTokenModel whose readout gives one, "
                "with the axis of targets also for a single target."
            )
        if torch.is_grad_enabled() and given.requires_grad and not outputs.requires_grad:
            self.refuse_without_gradient()
        return outputs

    def _with_derived(
        self, features: Float[Tensor, "batch feature"], own: Float[Tensor, "batch output"]
    ) -> Float[Tensor, "batch target"]:
        added = [function(features, own)[:, None] for function in self.derived]
        return torch.cat((own, *added), dim=1) if added else own

    def refuse_without_gradient(self) -> None:
        """Refuse a model through whose last part no gradient goes."""
        raise ModelError(
            f"The outputs of {self.name} can't be differentiated in its tokens, so that each map "
            "would be zero: leave out no_grad, detach, argmax, comparisons, numpy and quantised "
            "layers, or choose a method that takes no gradients, such as token_ablation."
        )

    def with_outputs(self, functions: Sequence[ReadoutFunction]) -> "ClassTokenModel":
        """Return the same model with further outputs behind its own, from column `output_count` on.

        They make any number that can be computed from the class token an output like any other:
        a difference of outputs, a similarity to a concept.
        """
        return replace(self, derived=(*self.derived, *functions))

    def check_images(self, images: Tensor) -> Tensor:
        """Check a batch and return it as the ViT takes it, on the model's device.

        A `CdamError` says what is expected, a `ModelError` if `prepare` gives something else.
        """
        cast = self.cast(images)
        prepared: object = self.prepare(cast)
        if not isinstance(prepared, Tensor) or prepared.shape[:1] != cast.shape[:1]:
            raise ModelError(
                f"The prepare of {self.name} must turn {len(cast)} image(s) into a tensor of as "
                f"many, not {_shape_or_class(prepared)}: treat each image alone."
            )
        prepared = prepared.as_subclass(Tensor)
        if self.readout is not None:  # what is around a ViT may take other channels
            self.adapter.patches.check_size(self.name, prepared)
        return prepared

    def cast(self, images: Tensor) -> Tensor:
        """Check a batch and return it on the model's device, in the type of its weights."""
        plain, weight = self.adapter.patches.check_batch(images), self.weight
        cast = plain.to(device=weight.device, dtype=weight.dtype)
        # a sum over finite values can overflow, one over others can't be finite, and costs less
        total = cast.sum(dtype=torch.promote_types(cast.dtype, torch.float32))
        if not torch.isfinite(total) and not torch.isfinite(cast).all():
            raise CdamError(
                f"images holds NaN or infinite values, or values up to {plain.abs().max():.3g} "
                f"that {cast.dtype}, the type of the weights of {self.name}, has no numbers for: "
                "replace or scale them, or use weights of a wider type."
            )
        return cast

    @property
    def weight(self) -> Tensor:
        """One of the ViT's floating-point weights, which says where it is and in which type."""
        weight = next((p for p in self.vit.parameters() if p.is_floating_point()), None)
        if weight is None or weight.is_meta:
            raise ModelError(
                f"{self.name} has no floating-point weights with values: load it in float, on a "
                "device such as 'cpu', not quantised and not on the meta device."
            )
        return weight

    def patch_grid(self, prepared: Float[Tensor, "batch channel *size"]) -> tuple[int, ...]:
        """Return how many patches there are along each axis of images as the ViT takes them."""
        return self.adapter.patches.grid(prepared.shape[2:])

    def grid_size(self, prepared: Float[Tensor, "batch channel *size"]) -> tuple[int, int]:
        """Return rows and columns of the patch grid; refuse patches that lie behind each other.

        Volumes that are one patch thick along an axis have two axes of patches.
        """
        grid = list(self.patch_grid(prepared))
        if len(grid) > 2 and 1 in grid:
            grid.remove(1)
        if len(grid) != 2:
            raise ModelError(
                f"{self.name} has a grid of {' x '.join(map(str, grid))} patches, and a map has "
                "rows and columns only: use cdam_scores, which gives scores of all three axes, or "
                "a model whose patches span the depth."
            )
        return grid[0], grid[1]

    def target_columns(self, targets: object) -> tuple[int, ...]:
        """Return the output columns of targets: names, columns, or ``None`` for every output."""
        count, names = self.output_count, self.target_names or ()
        if names and (len(names) != count or len(set(names)) < count):
            raise ModelError(
                f"{self.name} has {count} output(s), and the names {', '.join(names)} for them: "
                "give target_names one for each, all different."
            )
        if targets is None:
            return tuple(range(count))
        columns = []
        for target in map(name_or_column, each_target(targets)):
            column = names.index(target) if target in names else target
            if not isinstance(column, int) or not 0 <= column < count:
                listed = f"0 to {count - 1}" + (f" or {', '.join(names)}" if names else "")
                raise TargetError(f"The model has no target {target!r}: choose from {listed}.")
            columns.append(column)
        return tuple(columns)

    @property
    def output_count(self) -> int:
        """How many outputs the model has; refuses a readout that doesn't give one row an image."""
        return self.outputs_of_sample().shape[1] if self.own_count is None else self.own_count

    @torch.no_grad()
    def outputs_of_sample(self) -> Float[Tensor, "1 target"]:
        """Return the outputs for made-up tokens, or for an empty image where there's no readout."""
        like, patches = self.weight, self.adapter.patches
        if self.readout is None:
            size = patches.image_size or tuple(2 * side for side in patches.sides)
            return self.outputs(like.new_zeros(1, patches.channels, *size))
        count = self.readout_tokens if self.pooling is None else self.adapter.n_prefix + 1
        numbers = count * self.adapter.embed_dim
        tokens = torch.linspace(-1, 1, numbers, dtype=like.dtype, device=like.device)
        with errors_named(self.name):
            return self.outputs_of(self.pooled(tokens.view(1, count, -1)))


def class_token_model(model: object) -> ClassTokenModel:
    """Return what an attribution needs to know of a model.

    Parameters
    ----------
    model : Module, ClassTokenModel or object with the method
        A ViT of timm, transformers, torchvision or MONAI, a module that holds one, or a model
        with a method ``class_token_model()`` that returns a `ClassTokenModel`. Out of a wrapper of
        torch, such as what ``torch.compile`` returns, the model inside is taken.

    Raises
    ------
    ModelError
        If it isn't known how the outputs are read from tokens; the model and the reason are named.
    """
    if isinstance(model, ClassTokenModel):
        return model
    if hasattr(model, "class_token_model"):
        return _own_description(model)
    return _description_of(_unwrapped(model))


def _description_of(model: Any) -> ClassTokenModel:
    vits = _vits_within(model, "model") if isinstance(model, nn.Module) else {}
    if len(vits) > 1:
        names = list(vits.values())
        raise ModelError(
            f"{type(model).__name__} holds {len(vits)} vision transformers ({', '.join(names)}), "
            f"and a map is of one: pass ClassTokenModel({names[0]}, lambda images: images, None, "
            "forward=model) for that of the first."
        )
    vit = next(iter(vits), model)
    adapter, is_whole = adapter_of(vit), vit is model
    return ClassTokenModel(
        adapter.module,
        lambda images: images,
        adapter.readout if is_whole else None,
        readout_tokens=adapter.readout_tokens,
        pooling=adapter.pooling,
        forward=adapter.own_outputs if is_whole else model,
    )


def adapter_of(module: Any) -> VitAdapter:
    """Return the adapter of a vision transformer of a known family, or refuse any other."""
    for adapter in ADAPTERS:
        if is_named(module, *adapter.kinds):
            return adapter(module)
    raise ModelError(
        f"{type(module).__name__} is not a vision transformer of a known family, and holds none: "
        "pass a ViT of timm, transformers, torchvision or MONAI, a module around one, or a model "
        "whose method class_token_model() returns a ClassTokenModel."
    )


def _shape_or_class(found: object) -> str:
    return str(tuple(found.shape)) if isinstance(found, Tensor) else type(found).__name__


def _own_description(model: Any) -> ClassTokenModel:
    described = model.class_token_model
    if callable(described):
        described = described()
    if not isinstance(described, ClassTokenModel):
        raise ModelError(
            f"class_token_model() of {type(model).__name__} gives {type(described).__name__}, and "
            "must give a ClassTokenModel: return ClassTokenModel(vit, prepare, readout)."
        )
    return described


def _unwrapped(model: Any) -> Any:
    while is_named(model, "torch.OptimizedModule", *_WRAPPERS):
        model = model.module if is_named(model, *_WRAPPERS) else model._orig_mod
    return model


def _vits_within(module: nn.Module, name: str) -> dict[nn.Module, str]:
    """Return the outermost ViTs, each once, with what they are called from the model on."""
    if any(is_named(module, *adapter.kinds) for adapter in ADAPTERS):
        return {module: name}
    found: dict[nn.Module, str] = {}
    for child_name, child in module.named_children():
        place = f"{name}[{child_name}]" if child_name.isdigit() else f"{name}.{child_name}"
        found |= {vit: found.get(vit, at) for vit, at in _vits_within(child, place).items()}
    return found
