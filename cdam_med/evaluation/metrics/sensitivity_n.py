"""Correctness by subsets: does the importance of n patches say how far the output falls.

Ancona, Ceolini, Oztireli and Gross, "Towards better understanding of gradient-based attribution
methods for deep neural networks", ICLR 2018, section 5: random subsets of ``n`` features are taken
away, and Pearson's correlation of the sum of their scores and the fall of the output is taken over
the subsets of one image. Features are patches here, since that is what a ViT sees; pixel maps are
pooled to patches.

The subsets, and what the model says without them, don't depend on a map. They are made once, and
every estimator is compared with the same.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdam_med.attribution.methods.settings import check_count
from cdam_med.evaluation.metrics.drops import Drops, check_several
from cdam_med.evaluation.metrics.map_pooling import as_rows
from cdam_med.evaluation.metrics.perturbation import Perturbable
from cdam_med.evaluation.metrics.replacement import PUBLISHED_BLUR, Replacement
from data_prep.errors import InputError


@dataclass(frozen=True, eq=False)
class SubsetDrops(Drops):
    """How far the explained output falls without each of some subsets of the patches.

    Parameters
    ----------
    subsets : ndarray
        Patches of each subset, row by row of the grid.
    drops, grid, replacement
        As of `Drops`.
    """

    subsets: Bool[np.ndarray, "image subset patch"]

    def importance(
        self, maps: Float[Tensor, "image rows columns"]
    ) -> Float[np.ndarray, "image subset"]:
        """Return the sum of the scores of each subset, at patches.

        Parameters
        ----------
        maps : Tensor
            Map of the explained target of each image; pixel maps are pooled.

        Raises
        ------
        InputError
            If there isn't one map for each image, or they fit neither patches nor pixels.
        """
        self.grid.check(maps, len(self.drops))
        scores = as_rows(self.grid.pooled(maps))
        sums: np.ndarray = (self.subsets @ scores[:, :, None])[..., 0]
        return sums


def subset_drops(
    perturbable: Perturbable,
    *,
    n: int,
    subsets: int = 100,
    replacement: Replacement = PUBLISHED_BLUR,
    seed: int = 0,
) -> SubsetDrops:
    """Take subsets of the patches away, one at a time.

    Parameters
    ----------
    perturbable : Perturbable
        The opened model and the images; see `cdam_med.evaluation.metrics.perturbation.perturbing`.
    n : int
        Patches in a subset, fewer than there are.
    subsets : int
        Subsets for each image, each drawn without replacement.
    replacement : Replacement
        What takes the place of patches.
    seed : int
        Of the subsets. They depend on the image too.

    Raises
    ------
    MethodError
        If a number is below 1, or there is one subset, which has no correlation.
    InputError
        If `n` isn't below the number of patches.
    """
    check_count("subset_drops", "n", n)
    check_several("subset_drops", "subsets", subsets)
    patches = perturbable.grid.size[0] * perturbable.grid.size[1]
    if n >= patches:
        raise InputError(
            f"n must be below the number of patches, {patches}, not {n}: a subset of all of them "
            "is the same each time."
        )
    cells = perturbable.grid.cells("patch")
    substitutes = replacement(perturbable.images)
    chosen = np.empty((len(perturbable), subsets, patches), dtype=bool)
    drops = np.empty((len(perturbable), subsets))
    for index in range(len(perturbable)):
        random = perturbable.generator(index, seed)
        order = random.permuted(np.tile(np.arange(patches), (subsets, 1)), axis=1)
        chosen[index] = order < n
        hidden = torch.from_numpy(chosen[index])[:, cells]
        none = torch.zeros_like(hidden[:1])
        outputs = perturbable.outputs(index, torch.cat((none, hidden)), substitutes)
        drops[index] = outputs[0] - outputs[1:]
    return SubsetDrops(drops, perturbable.grid, replacement.name, chosen)
