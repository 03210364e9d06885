"""Input times gradient, with captum."""

from dataclasses import dataclass
from typing import ClassVar

from captum import attr as captum_attr
from torch import Tensor

from cdam_med.attribution.combinations import Targets
from cdam_med.attribution.estimator import Attribution, Resolution
from cdam_med.attribution.methods.pixel_maps import model_outputs, pixel_attribution
from cdam_med.attribution.subject import explaining


@dataclass(frozen=True)
class InputXGradient:
    """``x * df/dx`` in the image as the ViT takes it, mean over colours.

    Shrikumar et al., "Not Just a Black Box: Learning Important Features Through Propagating
    Activation Differences", arXiv 1605.01713.
    """

    name: ClassVar[str] = "input_x_gradient"
    title: ClassVar[str] = "Input x gradient"
    meaning: ClassVar[str] = (
        "A pixel's brightness times the slope of the output there, a first-order score: above "
        "zero it pushes the output up, below zero down."
    )
    reference: ClassVar[str] = "Shrikumar et al., 2016"
    resolution: ClassVar[Resolution] = "pixel"
    is_signed: ClassVar[bool] = True
    cost: ClassVar[str] = "a forward and a backward pass for each target"

    def __call__(
        self, model: object, images: Tensor, targets: Targets = None, *, seed: int = 0
    ) -> Attribution:
        """Return input x gradient; see `cdam_med.attribution.estimator.Estimator`."""
        with explaining(model, images, targets) as subject:
            method = captum_attr.InputXGradient(model_outputs(subject))

            def scores(image: Tensor, column: int) -> Tensor:
                found: Tensor = method.attribute(image.requires_grad_(), target=column)
                return found

            return pixel_attribution(self, subject, scores)
