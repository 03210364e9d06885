"""From slices to images: intensity modes, size, and what an input may be."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional

from cdam_med.data.transforms import InputSpec, slices_to_images
from data_prep.errors import InputError

STRETCH = InputSpec(field_of_view_mm=24, image_size=56, intensity="slice_stretch")
WINDOW = InputSpec(field_of_view_mm=24, image_size=24)


def noise(seed: int) -> torch.Tensor:
    return torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(seed)) * 300 - 400


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    scales=st.lists(st.floats(0.01, 100), min_size=3, max_size=3),
    shift=st.floats(-1000, 1000),
)
def test_stretch_undoes_any_scaling_and_shift_of_a_slice(
    seed: int, scales: list[float], shift: float
) -> None:
    slices = noise(seed)
    changed = slices * torch.tensor(scales)[:, None, None] + shift
    images = slices_to_images(slices, STRETCH)
    torch.testing.assert_close(slices_to_images(changed, STRETCH), images, atol=1e-3, rtol=0)


def test_stretch_runs_from_0_to_1_in_each_slice() -> None:
    same_size = STRETCH.model_copy(update={"image_size": 24})
    images = slices_to_images(noise(0), same_size)
    assert images.amin(dim=(1, 2, 3)).tolist() == [0, 0, 0]
    assert images.amax(dim=(1, 2, 3)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("value", [-1000.0, 0.0, 3000.0])
def test_stretch_makes_a_uniform_slice_black_and_leaves_its_neighbours(value: float) -> None:
    slices = noise(1)
    slices[1] = value
    images = slices_to_images(slices, STRETCH)
    assert not images[1].any()
    torch.testing.assert_close(images[[0, 2]], slices_to_images(noise(1)[[0, 2]], STRETCH))


def test_window_clamps_hu_linearly() -> None:
    slices = torch.linspace(-3000, 3000, 3 * 24 * 24).reshape(3, 24, 24)
    images = slices_to_images(slices, WINDOW)
    expected = (np.clip(slices.numpy(), -1000, 400) + 1000) / 1400
    np.testing.assert_allclose(images[:, 0].numpy(), expected, atol=1e-6)


def test_other_windows() -> None:
    spec = WINDOW.model_copy(update={"window_hu": (-160.0, 240.0)})
    slices = torch.full((1, 24, 24), 40.0)
    assert slices_to_images(slices, spec).unique().tolist() == pytest.approx([0.5])


@pytest.mark.parametrize("image_size", [24, 56, 37])
@pytest.mark.parametrize("intensity", ["slice_stretch", "hu_window"])
def test_images_are_enlarged_bilinearly_from_the_corners_of_pixels(
    image_size: int, intensity: str
) -> None:
    spec = InputSpec(field_of_view_mm=24, image_size=image_size, intensity=intensity)
    small = slices_to_images(noise(2), spec.model_copy(update={"image_size": 24}))
    expected = functional.interpolate(
        small, (image_size, image_size), mode="bilinear", align_corners=False
    )
    images = slices_to_images(noise(2), spec)
    assert images.shape == (3, 1, image_size, image_size)
    assert type(images) is torch.Tensor
    assert images.min() >= 0
    assert images.max() <= 1
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)


def test_a_slice_does_not_depend_on_the_others() -> None:
    together = slices_to_images(noise(3), STRETCH)
    alone = torch.cat([slices_to_images(each[None], STRETCH) for each in noise(3)])
    torch.testing.assert_close(together, alone)


def test_slices_given_are_left_as_they_are() -> None:
    slices = noise(4)
    slices_to_images(slices, STRETCH)
    torch.testing.assert_close(slices, noise(4), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("field_of_view_mm", 0),
        ("field_of_view_mm", float("inf")),
        ("field_of_view_mm", 48.4),
        ("field_of_view_mm", 0.2),
        ("spacing_mm", -1),
        ("spacing_mm", float("nan")),
        ("spacing_mm", 1.7),
        ("image_size", 0),
        ("image_size", 56.5),
        ("intensity", "percentile"),
        ("window_hu", (400, -1000)),
        ("window_hu", (40, 40)),
        ("window_hu", (float("-inf"), 40)),
        ("window_hu", (float("nan"), 40)),
        ("zoom", 2),
    ],
)
def test_inputs_that_make_no_sense_are_refused_by_name(field: str, value: object) -> None:
    valid = {"field_of_view_mm": 48, "image_size": 56}
    InputSpec.model_validate(valid)
    with pytest.raises(ValidationError, match=field) as info:
        InputSpec.model_validate(valid | {field: value})
    assert info.value.error_count() == 1


@pytest.mark.parametrize(
    ("field_of_view_mm", "spacing_mm", "n_pixels"), [(48, 1, 48), (7, 0.7, 10)]
)
def test_pixels_of_a_field_of_view(
    field_of_view_mm: float, spacing_mm: float, n_pixels: int
) -> None:
    spec = InputSpec(field_of_view_mm=field_of_view_mm, spacing_mm=spacing_mm, image_size=56)
    assert spec.n_pixels == n_pixels
    assert InputSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("edge", [23, 25, 48])
def test_slices_of_another_field_of_view_are_refused(edge: int) -> None:
    slices = torch.zeros(2, edge, 24)
    with pytest.raises(InputError, match=rf"{edge} x 24 pixels.* takes 24 x 24 of 1 mm \(24 mm\)"):
        slices_to_images(slices, STRETCH)
