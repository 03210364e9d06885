"""What every estimator takes and gives, so that one can be put in the place of another.

An estimator is an object that holds its settings and is called with a model, images and targets.
`explaining` does what all of them begin and end with: it describes the model, checks the images,
turns targets into columns of outputs, puts the model in evaluation mode, and puts it back. One
thread at a time does that with a model.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import Lock, RLock
from typing import ClassVar, Literal, Protocol, TypeAlias, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.attribution.combinations import Own, Targets, derive
from cdam_med.attribution.last_block import evaluating
from cdam_med.errors import ModelError
from cdam_med.models.class_token import ClassTokenModel, class_token_model, model_name
from cdam_med.models.monai_vit import whole_module

Resolution: TypeAlias = Literal["patch", "pixel"]
"""Whether a map has one score a patch or one a pixel."""

_LOCKS: WeakKeyDictionary[nn.Module, AbstractContextManager[bool]] = WeakKeyDictionary()
"""The lock of each ViT that has been explained."""

_LOCKS_GUARD = Lock()


@dataclass(frozen=True, eq=False)
class Attribution:
    """Maps of a batch of images, by any estimator.

    Parameters
    ----------
    scores : Tensor
        Score of each patch or pixel. Signed scores speak for the target where positive and
        against it where negative; those of an unsigned estimator are never negative. At least in
        float32, also where the model isn't.
    outputs : Tensor
        Raw outputs of the model for the same targets and the images as given.
    targets : tuple of str or int
        Label of each target, or its column where the model has no names.
    estimator : str
        Name of the estimator in the registry.
    resolution : {"patch", "pixel"}
        What rows and columns are: the patch grid, or the pixels that the ViT takes.
    is_signed : bool
        Whether scores have a sign.
    prefix_scores : Tensor or None
        What fell on the tokens before the patches: the class token first, then registers.
        ``None`` where the estimator gives these tokens nothing.
    path : str
        How the scores were computed, such as ``"closed form"`` or ``"autograd"``.
    """

    scores: Float[Tensor, "batch target rows columns"]
    outputs: Float[Tensor, "batch target"]
    targets: tuple[str | int, ...]
    estimator: str
    resolution: Resolution
    is_signed: bool
    prefix_scores: Float[Tensor, "batch target prefix"] | None
    path: str


@runtime_checkable
class Estimator(Protocol):
    """A way to make maps, with its settings; see `cdam_med.attribution.registry`.

    Called twice with the same seed it gives the same maps, and a batch gives the maps that its
    images give alone. The model is left as it was, also after an error.

    Meanwhile hooks and modes of the model are changed. So estimators that are called from several
    threads wait for each other where they explain the same ViT, and don't where each has its own.
    Whatever else calls the model at the same time, such as training it, isn't kept from it.

    Attributes
    ----------
    name : str
        Name in the registry, snake-cased.
    title : str
        Name for people.
    meaning : str
        What a score is, in a sentence or two for people who don't know the method.
    reference : str
        Where the method comes from.
    resolution : {"patch", "pixel"}
        Resolution of its maps.
    is_signed : bool
        Whether its scores have a sign.
    cost : str
        What a map costs, in words, in units of the model's forward pass.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    meaning: ClassVar[str]
    reference: ClassVar[str]
    resolution: ClassVar[Resolution]
    is_signed: ClassVar[bool]
    cost: ClassVar[str]

    def __call__(
        self, model: object, images: Tensor, targets: Targets = None, *, seed: int = 0
    ) -> Attribution:
        """Return maps of a batch of images for any or all targets.

        Parameters
        ----------
        model : VisionTransformer or object with `class_token_model`
            What `cdam_med.models.class_token.class_token_model` takes.
        images : Tensor
            ``(batch, channel, height, width)`` as the model takes them; moved to its device.
        targets : target, sequence of targets, or None
            Names or columns of outputs, combinations, concepts; ``None`` for every output.
        seed : int
            Seed of whatever is random; an image draws numbers of its own, the same in any batch.

        Raises
        ------
        ModelError
            If the estimator can't explain the model; both are named.
        TargetError
            If the model has no such target.
        InputError
            If the images aren't what the model takes.
        """


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
    """

    model: ClassTokenModel
    images: Float[Tensor, "batch channel *size"]
    columns: tuple[int, ...]
    targets: tuple[str | int, ...]
    own: Own | None = None

    def columns_of(self, image: int) -> tuple[int, ...]:
        """Return the columns of the outputs that are explained for one image, one a target.

        Parameters
        ----------
        image : int
            Its place in the batch.
        """
        if self.own is None:
            return self.columns
        return tuple(self.columns[place] for place in self.own[image].tolist())

    def of_targets(
        self, values: Float[Tensor, "batch column *rest"]
    ) -> Float[Tensor, "batch target *rest"]:
        """Return, of values for every column, those for each image's targets.

        Parameters
        ----------
        values : Tensor
            Scores or outputs.
        """
        if self.own is None:
            return values
        images = torch.arange(len(values), device=values.device)
        return values[images[:, None], self.own.to(values.device)]

    def attribution(
        self,
        estimator: Estimator,
        tokens: Float[Tensor, "batch column token"],
        outputs: Float[Tensor, "batch column"],
        path: str,
    ) -> Attribution:
        """Return an attribution from the scores of all tokens, prefix tokens first.

        Parameters
        ----------
        estimator : Estimator
            What made the scores.
        tokens : Tensor
            Score of every token.
        outputs : Tensor
            Raw outputs.
        path : str
            How the scores were computed.
        """
        prefix = self.model.vit.num_prefix_tokens
        grid = self.model.grid_size(self.images)
        scores = torch.unflatten(tokens[:, :, prefix:], -1, grid)
        return self.attribution_of_maps(
            estimator, scores, outputs, path, prefix_scores=tokens[:, :, :prefix]
        )

    def attribution_of_maps(
        self,
        estimator: Estimator,
        scores: Float[Tensor, "batch column rows columns"],
        outputs: Float[Tensor, "batch column"],
        path: str,
        *,
        prefix_scores: Float[Tensor, "batch column prefix"] | None = None,
    ) -> Attribution:
        """Return an attribution from scores that are maps already.

        Parameters
        ----------
        estimator : Estimator
            What made the scores.
        scores : Tensor
            Scores at the estimator's resolution.
        outputs : Tensor
            Raw outputs.
        path : str
            How the scores were computed.
        prefix_scores : Tensor, optional
            What fell on the tokens before the patches.
        """
        return Attribution(
            scores=self.of_targets(scores),
            outputs=self.of_targets(outputs),
            targets=self.targets,
            estimator=estimator.name,
            resolution=estimator.resolution,
            is_signed=estimator.is_signed,
            prefix_scores=None if prefix_scores is None else self.of_targets(prefix_scores),
            path=path,
        )


@contextmanager
def explaining(
    model: object, images: Tensor, targets: Targets, *, in_depth: bool = False
) -> Iterator[Subject]:
    """Open a model to be explained; gradients are off within, and it is left as it was.

    Parameters
    ----------
    model : VisionTransformer or object with `class_token_model`
        What `cdam_med.models.class_token.class_token_model` takes.
    images : Tensor
        ``(batch, channel, height, width)`` as the model takes them.
    targets : target, sequence of targets, or None
        See `Estimator`.
    in_depth : bool
        Whether patches may also lie behind each other, as in a ViT with 3-D patches.

    Raises
    ------
    ModelError
        If it isn't known how the outputs are read from tokens, patches lie in depth, or the model
        was made in inference mode.
    TargetError
        If the model has no such target.
    InputError
        If the images aren't what the model takes.
    """
    with torch.inference_mode(False), torch.no_grad():
        described = class_token_model(model)
        _check_weights(described)
        with alone_with(described), evaluating(model, described, targets):
            prepared = described.check_images(images)
            derived, columns, labels, own = derive(described, targets, len(prepared))
            if prepared.is_inference():  # such a tensor can take no part in a gradient
                prepared = prepared.clone()
            if not in_depth:
                derived.grid_size(prepared)  # before anything is computed that can't be shown
            yield Subject(derived, prepared, columns, labels, own)


def alone_with(model: ClassTokenModel) -> AbstractContextManager[bool]:
    """Return a context that one thread at a time can open for a ViT, and again within itself.

    Parameters
    ----------
    model : ClassTokenModel
        The model. All that have the same ViT have one lock.
    """
    with _LOCKS_GUARD:
        return _LOCKS.setdefault(whole_module(model.vit), RLock())


def _check_weights(model: ClassTokenModel) -> None:
    """Refuse weights that torch lets no gradient through, in its own words or later."""
    if any(weight.is_inference() for weight in model.vit.parameters()):
        raise ModelError(
            f"{model_name(model.vit)} was made or moved within torch.inference_mode(), so that no "
            "gradient goes through its weights: make it outside; explaining it within is fine."
        )
