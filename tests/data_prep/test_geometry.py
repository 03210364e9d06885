"""Geometry against nibabel, against exhaustive search, and there and back."""

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from data_prep import geometry

SEEDS = st.integers(0, 2**32 - 1)


def random_affine(seed: int) -> np.ndarray:
    """A rotated, perhaps mirrored grid with its own spacings."""
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    directions = Rotation.random(rng=rng).as_matrix() * rng.choice([-1, 1], size=3)
    affine[:3, :3] = directions * rng.uniform(0.3, 5, size=3)
    affine[:3, 3] = rng.uniform(-300, 300, size=3)
    return affine


@given(SEEDS)
def test_points_go_there_and_back(seed: int):
    affine = random_affine(seed)
    points = np.random.default_rng(seed).uniform(-50, 600, size=(4, 5, 3))
    mapped = geometry.apply_affine(affine, points)
    np.testing.assert_allclose(mapped, nibabel.affines.apply_affine(affine, points), atol=1e-9)
    back = geometry.apply_affine(geometry.inverse_affine(affine), mapped)
    np.testing.assert_allclose(back, points, atol=1e-8)
    assert geometry.inverse_affine(affine)[3].tolist() == [0, 0, 0, 1]


@given(SEEDS)
def test_frames_agree_for_affines_and_points(seed: int):
    affine_lps = random_affine(seed)
    affine = geometry.affine_lps_to_ras(affine_lps)
    ijk = np.array([[3, 4, 5], [0, 0, 0], [100, 7, 2]])
    via_points = geometry.points_lps_to_ras(geometry.apply_affine(affine_lps, ijk))
    np.testing.assert_allclose(geometry.apply_affine(affine, ijk), via_points, atol=1e-9)
    np.testing.assert_array_equal(geometry.affine_ras_to_lps(affine), affine_lps)
    np.testing.assert_array_equal(
        geometry.points_ras_to_lps(via_points), geometry.apply_affine(affine_lps, ijk)
    )


@given(SEEDS)
def test_spacing_and_directions_make_up_the_affine(seed: int):
    affine = random_affine(seed)
    spacing_mm = geometry.spacing_mm(affine)
    np.testing.assert_allclose(spacing_mm, nibabel.affines.voxel_sizes(affine))
    cosines = geometry.direction_cosines(affine)
    np.testing.assert_allclose(cosines.T @ cosines, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(cosines * spacing_mm, affine[:3, :3])


@given(SEEDS)
def test_canonical_axes_are_the_nearest_of_all_48(seed: int):
    affine = random_affine(seed)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order, flips = geometry.closest_canonical_axes(affine)

    def distance(order: tuple[int, ...], signs: tuple[int, ...]) -> float:
        return float(np.linalg.norm(directions[:, order] * signs - np.eye(3)))

    best = min(
        distance(some_order, signs)
        for some_order in permutations(range(3))
        for signs in product((1, -1), repeat=3)
    )
    chosen = distance(order, tuple(-1 if flip else 1 for flip in flips))
    assert chosen == pytest.approx(best, abs=1e-5)


@given(SEEDS, st.permutations(range(3)), st.tuples(*[st.sampled_from([1, -1])] * 3))
def test_canonical_axes_agree_with_nibabel_where_it_is_clear(seed, order, signs):
    """Up to 25 degrees off the patient's axes there is one answer."""
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.radians(rng.uniform(0, 25)))
    affine = np.eye(4)
    affine[:3, :3] = turn.as_matrix()[:, order] * signs * rng.uniform(0.5, 3, size=3)
    image = nibabel.Nifti1Image(rng.integers(0, 99, (3, 4, 5)).astype(np.int16), affine)
    canonical = nibabel.as_closest_canonical(image)

    axis_order = geometry.closest_canonical_axes(affine)
    array = geometry.reorder_array(np.asarray(image.dataobj), axis_order)
    np.testing.assert_array_equal(array, np.asarray(canonical.dataobj))
    np.testing.assert_allclose(
        geometry.reorder_affine(affine, image.shape, axis_order), canonical.affine, atol=1e-9
    )
    assert geometry.axcodes(affine) == nibabel.aff2axcodes(affine)


@given(SEEDS)
def test_reordering_leaves_every_voxel_where_it_is(seed: int):
    affine, shape = random_affine(seed), (2, 3, 4)
    xyz_mm = geometry.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    axis_order = geometry.closest_canonical_axes(affine)
    new_affine = geometry.reorder_affine(affine, shape, axis_order)
    new_shape = tuple(shape[old] for old in axis_order.order)
    new_xyz_mm = geometry.apply_affine(new_affine, np.moveaxis(np.indices(new_shape), 0, -1))
    for axis in range(3):
        carried = geometry.reorder_array(xyz_mm[..., axis], axis_order)
        np.testing.assert_allclose(carried, new_xyz_mm[..., axis], atol=1e-9)
    assert (np.diag(geometry.direction_cosines(new_affine)) > -1e-6).all()


@pytest.mark.parametrize("noise", [0.0, 1e-15, -1e-15])
@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_ties_at_45_degrees_do_not_depend_on_rounding(noise: float, axis: str):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler(axis, 45, degrees=True).as_matrix() + noise
    assert geometry.closest_canonical_axes(affine) == ((0, 1, 2), (False, False, False))


def test_rounded_cosines_become_orthonormal():
    exact = Rotation.from_euler("xyz", [11, -23, 37], degrees=True).as_matrix()
    rounded = np.round(np.concatenate([exact[:, 0], exact[:, 1]]), 6)
    axes = np.column_stack(geometry.slice_axes_lps(rounded))
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(axes, exact, atol=2e-6)


@pytest.mark.parametrize(
    "orientation_lps",
    [
        [1.0, 0, 0, 0, 0.9, 0],
        [1.0, 0, 0, 0.1, 0.995, 0],
        [0.0, 0, 0, 0, 1, 0],
        [np.nan, 0, 0, 0, 1, 0],
    ],
)
def test_impossible_cosines_are_refused(orientation_lps):
    with pytest.raises(ValueError, match="orthonormal"):
        geometry.slice_axes_lps(np.array(orientation_lps))
