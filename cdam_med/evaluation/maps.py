"""Maps as arrays: at patches or pixels, as rows of scores, and the correlation of two rows.

A pixel map ranks and compares other things than a patch map does, so the two are never compared
unawares: figures are made at a map's own resolution, and again at the patch grid. Correlations are
of the scores of one image, many images at once; never over images.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional

from cdam_med.attribution.class_token import ClassTokenModel, class_token_model
from cdam_med.attribution.method import Resolution
from cdam_med.errors import ModelError
from data_prep.errors import InputError

SMALLEST_SPREAD = 1e-9
"""Numbers whose range is below this share of their largest size are taken as all the same.

Sums of equal scores differ by rounding, which would correlate with anything.
"""

Maps: TypeAlias = Float[Tensor, "image rows columns"]
Values: TypeAlias = Float[np.ndarray, " image"]


@dataclass(frozen=True)
class PatchGrid:
    """Where the patches of a ViT lie in the image that it takes, in rows and columns of pixels.

    The last patches may reach over the image's edge, where the ViT pads.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        (height, width), (down, across) = self.image_size, self.patch_size
        return -(-height // down), -(-width // across)

    def resolution(self, maps: Float[Tensor, "*map rows columns"]) -> Resolution:
        """Return whether maps have one score a patch or one a pixel."""
        found = tuple(maps.shape[-2:])
        if found not in (self.size, self.image_size):
            raise InputError(
                f"Maps must have a score for each patch {self.size} or each pixel "
                f"{self.image_size}, not {found}: give those of a method for the same images."
            )
        return "patch" if found == self.size else "pixel"

    def cells(self, resolution: Resolution) -> Int64[Tensor, "height width"]:
        """Return which score of a flattened map each pixel of the image belongs to."""
        height, width = self.image_size
        down, across = self.patch_size if resolution == "patch" else (1, 1)
        columns = self.size[1] if resolution == "patch" else width
        return (torch.arange(height) // down)[:, None] * columns + torch.arange(width) // across

    def pooled(
        self, maps: Float[Tensor, "*map rows columns"]
    ) -> Float[Tensor, "*map patch_rows patch_columns"]:
        """Return maps at the patch grid: the mean of each patch's pixels that are in the image."""
        if self.resolution(maps) == "patch":
            return maps
        flat = maps.reshape(-1, 1, *maps.shape[-2:])
        means = functional.avg_pool2d(
            flat, self.patch_size, ceil_mode=True, count_include_pad=False
        )
        return means.reshape(*maps.shape[:-2], *self.size)

    def spread(
        self, maps: Float[Tensor, "*map rows columns"]
    ) -> Float[Tensor, "*map height width"]:
        """Return maps at the pixels: each patch's score at each of its pixels."""
        if self.resolution(maps) == "pixel":
            return maps
        return maps.flatten(-2)[..., self.cells("patch").to(maps.device)]


def patch_grid(model: object, images: Float[Tensor, "batch channel *size"]) -> PatchGrid:
    """Return where a model's patches lie in images as it takes them."""
    described = class_token_model(model)
    return patch_grid_of_prepared(described, described.check_images(images))


def patch_grid_of_prepared(
    model: ClassTokenModel, prepared: Float[Tensor, "batch channel *size"]
) -> PatchGrid:
    """Return where a model's patches lie in images as its ViT takes them.

    Raises
    ------
    ModelError
        If the patches are 3-D, though they may span the depth.
    """
    sides = model.adapter.patches.sides
    if len(sides) != 2:
        raise ModelError(
            f"{model.name} takes volumes, and maps are evaluated on images of rows and columns: "
            "use a model that takes slices in the place of channels."
        )
    height, width = prepared.shape[-2:]
    return PatchGrid((height, width), (int(sides[0]), int(sides[1])))


def as_rows(maps: Float[Tensor, "image *cells"]) -> Float[np.ndarray, "image cell"]:
    """Return one row of scores for each image, in float64.

    NaN throughout where a map holds a value that isn't finite: one bad score makes a map unfit.
    """
    rows = maps.detach().cpu().double().flatten(1).numpy()
    return np.where(np.isfinite(rows).all(1, keepdims=True), rows, np.nan)


def agreement(
    maps: Maps,
    others: Float[Tensor, "other_image other_rows other_columns"],
    *,
    kind: Literal["pearson", "spearman"] = "pearson",
) -> Values:
    """Return the correlation of two maps of each image; NaN where one is constant or not finite."""
    if maps.shape != others.shape:
        raise InputError(
            f"Maps of {tuple(maps.shape)} can't be compared with maps of {tuple(others.shape)}: "
            "pool pixel maps to the patch grid, and give both of the same images."
        )
    correlation = pearson if kind == "pearson" else spearman
    return correlation(as_rows(maps), as_rows(others))


def pearson(
    one: Float[np.ndarray, "row sample"], other: Float[np.ndarray, "row sample"]
) -> Float[np.ndarray, " row"]:
    """Return Pearson's correlation of each row; NaN where one is constant or not finite."""
    found: np.ndarray = (unit_rows(one) * unit_rows(other)).sum(-1)
    return found.clip(-1, 1)


def spearman(
    one: Float[np.ndarray, "row sample"], other: Float[np.ndarray, "row sample"]
) -> Float[np.ndarray, " row"]:
    """Return Spearman's correlation of each row; tied values share their mean rank."""
    return pearson(ranks(one), ranks(other))


def ranks(values: Float[np.ndarray, "row sample"]) -> Float[np.ndarray, "row sample"]:
    """Return ranks along rows; NaN throughout rows that hold a value that isn't finite."""
    found: np.ndarray = rankdata(values, axis=-1)
    return np.where(np.isfinite(values).all(-1, keepdims=True), found, np.nan)


def unit_rows(values: Float[np.ndarray, "*row sample"]) -> Float[np.ndarray, "*row sample"]:
    """Return rows of mean 0 and length 1, in float64: the product of two is their correlation.

    NaN throughout rows that are constant or hold a value that isn't finite.
    """
    wide = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(wide).all(-1, keepdims=True)
    wide = np.where(finite, wide, 0.0)
    largest = np.abs(wide).max(-1, keepdims=True)
    varies = finite & (np.ptp(wide, axis=-1, keepdims=True) > SMALLEST_SPREAD * largest)
    # scaled first, so that the squares of very small scores don't vanish
    scaled = wide / np.where(varies, largest, 1.0)
    centred = scaled - scaled.mean(-1, keepdims=True)
    length = np.sqrt((centred**2).sum(-1, keepdims=True))
    unit: np.ndarray = np.where(varies, centred / np.where(varies, length, 1.0), np.nan)
    return unit


def divided(
    above: Shaped[np.ndarray, " image"],
    below: Shaped[np.ndarray, " image"],
    *,
    where: Bool[np.ndarray, " image"],
) -> Values:
    """Return the quotients where they are asked for, and NaN elsewhere."""
    quotients: np.ndarray = np.full(len(above), np.nan)
    np.divide(above, below, out=quotients, where=where)
    return quotients
