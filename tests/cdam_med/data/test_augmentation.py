"""Random variation of slices: repeatable, in range, and rigid in the plane."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cdam_med.data.transforms import AUGMENTATION_MARGIN_MM, SHIFT_MM, InputSpec, SliceAugmentation

FIELD_MM = 48
SOURCE_PX = FIELD_MM + 2 * round(AUGMENTATION_MARGIN_MM)
STRETCH = InputSpec(field_of_view_mm=FIELD_MM, image_size=FIELD_MM, intensity="slice_stretch")
BRIGHTNESS = InputSpec(field_of_view_mm=FIELD_MM, image_size=FIELD_MM, window_hu=(0, 1))
COUNT = 48


def blobs(at_mm: tuple[float, float]) -> Tensor:
    """The same Gaussian blob in each slice; (down, right) from the middle in mm."""
    down, right = np.indices((SOURCE_PX, SOURCE_PX)) - (SOURCE_PX - 1) / 2
    distance = np.hypot(down - at_mm[0], right - at_mm[1])
    blob = np.exp(-0.5 * (distance / 2.5) ** 2).astype(np.float32)
    return torch.from_numpy(blob).repeat(COUNT, 1, 1)


def places_mm(images: Tensor) -> np.ndarray:
    """Centre of mass of each image, (down, right) from its middle in mm."""
    weights = images[:, 0].double().numpy()
    axis = np.arange(FIELD_MM) - (FIELD_MM - 1) / 2
    total = weights.sum(axis=(1, 2))
    down = (weights.sum(axis=2) * axis).sum(axis=1) / total
    right = (weights.sum(axis=1) * axis).sum(axis=1) / total
    return np.stack([down, right], axis=1)


@pytest.fixture(scope="module")
def places() -> dict[str, np.ndarray]:
    """Where three blobs went under the same random draws (what is drawn is not looked at)."""
    marks = {"middle": (0.0, 0.0), "near": (9.0, 0.0), "far": (3.0, 12.0)}
    return {
        name: places_mm(SliceAugmentation(BRIGHTNESS, seed=5)(blobs(at)))
        for name, at in marks.items()
    }


def test_distances_stay(places: dict[str, np.ndarray]) -> None:
    for one, other, distance_mm in [
        ("middle", "near", 9.0),
        ("middle", "far", np.hypot(3, 12)),
        ("near", "far", np.hypot(6, 12)),
    ]:
        found = np.linalg.norm(places[one] - places[other], axis=1)
        np.testing.assert_allclose(found, distance_mm, atol=0.15)


def test_the_middle_moves_by_no_more_than_the_shift(places: dict[str, np.ndarray]) -> None:
    assert np.abs(places["middle"]).max() < SHIFT_MM * np.sqrt(2) + 0.1
    assert np.ptp(places["middle"], axis=0).min() > SHIFT_MM


def test_slices_are_turned_all_the_way_and_some_are_mirrored(
    places: dict[str, np.ndarray],
) -> None:
    near, far = places["near"] - places["middle"], places["far"] - places["middle"]
    quadrants = {tuple(quadrant) for quadrant in np.sign(near)}
    assert len(quadrants) == 4
    handedness = np.sign(near[:, 0] * far[:, 1] - near[:, 1] * far[:, 0])
    assert set(handedness) == {-1.0, 1.0}


def test_nothing_comes_from_beyond_the_margin() -> None:
    ring = torch.ones(COUNT, SOURCE_PX, SOURCE_PX)
    ring[:, 1:-1, 1:-1] = 0
    for seed in range(3):
        assert not SliceAugmentation(BRIGHTNESS, seed=seed)(ring).any()


def noise(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(COUNT, SOURCE_PX, SOURCE_PX, generator=generator) * 255


def test_the_seed_says_all() -> None:
    first, second = (SliceAugmentation(STRETCH, seed=7) for _ in range(2))
    torch.manual_seed(1)
    once = [first(noise()) for _ in range(2)]
    torch.manual_seed(2)
    again = [second(noise()) for _ in range(2)]
    for one, other in zip(once, again, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    assert not torch.equal(once[0], once[1])
    assert not torch.equal(once[0], SliceAugmentation(STRETCH, seed=8)(noise()))


@pytest.mark.parametrize("image_size", [48, 70])
def test_images_are_as_a_model_takes_them(image_size: int) -> None:
    spec = STRETCH.model_copy(update={"image_size": image_size})
    augment = SliceAugmentation(spec, seed=0)
    slices = noise()
    slices[0] = 17.0  # a slice without contrast
    for _ in range(4):
        images = augment(slices)
        assert images.shape == (COUNT, 1, image_size, image_size)
        assert images.dtype == torch.float32
        assert images.isfinite().all()
        assert images.min() >= 0
        assert images.max() <= 1


def test_spacing_and_field_are_millimetres() -> None:
    # half the spacing, twice the pixels: the same draws move things by the same millimetres
    fine = InputSpec(
        field_of_view_mm=FIELD_MM, spacing_mm=0.5, image_size=FIELD_MM, window_hu=(0, 1)
    )
    slices = blobs((9.0, 0.0))
    enlarged = torch.nn.functional.interpolate(
        slices[:, None], scale_factor=2, mode="bilinear", align_corners=False
    )[:, 0]
    coarse_places = places_mm(SliceAugmentation(BRIGHTNESS, seed=3)(slices))
    fine_places = places_mm(SliceAugmentation(fine, seed=3)(enlarged))
    np.testing.assert_allclose(fine_places, coarse_places, atol=0.1)
