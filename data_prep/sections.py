"""What was drawn on images -> a mask on a volume's grid, also where a repair made slices up."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64
from scipy import ndimage

from data_prep.nodules import MaskBox, trimmed_box
from data_prep.volume import CTVolume

_ROUNDING = 1e-6
"""Share of a slice spacing that is float rounding."""


class Section(NamedTuple):
    """What was drawn on one plane, one of `drawable_places`.

    `inside` is boolean (i, j), nothing true where the drawing says that nothing is there;
    `origin_ij` is the index of its first pixel on the volume's grid.
    """

    k: float
    origin_ij: tuple[int, int]
    inside: np.ndarray


def image_places(volume: CTVolume) -> Float64[np.ndarray, "image 3"]:
    """Return where the first pixel of each image lies on a volume's grid, (i, j, k), by k."""
    if volume.images:
        return np.array([image.first_ijk for image in volume.images], np.float64)
    k = np.setdiff1d(np.arange(volume.shape[2]), volume.interpolated_slices)
    return np.pad(k[:, np.newaxis].astype(np.float64), ((0, 0), (2, 0)))


def drawable_places(volume: CTVolume) -> Float64[np.ndarray, "plane 3"]:
    """Return the same of all planes that may hold a drawing: the images, and slices in a gap.

    Where images are missing from a copy of the series, they were there when it was drawn on.
    """
    places = image_places(volume)
    k = np.union1d(places[:, 2], volume.interpolated_slices)
    ij = [np.interp(k, places[:, 2], places[:, axis]) for axis in (0, 1)]
    return np.column_stack([*ij, k])


def join_sections(sections: Sequence[Section], volume: CTVolume) -> MaskBox | None:
    """Return the mask that sections make on a volume's grid, or None if they are empty.

    A slice of the grid at the place of a section is that section. Between two planes it is
    interpolated by shape: the signed distance from the outline (positive inside) is interpolated
    linearly, and what is above 0 lies inside [1]_. Parts that overlap are laid above one another by
    their centres for that; one without counterpart shrinks to its innermost point, and so does
    the last section towards an image on which nothing was drawn. A plane has one section at most.

    References
    ----------
    .. [1] Raya SP, Udupa JK. Shape-based interpolation of multidimensional objects. IEEE
       Transactions on Medical Imaging 9(1):32-42, 1990.
    """
    drawn = [section for section in sections if section.inside.any()]
    if not drawn:
        return None
    low = np.min([section.origin_ij for section in drawn], axis=0)
    high = np.max([np.add(one.origin_ij, one.inside.shape) for one in drawn], axis=0)
    planes: dict[float, np.ndarray | None] = dict.fromkeys(image_places(volume)[:, 2].tolist())
    planes |= {section.k: None for section in sections}
    for section in drawn:
        plane = np.zeros(high - low, np.bool_)
        i, j = np.subtract(section.origin_ij, low)
        plane[i : i + section.inside.shape[0], j : j + section.inside.shape[1]] = section.inside
        planes[section.k] = plane
    return _fill(planes, low, volume)


def _fill(
    planes: dict[float, np.ndarray | None], low: np.ndarray, volume: CTVolume
) -> MaskBox | None:
    """Make every slice of the grid from planes, which are boxes of one size or None if empty."""
    places = sorted(planes)
    drawn = [n for n, place in enumerate(places) if planes[place] is not None]
    first = int(np.ceil(places[max(drawn[0] - 1, 0)] - _ROUNDING))
    last = int(np.floor(places[min(drawn[-1] + 1, len(places) - 1)] + _ROUNDING))
    slices: list[np.ndarray] = []
    made_up = set()
    for k in range(first, last + 1):
        above = bisect_left(places, k - _ROUNDING)
        inside = planes[places[above]]
        if places[above] > k + _ROUNDING:
            start, end = places[above - 1], places[above]
            share = (k - start) / (end - start)
            inside = _between(planes[start], inside, share, volume.spacing_mm[:2])
            made_up.add(k)
        slices.append(np.zeros_like(planes[places[drawn[0]]]) if inside is None else inside)
    box = trimmed_box(np.stack(slices, axis=-1), np.array([*low, first]), volume.shape)
    if box is None:
        return None
    filled = np.flatnonzero(box.voxels.any(axis=(0, 1))) + box.origin_ijk[2]
    interpolated = made_up & set(volume.interpolated_slices) & set(filled.tolist())
    return MaskBox(box.origin_ijk, box.voxels, volume.shape, tuple(sorted(interpolated)))


def _between(
    below: Bool[np.ndarray, "i j"] | None,
    above: Bool[np.ndarray, "i j"] | None,
    share: float,
    spacing_mm: Float64[np.ndarray, "2"],
) -> Bool[np.ndarray, "i j"] | None:
    """Interpolate two sections by shape, at a share of the way from the first to the second.

    Parts that lie above one another are taken together, others end or begin.
    """
    if below is None or above is None:
        drawn = above if below is None else below
        if drawn is None:
            return None
        nothing = np.zeros_like(drawn)
        below, above = (nothing, drawn) if below is None else (drawn, nothing)
    result = np.zeros_like(below)
    numbered, _ = ndimage.label(below | above, structure=np.ones((3, 3)))
    for number, box in enumerate(ndimage.find_objects(numbered), start=1):
        is_part = numbered[box] == number
        parts = below[box] & is_part, above[box] & is_part
        result[box] |= _between_parts(*parts, share, spacing_mm)
    return result


def _between_parts(
    below: Bool[np.ndarray, "i j"],
    above: Bool[np.ndarray, "i j"],
    share: float,
    spacing_mm: Float64[np.ndarray, "2"],
) -> Bool[np.ndarray, "i j"]:
    if not below.any():
        return _between_parts(above, below, 1 - share, spacing_mm)
    if not above.any():
        depth_mm = _depth_mm(below, spacing_mm)
        return np.asarray(depth_mm > share * depth_mm.max())
    step = np.subtract(ndimage.center_of_mass(above), ndimage.center_of_mass(below))
    margin = int(np.ceil(np.abs(step).max())) + 1
    depths_mm = [
        # a part that runs askew: both are brought to the same centre first
        ndimage.shift(_depth_mm(np.pad(part, margin), spacing_mm), way * step, order=1)
        for part, way in ((below, share), (above, share - 1))
    ]
    inside = (1 - share) * depths_mm[0] + share * depths_mm[1] > 0
    return np.asarray(inside[margin:-margin, margin:-margin])


def _depth_mm(
    inside: Bool[np.ndarray, "i j"], spacing_mm: Float64[np.ndarray, "2"]
) -> Float64[np.ndarray, "i j"]:
    """Return how far each pixel lies within a section's edge, negative outside."""
    padded = np.pad(inside, 1)
    within = ndimage.distance_transform_edt(padded, sampling=spacing_mm)
    without = ndimage.distance_transform_edt(~padded, sampling=spacing_mm)
    # the edge runs half-way between the centres of the pixels on either side
    half_mm = spacing_mm.mean() / 2
    depth_mm = np.where(padded, within - half_mm, half_mm - without)
    return np.asarray(depth_mm[1:-1, 1:-1], np.float64)
