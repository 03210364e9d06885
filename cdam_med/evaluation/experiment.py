"""What is evaluated: a model on examples, and the maps of one method; and what a metric is."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self, TypeAlias, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cdam_med.attribution.class_token import class_token_model
from cdam_med.attribution.combinations import Target
from cdam_med.attribution.method import Attribution, Method, Resolution
from cdam_med.attribution.subject import explaining
from cdam_med.errors import MethodError
from cdam_med.evaluation.examples import Examples
from cdam_med.evaluation.maps import Maps, PatchGrid, Values, patch_grid

IMAGES_AT_ONCE = 8
"""Images of a batch; bounds memory."""

Kept = TypeVar("Kept")
Images = Float[Tensor, "image channel height width"]


class _Keeping:
    """Keeps what is made of it, such as boxes, ablations and mosaics."""

    @cached_property
    def _kept(self) -> dict[object, Any]:
        return {}

    def once(self, make: Callable[[Self], Kept]) -> Kept:
        """Return what a function makes of this; it is made once."""
        if make not in self._kept:
            self._kept[make] = make(self)
        return cast(Kept, self._kept[make])


@dataclass(frozen=True, eq=False)
class Experiment(_Keeping):
    """A model and examples.

    Parameters
    ----------
    model : VisionTransformer or object with `class_token_model`
        What is explained.
    examples : Examples
        What it is explained on.
    shifted : Examples or None
        The same images with the object out of the centre.
    neighbours : Examples or None
        Images that should be explained alike, such as the next slices; matched by id.
    seed : int
        Of everything random.
    """

    model: object
    examples: Examples
    shifted: Examples | None = None
    neighbours: Examples | None = None
    seed: int = 0

    @cached_property
    def _outputs(self) -> tuple[Float[Tensor, "image output"], tuple[str | int, ...]]:
        found = []
        for images in torch.split(self.examples.images, IMAGES_AT_ONCE):
            with explaining(self.model, images, None) as subject:
                found.append(subject.model.outputs(subject.images).cpu())
                names = subject.targets
        return torch.cat(found), names

    @property
    def outputs(self) -> Float[Tensor, "image output"]:
        """Every raw output for each image."""
        return self._outputs[0]

    @property
    def output_names(self) -> tuple[str | int, ...]:
        """Name or column of each output."""
        return self._outputs[1]

    @cached_property
    def has_names(self) -> bool:
        """Whether outputs are different quantities with names, rather than classes."""
        return class_token_model(self.model).target_names is not None

    @cached_property
    def targets(self) -> tuple[str | int, ...]:
        """The target of each image: the examples', or the output that is highest."""
        if self.examples.targets is not None:
            return self.examples.targets
        return tuple(self.output_names[column] for column in self.outputs.argmax(1).tolist())

    def targets_of(self, other: Examples) -> tuple[str | int, ...]:
        """Return the targets of other images of the same ids."""
        by_id = dict(zip(self.examples.ids, self.targets, strict=True))
        return tuple(by_id[name] for name in other.ids)

    @cached_property
    def grid(self) -> PatchGrid:
        """Where the patches lie."""
        return patch_grid(self.model, self.examples.images[:1])


@dataclass(frozen=True, eq=False)
class Explanations(_Keeping):
    """The maps of one method, one for each example and its target, at the method's resolution.

    Parameters
    ----------
    experiment : Experiment
        Model and examples.
    method : Method
        What made the maps.
    maps : Tensor
        The maps, on the CPU.
    seconds : ndarray
        Wall-clock time of each: its batch's, shared evenly.
    """

    experiment: Experiment
    method: Method
    maps: Maps
    seconds: Values

    @property
    def examples(self) -> Examples:
        """The experiment's examples."""
        return self.experiment.examples

    @cached_property
    def patches(self) -> Maps:
        """Maps at the patch grid, pixel maps pooled."""
        return self.experiment.grid.pooled(self.maps)

    def at_resolutions(
        self, maps: Maps | None = None
    ) -> tuple[tuple[Resolution, Float[Tensor, "image _rows _columns"]], ...]:
        """Return maps, the method's own unless given, at each resolution that they have."""
        given = self.maps if maps is None else maps
        pooled = self.experiment.grid.pooled(given)
        if self.method.resolution == "patch":
            return (("patch", pooled),)
        return (("patch", pooled), ("pixel", given))

    def of_other_images(
        self,
        images: Images,
        targets: Sequence[str | int],
        *,
        model: object = None,
        seed: int | None = None,
    ) -> Float[Tensor, "image rows columns"]:
        """Return the method's maps of other images, by another model or seed if given."""
        return explain(
            self.method,
            self.experiment.model if model is None else model,
            images,
            targets,
            seed=self.experiment.seed if seed is None else seed,
        )[0]


class MetricValues(NamedTuple):
    """One value an image, NaN where there is none; and what sets it apart within its metric."""

    values: Values
    resolution: Resolution
    examples: Examples
    variant: str = ""


Compute: TypeAlias = Callable[[Explanations], Iterator[MetricValues]]
"""Maps of a method -> values, for each resolution and variant; an error says why there are none."""

Groups: TypeAlias = Mapping[str, Mapping[str, Compute]]
"""How metrics are computed, by the group that they are asked for with, and their name."""


@dataclass(frozen=True)
class Metric:
    """A metric: what it says, and how it is computed.

    Parameters
    ----------
    name : str
        Name in tables, before ``"/"`` and the variant.
    title : str
        Name for people.
    section : str
        Part of the report.
    better : {"higher", "lower", "zero"}
        What speaks for a method: a higher or a lower figure, or one near 0.
    meaning : str
        One sentence.
    compute : callable
        Gives its values.
    """

    name: str
    title: str
    section: str
    better: Literal["higher", "lower", "zero"]
    meaning: str
    compute: Compute

    def __call__(self, explanations: Explanations) -> Iterator[MetricValues]:
        """Return one value an image, for each resolution and variant."""
        return self.compute(explanations)


def explain(
    method: Method,
    model: object,
    images: Images,
    targets: Sequence[Target],
    *,
    seed: int = 0,
) -> tuple[Maps, Values]:
    """Return one map for each image and its own target, and the seconds that each took.

    Images in a row with the same target share a batch.

    Raises
    ------
    CdamError or InputError
        If the method or the model refuses, or a map holds a value that isn't finite.
    """
    maps, seconds = [], []
    for first, last in _batches(targets):
        start = time.perf_counter()
        found = method(model, images[first:last], targets[first], seed=seed)
        seconds += [(time.perf_counter() - start) / (last - first)] * (last - first)
        maps.append(_finite(found)[:, 0])
    return torch.cat(maps), np.array(seconds)


def explain_targets(
    explanations: Explanations, targets: Sequence[Target]
) -> Float[Tensor, "image target rows columns"]:
    """Return maps of every example for the same several targets, at the patch grid."""
    experiment, method = explanations.experiment, explanations.method
    batches = torch.split(experiment.examples.images, IMAGES_AT_ONCE)
    asked, seed = tuple(targets), experiment.seed
    found = (_finite(method(experiment.model, each, asked, seed=seed)) for each in batches)
    return torch.cat([experiment.grid.pooled(scores) for scores in found])


def _batches(targets: Sequence[Target]) -> list[tuple[int, int]]:
    """Return first and last positions of runs of one target, none longer than a batch."""
    batches: list[tuple[int, int]] = []
    for index, target in enumerate(targets):
        first, last = batches[-1] if batches else (0, 0)
        if batches and last - first < IMAGES_AT_ONCE and targets[first] == target:
            batches[-1] = (first, index + 1)
        else:
            batches.append((index, index + 1))
    return batches


def _finite(found: Attribution) -> Float[Tensor, "batch target rows columns"]:
    scores = found.scores.detach().cpu()
    if not torch.isfinite(scores).all():
        raise MethodError(
            f"Maps of {found.method} hold values that aren't finite: try it in float64."
        )
    return scores
