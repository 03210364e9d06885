"""What is timed against CDAM is the same map, and peak memory is the measured process's own."""

import numpy as np
import pytest
import timm
import torch

from cdam_med.attribution.cdam import cdam_scores
from cdam_med.evaluation.speed import (
    TARGETS,
    full_backward_maps,
    measure_memory,
    time_model,
    time_token_ablation,
)

TINY = "test_vit"


def test_full_backward_passes_make_the_same_maps() -> None:
    torch.manual_seed(0)
    vit = timm.create_model(TINY, num_classes=TARGETS).eval().double()
    images = torch.randn(2, 3, 160, 160, dtype=torch.float64)
    found = cdam_scores(vit, images)
    tokens = torch.cat((found.prefix_scores, found.scores.flatten(2)), dim=2)
    for is_trained in (True, False):
        vit.requires_grad_(is_trained)
        torch.testing.assert_close(full_backward_maps(vit, images), tokens, rtol=0, atol=1e-12)
    assert all(weight.grad is None for weight in vit.parameters())


def test_every_way_is_timed_against_the_plain_pass_of_its_turn() -> None:
    rows = time_model(TINY, 1, turns=3, slow_turns=1)
    names = [row.what for row in rows]
    assert len(set(names)) == len(names)
    plain, *others = rows
    assert (plain.what, plain.ratio) == ("plain forward pass", 1.0)
    for row in rows:
        assert 0 < row.low_s <= row.median_s <= row.high_s
    ratios = {row.what: row.ratio for row in others}
    assert ratios["CDAM, 9 targets, first call"] > ratios["CDAM, 9 targets, not verified"]
    backward = next(row for row in others if row.what.startswith("full backward"))
    # nine forward and nine backward passes can't cost less than a few forward passes
    assert backward.ratio > 4
    assert backward.turns == 1
    assert [row.what for row in others if "frozen" in row.what] == [
        "full backward passes, weights frozen, 9 targets"
    ]


def test_token_ablation_is_timed_for_one_token() -> None:
    row = time_token_ablation(TINY, turns=1)
    assert 0 < row.ratio < 10  # of a forward pass, not of all the tokens' together


@pytest.mark.slow
def test_the_memory_of_the_process_that_asks_is_not_counted() -> None:
    held = np.ones(2**28)  # 2 GB, more than a small model takes
    found = measure_memory(TINY, 1)
    assert held.nbytes / 2**20 > found.one_target_mb > 100
    assert 0.8 < found.ratio < 1.2
