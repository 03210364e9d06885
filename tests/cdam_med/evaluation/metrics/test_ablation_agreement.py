"""Agreement with token ablation: per image, and pooled as in the first paper."""

import numpy as np
import pytest
import torch
from oracles import patch_models, slow_statistics

from cdam_med.attribution.registry import estimator
from cdam_med.evaluation.maps import agreement, patch_grid
from cdam_med.evaluation.results import pooled_pearson
from data_prep.errors import InputError


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


MAPS, OTHERS = normal(7, 4, 6).round(decimals=1), normal(7, 4, 6, seed=1)
GROUPS = [str(index // 2) for index in range(7)]


def test_agreement_is_that_of_loops():
    pearson, spearman = (agreement(MAPS, OTHERS, kind=kind) for kind in ("pearson", "spearman"))
    for index in range(7):
        a, b = MAPS[index].flatten().tolist(), OTHERS[index].flatten().tolist()
        assert pearson[index] == pytest.approx(slow_statistics.pearson(a, b))
        assert spearman[index] == pytest.approx(
            slow_statistics.pearson(slow_statistics.ranks(a), slow_statistics.ranks(b))
        )


def test_scale_of_an_image_counts_only_in_the_pool():
    scale = torch.tensor([1.0, -1, 5, 9, 1, 1, 100]).double()[:, None, None]
    signs = scale.sign().flatten().numpy()
    np.testing.assert_allclose(
        agreement(MAPS * scale + 3, OTHERS), agreement(MAPS, OTHERS) * signs, atol=1e-12
    )
    one, other = (pooled_pearson(m, OTHERS, GROUPS).value for m in (MAPS, MAPS * scale))
    assert abs(one - other) > 0.01


def test_ranks_are_those_of_any_rising_function():
    np.testing.assert_allclose(
        agreement(MAPS.exp(), OTHERS, kind="spearman"), agreement(MAPS, OTHERS, kind="spearman")
    )


def test_pool_is_that_of_loops():
    found = pooled_pearson(MAPS + 1e6, 1e-9 * OTHERS, GROUPS, seed=2)

    def pooled(images):
        a, b = MAPS[images].flatten().tolist(), OTHERS[images].flatten().tolist()
        return slow_statistics.pearson(a, b)

    assert found.value == pytest.approx(pooled(list(range(7))), abs=1e-8)
    drawn = slow_statistics.bootstrap(pooled, GROUPS, 2, 2000)
    assert found.low == pytest.approx(np.quantile(drawn, 0.025), abs=1e-8)
    assert found.high == pytest.approx(np.quantile(drawn, 0.975), abs=1e-8)
    assert (found.images, found.groups) == (7, 4)
    same = pooled_pearson(MAPS, 2 * MAPS - 1, GROUPS)
    assert (same.value, same.low, same.high) == pytest.approx((1, 1, 1))


def test_what_has_no_correlation_is_nan():
    flat = MAPS.clone()
    flat[2] = 0.1
    flat[3, 0, 0] = torch.nan
    values = agreement(flat, OTHERS)
    assert np.isnan(values[[2, 3]]).all()
    assert np.isfinite(np.delete(values, [2, 3])).all()
    without = pooled_pearson(flat, OTHERS, GROUPS)
    assert (without.images, without.groups) == (6, 4)  # a constant map has its place in a pool
    kept = [0, 1, 2, 4, 5, 6]
    a, b = flat[kept].flatten().tolist(), OTHERS[kept].flatten().tolist()
    assert without.value == pytest.approx(slow_statistics.pearson(a, b))
    constant = pooled_pearson(torch.full((7, 4, 6), 0.3).double(), OTHERS, GROUPS)
    assert np.isnan([constant.value, constant.low, constant.high]).all()
    bad = pooled_pearson(torch.full((7, 4, 6), torch.nan).double(), OTHERS, GROUPS)
    assert np.isnan(bad.value)
    assert bad.images == 0


def test_pixel_maps_are_to_be_pooled_first():
    vit, images = patch_models.small_vit(), normal(2, 3, 16, 24, seed=3)
    ablation = estimator("token_ablation")(vit, images, 1).scores[:, 0]
    pixels = estimator("input_x_gradient")(vit, images, 1).scores[:, 0]
    with pytest.raises(InputError, match="pool pixel maps to the patch grid"):
        agreement(pixels, ablation)
    values = agreement(patch_grid(vit, images).pooled(pixels), ablation)
    assert np.isfinite(values).all()
    np.testing.assert_allclose(agreement(ablation, ablation), 1)
