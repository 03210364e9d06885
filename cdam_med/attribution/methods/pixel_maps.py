"""What estimators at pixel resolution share: one image and target at a time, through captum."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from cdam_med.attribution.estimator import Attribution, Estimator
from cdam_med.attribution.numerics import wide
from cdam_med.attribution.subject import Subject
from cdam_med.errors import ModelError

PixelMethod = Callable[[Tensor, int], Tensor]
"""One image ``(1, channel, height, width)`` and a column of the outputs -> scores of its form."""


def check_pixels(estimator: Estimator, subject: Subject) -> None:
    """Refuse volumes, for which there is no map of pixels with rows and columns.

    Parameters
    ----------
    estimator : Estimator
        What is to explain them.
    subject : Subject
        What is explained.

    Raises
    ------
    ModelError
        If the model takes volumes with a channel axis.
    """
    if subject.images.ndim != 4:
        raise ModelError(
            f"{estimator.name} is about pixels in rows and columns, and "
            f"{subject.model.name} takes volumes: choose an estimator with one score a "
            "patch, such as cdam or token_ablation."
        )


def model_outputs(subject: Subject) -> Callable[[Tensor], Tensor]:
    """Return the model as captum calls it, with pixels that may be in a wider type than weights.

    Parameters
    ----------
    subject : Subject
        What is explained.
    """
    dtype = subject.images.dtype

    def outputs(
        pixels: Float[Tensor, "batch channel height width"],
    ) -> Float[Tensor, "batch target"]:
        return subject.model.outputs(pixels.to(dtype))

    return outputs


def pixel_attribution(estimator: Estimator, subject: Subject, method: PixelMethod) -> Attribution:
    """Return maps whose scores are means over the colour channels.

    Images go through one by one, so that memory is bounded by the samples of one image, and a
    batch gives what its images give alone.

    Parameters
    ----------
    estimator : Estimator
        Whose maps they are.
    subject : Subject
        What is explained.
    method : callable
        Scores of one image's channels and pixels for one column of the outputs.

    Raises
    ------
    ModelError
        If the model takes volumes.
    """
    check_pixels(estimator, subject)
    # only the columns that an image is explained for, each of which costs passes of its own
    scores = [
        torch.stack(
            [method(image[None].clone(), column)[0].mean(0) for column in subject.columns_of(index)]
        )
        for index, image in enumerate(wide(subject.images.detach()))
    ]
    outputs = subject.model.outputs(subject.images)[:, list(subject.columns)]
    return Attribution(
        scores=torch.stack(scores).detach(),
        outputs=subject.of_targets(outputs),
        targets=subject.targets,
        estimator=estimator.name,
        resolution=estimator.resolution,
        is_signed=estimator.is_signed,
        prefix_scores=None,
        path="autograd",
    )
