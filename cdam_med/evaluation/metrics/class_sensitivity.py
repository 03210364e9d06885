"""Class sensitivity: how unlike the maps of different targets of one image are.

A map that is the same whatever is asked explains no class. The lower the correlation of two
targets' maps, the better they are told apart; it is 1 by design for maps that know no target,
such as an attention map. How the CDAM paper defines its figure is not known; the highest against
the lowest output is the definition of Rebuffi, Fong, Ji and Vedaldi, "There and back again:
revisiting backpropagation saliency methods", CVPR 2020. Two outputs that are alike in fact should
have like maps, so that a low figure for the highest and the second is no merit as such.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from cdam_med.evaluation.intervals import mean_intervals
from cdam_med.evaluation.metrics.correlation import pearson, unit_rows
from cdam_med.evaluation.metrics.map_pooling import as_rows
from data_prep.errors import InputError

Contrast: TypeAlias = Literal["top and bottom", "top and second"]
"""Highest and lowest, or highest and second highest raw output of each image."""


@dataclass(frozen=True, eq=False)
class TargetCorrelations:
    """Correlation between the maps of every two targets, mean over images.

    Parameters
    ----------
    targets : tuple of str or int
        Targets, in the order of rows and columns.
    mean, low, high : ndarray
        Mean and ends of its interval; NaN where no image has two maps that vary.
    images : ndarray
        How many images each mean is of.
    """

    targets: tuple[str | int, ...]
    mean: Float[np.ndarray, "target target"]
    low: Float[np.ndarray, "target target"]
    high: Float[np.ndarray, "target target"]
    images: Int64[np.ndarray, "target target"]


def contrast_columns(
    outputs: Float[Tensor, "image output"], contrast: Contrast
) -> Int64[np.ndarray, "image 2"]:
    """Return which two outputs of each image are to be explained; the highest comes first.

    Parameters
    ----------
    outputs : Tensor
        Raw outputs of each image; of equal ones the first counts as higher.
    contrast : {"top and bottom", "top and second"}
        Which two.

    Raises
    ------
    InputError
        If there is only one output.
    """
    if outputs.shape[1] < 2:
        raise InputError(
            "Class sensitivity compares two outputs, and the model has one: give pairs of "
            "targets of a model with more."
        )
    order = np.argsort(-as_rows(outputs), axis=1, kind="stable")
    return order[:, [0, -1 if contrast == "top and bottom" else 1]]


def pair_correlation(
    maps: Float[Tensor, "image rows columns"],
    others: Float[Tensor, "other_image other_rows other_columns"],
) -> Float[np.ndarray, " image"]:
    """Return Pearson's correlation between the maps of two targets of each image.

    Parameters
    ----------
    maps, others : Tensor
        Maps of two targets, by one estimator.

    Returns
    -------
    ndarray
        NaN where either map is constant or holds a value that isn't finite.

    Raises
    ------
    InputError
        If the maps aren't of the same form.
    """
    if maps.shape != others.shape:
        raise InputError(
            f"Maps of two targets must be of the same form, not {tuple(maps.shape)} and "
            f"{tuple(others.shape)}: take both from one estimator and the same images."
        )
    return pearson(as_rows(maps), as_rows(others))


def correlations_of_targets(
    scores: Float[Tensor, "image target rows columns"],
) -> Float[np.ndarray, "image target target"]:
    """Return Pearson's correlation between the maps of every two targets of each image.

    Parameters
    ----------
    scores : Tensor
        Maps of each image for each target, as in `Attribution.scores`.

    Returns
    -------
    ndarray
        NaN where either map is constant or holds a value that isn't finite.
    """
    found = np.empty((len(scores), scores.shape[1], scores.shape[1]))
    for index, maps in enumerate(scores):  # one by one: pixel maps of all are large in float64
        rows = unit_rows(as_rows(maps))
        found[index] = np.clip(rows @ rows.T, -1, 1)
    return found


def target_matrix(
    correlations: Float[np.ndarray, "image target target"],
    targets: Sequence[str | int],
    groups: Sequence[str],
    *,
    seed: int = 0,
) -> TargetCorrelations:
    """Return the mean over images of the correlations of every two targets, with intervals.

    Parameters
    ----------
    correlations : ndarray
        Of each image, from `correlations_of_targets`; NaN where there is none.
    targets : sequence of str or int
        Labels of the targets.
    groups : sequence of str
        Group of each image, for the interval.
    seed : int
        Of the bootstrap.
    """
    shape = (len(targets), len(targets))
    found = mean_intervals(correlations.reshape(len(correlations), -1), groups, seed=seed)
    mean, low, high = (
        np.array([getattr(interval, end) for interval in found]).reshape(shape)
        for end in ("value", "low", "high")
    )
    images = np.array([interval.images for interval in found], dtype=np.int64).reshape(shape)
    return TargetCorrelations(tuple(targets), mean, low, high, images)
