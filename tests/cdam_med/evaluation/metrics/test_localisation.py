"""Localisation: against slow loops and scikit-learn, at the edges, and between resolutions."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from oracles import slow_localisation
from sklearn.metrics import roc_auc_score

from cdam_med.evaluation.maps import PatchGrid
from cdam_med.evaluation.metrics.localisation import (
    auroc,
    best_dice,
    object_cells,
    pointing_game,
    positive_share,
)

GRID = PatchGrid(image_size=(12, 20), patch_size=(4, 4))


@pytest.fixture(params=["distinct", "tied", "negative", "constant"])
def maps(request):
    random = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 3, 5, generator=random, dtype=torch.float64)
    if request.param == "tied":
        return scores.round()
    if request.param == "negative":
        return -scores.abs() - 0.1
    return torch.ones_like(scores) if request.param == "constant" else scores


@pytest.fixture
def coverage():
    """From nothing to everything; shares of patches."""
    pixels = torch.zeros(6, 12, 20)
    pixels[1, 2:5, 3:9] = 1
    pixels[2, 0, 0] = 1
    pixels[3] = 1
    pixels[4, 4:8, 8:12] = 1
    pixels[5, 5:, 11:] = 1
    return GRID.pooled(pixels)


def test_like_slow_loops(maps, coverage):
    inside = object_cells(coverage)
    for fast, slow, where in (
        (pointing_game, slow_localisation.pointing_game, coverage),
        (positive_share, slow_localisation.positive_share, coverage),
        (auroc, slow_localisation.auroc, inside),
        (best_dice, slow_localisation.best_dice, inside),
    ):
        expected = [slow(m, w) for m, w in zip(maps, where, strict=True)]
        assert_allclose(fast(maps, coverage), expected, atol=1e-12)


def test_auroc_is_that_of_scikit_learn():
    random = np.random.default_rng(1)
    scores, inside = random.integers(0, 9, (5, 8, 8)).astype(float), random.random((5, 8, 8)) < 0.3
    expected = [roc_auc_score(i.ravel(), s.ravel()) for s, i in zip(scores, inside, strict=True)]
    assert_allclose(auroc(torch.tensor(scores), torch.tensor(inside).double()), expected)


def test_cells_are_half_covered_or_those_most_covered():
    coverage = torch.tensor([[[0.5, 0.49, 1.0]], [[0.1, 0.3, 0.3]], [[0.0, 0.0, 0.0]]])
    expected = [[[True, False, True]], [[False, True, True]], [[False, False, False]]]
    assert object_cells(coverage).tolist() == expected


def test_resolution_makes_no_difference_to_a_patch_map():
    random = torch.Generator().manual_seed(2)
    maps = torch.randn(4, 3, 5, generator=random)
    masks = (torch.rand(4, 12, 20, generator=random) < 0.3).float()
    for measure in (pointing_game, positive_share):
        at_patches = measure(maps, GRID.pooled(masks))
        assert_allclose(measure(GRID.spread(maps), masks), at_patches, rtol=1e-6)


def test_the_mask_itself_is_found():
    masks = (torch.rand(3, 12, 20, generator=torch.Generator().manual_seed(3)) < 0.2).float()
    for found in (
        pointing_game(masks, masks),
        positive_share(masks, masks),
        auroc(masks, masks),
        best_dice(masks, masks),
    ):
        assert_allclose(found, 1)


def test_a_map_that_is_the_same_everywhere_finds_by_chance():
    mask = torch.zeros(1, 4, 4)
    mask[0, 1, :3] = 1
    flat = torch.ones(1, 4, 4)
    assert pointing_game(flat, mask) == pytest.approx(3 / 16)
    assert positive_share(flat, mask) == pytest.approx(3 / 16)
    assert auroc(flat, mask) == pytest.approx(0.5)
    assert best_dice(flat, mask) == pytest.approx(2 * 3 / (16 + 3))


def test_a_bad_score_gives_no_value():
    maps = torch.ones(1, 2, 2)
    maps[0, 0, 0] = torch.nan
    mask = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert np.isnan(pointing_game(maps, mask)).all()
    assert np.isnan(positive_share(maps, mask)).all()
    assert np.isnan(auroc(maps, mask)).all()
    assert np.isnan(best_dice(maps, mask)).all()
