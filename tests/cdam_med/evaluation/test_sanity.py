"""Sanity: the cascade of randomised copies, and likeness between images."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import spearmanr
from timm.models.vision_transformer import VisionTransformer

from cdam_med.errors import ModelError
from cdam_med.evaluation.sanity import correlation_with_others, randomisation_stages, randomised
from data_prep.errors import InputError


@pytest.fixture
def vit():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTransformer(
            img_size=16,
            patch_size=4,
            embed_dim=12,
            depth=3,
            num_heads=2,
            num_classes=3,
            reg_tokens=1,
        )
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def changed(model, other):
    pairs = zip(model.named_parameters(), other.parameters(), strict=True)
    return {name for (name, one), two in pairs if not torch.equal(one, two)}


def test_stages_go_from_the_head_down(vit):
    expected = ("head", "block 3", "block 2", "block 1", "embedding")
    assert randomisation_stages(vit) == expected
    counts, parts = [], []
    for stage, altered in randomised(vit):
        names = changed(vit, altered)
        parts.append(stage)
        counts.append(len(names))
        if stage == "head":
            assert names == {"head.weight", "head.bias", "norm.weight", "norm.bias"}
        if stage == "block 2":
            assert any(name.startswith("blocks.1.") for name in names)
            assert not any(name.startswith(("blocks.0.", "patch_embed")) for name in names)
    assert tuple(parts) == expected
    assert counts == sorted(counts)
    assert counts[-1] == len(list(vit.parameters()))


def test_the_model_itself_stays_as_it_is(vit):
    before = copy.deepcopy(vit.state_dict())
    training = [module.training for module in vit.modules()]
    for _, altered in randomised(vit, seed=3):
        assert altered is not vit
    assert all(torch.equal(before[name], value) for name, value in vit.state_dict().items())
    assert training == [module.training for module in vit.modules()]


def test_weights_keep_their_size_and_are_seeded(vit):
    (one, same, other) = (
        dict(list(randomised(vit, seed=seed))[-1][1].named_parameters()) for seed in (1, 1, 2)
    )
    name = "blocks.1.mlp.fc1.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert one[name].std().item() == pytest.approx(vit.state_dict()[name].std().item(), rel=0.15)


def test_only_some_stages_are_shown_but_all_are_gone_through(vit):
    assert [stage for stage, _ in randomised(vit, stages={"head", "block 1"})] == [
        "head",
        "block 1",
    ]
    stage, altered = next(iter(randomised(vit, stages={"block 1"})))
    assert stage == "block 1"
    assert "head.weight" in changed(vit, altered)
    assert not any(name.startswith("patch_embed") for name in changed(vit, altered))


def test_unknown_stages_and_models_without_their_vit_are_refused(vit, tiny_model):
    with pytest.raises(InputError, match="no stage 'block 9': choose from head, block 3"):
        list(randomised(vit, stages={"block 9"}))

    class Outside(torch.nn.Module):
        def class_token_model(self):
            return tiny_model.class_token_model()

    with pytest.raises(ModelError, match="doesn't hold its ViT"):
        randomisation_stages(Outside())


def test_heads_outside_the_vit_belong_to_the_head(tiny_model):
    (_, altered) = next(iter(randomised(tiny_model)))
    names = changed(tiny_model, altered)
    assert "heads.malignancy.weight" in names
    assert not any(name.startswith("backbone.blocks") for name in names)


def test_correlation_with_others_is_that_of_every_pair():
    maps = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    groups = ["a", "a", "b", "c", "c"]
    expected = []
    for i in range(5):
        others = [j for j in range(5) if groups[j] != groups[i]]
        rho = [spearmanr(maps[i].ravel(), maps[j].ravel()).statistic for j in others]
        expected.append(np.mean(rho))
    assert_allclose(correlation_with_others(maps, groups), expected)


def test_maps_that_do_not_look_at_the_image_correlate_fully():
    maps = torch.arange(12.0).reshape(1, 3, 4).repeat(3, 1, 1)
    assert_allclose(correlation_with_others(maps, list("abc")), 1)


def test_no_correlation_where_there_is_nothing_to_correlate():
    maps = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0))
    maps[1] = 2.0
    found = correlation_with_others(maps, list("abc"))
    assert np.isfinite(found[[0, 2]]).all()
    assert np.isnan(found[1])
    assert np.isnan(correlation_with_others(maps, list("aaa"))).all()
