"""Models to perturb: one whose every patch has a known share in the output, and small real ones."""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cdam_med.attribution.class_token import ClassTokenModel


def small_vit(*, classes: int = 3, **options: object) -> VisionTransformer:
    """Return a ViT in float64 with 4 x 6 patches of 4 pixels, not in evaluation mode."""
    settings = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = VisionTransformer(**settings | {"num_classes": classes} | options).double()
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return vit


class LinearModel(ClassTokenModel):
    """Outputs are weighted sums of pixels: a patch is worth the same whatever else is there."""

    def outputs(self, prepared: Tensor) -> Tensor:
        """Return two outputs: the weighted sum, and minus twice as much."""
        total = (prepared * self.weights).sum((1, 2, 3))
        return torch.stack((total, -2 * total), dim=1)


def linear_model(weights: Tensor) -> LinearModel:
    """Return the linear model of pixel weights ``(channel, 16, 24)``."""
    vit = small_vit(classes=2)
    model = LinearModel(vit, lambda images: images, vit.head)
    object.__setattr__(model, "weights", weights)
    return model


def normal(*shape, seed=0):
    """Return normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


WEIGHTS, IMAGES = normal(3, 16, 24, seed=5), normal(2, 3, 16, 24, seed=1)
"""What a linear model multiplies each pixel with, and two images for it."""
