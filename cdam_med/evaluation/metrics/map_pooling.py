"""Maps at two resolutions: which one a map has, pixels pooled to patches, patches spread to pixels.

A pixel map ranks and compares other things than a patch map does, so that the two must never be
compared unawares: figures are made at a map's own resolution, and again at the patch grid.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from cdam_med.attribution.class_token import ClassTokenModel, class_token_model
from cdam_med.attribution.estimator import Resolution
from cdam_med.errors import ModelError
from data_prep.errors import InputError


@dataclass(frozen=True)
class PatchGrid:
    """Where the patches of a ViT lie in the image that it takes.

    Parameters
    ----------
    image_size : tuple of int
        Rows and columns of pixels, as the ViT takes the image.
    patch_size : tuple of int
        Rows and columns of pixels of a patch. The last patches may reach over the image's edge,
        where the ViT pads.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, columns = (
            -(-pixels // side)
            for pixels, side in zip(self.image_size, self.patch_size, strict=True)
        )
        return rows, columns

    def resolution(self, maps: Float[Tensor, "*map rows columns"]) -> Resolution:
        """Return whether maps have one score a patch or one a pixel.

        Parameters
        ----------
        maps : Tensor
            Maps of the same image size.

        Raises
        ------
        InputError
            If they have neither.
        """
        found = tuple(maps.shape[-2:])
        if found == self.size:
            return "patch"
        if found == self.image_size:
            return "pixel"
        raise InputError(
            "Maps must have a score for each patch ({} x {}) or each pixel ({} x {}), not {} x {}: "
            "give those that an estimator made of the same images.".format(
                *self.size, *self.image_size, *found
            )
        )

    def check(self, maps: Float[Tensor, "image rows columns"], images: int) -> Resolution:
        """Return the resolution of maps, one for each of so many images.

        Parameters
        ----------
        maps : Tensor
            One map for each image.
        images : int
            Number of images.

        Raises
        ------
        InputError
            If there is another number of them, or they fit neither patches nor pixels.
        """
        if len(maps) != images:
            raise InputError(
                f"There must be one map for each of {images} images, not {len(maps)}: choose the "
                "map of the explained target."
            )
        return self.resolution(maps)

    def cells(self, resolution: Resolution) -> Int64[Tensor, "height width"]:
        """Return which score of a flattened map each pixel of the image belongs to.

        Parameters
        ----------
        resolution : {"patch", "pixel"}
            Resolution of the map.
        """
        height, width = self.image_size
        down, across = self.patch_size if resolution == "patch" else (1, 1)
        columns = self.size[1] if resolution == "patch" else width
        return (torch.arange(height) // down)[:, None] * columns + torch.arange(width) // across

    def pooled(
        self, maps: Float[Tensor, "*map rows columns"]
    ) -> Float[Tensor, "*map patch_rows patch_columns"]:
        """Return maps at the patch grid: the mean of each patch's pixels that are in the image.

        Parameters
        ----------
        maps : Tensor
            Pixel maps; patch maps are returned as they are.

        Raises
        ------
        InputError
            If the maps are of neither resolution.
        """
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
        """Return maps at the pixels: each patch's score at each of its pixels.

        Parameters
        ----------
        maps : Tensor
            Patch maps; pixel maps are returned as they are.

        Raises
        ------
        InputError
            If the maps are of neither resolution.
        """
        if self.resolution(maps) == "pixel":
            return maps
        return maps.flatten(-2)[..., self.cells("patch").to(maps.device)]


def patch_grid(model: object, images: Tensor) -> PatchGrid:
    """Return where a model's patches lie.

    Parameters
    ----------
    model : VisionTransformer or object with `class_token_model`
        What `cdam_med.attribution.class_token.class_token_model` takes.
    images : Tensor
        ``(batch, channel, height, width)`` as the model takes them.

    Raises
    ------
    ModelError
        If the model can't be described, or takes volumes.
    InputError
        If the images aren't what the model takes.
    """
    described = class_token_model(model)
    return patch_grid_of_prepared(described, described.check_images(images))


def patch_grid_of_prepared(
    model: ClassTokenModel, prepared: Float[Tensor, "batch channel *size"]
) -> PatchGrid:
    """Return where a model's patches lie in images as the ViT takes them.

    Parameters
    ----------
    model : ClassTokenModel
        The model.
    prepared : Tensor
        Images as `ClassTokenModel.check_images` gives them.

    Raises
    ------
    ModelError
        If the patches are 3-D, though they may span the depth.
    """
    sides = model.adapter.patches.sides
    if len(sides) != 2:
        raise ModelError(
            f"{model.name} takes volumes, and maps are evaluated on images of rows "
            "and columns: use a model that takes slices in the place of channels."
        )
    down, across = sides
    height, width = prepared.shape[-2:]
    return PatchGrid(image_size=(height, width), patch_size=(int(down), int(across)))


def as_rows(maps: Float[Tensor, "image *cells"]) -> Float[np.ndarray, "image cell"]:
    """Return one row of scores for each image, in float64.

    Parameters
    ----------
    maps : Tensor
        Maps of any resolution.

    Returns
    -------
    ndarray
        NaN throughout the rows of maps that hold a value that isn't finite: one bad score makes
        a map unfit, and infinite ones can't be summed.
    """
    rows = maps.detach().cpu().double().flatten(1).numpy()
    return np.where(np.isfinite(rows).all(1, keepdims=True), rows, np.nan)
