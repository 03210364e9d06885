"""Resampling between parallel grids: nearest, linear, and smoothing where it gets coarser."""

import numpy as np
import pytest

from data_prep.resample import points_inside, resample_linear, resample_nearest


def grid(spacing_mm: tuple[float, float, float], origin: tuple[float, float, float]) -> np.ndarray:
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = origin
    return affine


SOURCE = grid((1.3, 0.7, 2.9), (-10.2, 3.1, 55.0))
TARGET = grid((0.9, 1.1, 1.7), (-11.73, 1.97, 53.21))
SOURCE_SHAPE, TARGET_SHAPE = (9, 11, 5), (15, 10, 12)


def source_indices_of_target() -> np.ndarray:
    """Continuous source index of every target point, by two linear maps."""
    ijk = np.stack(np.indices(TARGET_SHAPE), axis=-1).reshape(-1, 3)
    xyz_mm = ijk * np.diag(TARGET)[:3] + TARGET[:3, 3]
    return (xyz_mm - SOURCE[:3, 3]) / np.diag(SOURCE)[:3]


def test_nearest_takes_the_voxel_whose_box_a_point_is_in() -> None:
    mask = np.random.default_rng(0).random(SOURCE_SHAPE) < 0.5
    expected = []
    for index in source_indices_of_target():
        offsets = np.abs(np.stack(np.indices(SOURCE_SHAPE), axis=-1) - index)
        in_box = np.all(offsets < 0.5, axis=-1)
        expected.append(mask[in_box].any())
    found = resample_nearest(mask, SOURCE, TARGET, TARGET_SHAPE)
    np.testing.assert_array_equal(found.ravel(), expected)
    assert 0 < found.mean() < 1


def test_points_inside_are_those_in_some_voxel() -> None:
    index = source_indices_of_target()
    expected = np.all((index > -0.5) & (index < np.array(SOURCE_SHAPE) - 0.5), axis=1)
    found = points_inside(SOURCE_SHAPE, SOURCE, TARGET, TARGET_SHAPE)
    np.testing.assert_array_equal(found.ravel(), expected)
    assert 0 < found.mean() < 1


def test_linear_weighs_the_eight_voxels_around_a_point() -> None:
    array = np.random.default_rng(1).normal(size=SOURCE_SHAPE).astype(np.float32)
    fine = TARGET.copy()
    fine[:3, :3] = np.diag([0.9, 0.5, 1.7])  # nowhere coarser: nothing is smoothed
    index = np.stack(np.indices(TARGET_SHAPE), axis=-1) @ np.diag([0.9, 0.5, 1.7])
    index = (index + fine[:3, 3] - SOURCE[:3, 3]) / np.diag(SOURCE)[:3]
    index = np.clip(index, 0, np.array(SOURCE_SHAPE) - 1)  # beyond the edge: the edge
    low = np.minimum(np.floor(index).astype(int), np.array(SOURCE_SHAPE) - 2)
    share = index - low
    expected = np.zeros(TARGET_SHAPE)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, share, 1 - share), axis=-1)
        expected += weight * array[tuple(np.moveaxis(low + corner, -1, 0))]
    found = resample_linear(array, SOURCE, fine, TARGET_SHAPE)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("factor", "most"), [(2, 0.6), (3, 0.02), (4, 0.001)])
def test_a_pattern_too_fine_for_the_grid_shrinks_to_its_mean(factor: int, most: float) -> None:
    mean = 40.0
    pattern = mean + np.where(np.arange(96) % 2, -1.0, 1.0)
    array = np.broadcast_to(pattern[:, None, None], (96, 3, 3)).astype(np.float32)
    coarse = grid((factor, 1, 1), (24, 0, 0))
    # taken as they are, every second voxel would alias to a constant (an even factor)
    found = resample_linear(array, np.eye(4), coarse, (48 // factor, 3, 3)) - mean
    assert np.abs(found).max() < most


def test_smoothing_is_along_the_coarser_axis_alone() -> None:
    array = np.zeros((41, 9, 9), np.float32)
    array[20, 4, 4] = 1
    coarse = grid((3, 1, 1), (2, 0, 0))
    found = resample_linear(array, np.eye(4), coarse, (13, 9, 9))
    assert found[6, 4, 4] > 0.3
    found[:, 4, 4] = 0
    assert not found.any()


def test_a_constant_stays_constant() -> None:
    array = np.full(SOURCE_SHAPE, -873.0, np.float32)
    coarse = grid((3.3, 3.3, 3.3), (-14.0, -2.0, 50.0))
    found = resample_linear(array, SOURCE, coarse, (6, 6, 6))
    np.testing.assert_allclose(found, -873.0, rtol=1e-6)


def turned() -> np.ndarray:
    affine = SOURCE.copy()
    affine[:3, :3] = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ SOURCE[:3, :3]
    return affine


@pytest.mark.parametrize(
    "other", [turned(), SOURCE[[1, 0, 2, 3]], SOURCE @ np.diag([1, -1.0, 1, 1])]
)
def test_grids_that_are_not_parallel_are_refused(other: np.ndarray) -> None:
    array = np.zeros(SOURCE_SHAPE, np.float32)
    with pytest.raises(ValueError, match="not parallel"):
        resample_linear(array, SOURCE, other, (3, 3, 3))
    with pytest.raises(ValueError, match="not parallel"):
        resample_nearest(array > 0, SOURCE, other, (3, 3, 3))
