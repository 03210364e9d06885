"""What an attribution needs of a vision transformer, whatever library it is from."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.errors import CdamError, ModelError

_OF_A_MODEL = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
"""What a model's own code raises where it can't go on."""

Part: TypeAlias = Callable[[Tensor], Tensor]
"""A module or function of one tensor."""


@dataclass(frozen=True)
class Pooling:
    """How the tokens after the final norm become the one vector that outputs are read from.

    Parameters
    ----------
    name : str
        timm's name of it: ``"avg"``, ``"map"`` and so on.
    function : callable
        All tokens ``(batch, token, dim)`` -> ``(batch, feature)``.
    first : int
        How many leading tokens it leaves out.
    is_mean : bool
        Whether it is the plain mean of the others.
    """

    name: str
    function: Part
    first: int = 0
    is_mean: bool = False


@dataclass(frozen=True)
class Patches:
    """The patches that images are cut into.

    Parameters
    ----------
    sides : tuple of int
        Pixels or voxels of a patch along each axis of the image, two or three.
    channels : int
        Channels of an image.
    image_size : tuple of int, optional
        The one size that images must have.
    count : int, optional
        How many patches an image must have, where its size isn't fixed.
    is_padded : bool
        Whether images of any size are taken, and filled up to whole patches.
    channel_name : str
        What channels are, for messages.
    """

    sides: tuple[int, ...]
    channels: int
    image_size: tuple[int, ...] | None = None
    count: int | None = None
    is_padded: bool = False
    channel_name: str = "channel(s)"

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return how many patches an image has along each axis."""
        rounded = math.ceil if self.is_padded else math.floor
        return tuple(rounded(one / side) for one, side in zip(size, self.sides, strict=True))

    def check_batch(self, images: object) -> Tensor:
        """Return a batch of images as a plain tensor, without what MONAI's MetaTensor carries."""
        axes = "height, width" if len(self.sides) == 2 else "and three sides of a volume"
        expected = f"images must be a floating-point tensor (batch, channel, {axes})"
        if not isinstance(images, Tensor):
            raise CdamError(
                f"{expected}, not {type(images).__name__}: convert an array with "
                "torch.as_tensor(...), and a list of images with torch.stack(...)."
            )
        has_axes = images.ndim == 2 + len(self.sides)
        if not has_axes or len(images) == 0 or images.is_meta or not images.is_floating_point():
            raise CdamError(
                f"{expected} of one image or more, not {tuple(images.shape)} {images.dtype} on "
                f"{images.device}: add the missing axes, convert with .float()."
            )
        return images.as_subclass(Tensor)

    def check_size(self, name: str, prepared: Float[Tensor, "batch channel *size"]) -> None:
        """Refuse images of a size or channels that the model of this name doesn't take."""
        size, channels = tuple(prepared.shape[2:]), prepared.shape[1]
        if len(size) == len(self.sides) and self._fits(size) and channels == self.channels:
            return
        raise CdamError(
            f"{name} takes images {self._expected} with {self.channels} {self.channel_name}, not "
            f"{_times(size)} with {channels}: resize or convert them."
        )

    def _fits(self, size: tuple[int, ...]) -> bool:
        if self.image_size is not None:
            return size == self.image_size
        is_whole = all(one % side == 0 for one, side in zip(size, self.sides, strict=True))
        return self.is_padded or (is_whole and self.count in (None, math.prod(self.grid(size))))

    @property
    def _expected(self) -> str:
        if self.image_size is not None:
            return f"of {_times(self.image_size)} pixels"
        if self.is_padded:
            return "of any size"
        count = "" if self.count is None else f"{self.count} "
        return f"of {count}whole patches of {_times(self.sides)} pixels"


def _times(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


@dataclass(frozen=True, eq=False)
class Projections:
    """The linear maps of an attention, by head: all that its closed form needs.

    The bias of keys shifts all logits alike, which softmax ignores.
    """

    W_q: Float[Tensor, "head head_dim dim"]
    W_k: Float[Tensor, "head head_dim dim"]
    W_v: Float[Tensor, "head head_dim dim"]
    b_q: Float[Tensor, "head 1 head_dim"]
    b_v: Float[Tensor, "head 1 head_dim"]

    @classmethod
    def of_layer(
        cls, weight: Float[Tensor, "three_dim dim"], bias: Tensor | None, heads: int
    ) -> "Projections":
        """Return those of one layer that gives queries, keys and values behind each other."""
        bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
        W_q, W_k, W_v = torch.unflatten(weight, 0, (3, heads, -1))
        b_q, _, b_v = torch.unflatten(bias, 0, (3, heads, 1, -1))
        return cls(W_q, W_k, W_v, b_q, b_v)


def is_named(thing: object, *names: str) -> bool:
    """Say whether an object is of a class ``package.Class``, or of a child of it.

    Importing the libraries of models takes seconds, and isn't needed to know their classes.
    """
    kinds = type(thing).__mro__
    return any(f"{kind.__module__.partition('.')[0]}.{kind.__name__}" in names for kind in kinds)


def outputs_in(found: Any) -> Any:
    """Return the raw outputs within what a model returns, where it is one of transformers' objects.

    Those are the logits, or of a model without a head its pooled feature.
    """
    for name in ("logits", "pooler_output"):
        if (outputs := getattr(found, name, None)) is not None:
            return outputs
    return found


@contextmanager
def errors_named(model: str) -> Iterator[None]:
    """Turn what a model's own code raises into a `ModelError` that names the model.

    Memory that ran out isn't the model's fault, and stays as it is.
    """
    try:
        yield
    except (CdamError, torch.OutOfMemoryError):
        raise
    except _OF_A_MODEL as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{model} failed when it was run to be explained ({type(error).__name__}: "
            f"{reason[:300]}). See that it takes one such image by itself, in evaluation mode, and "
            "that its parts are plain torch modules, neither quantised nor exported."
        ) from error


class VitAdapter(ABC):
    """A vision transformer of one family, seen as attributions see all of them.

    Attributes
    ----------
    kinds : tuple of str
        Classes of the family, as `is_named` takes them.
    module : Module
        The library's own model, not changed.
    name : str
        How messages call it.
    n_prefix : int
        Tokens before those of the patches: the class token, registers.
    embed_dim : int
        Numbers in a token.
    blocks : tuple of Module
        In the order in which they run; one that runs at several depths is there as often.
    norm : Module
        The final norm.
    readout : callable
        Class token after the final norm, or what `pooling` gives, ``(batch, dim)`` -> raw outputs
        ``(batch, target)``.
    readout_tokens : int
        How many leading tokens the outputs are read from, where there is no pooling.
    pooling : Pooling or None
        How all tokens become one vector.
    class_names : tuple of str or None
        Names of the outputs, where the model has some.
    """

    kinds: ClassVar[tuple[str, ...]]

    module: Any  # of a library that declares its parts loosely, or isn't imported
    name: str
    n_prefix: int
    embed_dim: int
    blocks: tuple[nn.Module, ...]
    norm: nn.Module
    readout: Callable[[Tensor], Any]
    readout_tokens: int = 1
    pooling: Pooling | None = None
    class_names: tuple[str, ...] | None = None

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.name = type(module).__name__

    @property
    @abstractmethod
    def patches(self) -> Patches:
        """How images are cut."""

    @property
    def usual_size(self) -> tuple[int, ...] | None:
        """The size of images that the model was made for, where it says so."""
        return self.patches.image_size

    @abstractmethod
    def norms_before_attention(self, block: nn.Module) -> tuple[nn.Module, ...]:
        """Return the modules whose output a block's attention takes; none if it has no such norm.

        There are several where branches of attention run side by side.
        """

    @abstractmethod
    def forward_features(
        self, images: Float[Tensor, "batch channel *size"]
    ) -> Float[Tensor, "batch token dim"]:
        """Return all tokens after the final norm, by the library's own functions."""

    def own_outputs(self, images: Float[Tensor, "batch channel *size"]) -> Any:
        """Return the raw outputs by the module's own call, whatever it gives."""
        return self.module(images)

    def projections(self) -> Projections | None:
        """Return the linear maps of the last attention, or None where it is more than those."""
        return None

    def parts_after_attention(self) -> tuple[Part, Part, Part, Part, Part]:
        """Return of the last block: projection, its scale, norm, MLP, its scale."""
        raise NotImplementedError

    def after_attention(
        self,
        z: Float[Tensor, "batch head read head_dim"],
        residual: Float[Tensor, "batch read dim"],
    ) -> Float[Tensor, "batch read dim"]:
        """Return the tokens that leave the last block; only where `projections` gives some.

        `z` is what each head gives for the tokens that are read, `residual` the same tokens as
        they entered the block.
        """
        project, scale, norm, mlp, scale_mlp = self.parts_after_attention()
        x = residual + scale(project(z.transpose(1, 2).flatten(2)))
        return x + scale_mlp(mlp(norm(x)))
