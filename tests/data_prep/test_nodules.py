"""Nodules, their boxes, and bare points."""

import numpy as np
import pytest

from data_prep import CTVolume, InputError, Nodule, nodule_at
from data_prep.nodules import MaskBox, Reader

AFFINE = np.array([[-0.5, 0, 0, 40], [0, -0.8, 0, 30], [0, 0, 2.0, -100], [0, 0, 0, 1.0]])


@pytest.fixture
def volume() -> CTVolume:
    """Reach from x = 40.25 down to 8.25, y = 30.4 to -8, z = -101 to -85, in RAS."""
    return CTVolume(np.zeros((64, 48, 8), np.int16), AFFINE, "1.2.3")


def test_mask_is_the_box_on_the_grid():
    voxels = np.array([[[True, False], [True, True]]])
    box = MaskBox((3, 4, 5), voxels, (8, 9, 10))
    nodule = Nodule("nodule_1", np.zeros(3), outline=box)
    assert nodule.mask.shape == (8, 9, 10)
    assert np.argwhere(nodule.mask).tolist() == [[3, 4, 5], [3, 5, 5], [3, 5, 6]]
    np.testing.assert_array_equal(nodule.mask[box.slices], voxels)


def test_it_shows_in_one_line_what_it_is():
    box = MaskBox((3, 4, 5), np.ones((2, 2, 2), bool), (8, 9, 10))
    readers = (Reader({"malignancy": 4}, box), Reader({"malignancy": 5}, box))
    ratings = {"malignancy": 4.5, "diameter": 12.34, "margin": 2.0}
    nodule = Nodule("nodule_1", np.array([-56.4, -86.3, 2.0]), ratings, readers, box)
    assert repr(nodule) == (
        "Nodule(nodule_1: centre (-56.4, -86.3, 2.0) mm RAS, outline of 8 voxels, 2 readers, "
        "malignancy 4.5, diameter 12.3)"
    )
    assert repr(Nodule("point", np.zeros(3))) == "Nodule(point: centre (0.0, 0.0, 0.0) mm RAS)"


def test_box_cannot_be_changed():
    voxels = np.ones((1, 1, 1), bool)
    box = MaskBox((0, 0, 0), voxels, (2, 2, 2))
    voxels[:] = False
    assert box.voxels.all()
    with pytest.raises(ValueError, match="read-only"):
        box.voxels[0] = False


@pytest.mark.parametrize(
    ("origin_ijk", "voxels", "message"),
    [
        ((0, 0, 0), np.zeros((2, 2, 2), bool), "isn't empty"),
        ((0, 0, 0), np.ones((2, 2, 2)), "boolean"),
        ((0, 0, 0), np.ones((2, 2), bool), "boolean"),
        ((-1, 0, 0), np.ones((2, 2, 2), bool), "lie on the volume's grid"),
        ((0, 0, 7), np.ones((2, 2, 2), bool), r"\(2, 2, 9\).*lie on the volume's grid"),
    ],
)
def test_impossible_boxes(origin_ijk, voxels, message):
    with pytest.raises(InputError, match=message):
        MaskBox(origin_ijk, voxels, (8, 8, 8))


@pytest.mark.parametrize("nodule_id", ["", "a/b", "..", "a b", "nodule_1\n", "\u00e9"])
def test_names_are_safe_in_paths(nodule_id):
    with pytest.raises(InputError, match="only letters"):
        Nodule(nodule_id, np.zeros(3))


@pytest.mark.parametrize("center", [np.zeros(2), np.array([0, np.nan, 0])])
def test_impossible_centres(center):
    with pytest.raises(InputError, match="three finite numbers"):
        Nodule("nodule_1", center)


def test_center_cannot_be_changed():
    center = np.array([1, 2, 3])
    nodule = Nodule("nodule_1", center)
    center[0] = 9
    assert nodule.center_xyz_mm.tolist() == [1, 2, 3]
    assert nodule.center_xyz_mm.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        nodule.center_xyz_mm[0] = 0


def test_bare_point(volume):
    nodule = nodule_at((20, -3.4, -90), volume)
    assert nodule.center_xyz_mm.tolist() == [20, -3.4, -90]
    assert nodule.mask is None
    assert nodule.ratings == {}
    assert nodule.readers == ()
    assert nodule.nodule_id == "at_R20_P3_I90"


def test_frames(volume):
    """The same place, told in LPS; whoever forgets the frame is told."""
    lps = np.array([-20, 3.4, -90])
    nodule = nodule_at(lps, volume, frame="lps")
    assert nodule.center_xyz_mm.tolist() == [20, -3.4, -90]
    with pytest.raises(InputError, match=r"\(-20\.0, 3\.4, -90\.0\) mm .*in RAS.*frame 'lps'"):
        nodule_at(lps, volume)
    with pytest.raises(InputError, match=r"\(20\.0, -3\.4, -90\.0\) mm .*in LPS.*frame 'ras'"):
        nodule_at([20, -3.4, -90], volume, frame="lps")


def test_extent_is_told_in_the_frame_given(volume):
    ras = r"x 8\.2 to 40\.2, y -8\.0 to 30\.4, z -101\.0 to -85\.0 mm, both in RAS"
    with pytest.raises(InputError, match=ras):
        nodule_at((0, 0, 0), volume)
    lps = r"x -40\.2 to -8\.2, y -30\.4 to 8\.0, z -101\.0 to -85\.0 mm, both in LPS"
    with pytest.raises(InputError, match=lps):
        nodule_at((0, 0, 0), volume, frame="lps")


@pytest.mark.parametrize("axis", range(3))
def test_volume_ends_half_a_voxel_beyond_its_centres(volume, axis):
    for index, inward in ((-0.5, 1), (volume.shape[axis] - 0.5, -1)):
        for step, inside in ((inward, True), (-inward, False)):
            place = np.array([10.0, 10, 3])
            place[axis] = index + 0.01 * step
            point = AFFINE[:3, :3] @ place + AFFINE[:3, 3]
            if inside:
                assert nodule_at(point, volume).center_xyz_mm.tolist() == point.tolist()
            else:
                with pytest.raises(InputError, match="outside the volume"):
                    nodule_at(point, volume)


@pytest.mark.parametrize("point", [(1, 2), (1, 2, np.nan), [[1, 2, 3]], (np.inf, 0, 0)])
def test_not_a_point(volume, point):
    with pytest.raises(InputError, match="three finite numbers"):
        nodule_at(np.array(point), volume)


def test_unknown_frame(volume):
    with pytest.raises(InputError, match="'RAS' is unknown; give 'ras' or 'lps'"):
        nodule_at((20, 0, -90), volume, frame="RAS")
