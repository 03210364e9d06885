"""A small classifier, a small nodule model, and images to judge explanations on."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from cdam_med.data.transforms import InputSpec
from cdam_med.evaluation.examples import Examples
from cdam_med.models.backbone import BackboneSpec
from cdam_med.models.nodule_vit import ModelConfig, NoduleViT

EDGE = 32
SPOT = 8


@pytest.fixture(scope="session")
def classifier() -> VisionTransformer:
    """Five classes from 4 x 4 patches of 8 pixels, with weights far from trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = VisionTransformer(
            img_size=EDGE, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
        )
        for parameter in vit.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return vit.eval()


@pytest.fixture(scope="session")
def nodule_model() -> NoduleViT:
    """Nine targets from 4 x 4 patches of 8 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NoduleViT(
            ModelConfig(
                name="tiny",
                backbone=BackboneSpec(architecture="test_vit", image_size=EDGE),
                input=InputSpec(field_of_view_mm=16, image_size=EDGE, intensity="slice_stretch"),
            )
        )
        model.backbone = VisionTransformer(
            img_size=EDGE, patch_size=8, embed_dim=64, depth=2, num_heads=4, num_classes=0
        )
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def examples_with_spots(
    count: int, *, channels: int, targets: tuple[str | int, ...] | None, seed: int
) -> Examples:
    """Noise with a bright square, which is the object."""
    random = torch.Generator().manual_seed(seed)
    images = 0.2 * torch.rand(count, channels, EDGE, EDGE, generator=random)
    masks = torch.zeros(count, EDGE, EDGE, dtype=torch.bool)
    for mask, (row, column) in zip(
        masks, torch.randint(0, EDGE - SPOT, (count, 2), generator=random).tolist(), strict=True
    ):
        mask[row : row + SPOT, column : column + SPOT] = True
    images += 0.8 * masks[:, None]
    return Examples(
        ids=tuple(f"image {number}" for number in range(count)),
        groups=tuple(f"patient {number // 2}" for number in range(count)),
        images=images,
        targets=targets,
        labels=tuple("malignant" if number % 4 < 2 else "benign" for number in range(count)),
        masks=masks,
    )


@pytest.fixture(scope="session")
def nodules() -> Examples:
    """Eight nodules of four patients."""
    return examples_with_spots(8, channels=1, targets=("malignancy",) * 8, seed=0)


@pytest.fixture(scope="session")
def moved_nodules() -> Examples:
    """The same nodules elsewhere."""
    return examples_with_spots(8, channels=1, targets=("malignancy",) * 8, seed=1)


@pytest.fixture(scope="session")
def pictures() -> Examples:
    """Eight colour images whose classes the model is to say."""
    return examples_with_spots(8, channels=3, targets=None, seed=2)
