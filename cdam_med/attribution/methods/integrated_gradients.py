"""Integrated gradients of the pixels, with captum."""

from dataclasses import dataclass
from typing import ClassVar

from captum import attr as captum_attr
from torch import Tensor

from cdam_med.attribution.estimator import Attribution, Resolution
from cdam_med.attribution.methods.pixel_maps import model_outputs, pixel_attribution
from cdam_med.attribution.subject import Method, Subject


@dataclass(frozen=True)
class IntegratedGradients(Method):
    """``x * mean_k df/dx(k x / m)``, k = 1 to m, mean over colours.

    The baseline is zero in the image as the ViT takes it, which is the mean colour that images are
    standardised with; the path is a right Riemann sum. Sundararajan, Taly and Yan, "Axiomatic
    Attribution for Deep Networks", ICML 2017, eq. 3.

    Parameters
    ----------
    steps : int
        Points on the path.
    steps_at_once : int
        How many of them share a pass; bounds memory, and doesn't change the maps.
    """

    steps: int = 50
    steps_at_once: int = 10

    name: ClassVar[str] = "integrated_gradients"
    title: ClassVar[str] = "Integrated gradients"
    meaning: ClassVar[str] = (
        "Share of a pixel in the difference between the output and that of an even grey "
        "image: above zero it raises the output, below zero it lowers it."
    )
    reference: ClassVar[str] = "Sundararajan et al., ICML 2017"
    resolution: ClassVar[Resolution] = "pixel"
    cost: ClassVar[str] = "a forward and a backward pass for each step and target"

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return integrated gradients."""
        method = captum_attr.IntegratedGradients(model_outputs(subject))

        def scores(image: Tensor, column: int) -> Tensor:
            found: Tensor = method.attribute(
                image,
                baselines=0,
                target=column,
                n_steps=self.steps,
                method="riemann_right",
                internal_batch_size=self.steps_at_once,
            )
            return found

        return pixel_attribution(self, subject, scores)
