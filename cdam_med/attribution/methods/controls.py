"""Controls: maps that know nothing of the model. A method that isn't better explains nothing.

They have the same form as other methods, so that every benchmark runs on them too; the same map is
given for every target.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cdam_med.attribution.method import Attribution
from cdam_med.attribution.numerics import image_generator, wide
from cdam_med.attribution.subject import MethodBase, Subject
from cdam_med.errors import MethodError


class _Control(MethodBase):
    reference = "control"
    cost = "nothing beyond the outputs"

    @abstractmethod
    def image_maps(self, subject: Subject, seed: int) -> Float[Tensor, "batch rows columns"]:
        """Return one map an image."""

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return the same map for every target."""
        maps, outputs = self.image_maps(subject, seed), subject.outputs()
        scores = maps.to(wide(outputs))[:, None].repeat(1, len(subject.columns), 1, 1)
        return subject.attribution_of_maps(self, scores, outputs, "no model")


@dataclass(frozen=True)
class RandomMap(_Control):
    """Independent normal numbers, one for each patch.

    They are drawn from the seed and from the image's own values, so that two images have
    different maps while an image has the same one alone and in a batch.
    """

    name = "random"
    title = "Random"
    meaning = "Random numbers: a control, which knows nothing of the model."

    def image_maps(self, subject: Subject, seed: int) -> Float[Tensor, "batch rows columns"]:
        """Return random maps."""
        grid = subject.model.grid_size(subject.images)
        maps = torch.empty(len(subject.images), *grid, dtype=torch.float32, device="cpu")
        for own, image in zip(maps, subject.images, strict=True):
            own.normal_(generator=image_generator(image, seed, device="cpu"))
        return maps


@dataclass(frozen=True)
class CentrePrior(_Control):
    """A normal distribution around the centre of the patch grid, one at its peak.

    Objects are mostly photographed, and nodules mostly cropped, in the centre. `width` is the
    standard deviation as a share of the grid's sides.
    """

    width: float = 0.25

    name = "centre_prior"
    title = "Centre prior"
    meaning = "Nearness to the centre of the image: a control, which knows nothing of the model."
    is_signed = False

    def __post_init__(self) -> None:
        """Refuse a width without meaning."""
        if not 0 < self.width < float("inf"):
            raise MethodError(
                f"width of centre_prior must be above 0, not {self.width}: it is a share of the "
                "grid's sides, such as 0.25."
            )

    def image_maps(self, subject: Subject, seed: int) -> Float[Tensor, "batch rows columns"]:
        """Return the prior for each image."""
        rows, columns = (
            self._along(count, subject.images.device)
            for count in subject.model.grid_size(subject.images)
        )
        return (rows[:, None] * columns).repeat(len(subject.images), 1, 1)

    def _along(self, count: int, device: torch.device) -> Float[Tensor, " count"]:
        distance = (torch.arange(count, dtype=torch.float32, device=device) + 0.5) / count - 0.5
        return torch.exp(-0.5 * (distance / self.width) ** 2)


@dataclass(frozen=True)
class Intensity(_Control):
    """The image itself: each pixel's mean over colours, minus the mean of the image.

    In the image as the ViT takes it. A nodule is brighter than the lung around it.
    """

    name = "intensity"
    title = "Intensity"
    meaning = "Brightness, less the mean of the image: a control, which knows nothing of the model."
    resolution = "pixel"
    needs_pixels = True

    def image_maps(self, subject: Subject, seed: int) -> Float[Tensor, "batch rows columns"]:
        """Return the images' intensity."""
        grey = subject.images.detach().mean(1)
        return grey - grey.mean((1, 2), keepdim=True)
