"""Crops of phantoms: where they lie, what they hold, what lies outside, what is refused."""

from collections.abc import Iterator
from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK

from data_prep.crop import (
    Crop,
    box_center_xyz_mm,
    crop_nodule,
    cut_crop,
    needed_size_mm,
    outline_on_crop,
)
from data_prep.errors import CropError
from data_prep.nodules import MaskBox, Nodule
from data_prep.volume import CTVolume

SHAPE = (30, 34, 20)
SPACING_MM = (1.3, 1.1, 2.0)
MIDDLE_XYZ_MM = np.array([-31.4, 22.7, 118.3])

SIGNED_PERMUTATIONS = [
    np.eye(3)[list(order)] * signs
    for order, signs in product(permutations(range(3)), product([1, -1], repeat=3))
]


def turn(degrees: float) -> np.ndarray:
    """Rotation about a skew axis, by Rodrigues' formula."""
    x, y, z = np.array([2.0, -1.0, 3.0]) / np.sqrt(14)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def affine_around(cosines: np.ndarray, spacing_mm=SPACING_MM, shape=SHAPE) -> np.ndarray:
    """Voxel index to mm, with the middle of the array at `MIDDLE_XYZ_MM`."""
    affine = np.eye(4)
    affine[:3, :3] = cosines * spacing_mm
    affine[:3, 3] = MIDDLE_XYZ_MM - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def points(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.indices(shape), axis=-1) @ affine[:3, :3].T + affine[:3, 3]


def ramp_hu(xyz_mm: np.ndarray) -> np.ndarray:
    return (xyz_mm - MIDDLE_XYZ_MM) @ [3.0, 7.0, -5.0] + 40


def ramp_volume(affine: np.ndarray) -> CTVolume:
    return CTVolume(ramp_hu(points(affine, SHAPE)).astype(np.float32), affine, "ramp")


def noise_volume(affine: np.ndarray, outside: np.ndarray | None = None) -> CTVolume:
    hu = np.random.default_rng(3).integers(-1000, 1500, SHAPE).astype(np.int16)
    return CTVolume(hu, affine, "noise", outside=outside)


def orientations(angle: float, step: int = 1) -> Iterator[np.ndarray]:
    """All flips and orders of the axes (or every so many of them), turned by an angle."""
    for signed in SIGNED_PERMUTATIONS[::step]:
        yield turn(angle) @ signed


@pytest.mark.parametrize(("size_mm", "spacing_mm"), [(12.0, 1.0), (13.0, 1.0), (20.0, 2.5)])
def test_a_ramp_in_the_patient_is_the_same_ramp_in_the_crop(
    size_mm: float, spacing_mm: float
) -> None:
    # linear interpolation, and smoothing by an even kernel, leave a linear function as it is
    center_xyz_mm = np.add(MIDDLE_XYZ_MM, [2.31, -1.77, 3.19])
    for cosines in [*orientations(0.0, step=7), *orientations(25.0, step=5)]:
        volume = ramp_volume(affine_around(cosines))
        crop = crop_nodule(
            volume, Nodule("n", center_xyz_mm), size_mm=size_mm, spacing_mm=spacing_mm
        )
        assert crop.hu.shape == (round(size_mm / spacing_mm),) * 3
        assert crop.hu.dtype == np.float32
        expected = ramp_hu(points(crop.affine, crop.hu.shape))
        np.testing.assert_allclose(crop.hu, expected, atol=2e-3)
        assert crop.padding_fraction == 0


@pytest.mark.parametrize("size_mm", [12.0, 13.0])
def test_the_middle_of_the_cube_is_the_nodule(size_mm: float) -> None:
    center_xyz_mm = np.add(MIDDLE_XYZ_MM, [0.123, -4.56, 7.89])
    for cosines in orientations(25.0, step=5):
        volume = noise_volume(affine_around(cosines))
        crop = crop_nodule(volume, Nodule("n", center_xyz_mm), size_mm=size_mm)
        middle = crop.affine @ [*[(size_mm - 1) / 2] * 3, 1]
        np.testing.assert_allclose(middle[:3], center_xyz_mm, atol=1e-9)
        assert crop.spacing_mm == pytest.approx(1.0)


def test_axes_run_closest_to_right_anterior_superior_and_are_not_turned() -> None:
    for cosines in [*orientations(0.0), *orientations(25.0)]:
        crop = crop_nodule(
            noise_volume(affine_around(cosines)), Nodule("n", MIDDLE_XYZ_MM), size_mm=8.0
        )
        found = crop.affine[:3, :3]
        traces = [np.trace(found @ signed) for signed in SIGNED_PERMUTATIONS]
        assert np.trace(found) == pytest.approx(max(traces))
        overlap = np.abs(cosines.T @ found)  # each axis is one of the scan's, maybe flipped
        np.testing.assert_allclose(np.sort(overlap, axis=0), [[0] * 3, [0] * 3, [1] * 3], atol=1e-9)


def itk_image(array: np.ndarray, affine: np.ndarray) -> SimpleITK.Image:
    """Put an array with a RAS affine into ITK's LPS."""
    affine_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetOrigin(affine_lps[:3, 3].tolist())
    image.SetSpacing(spacing_mm.tolist())
    image.SetDirection((affine_lps[:3, :3] / spacing_mm).ravel().tolist())
    return image


def by_itk(array: np.ndarray, affine: np.ndarray, crop: Crop, how: int, beyond: float):
    reference = itk_image(np.zeros(crop.hu.shape, np.float32), crop.affine)
    resampled = SimpleITK.Resample(
        itk_image(array, affine), reference, SimpleITK.Transform(), how, beyond
    )
    return SimpleITK.GetArrayFromImage(resampled).T


def nodule_with_outline(affine: np.ndarray, center_xyz_mm: np.ndarray) -> Nodule:
    """A ragged outline around the centre, as far as it lies on the grid."""
    rough = np.random.default_rng(5).normal(5.0, 1.5, SHAPE)
    mask = np.linalg.norm(points(affine, SHAPE) - center_xyz_mm, axis=-1) < rough
    first = np.argwhere(mask).min(axis=0)
    ends = np.argwhere(mask).max(axis=0) + 1
    box = mask[tuple(slice(a, b) for a, b in zip(first, ends, strict=True))]
    return Nodule("n", center_xyz_mm, outline=MaskBox(tuple(first.tolist()), box, SHAPE))


@pytest.mark.parametrize(
    "offset_mm",
    [(1.37, 2.21, -0.83), (-18.13, 15.41, 17.77), (17.57, -15.32, -19.13)],
    ids=["inside", "at one corner", "at the other corner"],
)
@pytest.mark.parametrize("angle", [0.0, 17.0])
def test_itk_makes_the_same_crop(angle: float, offset_mm: tuple[float, float, float]) -> None:
    cosines = turn(angle) @ np.diag([-1.0, -1.0, 1.0])
    affine = affine_around(cosines)
    volume = noise_volume(affine)
    nodule = nodule_with_outline(
        affine, MIDDLE_XYZ_MM + cosines @ (offset_mm * np.array([-1, -1, 1]))
    )
    crop = crop_nodule(volume, nodule, size_mm=21.0, spacing_mm=1.0)  # nowhere coarser
    hu = by_itk(volume.hu.astype(np.float32), affine, crop, SimpleITK.sitkLinear, -1000.0)
    np.testing.assert_allclose(crop.hu, hu, atol=0.01)
    mask = by_itk(nodule.mask.astype(np.uint8), affine, crop, SimpleITK.sitkNearestNeighbor, 0)
    np.testing.assert_array_equal(crop.mask, mask.astype(bool))
    assert crop.mask.any()


def test_padding_is_air_and_its_share_is_known() -> None:
    volume = CTVolume(np.full((20, 20, 20), 60, np.int16), np.eye(4), "cube")
    crop = crop_nodule(volume, Nodule("n", np.zeros(3)), size_mm=9.0)
    # grid points from -4 to 4 mm along each axis: five of nine lie in the scan
    assert crop.padding_fraction == pytest.approx(1 - (5 / 9) ** 3)
    inside = np.zeros((9, 9, 9), bool)
    inside[4:, 4:, 4:] = True
    np.testing.assert_array_equal(crop.padding, ~inside)
    np.testing.assert_array_equal(crop.hu, np.where(inside, 60.0, -1000.0))


def half_outside() -> np.ndarray:
    outside = np.zeros(SHAPE, bool)
    outside[: SHAPE[0] // 2] = True
    return outside


def test_padding_values_become_air_and_count_as_padding() -> None:
    affine = affine_around(np.eye(3), (1.0, 1.0, 1.0))
    outside = half_outside()
    hu = np.where(outside, -2000, 50).astype(np.int16)
    volume = CTVolume(hu, affine, "field of view", outside=outside)
    crop = crop_nodule(volume, Nodule("n", MIDDLE_XYZ_MM), size_mm=16.0)
    assert crop.padding_fraction == 0.5
    np.testing.assert_array_equal(crop.hu[:8], -1000.0)
    np.testing.assert_array_equal(crop.hu[8:], 50.0)


@pytest.mark.parametrize("spacing_mm", [0.5, 1.0, 4.0])
def test_what_the_padding_value_is_makes_no_difference(spacing_mm: float) -> None:
    affine = affine_around(turn(12.0))
    outside = half_outside()
    crops = []
    for value in (-2000, -1024, 30000):
        hu = np.where(outside, value, noise_volume(affine).hu).astype(np.int16)
        volume = CTVolume(hu, affine, "field of view", outside=outside)
        crops.append(
            crop_nodule(volume, Nodule("n", MIDDLE_XYZ_MM), size_mm=16.0, spacing_mm=spacing_mm)
        )
    assert 0 < crops[0].padding_fraction < 1
    for other in crops[1:]:
        np.testing.assert_array_equal(other.hu, crops[0].hu)
        np.testing.assert_array_equal(other.padding, crops[0].padding)


def test_a_bare_point_has_no_mask() -> None:
    volume = noise_volume(affine_around(np.eye(3)))
    assert crop_nodule(volume, Nodule("n", MIDDLE_XYZ_MM), size_mm=8.0).mask is None


def block_nodule(n_voxels: int, margin: int = 0) -> tuple[CTVolume, Nodule]:
    """A cube of voxels of 2 mm as outline, in a box that may be wider than it."""
    volume = CTVolume(np.zeros((32, 32, 32), np.int16), np.diag([2.0, 2.0, 2.0, 1.0]), "blocks")
    voxels = np.pad(np.ones((n_voxels,) * 3, bool), margin)
    center_xyz_mm = np.full(3, 2.0 * (8 + (n_voxels - 1) / 2))
    return volume, Nodule(
        "block", center_xyz_mm, outline=MaskBox((8 - margin,) * 3, voxels, (32,) * 3)
    )


def test_a_nodule_that_does_not_fit_is_reported_with_the_size_that_it_needs() -> None:
    volume, nodule = block_nodule(11)
    with pytest.raises(CropError, match=r"block needs a crop of 22 mm.* 21 mm"):
        crop_nodule(volume, nodule, size_mm=21.0)
    with pytest.raises(CropError, match=r"needs a crop of 22\.5 mm"):
        crop_nodule(volume, nodule, size_mm=15.0, spacing_mm=1.5)
    crop_nodule(volume, nodule, size_mm=22.5, spacing_mm=1.5)


def test_a_nodule_that_just_fits_is_whole() -> None:
    volume, nodule = block_nodule(11, margin=3)
    crop = crop_nodule(volume, nodule, size_mm=22.0)
    assert crop.mask.all()
    wider = crop_nodule(volume, nodule, size_mm=40.0)
    assert wider.mask.sum() == 22**3


def test_decimal_sizes_are_whole_numbers_of_voxels() -> None:
    affine = np.diag([0.7, 0.7, 0.7, 1.0])
    outline = MaskBox((10, 10, 10), np.ones((10, 10, 10), bool), (30, 30, 30))
    nodule = Nodule("n", np.full(3, 14.5 * 0.7), outline=outline)
    volume = CTVolume(np.zeros((30, 30, 30), np.int16), affine, "small")
    assert crop_nodule(volume, nodule, size_mm=7.0, spacing_mm=0.7).mask.all()


@pytest.mark.parametrize(
    ("size_mm", "spacing_mm"),
    [
        (64.5, 1.0),
        (1.0, 0.3),
        (0.5, 1.0),
        (0.0, 1.0),
        (-8.0, 1.0),
        (8.0, -1.0),
        (8.0, 0.0),
        (np.nan, 1.0),
        (8.0, np.nan),
        (np.inf, 1.0),
    ],
)
def test_impossible_sizes_are_refused(size_mm: float, spacing_mm: float) -> None:
    volume = noise_volume(affine_around(np.eye(3)))
    with pytest.raises(CropError, match="crop of"):
        crop_nodule(volume, Nodule("n", MIDDLE_XYZ_MM), size_mm=size_mm, spacing_mm=spacing_mm)


@pytest.mark.parametrize("away_mm", [500.0, 20.4])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_cube_outside_of_the_scan_is_refused(sign: int, away_mm: float) -> None:
    # the scan reaches 20 mm from its middle; grid points of the cube begin 3.5 mm before its own
    volume = noise_volume(affine_around(np.eye(3)))
    center_xyz_mm = np.add(MIDDLE_XYZ_MM, [0, 0, sign * (away_mm + 3.5)])
    with pytest.raises(CropError, match=r"outside of the scan altogether.* noise"):
        crop_nodule(volume, Nodule("n", center_xyz_mm), size_mm=8.0)


def test_a_cube_of_padding_values_alone_is_refused() -> None:
    outside = np.ones(SHAPE, bool)
    outside[0] = False
    volume = noise_volume(affine_around(np.eye(3)), outside)
    with pytest.raises(CropError, match="outside of the scan altogether"):
        crop_nodule(volume, Nodule("n", MIDDLE_XYZ_MM), size_mm=8.0)


def test_a_nodule_of_another_volume_is_refused() -> None:
    _, nodule = block_nodule(3)
    with pytest.raises(CropError, match=r"\(32, 32, 32\).*\(30, 34, 20\)"):
        crop_nodule(noise_volume(affine_around(np.eye(3))), nodule)


def test_a_nodule_may_be_cut_and_it_says_so() -> None:
    volume, nodule = block_nodule(11)
    assert needed_size_mm(volume, nodule) == pytest.approx(22.0)
    assert needed_size_mm(volume, Nodule("n", np.zeros(3))) == 0
    cut = crop_nodule(volume, nodule, size_mm=20.0, too_large="cut")
    assert cut.is_cut
    assert cut.mask.all()
    assert not crop_nodule(volume, nodule, size_mm=22.0, too_large="cut").is_cut


@pytest.mark.parametrize("angle", [0.0, 17.0])
def test_the_middle_of_the_box_is_that_of_the_outer_edges(angle: float) -> None:
    affine = affine_around(turn(angle) @ np.diag([-1.0, -1.0, 1.0]))
    voxels = np.zeros((6, 5, 7), bool)
    voxels[1, 1, 2] = voxels[4, 2, 5] = True
    outline = MaskBox((3, 4, 5), voxels, SHAPE)
    expected = points(affine, SHAPE)[[4, 7], [5, 6], [7, 10]].mean(axis=0)
    found = box_center_xyz_mm(noise_volume(affine), [outline])
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_middle_of_several_readers_is_that_of_the_box_around_all() -> None:
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    small = MaskBox((3, 4, 5), np.ones((1, 1, 1), bool), SHAPE)
    large = MaskBox((5, 2, 4), np.ones((2, 3, 4), bool), SHAPE)
    # voxels 3 to 6, 2 to 4, 4 to 7
    found = box_center_xyz_mm(noise_volume(affine), [small, large])
    np.testing.assert_allclose(found, [-4.5, -3.0, 11.0])


@pytest.mark.parametrize("angle", [0.0, 17.0])
def test_a_readers_outline_lies_where_itk_puts_it(angle: float) -> None:
    cosines = turn(angle) @ np.diag([-1.0, 1.0, -1.0])
    affine = affine_around(cosines)
    volume = noise_volume(affine)
    center_xyz_mm = MIDDLE_XYZ_MM + cosines @ [2.13, -1.41, 3.07]
    reader = nodule_with_outline(affine, np.add(center_xyz_mm, [1.0, 2.0, -1.5]))
    crop = crop_nodule(volume, Nodule("n", center_xyz_mm), size_mm=18.0)
    found = outline_on_crop(volume, reader.outline, crop)
    mask = by_itk(reader.mask.astype(np.uint8), affine, crop, SimpleITK.sitkNearestNeighbor, 0)
    np.testing.assert_array_equal(found, mask.astype(bool))
    assert 0 < found.sum() < found.size


def test_only_the_grid_of_the_scan_counts_as_beyond_it() -> None:
    affine = affine_around(np.eye(3))
    outside = np.zeros(SHAPE, bool)
    outside[14:16, 16:18, 9:11] = True
    inside = Nodule("n", MIDDLE_XYZ_MM)
    crop = crop_nodule(noise_volume(affine, outside), inside, size_mm=10.0)
    assert crop.padding_fraction > 0
    assert not crop.is_beyond_scan
    corner = Nodule("n", affine[:3, 3])
    assert crop_nodule(noise_volume(affine), corner, size_mm=10.0).is_beyond_scan


@pytest.mark.parametrize(("size_mm", "spacing_mm"), [(24.0, 1.0), (26.4, 1.2)])
@pytest.mark.parametrize("angle", [0.0, 20.0])
def test_the_middle_of_a_crop_is_the_smaller_crop(
    size_mm: float, spacing_mm: float, angle: float
) -> None:
    affine = affine_around(SIGNED_PERMUTATIONS[13] @ turn(angle))
    outside = np.random.default_rng(4).random(SHAPE) < 0.1
    volume = noise_volume(affine, outside)
    outline = MaskBox((13, 15, 9), np.ones((3, 4, 2), bool), SHAPE)
    nodule = Nodule("n", np.add(MIDDLE_XYZ_MM, [0.313, -0.217, 0.131]), outline=outline)
    small_mm = size_mm - 10 * spacing_mm
    whole = crop_nodule(volume, nodule, size_mm=size_mm, spacing_mm=spacing_mm)
    cut = cut_crop(whole, size_mm=small_mm, spacing_mm=spacing_mm)
    expected = crop_nodule(volume, nodule, size_mm=small_mm, spacing_mm=spacing_mm)
    np.testing.assert_allclose(cut.affine, expected.affine, atol=1e-9)
    np.testing.assert_allclose(cut.hu, expected.hu, atol=1e-2)
    np.testing.assert_array_equal(cut.mask, expected.mask)
    np.testing.assert_array_equal(cut.padding, expected.padding)
    assert cut.is_beyond_scan == expected.is_beyond_scan


def test_a_cut_that_would_go_through_the_nodule_is_refused() -> None:
    volume = ramp_volume(affine_around(np.eye(3)))
    nodule = Nodule(
        "n", MIDDLE_XYZ_MM, outline=MaskBox((8, 15, 9), np.ones((14, 4, 2), bool), SHAPE)
    )
    whole = crop_nodule(volume, nodule, size_mm=24.0)
    with pytest.raises(CropError, match=r'would be cut by the 14 mm.*too_large="cut"'):
        cut_crop(whole, size_mm=14.0, spacing_mm=1.0)
    already = crop_nodule(volume, nodule, size_mm=14.0, too_large="cut")
    assert cut_crop(already, size_mm=14.0, spacing_mm=1.0) is already


def test_a_crop_with_turned_axes_is_refused() -> None:
    hu = np.zeros((10, 10, 10), np.float32)
    lps = Crop(hu, np.diag([-1.0, -1.0, 1.0, 1.0]), None, None)
    with pytest.raises(CropError, match="axes LPS"):
        cut_crop(lps, size_mm=10.0, spacing_mm=1.0)
