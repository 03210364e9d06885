"""Losses by hand."""

import math

import pytest
import torch

from cdam_med.training.trainer import LABEL_SMOOTHING, malignancy_loss


def test_cross_entropy_with_smoothed_labels() -> None:
    logits, malignant = [2.0, -1.0, 0.5], [True, True, False]
    losses = []
    for logit, label in zip(logits, malignant, strict=True):
        probability = 1 / (1 + math.exp(-logit))
        share = 1 - LABEL_SMOOTHING / 2 if label else LABEL_SMOOTHING / 2
        losses.append(-share * math.log(probability) - (1 - share) * math.log(1 - probability))
    every = torch.ones(3, dtype=torch.bool)
    found = malignancy_loss(torch.tensor(logits), torch.tensor(malignant), every)
    assert found.item() == pytest.approx(sum(losses) / 3, rel=1e-5)
    first_and_last = torch.tensor([True, False, True])
    found = malignancy_loss(torch.tensor(logits), torch.tensor(malignant), first_and_last)
    assert found.item() == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-5)


def test_the_undecided_have_no_gradient() -> None:
    logits = torch.tensor([2.0, -30.0, 0.5], requires_grad=True)
    malignant, has_class = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    malignancy_loss(logits, malignant, has_class).backward()
    assert logits.grad[1] == 0
    assert logits.grad[0] < 0 < logits.grad[2]


def test_a_batch_of_the_undecided_costs_nothing() -> None:
    logits = torch.tensor([2.0, -3.0], requires_grad=True)
    none = torch.zeros(2, dtype=torch.bool)
    loss = malignancy_loss(logits, none, none)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.tolist() == [0, 0]
