"""What an attribution needs of a vision transformer, whatever library it is from."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.attribution.pooling import Pooling


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
        """Return how many patches there are along each axis.

        Parameters
        ----------
        size : sequence of int
            Sides of the image.
        """
        if self.is_padded:
            return tuple(-(-side // length) for side, length in zip(size, self.sides, strict=True))
        return tuple(side // length for side, length in zip(size, self.sides, strict=True))

    def fits(self, size: Sequence[int]) -> bool:
        """Say whether the model takes images of that size.

        Parameters
        ----------
        size : sequence of int
            Sides of the image.
        """
        if self.image_size is not None:
            return tuple(size) == self.image_size
        whole = all(side % length == 0 for side, length in zip(size, self.sides, strict=True))
        return self.is_padded or (whole and self.count in (None, math.prod(self.grid(size))))

    @property
    def expected(self) -> str:
        """Which sizes are taken, as part of a sentence."""
        if self.image_size is not None:
            return f"of {' x '.join(map(str, self.image_size))} pixels"
        if self.is_padded:
            return "of any size"
        patches = f"whole patches of {' x '.join(map(str, self.sides))} pixels"
        return f"of {self.count} {patches}" if self.count is not None else f"of {patches}"


@dataclass(frozen=True, eq=False)
class Projections:
    """The linear maps of an attention: all that its closed form needs.

    Parameters
    ----------
    W_q, W_k, W_v : Tensor
        Weights of queries, keys and values, by head.
    b_q, b_v : Tensor
        Biases of queries and values. That of keys shifts all logits alike, which softmax ignores.
    """

    W_q: Float[Tensor, "head head_dim dim"]
    W_k: Float[Tensor, "head head_dim dim"]
    W_v: Float[Tensor, "head head_dim dim"]
    b_q: Float[Tensor, "head 1 head_dim"]
    b_v: Float[Tensor, "head 1 head_dim"]


def is_named(thing: object, *names: str) -> bool:
    """Say whether an object is of a class of such a name, or of a child of it.

    Importing the libraries of models takes seconds. An object can only be of a class of theirs if
    somebody has imported them already.

    Parameters
    ----------
    thing : object
        Any object.
    *names : str
        Module and name of each class.
    """
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(thing).__mro__}
    return not kinds.isdisjoint(names)


def outputs_in(found: Any) -> Any:
    """Return the raw outputs within what a model returns, where it is one of transformers' objects.

    Parameters
    ----------
    found : object
        What a call returned: the outputs themselves, or an object with logits, or of a model
        without a head with a pooled feature.
    """
    for name in ("logits", "pooler_output"):
        if (outputs := getattr(found, name, None)) is not None:
            return outputs
    return found


class VitAdapter(ABC):
    """A vision transformer of one family, seen as attributions see all of them.

    Parameters
    ----------
    module : Module
        The library's own model, not changed.

    Attributes
    ----------
    n_prefix : int
        Tokens before those of the patches: the class token, registers.
    embed_dim : int
        Numbers in a token.
    patches : Patches
        How images are cut.
    blocks : tuple of Module
        In the order in which they run; one that runs at several depths is there as often.
    norm : Module
        The final norm.
    readout : callable or None
        Class token after the final norm, or what `pooling` gives, ``(batch, dim)`` -> raw outputs
        ``(batch, target)``.
    readout_tokens : int
        How many leading tokens the outputs are read from, where there is no pooling.
    pooling : Pooling or None
        How all tokens become one vector.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @classmethod
    @abstractmethod
    def takes(cls, module: nn.Module) -> bool:
        """Say whether a module is of this family.

        Parameters
        ----------
        module : Module
            Any module; its library may not be installed.
        """

    @property
    def name(self) -> str:
        """How messages call the model."""
        return type(self.module).__name__

    @property
    @abstractmethod
    def n_prefix(self) -> int:
        """See `VitAdapter`."""

    @property
    @abstractmethod
    def embed_dim(self) -> int:
        """See `VitAdapter`."""

    @property
    @abstractmethod
    def patches(self) -> Patches:
        """See `VitAdapter`."""

    @property
    @abstractmethod
    def blocks(self) -> tuple[nn.Module, ...]:
        """See `VitAdapter`."""

    @property
    @abstractmethod
    def norm(self) -> nn.Module:
        """See `VitAdapter`."""

    @property
    @abstractmethod
    def readout(self) -> Callable[[Tensor], Any] | None:
        """See `VitAdapter`."""

    @property
    def usual_size(self) -> tuple[int, ...] | None:
        """The size of images that the model was made for, where it says so."""
        return self.patches.image_size

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes that its outputs are, where it has some."""
        return None

    @property
    def readout_tokens(self) -> int:
        """See `VitAdapter`."""
        return 1

    @property
    def pooling(self) -> Pooling | None:
        """See `VitAdapter`."""
        return None

    @abstractmethod
    def norms_before_attention(self, block: nn.Module) -> tuple[nn.Module, ...]:
        """Return the modules whose output is what the block's attention takes.

        Parameters
        ----------
        block : Module
            One of `blocks`.

        Returns
        -------
        tuple of Module
            Several where branches of attention run side by side; none where the block has no norm
            before its attention.
        """

    @abstractmethod
    def forward_features(
        self, images: Float[Tensor, "batch channel *size"]
    ) -> Float[Tensor, "batch token dim"]:
        """Return all tokens after the final norm, by the library's own functions.

        Parameters
        ----------
        images : Tensor
            Images as the module takes them.
        """

    def own_outputs(self, images: Float[Tensor, "batch channel *size"]) -> Any:
        """Return the raw outputs by the module's own call, whatever it gives.

        Parameters
        ----------
        images : Tensor
            Images as the module takes them.
        """
        return self.module(images)

    def projections(self) -> Projections | None:
        """Return the linear maps of the last attention, or None where it is more than those."""
        return None

    def after_attention(
        self,
        z: Float[Tensor, "batch head read head_dim"],
        residual: Float[Tensor, "batch read dim"],
    ) -> Float[Tensor, "batch read dim"]:
        """Return the tokens that leave the last block; only where `projections` gives some.

        Parameters
        ----------
        z : Tensor
            What each head gives for the tokens that are read.
        residual : Tensor
            The same tokens as they entered the block.
        """
        raise NotImplementedError(f"{type(self).__name__} has projections without what follows.")
