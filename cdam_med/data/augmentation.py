"""Slices varied at random for training: turned, mirrored, shifted, smoothed, brightened."""

import numpy as np
import torch
from jaxtyping import Float
from monai.networks.layers import AffineTransform
from monai.transforms import GaussianSmooth
from torch import Tensor

from cdam_med.data.transforms import InputSpec, slices_to_images

AUGMENTATION_MARGIN_MM = 16.0
"""Width to keep around the field of view: a turned and shifted square stays within it."""

SHIFT_MM = 3.0
"""Greatest shift: a point that a person clicks isn't the centre of gravity of an outline."""

SMOOTH_PROBABILITY = 0.3
SMOOTH_SIGMA_MM = 1.2
"""Uneven smoothing resembles a view across thick slices, which slices alone don't show."""

GAMMA_RANGE = (0.75, 1.35)


class SliceAugmentation:
    """Turn a batch of slices with a margin into images for one training step.

    Parameters
    ----------
    spec
        Input of the model.
    seed
        Of all that is random.
    """

    def __init__(self, spec: InputSpec, *, seed: int) -> None:
        self.spec = spec
        self._random = np.random.default_rng(seed)
        self._warp = AffineTransform(
            (spec.n_pixels, spec.n_pixels),
            normalized=False,
            padding_mode="border",
            align_corners=True,
        )

    def __call__(
        self, slices: Float[Tensor, "batch rows columns"]
    ) -> Float[Tensor, "batch 1 height width"]:
        """Return images in [0, 1]; every slice is varied in its own way.

        Parameters
        ----------
        slices
            Squares at `InputSpec.spacing_mm` with `AUGMENTATION_MARGIN_MM` around the field of
            view.
        """
        turned: Tensor = self._warp(slices[:, None], self._matrices(slices))[:, 0]
        if self._random.random() < SMOOTH_PROBABILITY:
            sigma_mm = self._random.uniform(0, SMOOTH_SIGMA_MM, size=2)
            turned = GaussianSmooth((sigma_mm / self.spec.spacing_mm).tolist())(turned)
        images = slices_to_images(turned, self.spec)
        lowest, highest = np.log(GAMMA_RANGE)
        gamma = np.exp(self._random.uniform(lowest, highest, size=len(images)))
        return images ** torch.as_tensor(gamma, dtype=images.dtype)[:, None, None, None]

    def _matrices(self, slices: Tensor) -> Float[Tensor, "batch 3 3"]:
        """Return, per slice, the map from pixels of the result to pixels of the source."""
        count, source_size = len(slices), slices.shape[-1]
        angle = self._random.uniform(0, 2 * np.pi, count)
        mirror = self._random.choice([-1.0, 1.0], count)
        shift = self._random.uniform(-SHIFT_MM, SHIFT_MM, (count, 2)) / self.spec.spacing_mm
        matrices = np.zeros((count, 3, 3))
        matrices[:, 0, 0], matrices[:, 0, 1] = mirror * np.cos(angle), -np.sin(angle)
        matrices[:, 1, 0], matrices[:, 1, 1] = mirror * np.sin(angle), np.cos(angle)
        middle = (self.spec.n_pixels - 1) / 2
        source_middle = (source_size - 1) / 2
        matrices[:, :2, 2] = source_middle + shift - matrices[:, :2, :2].sum(axis=2) * middle
        matrices[:, 2, 2] = 1
        return torch.as_tensor(matrices, dtype=slices.dtype)
