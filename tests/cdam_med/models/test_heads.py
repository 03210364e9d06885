"""Heads: order, units, and the scales that are stored with them."""

import pytest
import torch

from cdam_med.models.nodule_vit import NoduleHeads
from cdam_med.targets import TARGET_NAMES
from data_prep.errors import InputError

MEAN = torch.tensor([3.0, 5.5, 4.0, 1.7, 1.6, 9.2, 4.5, 3.8])
SCALE = torch.tensor([0.8, 1.1, 0.9, 0.7, 0.6, 4.9, 1.0, 0.5])


@pytest.fixture
def heads() -> NoduleHeads:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads = NoduleHeads(16)
    heads.set_biomarker_scale(MEAN, SCALE)
    return heads


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(5, 16, generator=torch.Generator().manual_seed(1))


def test_outputs_by_hand(heads: NoduleHeads, tokens: torch.Tensor) -> None:
    state = heads.state_dict()
    logit = tokens @ state["malignancy.weight"].T + state["malignancy.bias"]
    hidden = tokens @ state["biomarkers.0.weight"].T + state["biomarkers.0.bias"]
    standard = hidden.clamp(min=0) @ state["biomarkers.2.weight"].T + state["biomarkers.2.bias"]
    expected = torch.cat([logit, standard * SCALE + MEAN], dim=1)
    assert expected.shape[1] == len(TARGET_NAMES)
    torch.testing.assert_close(heads(tokens), expected)


def test_standardise_undoes_the_units(heads: NoduleHeads, tokens: torch.Tensor) -> None:
    standard = heads.biomarkers(tokens)
    torch.testing.assert_close(heads.standardise(heads(tokens)[:, 1:]), standard)


def test_training_labels_become_standard() -> None:
    labels = torch.randn(200, 8, generator=torch.Generator().manual_seed(2)) * SCALE + MEAN
    heads = NoduleHeads(16)
    heads.set_biomarker_scale(labels.mean(0), labels.std(0))
    standard = heads.standardise(labels)
    torch.testing.assert_close(standard.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std(0), torch.ones(8))


def test_scales_are_stored_but_not_trained(heads: NoduleHeads) -> None:
    other = NoduleHeads(16)
    other.load_state_dict(heads.state_dict())
    torch.testing.assert_close(other.biomarker_mean, MEAN)
    torch.testing.assert_close(other.biomarker_scale, SCALE)
    assert not {"biomarker_mean", "biomarker_scale"} & dict(heads.named_parameters()).keys()


@pytest.mark.parametrize("scale", [0.0, float("nan"), -1.0, float("inf")])
def test_labels_that_do_not_vary_are_named(heads: NoduleHeads, scale: float) -> None:
    scales = SCALE.clone()
    scales[1] = scales[6] = scale
    with pytest.raises(InputError, match="of calcification, texture don't vary"):
        heads.set_biomarker_scale(MEAN, scales)
