"""CTVolume can't be made wrong, nor changed."""

import numpy as np
import pytest

from data_prep.errors import InputError
from data_prep.volume import CTVolume

AFFINE = np.array([[-0.7, 0, 0, 166], [0, -0.7, 0, 171], [0, 0, 2.5, -340], [0, 0, 0, 1]])
TILTED = np.array([[-0.7, 0, 0, 166], [0, -0.7, 0.5, 171], [0, 0, 2.5, -340], [0, 0, 0, 1]])
FLAT = np.array([[-0.7, 0, 0, 166], [0, -0.7, 0, 171], [0, 0, 0, -340], [0, 0, 0, 1.0]])


def hu_array(dtype: type = np.int16) -> np.ndarray:
    return np.arange(24).reshape(4, 3, 2).astype(dtype)


def test_what_it_knows():
    volume = CTVolume(hu_array(), AFFINE, "1.2.3", ("1.2.3.1", "1.2.3.2"), hu_array() > 20)
    assert volume.shape == (4, 3, 2)
    assert volume.axcodes == ("L", "P", "S")
    np.testing.assert_allclose(volume.spacing_mm, [0.7, 0.7, 2.5])


def test_it_shows_in_one_line_what_it_is_and_not_whose():
    volume = CTVolume(np.zeros((4, 3, 2), np.int16), np.diag([-0.7, -0.7, 2.5, 1.0]), "1.2.840.9")
    assert repr(volume) == (
        "CTVolume(4 x 3 x 2 voxels of 0.7 x 0.7 x 2.5 mm, axes LPS, HU as int16)"
    )


@pytest.mark.parametrize("name", ["hu", "affine", "outside"])
def test_arrays_are_read_only(name: str):
    hu, affine = hu_array(), AFFINE.copy()
    volume = CTVolume(hu, affine, "1.2.3", outside=hu > 20)
    with pytest.raises(ValueError, match="read-only"):
        getattr(volume, name)[0] = 0
    hu[0], affine[0] = 0, 0  # the caller's own arrays stay writable


def test_a_later_change_of_the_callers_affine_does_not_reach_it():
    affine = AFFINE.copy()
    volume = CTVolume(hu_array(), affine, "1.2.3")
    affine[0, 3] = 0
    np.testing.assert_array_equal(volume.affine, AFFINE)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"hu": np.zeros((3, 2), np.int16)}, r"hu .* shape"),
        ({"hu": np.zeros((3, 0, 2), np.int16)}, r"hu .* shape"),
        ({"hu": hu_array(np.float64)}, "hu .* float64"),
        ({"hu": hu_array(np.uint16)}, "hu .* uint16"),
        ({"hu": np.full((4, 3, 2), np.nan, np.float32)}, "finite"),
        ({"affine": AFFINE[:3]}, "affine"),
        ({"affine": AFFINE.astype(np.float32)}, "affine .* float32"),
        ({"affine": np.where(AFFINE == 166, np.inf, AFFINE)}, "finite"),
        ({"affine": AFFINE * 2}, "last row"),
        ({"affine": FLAT}, "positive spacing"),
        ({"affine": TILTED}, "perpendicular"),
        ({"sop_instance_uids": ("1.2.3.1",)}, "2 slices"),
        ({"sop_instance_uids": ("1.2.3.1", "1.2.3.1")}, "1 different"),
        ({"outside": np.zeros((4, 3, 3), np.bool_)}, "outside"),
        ({"outside": np.zeros((4, 3, 2), np.uint8)}, "outside .* uint8"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict, names: str):
    parts = {"hu": hu_array(), "affine": AFFINE, "series_uid": "1.2.3"}
    with pytest.raises(InputError, match=names):
        CTVolume(**(parts | changes))


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_hash_depends_on_voxels_and_affine_alone(dtype: type):
    hu = hu_array(dtype)
    reference = CTVolume(hu, AFFINE, "1.2.3").sha256
    assert len(reference) == 64
    assert CTVolume(np.asfortranarray(hu), AFFINE, "9.9", outside=hu > 3).sha256 == reference
    changed = hu.copy()
    changed[3, 2, 1] += 1
    moved = AFFINE.copy()
    moved[2, 3] += 1e-9
    others = {
        CTVolume(changed, AFFINE, "1.2.3").sha256,
        CTVolume(hu, moved, "1.2.3").sha256,
        CTVolume(hu.swapaxes(0, 1), AFFINE, "1.2.3").sha256,
    }
    assert reference not in others
