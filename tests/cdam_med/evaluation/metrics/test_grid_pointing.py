"""The grid pointing game: which images meet, where they lie, and what a map is worth."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from cdam_med.evaluation.metrics.class_sensitivity import mosaics, positive_share_in_quadrants
from data_prep.errors import InputError


def flat_images(count, height=8, width=8):
    """Images that are told apart by their grey value, the image's number."""
    return torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(
        count, 3, height, width
    )


def test_two_kinds_give_two_images_each():
    kinds = ["malignant"] * 5 + ["benign"] * 8
    made, members = mosaics(flat_images(13), kinds, seed=1)
    assert made.shape == (2, 3, 8, 8)
    for four in members:
        assert sorted(kinds[i] for i in four) == ["benign"] * 2 + ["malignant"] * 2
    assert len(set(members.ravel().tolist())) == members.size


def test_more_kinds_give_four_different():
    kinds = [1] * 6 + [2] * 2 + [3] * 3 + [4] * 2 + [5] * 1
    _, members = mosaics(flat_images(14), kinds, seed=0)
    assert len(members) == 2
    for four in members:
        assert len({kinds[i] for i in four}) == 4
    assert len(set(members.ravel().tolist())) == members.size


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_each_image_fills_its_quadrant(size):
    made, members = mosaics(flat_images(8, *size), list("aabbccdd"), seed=2)
    top, left = size[0] // 2, size[1] // 2
    for image, four in zip(made, members, strict=True):
        quadrants = [image[:, :top, :left], image[:, :top, left:]]
        quadrants += [image[:, top:, :left], image[:, top:, left:]]
        for quadrant, member in zip(quadrants, four, strict=True):
            assert_allclose(quadrant.numpy(), member, atol=1e-6)


def test_shrinking_keeps_what_is_where():
    images = torch.zeros(4, 1, 16, 16)
    images[:, :, :4, 8:12] = 1  # at the top, right of the middle
    made, _ = mosaics(images, list("abcd"))
    first = made[0, 0, :8, :8]
    assert first[:2, 4:6].mean() > 0.8
    assert first.mean() == pytest.approx(1 / 16, abs=1e-3)


def test_the_arrangement_is_random_but_seeded():
    kinds = ["a", "b"] * 40
    one, same, other = (mosaics(flat_images(80), kinds, seed=seed)[1] for seed in (3, 3, 4))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    top_left = [kinds[i] for i in one[:, 0]]
    assert 4 <= top_left.count("a") <= 16


@pytest.mark.parametrize("kinds", [["a"] * 8, ["a", "b", "c"] * 3, ["a", "a", "b"], []])
def test_no_mosaic_can_be_made(kinds):
    with pytest.raises(InputError, match="No mosaic can be made"):
        mosaics(flat_images(len(kinds)), kinds)


def test_share_of_positive_relevance():
    maps = torch.zeros(4, 6, 6)
    maps[0, :3, :3] = 1  # all in the first quadrant
    maps[1] = 1  # everywhere
    maps[2, 3:, 3:], maps[2, :3, :3] = 3, 1
    maps[2, :3, 3:] = -7  # negative relevance doesn't count
    right = np.array(
        [
            [True, False, False, False],
            [True, True, False, False],
            [False, True, False, True],
            [True, True, True, True],
        ]
    )
    assert_allclose(positive_share_in_quadrants(maps, right), [1, 0.5, 0.75, np.nan])
