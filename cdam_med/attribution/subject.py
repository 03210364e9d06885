"""What is explained, and how a model is opened for it.

`explaining` does what all methods begin and end with: it describes the model, checks the images,
turns targets into columns of outputs, puts the model in evaluation mode, and puts it back. One
thread at a time does that with a model.
"""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from numbers import Real
from threading import Lock, RLock
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.attribution.class_token import ClassTokenModel, class_token_model
from cdam_med.attribution.combinations import Own, PerImage, Targets, derive
from cdam_med.attribution.hooks import before_calls, explanation, set_aside
from cdam_med.attribution.method import Attribution, Method, Resolution
from cdam_med.attribution.verification import (
    Verifier,
    are_same,
    differing_outputs,
    random_outputs,
    size_of_outputs,
    state_of,
)
from cdam_med.attribution.vit import errors_named
from cdam_med.errors import MethodError, ModelError

_LOCKS: WeakKeyDictionary[nn.Module, AbstractContextManager[bool]] = WeakKeyDictionary()
"""The lock of each ViT that has been explained."""

_LOCKS_GUARD = Lock()


@dataclass(frozen=True, eq=False)
class Subject:
    """What is explained: a model in evaluation mode, its images, and columns of its outputs.

    Parameters
    ----------
    model : ClassTokenModel
        Combinations and concepts that are asked for are outputs of it like any other.
    images : Tensor
        Images as the ViT takes them.
    columns : tuple of int
        Columns of the outputs to explain, in the order they were asked for.
    targets : tuple of str or int
        Label of each target: of each column, unless images have targets of their own.
    own : Tensor or None
        Which of `columns` is each image's for each target, ``(image, target)``.
    verifier : Verifier or None
        Knows whether what is computed is the model's own; None where nobody is to ask.
    """

    model: ClassTokenModel
    images: Float[Tensor, "batch channel *size"]
    columns: tuple[int, ...]
    targets: tuple[str | int, ...]
    own: Own | None = None
    verifier: Verifier | None = None

    def outputs(self, images: Tensor | None = None) -> Float[Tensor, "batch column"]:
        """Run the model and return the outputs that are explained, of all its images or some."""
        given = self.images if images is None else images
        return self.model.outputs(given)[:, list(self.columns)]

    def columns_of(self, image: int) -> tuple[int, ...]:
        """Return the columns of the outputs that are explained for one image of the batch."""
        if self.own is None:
            return self.columns
        return tuple(self.columns[place] for place in self.own[image].tolist())

    def of_targets(
        self, values: Float[Tensor, "batch column *rest"]
    ) -> Float[Tensor, "batch target *rest"]:
        """Return, of values for every column, those for each image's targets."""
        if self.own is None:
            return values
        images = torch.arange(len(values), device=values.device)
        return values[images[:, None], self.own.to(values.device)]

    def on_grid(
        self, patches: Float[Tensor, "batch column patch"], grid: tuple[int, ...]
    ) -> Float[Tensor, "batch column *grid"]:
        """Return scores of patches where they lie; refuse a model that has other tokens."""
        count, prefix = patches.shape[-1], self.model.adapter.n_prefix
        if count != math.prod(grid):
            raise ModelError(
                f"{self.model.name} has {prefix + count} tokens in its last block, and the images "
                f"have {math.prod(grid)} patches besides {prefix} prefix token(s), so that it "
                "isn't known which token lies where: take off what adds, merges or drops tokens, "
                "such as prompt tokens."
            )
        return torch.unflatten(patches, -1, grid)

    def attribution(
        self,
        method: Method,
        tokens: Float[Tensor, "batch column token"],
        outputs: Float[Tensor, "batch column"],
        path: str,
        *,
        in_depth: bool = False,
    ) -> Attribution:
        """Return an attribution from the scores of all tokens, prefix tokens first.

        Maps have rows and columns, or with `in_depth` as many axes as images have.
        """
        prefix, model = self.model.adapter.n_prefix, self.model
        grid = model.patch_grid(self.images) if in_depth else model.grid_size(self.images)
        scores = self.on_grid(tokens[:, :, prefix:], grid)
        return self.attribution_of_maps(
            method, scores, outputs, path, prefix_scores=tokens[:, :, :prefix]
        )

    def attribution_of_maps(
        self,
        method: Method,
        scores: Float[Tensor, "batch column *grid"],
        outputs: Float[Tensor, "batch column"],
        path: str,
        *,
        prefix_scores: Float[Tensor, "batch column prefix"] | None = None,
    ) -> Attribution:
        """Return an attribution from scores that are maps already, at the method's resolution."""
        return Attribution(
            scores=self.of_targets(scores),
            outputs=self.of_targets(outputs),
            targets=self.targets,
            method=method.name,
            resolution=method.resolution,
            is_signed=method.is_signed,
            prefix_scores=None if prefix_scores is None else self.of_targets(prefix_scores),
            path=path,
        )


@contextmanager
def explaining(
    model: object,
    images: Tensor,
    targets: Targets,
    *,
    in_depth: bool = False,
    verify: bool = True,
) -> Iterator[Subject]:
    """Open a model to be explained; gradients are off within, and it is left as it was.

    The first three are as for any method. With `in_depth` patches may also lie behind each other,
    as in a ViT with 3-D patches. With `verify` it is seen, once for each state of the model, that
    what is computed is its own. A `CdamError` says what can't be explained.
    """
    with torch.inference_mode(False), torch.no_grad(), explanation():
        described = class_token_model(model)
        _check_weights(described)
        with alone_with(described), evaluating(model, described):
            prepared = described.check_images(images)
            if prepared.is_inference():  # such a tensor can take no part in a gradient
                prepared = prepared.clone()
            owner = model if isinstance(model, nn.Module | ClassTokenModel) else described.vit
            verifier = Verifier(owner, state_of(_modules_of(model, described)))
            if described.readout is None:
                count = partial(_count_outputs, described, prepared[:1])
                described = replace(described, own_count=verifier.answer("outputs", count))
            derived, columns, labels, own = derive(described, targets, len(prepared))
            if not in_depth:
                derived.grid_size(prepared)  # before anything is computed that can't be shown
            if verify:
                _check_repeatable(derived)
                _check_description(model, described, images, prepared, verifier)
            yield Subject(derived, prepared, columns, labels, own, verifier if verify else None)


class MethodBase(ABC):
    """What all methods do alike: settings are checked, and a model is opened for them.

    A method is a frozen dataclass of its settings. See `cdam_med.attribution.method.Method`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    meaning: ClassVar[str]
    reference: ClassVar[str]
    cost: ClassVar[str]
    resolution: ClassVar[Resolution] = "patch"
    is_signed: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = False
    least: ClassVar[int] = 1

    @property
    def verifies(self) -> bool:
        """Whether what is computed is compared with the model's own."""
        return True

    def __post_init__(self) -> None:
        """Refuse counts below `least`, and noise without meaning."""
        for field in fields(cast(Any, self)):
            value = getattr(self, field.name)
            if field.type is int and not self._is_count(value):
                raise MethodError(
                    f"{field.name} of {self.name} must be at least {self.least}, and whole, not "
                    f"{value!r}."
                )
            is_share = isinstance(value, Real) and 0 <= float(value) < math.inf
            if field.name == "noise" and not is_share:
                raise MethodError(
                    f"noise of {self.name} must be 0 or more and finite, not {value!r}: it is a "
                    "share of a range, such as 0.05."
                )

    def _is_count(self, value: Any) -> bool:
        try:
            return operator.index(value) >= self.least
        except TypeError:
            return False

    def __call__(
        self, model: object, images: Tensor, targets: Targets = None, *, seed: int = 0
    ) -> Attribution:
        """Return maps of a batch of images for any or all targets; see `Method`."""
        with explaining(model, images, targets, verify=self.verifies) as subject:
            if self.needs_pixels and subject.images.ndim != 4:
                raise ModelError(
                    f"{self.name} is about pixels in rows and columns, and {subject.model.name} "
                    "takes volumes: choose a method with one score a patch, such as cdam."
                )
            return self.maps(subject, seed)

    @abstractmethod
    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return maps of what is explained."""


def predicted_class(model: object, images: Tensor) -> PerImage:
    """Return the highest output of each image as a target of its own; one forward pass.

    Its label is ``"predicted class"``; its `targets` say which class each image's is.
    """
    with explaining(model, images, None) as subject:
        highest = subject.model.outputs(subject.images).argmax(1).tolist()
    return PerImage([subject.targets[column] for column in highest], "predicted class")


def alone_with(model: ClassTokenModel) -> AbstractContextManager[bool]:
    """Return a context that one thread at a time can open for a ViT, and again within itself."""
    with _LOCKS_GUARD:
        return _LOCKS.setdefault(model.vit, RLock())


def evaluating(model: object, described: ClassTokenModel) -> AbstractContextManager[None]:
    """Put every part of a model in evaluation mode, and each back as it was, also on error.

    Modules that only a function of the description holds aren't found; random layers in them are
    found by what they do, see `cdam_med.attribution.verification`.
    """
    parts = [part for module in _modules_of(model, described) for part in module.modules()]
    return set_aside([part for part in parts if part.training], "training", False)


def _modules_of(model: object, described: ClassTokenModel) -> list[nn.Module]:
    """Return the modules that a model is known to be made of."""
    held = [described.readout, described.prepare, described.forward]
    if described.pooling is not None:
        held.append(described.pooling.function)
    things = [model, described.vit, *held, *(getattr(each, "__self__", None) for each in held)]
    return list(dict.fromkeys(thing for thing in things if isinstance(thing, nn.Module)))


def _check_weights(model: ClassTokenModel) -> None:
    """Refuse weights that torch lets no gradient through, in its own words or later."""
    if any(weight.is_inference() for weight in model.vit.parameters()):
        raise ModelError(
            f"{model.name} was made or moved within torch.inference_mode(), so that no "
            "gradient goes through its weights: make it outside; explaining it within is fine."
        )


def _count_outputs(model: ClassTokenModel, image: Float[Tensor, "1 channel *size"]) -> int:
    """Return how many outputs a module around a ViT has; refuse one that runs it several times.

    Only the last of several runs would be in a map.
    """
    rows: list[int] = []

    def note(_: nn.Module, args: tuple[Any, ...], __: dict[str, Any]) -> None:
        rows.append(len(args[0]))

    blocks = model.adapter.blocks
    with before_calls(model.module, [blocks[-1]], note):
        count = model.outputs(image).shape[1]
    if rows != [1] * blocks.count(blocks[-1]):
        raise ModelError(
            f"{model.name} runs the ViT on {sum(rows)} images for one that it is given, such as "
            "several views or crops, and a map is of one: explain one of them by "
            "ClassTokenModel(vit, prepare, readout), with prepare giving that one."
        )
    return count


def _check_repeatable(model: ClassTokenModel) -> None:
    """Refuse random layers in what a readout or a target holds, wherever they are hidden."""
    if model.readout is None:
        return
    first, second = model.outputs_of_sample(), model.outputs_of_sample()
    if not torch.equal(first, second):
        raise random_outputs(model, first, second)


def _check_description(
    model: object,
    described: ClassTokenModel,
    images: Tensor,
    prepared: Tensor,
    verifier: Verifier,
) -> None:
    """Compare what a module says of itself with what its own call gives, where that is comparable.

    That it is where the call gives one number for each output.
    """
    if not isinstance(model, nn.Module) or described.forward is not None:
        return
    if type(model).forward is nn.Module.forward:  # it has none
        return

    def compare() -> bool:
        with errors_named(described.name):
            own = model(described.cast(images[:1]))
            features = described.features(prepared[:1])
            found = described.outputs_of(features)
        if not isinstance(own, Tensor) or own.shape != found.shape:
            return True
        if are_same(prepared, found, own, size_of_outputs(described, features)):
            return True
        raise differing_outputs(
            described,
            found,
            own,
            f"the first by the description that {type(model).__name__}.class_token_model() gives, "
            "the second by the model's own call. Describe what the call does, hooks included, or "
            "pass the description itself in place of the model.",
        )

    verifier.answer("described", compare)
