"""Controls: maps that know nothing of the model. An estimator that isn't better explains nothing.

They have the same form as estimators, so that every benchmark runs on them too; the same map is
given for every target.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cdam_med.attribution.estimator import Attribution, Estimator, Resolution
from cdam_med.attribution.methods.pixel_maps import check_pixels
from cdam_med.attribution.numerics import image_generator, wide
from cdam_med.attribution.subject import Method, Subject
from cdam_med.errors import MethodError


@dataclass(frozen=True)
class RandomMap(Method):
    """Independent normal numbers, one for each patch.

    They are drawn from the seed and from the image's own values, so that two images have
    different maps while an image has the same one alone and in a batch.
    """

    name: ClassVar[str] = "random"
    title: ClassVar[str] = "Random"
    meaning: ClassVar[str] = "Random numbers: a control, which knows nothing of the model."
    reference: ClassVar[str] = "control"
    cost: ClassVar[str] = "nothing beyond the outputs"

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return random maps."""
        grid = subject.model.grid_size(subject.images)
        maps = torch.empty(len(subject.images), *grid, dtype=torch.float32, device="cpu")
        for own, image in zip(maps, subject.images, strict=True):
            own.normal_(generator=image_generator(image, seed, device="cpu"))
        return _same_for_all_targets(self, subject, maps)


@dataclass(frozen=True)
class CentrePrior(Method):
    """A normal distribution around the centre of the patch grid, one at its peak.

    Objects are mostly photographed, and nodules mostly cropped, in the centre.

    Parameters
    ----------
    width : float
        Standard deviation as a share of the grid's sides.
    """

    width: float = 0.25

    name: ClassVar[str] = "centre_prior"
    title: ClassVar[str] = "Centre prior"
    meaning: ClassVar[str] = (
        "Nearness to the centre of the image: a control, which knows nothing of the model."
    )
    reference: ClassVar[str] = "control"
    is_signed: ClassVar[bool] = False
    cost: ClassVar[str] = "nothing beyond the outputs"

    def __post_init__(self) -> None:
        """Refuse a width without meaning."""
        if not 0 < self.width < float("inf"):
            raise MethodError(
                f"width of centre_prior must be above 0, not {self.width}: it is a share of the "
                "grid's sides, such as 0.25."
            )

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return the centre prior."""
        rows, columns = subject.model.grid_size(subject.images)
        device = subject.images.device
        prior = self._along(rows, device)[:, None] * self._along(columns, device)
        return _same_for_all_targets(self, subject, prior.repeat(len(subject.images), 1, 1))

    def _along(self, count: int, device: torch.device) -> Tensor:
        distance = (torch.arange(count, dtype=torch.float32, device=device) + 0.5) / count - 0.5
        return torch.exp(-0.5 * (distance / self.width) ** 2)


@dataclass(frozen=True)
class Intensity(Method):
    """The image itself: each pixel's mean over colours, minus the mean of the image.

    In the image as the ViT takes it. A nodule is brighter than the lung around it.
    """

    name: ClassVar[str] = "intensity"
    title: ClassVar[str] = "Intensity"
    meaning: ClassVar[str] = (
        "Brightness, less the mean of the image: a control, which knows nothing of the model."
    )
    reference: ClassVar[str] = "control"
    resolution: ClassVar[Resolution] = "pixel"
    cost: ClassVar[str] = "nothing beyond the outputs"

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return the images' intensity."""
        check_pixels(self, subject)
        grey = subject.images.detach().mean(1)
        return _same_for_all_targets(self, subject, grey - grey.mean((1, 2), keepdim=True))


def _same_for_all_targets(estimator: Estimator, subject: Subject, maps: Tensor) -> Attribution:
    outputs = subject.model.outputs(subject.images)[:, list(subject.columns)]
    scores = maps.to(wide(outputs))[:, None].repeat(1, len(subject.columns), 1, 1)
    return subject.attribution_of_maps(estimator, scores, outputs, "no model")
