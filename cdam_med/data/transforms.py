"""Slices of CT in Hounsfield units -> images in [0, 1] of the size that a model takes.

For training they are varied at random: turned, mirrored, shifted, smoothed, brightened.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn.functional import interpolate

from data_prep.crop import DEFAULT_SPACING_MM, SIZE_TOLERANCE
from data_prep.errors import InputError

LUNG_WINDOW_HU = (-1000.0, 400.0)
"""The clamp of the paper's CT experiments."""

IMAGE_MEAN, IMAGE_STD = 0.45, 0.225
"""Mean over the colours of ImageNet's statistics, which pretrained backbones expect."""

AUGMENTATION_MARGIN_MM = 16.0
"""Width to keep around the field of view: a turned and shifted square stays within it."""

SHIFT_MM = 3.0
"""Greatest shift: a point that a person clicks isn't the centre of gravity of an outline."""

SMOOTH_PROBABILITY = 0.3
SMOOTH_SIGMA_MM = 1.2
"""Uneven smoothing resembles a view across thick slices, which slices alone don't show."""

GAMMA_RANGE = (0.75, 1.35)


class InputSpec(BaseModel):
    """How a slice of CT becomes an image; stored with a model, the same in training and use.

    Parameters
    ----------
    field_of_view_mm
        Edge of the nodule-centred square (and of the crop it is cut from); a whole number of
        `spacing_mm`.
    spacing_mm
        Edge of a pixel before the image is enlarged to `image_size`.
    image_size
        Edge of the square image in pixels.
    intensity
        ``"slice_stretch"``: each slice is stretched from its own minimum and maximum over the
        field of view. A slice whose values were scaled and shifted before gives the same image,
        so it is the mode for slices that lost their HU. ``"hu_window"``: HU clamped to
        `window_hu`, the mode to prefer where HU is known.
    window_hu
        Lowest and highest HU of the window.
    channels
        How many channels the grey image is repeated for; unless given, as many as the model's
        patches have.
    mean, std
        What is subtracted from an image in [0, 1] and what it is divided by: one number for all
        channels, or one for each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    field_of_view_mm: PositiveFloat
    spacing_mm: PositiveFloat = DEFAULT_SPACING_MM
    image_size: PositiveInt
    intensity: Literal["slice_stretch", "hu_window"] = "hu_window"
    window_hu: tuple[float, float] = LUNG_WINDOW_HU
    channels: PositiveInt | None = None
    mean: float | tuple[float, ...] = IMAGE_MEAN
    std: PositiveFloat | tuple[PositiveFloat, ...] = IMAGE_STD

    @model_validator(mode="after")
    def _check_window(self) -> "InputSpec":
        if not self.window_hu[0] < self.window_hu[1]:
            raise ValueError(f"window_hu must run from low to high, not {self.window_hu}")
        return self

    @property
    def n_pixels(self) -> int:
        """Edge of the square in pixels of `spacing_mm`."""
        return round(self.field_of_view_mm / self.spacing_mm)

    @model_validator(mode="after")
    def _check_field_of_view(self) -> "InputSpec":
        error_mm = abs(self.n_pixels * self.spacing_mm - self.field_of_view_mm)
        if error_mm > SIZE_TOLERANCE * self.field_of_view_mm:
            raise ValueError(
                f"field_of_view_mm must be a whole number of pixels of {self.spacing_mm:g} mm, "
                f"not {self.field_of_view_mm:g} mm"
            )
        return self


def slices_to_images(
    slices: Float[Tensor, "slice rows columns"], spec: InputSpec
) -> Float[Tensor, "slice 1 height width"]:
    """Turn slices into images in [0, 1] as a model with this input takes them.

    They are Hounsfield units (for ``slice_stretch`` any values that are linear in them). Slices of
    another size than the model's field of view are refused: enlarged to the same image, they would
    give other outputs.
    """
    if slices.shape[1:] != (spec.n_pixels, spec.n_pixels):
        raise InputError(
            f"Slices of {slices.shape[1]} x {slices.shape[2]} pixels aren't what the model was "
            f"trained on: it takes {spec.n_pixels} x {spec.n_pixels} of {spec.spacing_mm:g} mm "
            f"({spec.field_of_view_mm:g} mm); cut or resample them to that."
        )
    values = slices.float()
    if spec.intensity == "hu_window":
        low, high = spec.window_hu
        images = ((values - low) / (high - low)).clamp(0, 1)
    else:
        lowest, highest = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
        # a slice without contrast (all air) becomes black
        span = torch.where(highest > lowest, highest - lowest, 1)
        images = (values - lowest) / span
    size = (spec.image_size, spec.image_size)
    return interpolate(images[:, None], size, mode="bilinear", align_corners=False)


def standardised(
    images: Float[Tensor, "batch 1 height width"], spec: InputSpec, channels: int
) -> Float[Tensor, "batch channel height width"]:
    """Standardise grey images in [0, 1], and repeat them for every channel of a model."""
    mean, std = (
        value if isinstance(value, float) else images.new_tensor(value)[:, None, None]
        for value in (spec.mean, spec.std)
    )
    return ((images - mean) / std).expand(-1, channels, -1, -1)


class SliceAugmentation:
    """Turn a batch of slices with a margin into images for one training step."""

    def __init__(self, spec: InputSpec, *, seed: int) -> None:
        # imported here, for MONAI takes seconds, and explaining doesn't need it
        from monai.networks.layers import AffineTransform, GaussianFilter

        self.spec = spec
        self._smoother = GaussianFilter
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

        Slices are at `InputSpec.spacing_mm` with `AUGMENTATION_MARGIN_MM` around the field of view.
        """
        turned: Tensor = self._warp(slices[:, None], self._matrices(slices))[:, 0]
        if self._random.random() < SMOOTH_PROBABILITY:
            sigma_mm = self._random.uniform(0, SMOOTH_SIGMA_MM, size=2)
            smooth = self._smoother(2, (sigma_mm / self.spec.spacing_mm).tolist())
            turned = smooth(turned[None])[0]
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
