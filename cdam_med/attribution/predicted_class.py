"""Each image's own predicted class as its target."""

from torch import Tensor

from cdam_med.attribution.combinations import PerImage
from cdam_med.attribution.subject import explaining


def predicted_class(model: object, images: Tensor) -> PerImage:
    """Return the highest output of each image as a target of its own; one forward pass.

    Parameters
    ----------
    model : VisionTransformer or object with `class_token_model`
        The model to explain.
    images : Tensor
        ``(batch, channel, height, width)`` as the model takes them.

    Returns
    -------
    PerImage
        Labelled ``"predicted class"``; its `targets` say which class each image's is.

    Raises
    ------
    ModelError, CdamError
        As `cdam_med.cdam_scores` does.
    """
    with explaining(model, images, None) as subject:
        highest = subject.model.outputs(subject.images).argmax(1).tolist()
    return PerImage([subject.targets[column] for column in highest], "predicted class")
