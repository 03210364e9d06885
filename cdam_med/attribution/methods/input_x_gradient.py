"""Input times gradient, with captum."""

from dataclasses import dataclass
from typing import ClassVar

from captum import attr as captum_attr
from torch import Tensor

from cdam_med.attribution.estimator import Attribution, Resolution
from cdam_med.attribution.methods.pixel_maps import model_outputs, pixel_attribution
from cdam_med.attribution.subject import Method, Subject


@dataclass(frozen=True)
class InputXGradient(Method):
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
    cost: ClassVar[str] = "a forward and a backward pass for each target"

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return input x gradient."""
        method = captum_attr.InputXGradient(model_outputs(subject))

        def scores(image: Tensor, column: int) -> Tensor:
            found: Tensor = method.attribute(image.requires_grad_(), target=column)
            return found

        return pixel_attribution(self, subject, scores)
