"""What boxes and subsets share: importance of parts held against the fall of the output."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cdam_med.errors import MethodError
from cdam_med.evaluation.metrics.correlation import pearson
from cdam_med.evaluation.metrics.map_pooling import PatchGrid


@dataclass(frozen=True, eq=False)
class Drops(ABC):
    """How far the explained output falls without each of some parts of an image.

    Parameters
    ----------
    drops : ndarray
        Raw output of the whole image minus that without the part.
    grid : PatchGrid
        Where the patches lie.
    replacement : str
        Name of what took the place of parts.
    """

    drops: Float[np.ndarray, "image part"]
    grid: PatchGrid
    replacement: str

    @abstractmethod
    def importance(
        self, maps: Float[Tensor, "image rows columns"]
    ) -> Float[np.ndarray, "image part"]:
        """Return the sum of the scores of each part.

        Parameters
        ----------
        maps : Tensor
            Map of the explained target of each image.

        Raises
        ------
        InputError
            If there isn't one map for each image, or they fit neither patches nor pixels.
        """

    def correlation(self, maps: Float[Tensor, "image rows columns"]) -> Float[np.ndarray, " image"]:
        """Return Pearson's correlation of importance and drop over the parts of each image.

        Parameters
        ----------
        maps : Tensor
            Map of the explained target of each image.

        Returns
        -------
        ndarray
            NaN where the importance or the drop is the same for all parts, or the map holds a
            value that isn't finite.

        Raises
        ------
        InputError
            If there isn't one map for each image, or they fit neither patches nor pixels.
        """
        return pearson(self.importance(maps), self.drops)


def check_several(function: str, setting: str, count: int) -> None:
    """Refuse fewer than two parts.

    Parameters
    ----------
    function, setting : str
        Names for the message.
    count : int
        How many parts of an image are asked for.

    Raises
    ------
    MethodError
        If there are fewer than two.
    """
    if count < 2:
        raise MethodError(
            f"{setting} of {function} must be at least 2, not {count}: a correlation needs several."
        )
