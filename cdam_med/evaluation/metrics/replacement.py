"""What takes the place of pixels that are taken away from an image.

Every choice leaves the model something to see: a constant draws edges, a blur keeps what is
larger than its width. So faithfulness is to be shown for more than one.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from cdam_med.errors import MethodError


@runtime_checkable
class Replacement(Protocol):
    """Makes the image whose pixels take the place of those that are taken away.

    Attributes
    ----------
    name : str
        Name in tables.
    """

    name: ClassVar[str]

    def __call__(
        self, images: Float[Tensor, "image channel height width"]
    ) -> Float[Tensor, "image channel height width"]:
        """Return a substitute of the same form.

        Parameters
        ----------
        images : Tensor
            As the ViT takes them.
        """


@dataclass(frozen=True)
class Blur:
    """The image under a Gaussian filter, its edge repeated beyond it.

    Parameters
    ----------
    radius : float
        Standard deviation in pixels of the image as the ViT takes it. PIL, which the published
        function uses with 14, calls it radius too, and puts three box filters in the place of
        the Gaussian, each of which repeats the edge anew: the same inside to within three grey
        levels, but not close to an edge. Choose it in proportion for other sizes than 224.

    Raises
    ------
    MethodError
        If the radius isn't above 0.
    """

    radius: float = 14.0

    name: ClassVar[str] = "blur"

    def __post_init__(self) -> None:
        """Refuse a radius that blurs nothing."""
        if not 0 < self.radius < math.inf:
            raise MethodError(
                f"radius of blur must be above 0, not {self.radius}: 14 is usual for 224 pixels."
            )

    def __call__(
        self, images: Float[Tensor, "image channel height width"]
    ) -> Float[Tensor, "image channel height width"]:
        """Return the blurred images; see `Replacement`."""
        height, width = images.shape[-2:]
        return self._matrix(height, images) @ images @ self._matrix(width, images).T

    def _matrix(self, count: int, like: Tensor) -> Float[Tensor, "count count"]:
        """Return what each pixel along an axis takes of each, so that edges cost nothing extra."""
        reach = int(4 * self.radius + 0.5)
        offsets = torch.arange(-reach, reach + 1)
        weights = torch.exp(-0.5 * (offsets.double() / self.radius) ** 2)
        sources = (torch.arange(count)[:, None] + offsets).clamp(0, count - 1)
        matrix = torch.zeros(count, count, dtype=torch.float64)
        matrix.scatter_add_(1, sources, (weights / weights.sum()).repeat(count, 1))
        return matrix.to(like)


@dataclass(frozen=True)
class Constant:
    """One value everywhere.

    Parameters
    ----------
    value : float or tuple of float
        In the image as the ViT takes it, for all channels or for each. The published function
        puts black, 0 before normalisation, which is ``-mean / std`` of each channel.
    """

    value: float | tuple[float, ...] = 0.0

    name: ClassVar[str] = "constant"

    def __call__(
        self, images: Float[Tensor, "image channel height width"]
    ) -> Float[Tensor, "image channel height width"]:
        """Return constant images; see `Replacement`."""
        values = images.new_tensor(self.value).reshape(-1, 1, 1)
        if len(values) not in (1, images.shape[1]):
            raise MethodError(
                f"value of constant must be one number or one for each of {images.shape[1]} "
                f"channels, not {len(values)}: the images have that many as the ViT takes them."
            )
        return values.expand_as(images)


@dataclass(frozen=True)
class MeanColour:
    """The mean of each channel of the image itself."""

    name: ClassVar[str] = "mean"

    def __call__(
        self, images: Float[Tensor, "image channel height width"]
    ) -> Float[Tensor, "image channel height width"]:
        """Return images of one colour; see `Replacement`."""
        return images.mean((-2, -1), keepdim=True).expand_as(images)


PUBLISHED_BLUR = Blur()
"""What the published function replaces pixels by unless told otherwise."""
