"""Localisation: how well a map lies on the object that the readers outlined.

All metrics take one map an image and how much of each of its cells lies in the object: cells are
pixels (0 or 1) or patches (a share). The same map at the two resolutions has the same share of
positive relevance and, for maps made on patches, the same pointing game; AUROC and Dice need a yes
or no for each cell, which `object_cells` gives. Where the object is empty there is no value (NaN).
A nodule in the middle of its crop proves little: a prior on the centre finds it too.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdam_med.attribution.method import Resolution
from cdam_med.evaluation.examples import Examples
from cdam_med.evaluation.experiment import Experiment, Explanations, Groups, MetricValues
from cdam_med.evaluation.maps import Maps, Values, as_rows, divided, ranks
from data_prep.errors import InputError

HALF = 0.5
"""Share of a patch from which it counts as part of the object."""

Cells: TypeAlias = Bool[Tensor, "image rows columns"]
Figure: TypeAlias = Callable[[Maps, Maps], Values]
"""Scores and the share of each cell in the object -> one value an image."""


def object_cells(coverage: Maps) -> Cells:
    """Tell which cells are part of the object.

    Those that it covers by half or more; of an object that covers no cell by half (a nodule of
    5 mm on patches of 4 mm), those that it covers most.
    """
    most = coverage.amax((1, 2), keepdim=True)
    return (coverage >= torch.clamp(most, max=HALF)) & (most > 0)


def pointing_game(maps: Maps, coverage: Maps) -> Values:
    """Return whether the highest score lies in the object; cells that tie share the point.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop", IJCV 2018, without their
    tolerance of 15 pixels.
    """
    scores, share = as_rows(maps), as_rows(coverage)
    highest = scores == scores.max(axis=1, keepdims=True)
    usable = _is_there(share) & highest.any(axis=1)  # NaN is equal to nothing
    hit = (share * highest).sum(axis=1)
    return divided(hit, highest.sum(axis=1), where=usable)


def positive_share(maps: Maps, coverage: Maps) -> Values:
    """Return the share of the positive relevance that lies in the object.

    A map that is the same everywhere has the object's share of the image. NaN also where a map
    has no positive score.
    """
    positive, share = np.maximum(as_rows(maps), 0), as_rows(coverage)
    total = positive.sum(axis=1)
    inside = (positive * share).sum(axis=1)
    return divided(inside, total, where=_is_there(share) & (total > 0))


def auroc(maps: Maps, coverage: Maps) -> Values:
    """Return how often a cell of the object scores higher than one beside it, ties counting half.

    NaN where there is no cell of the object, or no other.
    """
    scores, inside = _scores_and_cells(maps, coverage)
    n_inside, n_outside = inside.sum(axis=1), (~inside).sum(axis=1)
    of_inside = np.where(inside, ranks(scores), 0.0).sum(axis=1)
    right_pairs = of_inside - n_inside * (n_inside + 1) / 2
    pairs = n_inside * n_outside
    return divided(right_pairs, pairs, where=pairs > 0)


def best_dice(maps: Maps, coverage: Maps) -> Values:
    """Return the Dice overlap of the object with the cells above a threshold, the best of all.

    Equal scores are above or below a threshold together.
    """
    scores, inside = _scores_and_cells(maps, coverage)
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.cumsum(np.take_along_axis(inside, order, axis=1), axis=1)
    taken = np.arange(1, scores.shape[1] + 1)
    overlaps = 2 * hits / (taken + inside.sum(axis=1, keepdims=True))
    # a threshold lies only where the next score is lower
    ordered = np.take_along_axis(scores, order, axis=1)
    ends = np.diff(ordered, axis=1, append=np.nan) != 0
    best = np.where(ends, overlaps, 0.0).max(axis=1)
    return np.where(inside.any(axis=1), best, np.nan)


def _is_there(share: Float[np.ndarray, "image cell"]) -> Bool[np.ndarray, " image"]:
    return np.asarray(share.max(axis=1) > 0)


def _scores_and_cells(
    maps: Maps, coverage: Maps
) -> tuple[Float[np.ndarray, "image cell"], Bool[np.ndarray, "image cell"]]:
    """Return rows of scores and of cells of the object, none where a score isn't finite."""
    scores = as_rows(maps)
    cells = object_cells(coverage).cpu().flatten(1).numpy()
    return scores, cells & np.isfinite(scores)


def _of_sizes(maps: Maps, coverage: Maps, figure: Figure) -> Values:
    return figure(maps.abs(), coverage)


def _masks(experiment: Experiment, examples: Examples) -> Float[Tensor, "image height width"]:
    if examples.masks is None:
        raise InputError("The examples have no masks: nobody has said where the object is.")
    found, taken = tuple(examples.masks.shape[1:]), experiment.grid.image_size
    if found != taken:
        raise InputError(
            f"Masks of {found} pixels don't lie on images that the ViT takes as {taken}: give "
            "images of that size."
        )
    return examples.masks.float()


def _on_object(explanations: Explanations, figure: Figure) -> Iterator[MetricValues]:
    experiment = explanations.experiment
    yield from _localised(experiment, explanations.maps, experiment.examples, figure)


def shifted_maps(explanations: Explanations) -> Maps:
    """Return a method's maps of the shifted examples."""
    shifted = explanations.experiment.shifted
    if shifted is None:
        raise InputError(
            "No object was moved out of the centre: that takes image around it, such as a "
            "cohort with cubes larger than what the model sees."
        )
    targets = explanations.experiment.targets_of(shifted)
    return explanations.of_other_images(shifted.images, targets)


def _on_shifted_object(explanations: Explanations, figure: Figure) -> Iterator[MetricValues]:
    experiment, maps = explanations.experiment, explanations.once(shifted_maps)
    if experiment.shifted is not None:
        for found in _localised(experiment, maps, experiment.shifted, figure):
            yield found._replace(variant="shifted")


def _localised(
    experiment: Experiment, maps: Maps, examples: Examples, figure: Figure
) -> Iterator[MetricValues]:
    """Yield values at the patch grid and at the pixels, where every map can be brought."""
    outlines, grid = _masks(experiment, examples), experiment.grid
    at: dict[Resolution, tuple[Tensor, Tensor]] = {
        "patch": (grid.pooled(maps), grid.pooled(outlines)),
        "pixel": (grid.spread(maps), outlines),
    }
    for resolution, (scores, coverage) in at.items():
        yield MetricValues(figure(scores, coverage), resolution, examples)


_FIGURES: Mapping[str, Figure] = {
    "pointing_game": pointing_game,
    "positive_share": positive_share,
    "auroc": auroc,
    "best_dice": best_dice,
    "relevance_share": partial(_of_sizes, figure=positive_share),
    "auroc_of_sizes": partial(_of_sizes, figure=auroc),
}
GROUPS: Groups = {
    group: {name: partial(compute, figure=figure) for name, figure in _FIGURES.items()}
    for group, compute in (
        ("localisation", _on_object),
        ("localisation_shifted", _on_shifted_object),
    )
}
