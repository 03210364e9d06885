"""What training minimises: cross-entropy for malignancy, Huber for standardised biomarkers."""

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss

LABEL_SMOOTHING = 0.1
"""The label is a median of opinions: 0 and 1 are called 0.05 and 0.95."""


def malignancy_loss(
    logits: Float[Tensor, "batch"],
    malignant: Bool[Tensor, "batch"],
    has_class: Bool[Tensor, "batch"],
) -> Float[Tensor, ""]:
    """Return the binary cross-entropy over the nodules that have a class.

    Parameters
    ----------
    logits
        Positive for malignant.
    malignant
        The class; smoothed by `LABEL_SMOOTHING`.
    has_class
        Which nodules count.

    Returns
    -------
    Tensor
        Mean over the nodules with a class; 0 where none has.
    """
    labels = malignant.float() * (1 - LABEL_SMOOTHING) + LABEL_SMOOTHING / 2
    losses = binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (losses * has_class).sum() / has_class.sum().clamp(min=1)


def biomarker_loss(
    predicted: Float[Tensor, "batch biomarker"], rated: Float[Tensor, "batch biomarker"]
) -> Float[Tensor, ""]:
    """Return the mean Huber loss (delta 1) over nodules and biomarkers.

    Parameters
    ----------
    predicted, rated
        Both in standardised units.
    """
    loss: Tensor = huber_loss(predicted, rated)
    return loss
