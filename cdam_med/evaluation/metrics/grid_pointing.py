"""Grid pointing game: of four images in one, a map should light up on those of its own class.

Böhle, Fritz, Schiele, "Convolutional Dynamic Alignment Networks for Interpretable
Classifications", CVPR 2021: the place of each class is known, without anybody's outlines, so a map
that isn't class-discriminative can't do better than the share of the image. Each image is shrunk
to half its sides, so that the mosaic has the size that any model takes (no position embedding is
resampled); objects are half as large as the model is used to.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from cdam_med.evaluation.metrics.division import divided
from data_prep.errors import InputError

QUADRANTS = 4
"""Images of a mosaic, in the order top left, top right, bottom left, bottom right."""


@dataclass(frozen=True, eq=False)
class Mosaics:
    """Images that are made of four.

    Parameters
    ----------
    images : Tensor
        The mosaics, of the size of the images that they are made of.
    members : ndarray
        Which images they are made of, quadrant by quadrant.
    """

    images: Float[Tensor, "mosaic channel height width"]
    members: Int64[np.ndarray, "mosaic quadrant"]


@dataclass(frozen=True, eq=False)
class PointingTasks:
    """Maps to be made of mosaics, and where each should lie.

    Parameters
    ----------
    images : Tensor
        One mosaic for each map; the same one for each of its targets.
    targets : tuple of str or int
        Target of each map.
    right : ndarray
        Quadrants that show it.
    mosaic_ids : tuple of str
        Name of each mosaic.
    """

    images: Float[Tensor, "task channel height width"]
    targets: tuple[str | int, ...]
    right: Bool[np.ndarray, "task quadrant"]
    mosaic_ids: tuple[str, ...]


def mosaics(
    images: Float[Tensor, "image channel height width"], kinds: Sequence[Hashable], *, seed: int = 0
) -> Mosaics:
    """Put images of different kinds into mosaics; no image is in two.

    Of two kinds each mosaic has two images each; of four and more, four different ones. As many
    as there are images for, arranged at random. Images that are left over aren't used.

    Parameters
    ----------
    images : Tensor
        Images as the model takes them.
    kinds : sequence
        Kind of each image, such as its class.
    seed : int
        Of the choice and the arrangement.

    Raises
    ------
    InputError
        If there are three kinds or one, or too few images for a mosaic.
    """
    random = np.random.default_rng(seed)
    members_of: dict[Hashable, list[int]] = {}
    for index in random.permutation(len(kinds)):
        members_of.setdefault(kinds[index], []).append(int(index))
    if len(members_of) == 2:
        one, other = members_of.values()
        pairs = min(len(one), len(other)) // 2
        drawn = [[*one[2 * n : 2 * n + 2], *other[2 * n : 2 * n + 2]] for n in range(pairs)]
    else:
        drawn = _four_different(list(members_of.values()))
    if not drawn:
        counts = ", ".join(f"{kind} {len(m)}" for kind, m in list(members_of.items())[:QUADRANTS])
        raise InputError(
            f"No mosaic can be made of images of {len(members_of)} kinds ({counts}): it takes two "
            "images each of two kinds, or one each of four."
        )
    members = np.array([random.permutation(four) for four in drawn], dtype=np.int64)
    return Mosaics(_tiled(images, members), members)


def positive_share_in_quadrants(
    maps: Float[Tensor, "mosaic height width"], right: Bool[np.ndarray, "mosaic quadrant"]
) -> Float[np.ndarray, " mosaic"]:
    """Return the share of the positive relevance in the right quadrants.

    Parameters
    ----------
    maps : Tensor
        Scores of the pixels of mosaics.
    right : ndarray
        Which quadrants show what the map is for; a map that knows nothing has a quarter of its
        relevance on each.

    Returns
    -------
    ndarray
        NaN where a map has no positive score.
    """
    positive = maps.detach().cpu().double().clamp(min=0)
    quarters = [positive[:, rows, columns].sum((1, 2)) for rows, columns in _places(maps)]
    in_quadrants = torch.stack(quarters, dim=1).numpy()
    total = in_quadrants.sum(axis=1)
    found = (in_quadrants * right).sum(axis=1)
    return divided(found, total, where=total > 0)


def _places(images: Tensor) -> list[tuple[slice, slice]]:
    """Return rows and columns of the quadrants."""
    top, left = images.shape[-2] // 2, images.shape[-1] // 2
    return [
        (rows, columns)
        for rows in (slice(None, top), slice(top, None))
        for columns in (slice(None, left), slice(left, None))
    ]


def _four_different(members: list[list[int]]) -> list[list[int]]:
    """Draw one image each from the four kinds that have most left, until there aren't four."""
    left = [list(images) for images in members]
    drawn = []
    while len(fullest := [images for images in left if images]) >= QUADRANTS:
        fullest.sort(key=len, reverse=True)
        drawn.append([images.pop() for images in fullest[:QUADRANTS]])
    return drawn


def _tiled(
    images: Float[Tensor, "image channel height width"], members: Int64[np.ndarray, "mosaic 4"]
) -> Float[Tensor, "mosaic channel height width"]:
    made = images.new_empty((len(members), *images.shape[1:]))
    for quadrant, (rows, columns) in enumerate(_places(images)):
        quarter = made[:, :, rows, columns]
        quarter.copy_(
            functional.interpolate(
                images[members[:, quadrant]],
                size=quarter.shape[-2:],
                mode="bilinear",
                antialias=True,
            )
        )
    return made
