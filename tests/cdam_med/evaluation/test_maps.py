"""Resolution of maps: told by their form, pooled and spread patch by patch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.networks.nets.vit import ViT
from oracles import patch_models
from torch.testing import assert_close

from cdam_med.attribution.patch_embed_3d import PatchEmbed3d
from cdam_med.attribution.registry import estimator
from cdam_med.errors import ModelError
from cdam_med.evaluation.maps import PatchGrid, as_rows, patch_grid
from data_prep.errors import InputError


@given(
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    down=st.integers(1, 6),
    across=st.integers(1, 6),
)
def test_pooled_is_the_mean_of_each_patch_and_spread_its_reverse(height, width, down, across):
    grid = PatchGrid((height, width), (down, across))
    pixels = torch.arange(2.0 * height * width, dtype=torch.float64).reshape(2, height, width) ** 2
    if grid.size == (height, width):
        assert grid.pooled(pixels) is pixels
        return
    pooled = grid.pooled(pixels)
    assert pooled.shape == (2, *grid.size)
    for row in range(grid.size[0]):
        for column in range(grid.size[1]):
            patch = pixels[
                :, row * down : (row + 1) * down, column * across : (column + 1) * across
            ]
            assert_close(pooled[:, row, column], patch.mean((1, 2)))
    spread = grid.spread(pooled)
    assert spread.shape == pixels.shape
    assert_close(grid.pooled(spread), pooled)
    for y in range(height):
        for x in range(width):
            assert spread[0, y, x] == pooled[0, y // down, x // across]


def test_maps_stay_what_they_are_at_their_own_resolution():
    grid = PatchGrid((8, 12), (4, 4))
    patches, pixels = torch.zeros(1, 9, 2, 3), torch.zeros(8, 12)
    assert grid.resolution(patches) == "patch"
    assert grid.resolution(pixels) == "pixel"
    assert grid.pooled(patches) is patches
    assert grid.spread(pixels) is pixels
    assert grid.pooled(torch.zeros(1, 9, 8, 12)).shape == (1, 9, 2, 3)


def test_maps_of_something_else_are_refused():
    message = r"each patch \(2, 3\) or each pixel \(8, 12\), not \(3, 2\)"
    with pytest.raises(InputError, match=message):
        PatchGrid((8, 12), (4, 4)).pooled(torch.zeros(1, 3, 2))


def test_grid_of_a_model_fits_what_estimators_give():
    vit, images = patch_models.small_vit(), torch.randn(2, 3, 16, 24, dtype=torch.float64)
    grid = patch_grid(vit, images)
    assert grid == PatchGrid((16, 24), (4, 4))
    for name, resolution in (("cdam", "patch"), ("input_x_gradient", "pixel")):
        found = estimator(name)(vit, images)
        assert grid.resolution(found.scores) == resolution == found.resolution
        assert grid.pooled(found.scores).shape == (2, 3, 4, 6)


def test_grid_of_a_model_that_pads():
    vit = patch_models.small_vit(dynamic_img_size=True, dynamic_img_pad=True)
    grid = patch_grid(vit, torch.zeros(1, 3, 9, 21, dtype=torch.float64))
    assert grid.size == (3, 6)
    assert grid.patch_size == (4, 4)
    pooled = grid.pooled(torch.ones(1, 9, 21))
    assert_close(pooled, torch.ones(1, 3, 6))


def monai_vit(size, patch):
    """Return a small ViT of MONAI, which needs einops to be built."""
    pytest.importorskip("einops")
    return ViT(
        in_channels=1,
        img_size=size,
        patch_size=patch,
        hidden_size=24,
        mlp_dim=24,
        num_layers=2,
        num_heads=2,
        classification=True,
        num_classes=2,
        spatial_dims=len(size),
    )


def test_grid_of_monais_vit():
    grid = patch_grid(monai_vit((16, 24), (4, 8)), torch.zeros(1, 1, 16, 24))
    assert grid == PatchGrid((16, 24), (4, 8))


def test_grid_of_slices_as_channels():
    deep = patch_models.small_vit(embed_layer=PatchEmbed3d, in_chans=5)
    assert patch_grid(deep, torch.zeros(1, 5, 16, 24)) == PatchGrid((16, 24), (4, 4))


def test_a_model_of_volumes_is_refused():
    with pytest.raises(ModelError, match="takes volumes"):
        patch_grid(monai_vit((4, 16, 24), (4, 4, 4)), torch.zeros(1, 1, 4, 16, 24))


def test_no_maps_have_no_rows():
    assert as_rows(torch.zeros(0, 2, 3)).shape == (0, 6)


def test_rows_are_wide_and_bad_maps_are_nan_throughout():
    maps = torch.arange(12.0).reshape(3, 2, 2).to(torch.bfloat16).requires_grad_()
    rows = as_rows(maps)
    assert rows.dtype == np.float64
    np.testing.assert_array_equal(rows, np.arange(12.0).reshape(3, 4))
    bad = maps.detach().clone()
    bad[1, 0, 1] = torch.inf
    bad[2, 1, 1] = torch.nan
    rows = as_rows(bad)
    np.testing.assert_array_equal(rows[0], np.arange(4.0))
    assert np.isnan(rows[1:]).all()
