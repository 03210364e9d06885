"""Correctness by boxes: does the importance inside a box say how far the output falls without it.

After Ancona, Ceolini, Oztireli and Gross, "Towards better understanding of gradient-based
attribution methods for deep neural networks", ICLR 2018 (Sensitivity-n), with boxes in the place
of scattered pixels, as in the public code of the CDAM authors: 100 boxes at random places in the
image, blur of radius 14. A score is Pearson's correlation over the boxes of one image.

The boxes, and what the model says without them, don't depend on a map. They are made once, and
every estimator is compared with the same.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cdam_med.attribution.methods.settings import check_count
from cdam_med.evaluation.metrics.drops import Drops, check_several
from cdam_med.evaluation.metrics.map_pooling import as_rows
from cdam_med.evaluation.metrics.perturbation import Perturbable
from cdam_med.evaluation.metrics.replacement import PUBLISHED_BLUR, Replacement
from data_prep.errors import InputError


@dataclass(frozen=True, eq=False)
class BoxDrops(Drops):
    """How far the explained output falls without each of some boxes.

    Parameters
    ----------
    corners : ndarray
        First row and first column of pixels of each box.
    side : int
        Pixels along a side.
    drops, grid, replacement
        As of `Drops`.
    """

    corners: Int64[np.ndarray, "image box 2"]
    side: int

    def importance(
        self, maps: Float[Tensor, "image rows columns"]
    ) -> Float[np.ndarray, "image box"]:
        """Return the sum of scores inside each box, at pixels.

        Parameters
        ----------
        maps : Tensor
            Map of the explained target of each image. Pixels of a patch have the patch's score.

        Raises
        ------
        InputError
            If there isn't one map for each image, or they fit neither patches nor pixels.
        """
        self.grid.check(maps, len(self.drops))
        scores = as_rows(self.grid.spread(maps)).reshape(-1, *self.grid.image_size)
        sums = np.pad(scores.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
        image = np.arange(len(scores))[:, None]
        top, left = self.corners[..., 0], self.corners[..., 1]
        bottom, right = top + self.side, left + self.side
        inside: np.ndarray = (
            sums[image, bottom, right]
            - sums[image, top, right]
            - sums[image, bottom, left]
            + sums[image, top, left]
        )
        return inside


def box_drops(
    perturbable: Perturbable,
    *,
    side: int,
    boxes: int = 100,
    replacement: Replacement = PUBLISHED_BLUR,
    seed: int = 0,
) -> BoxDrops:
    """Take boxes away, one at a time.

    Parameters
    ----------
    perturbable : Perturbable
        The opened model and the images; see `cdam_med.evaluation.metrics.perturbation.perturbing`.
    side : int
        Pixels along a side of a box, in the image as the ViT takes it.
    boxes : int
        Boxes for each image; each place within the image is as likely as any other.
    replacement : Replacement
        What takes the place of a box.
    seed : int
        Of the places. They depend on the image too.

    Raises
    ------
    MethodError
        If a number is below 1, or there is one box, which has no correlation.
    InputError
        If a box is larger than the image.
    """
    check_count("box_drops", "side", side)
    check_several("box_drops", "boxes", boxes)
    height, width = perturbable.grid.image_size
    if side > min(height, width):
        raise InputError(
            f"A box of {side} pixels doesn't fit into images of {height} x {width}: choose a "
            "smaller side."
        )
    substitutes = replacement(perturbable.images)
    corners = np.empty((len(perturbable), boxes, 2), dtype=np.int64)
    drops = np.empty((len(perturbable), boxes))
    for index in range(len(perturbable)):
        random = perturbable.generator(index, seed)
        corners[index] = random.integers((height - side + 1, width - side + 1), size=(boxes, 2))
        top, left = torch.from_numpy(corners[index]).T[:, :, None]
        row, column = torch.arange(height), torch.arange(width)
        inside = ((row >= top) & (row < top + side))[:, :, None]
        inside = inside & ((column >= left) & (column < left + side))[:, None]
        none = torch.zeros(1, height, width, dtype=torch.bool)
        outputs = perturbable.outputs(index, torch.cat((none, inside)), substitutes)
        drops[index] = outputs[0] - outputs[1:]
    return BoxDrops(drops, perturbable.grid, replacement.name, corners, side)
