"""What is read from the class token: malignancy as a logit, eight biomarkers in their units."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.targets import BIOMARKERS
from data_prep.errors import InputError


class NoduleHeads(nn.Module):
    """A malignancy head and a biomarker head on one class token.

    Malignancy is linear (trained with binary cross-entropy); the biomarkers are
    Linear - ReLU - Linear, as in the paper's CT experiments. The biomarker head is trained on
    standardised targets; their means and scales are stored with the weights, and the outputs
    (and so the attributions) are in the units of the readers: rating points and millimetres.

    Parameters
    ----------
    embed_dim
        Length of the class token.
    """

    biomarker_mean: Tensor
    biomarker_scale: Tensor

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.malignancy = nn.Linear(embed_dim, 1)
        self.biomarkers = nn.Sequential(
            nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, len(BIOMARKERS))
        )
        self.register_buffer("biomarker_mean", torch.zeros(len(BIOMARKERS)))
        self.register_buffer("biomarker_scale", torch.ones(len(BIOMARKERS)))

    def set_biomarker_scale(
        self, mean: Float[Tensor, "biomarker"], scale: Float[Tensor, "biomarker"]
    ) -> None:
        """Store the means and standard deviations of the training labels.

        Parameters
        ----------
        mean, scale
            One for each of `cdam_med.targets.BIOMARKERS`, in their units; scales are positive.

        Raises
        ------
        InputError
            If a biomarker can't be standardised, because its labels don't vary.
        """
        usable = mean.isfinite() & scale.isfinite() & (scale > 0)
        constant = [
            target.name for target, ok in zip(BIOMARKERS, usable.tolist(), strict=True) if not ok
        ]
        if constant:
            raise InputError(
                f"The training labels of {', '.join(constant)} don't vary, so nothing can be "
                "learnt of them; train on more nodules."
            )
        self.biomarker_mean.copy_(mean)
        self.biomarker_scale.copy_(scale)

    def standardise(
        self, biomarkers: Float[Tensor, "batch biomarker"]
    ) -> Float[Tensor, "batch biomarker"]:
        """Turn biomarkers in their units into the standardised values the head is trained on."""
        return (biomarkers - self.biomarker_mean) / self.biomarker_scale

    def forward(self, class_token: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch target"]:
        """Return the nine outputs in the order of `cdam_med.targets.TARGETS`."""
        biomarkers = self.biomarkers(class_token) * self.biomarker_scale + self.biomarker_mean
        return torch.cat([self.malignancy(class_token), biomarkers], dim=1)
