"""Sanity: the cascade of randomised copies, and likeness between images."""

import copy

import numpy as np
import pytest
import torch
from monai.networks.nets.vit import ViT
from numpy.testing import assert_allclose
from scipy.stats import spearmanr
from timm.models.vision_transformer import VisionTransformer

from cdam_med.errors import ModelError
from cdam_med.evaluation.intervals import mean_intervals
from cdam_med.evaluation.metrics.sanity import (
    correlation_with_others,
    randomisation_stages,
    randomised,
    shares_in_pairs,
)


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
    assert tuple(randomisation_stages(vit)) == expected
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


def test_models_without_their_vit_are_refused(tiny_model):
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


def test_attention_pooling_belongs_to_the_head():
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2}
    model = VisionTransformer(**settings, class_token=False, global_pool="map")
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    (_, altered) = next(iter(randomised(model)))
    names = changed(model, altered)
    assert "attn_pool.kv.weight" in names
    assert not any(name.startswith(("blocks", "patch_embed", "pos_embed")) for name in names)


def test_monais_vit_is_randomised_in_the_same_order():
    pytest.importorskip("einops")
    model = ViT(
        in_channels=1, img_size=(8, 8), patch_size=(4, 4), hidden_size=12, mlp_dim=12,
        num_layers=2, num_heads=2, classification=True, num_classes=2, spatial_dims=2,
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    cascade = {stage: changed(model, altered) for stage, altered in randomised(model)}
    assert list(cascade) == ["head", "block 2", "block 1", "embedding"]
    assert "classification_head.0.weight" in cascade["head"]
    assert "norm.weight" in cascade["head"]
    assert not any(name.startswith(("blocks", "patch_embedding")) for name in cascade["head"])
    assert not any(name.startswith("blocks.0.") for name in cascade["block 2"])
    assert "patch_embedding.position_embeddings" in cascade["embedding"] - cascade["block 1"]


def test_intervals_of_pairs_hold_the_truth_as_often_as_they_say():
    """Of pairs whose correlation is the product of two numbers, 0.25 on average."""
    random, plain, shares = np.random.default_rng(0), 0, 0
    names = [str(index) for index in range(40)]
    for trial in range(200):
        own = random.random(40)
        of_image = own * (own.sum() - own) / 39  # mean over the image's pairs
        values = np.stack((shares_in_pairs(of_image), of_image), axis=1)
        found, too_narrow = mean_intervals(values, names, seed=trial, draws=300)
        assert found.value == pytest.approx(of_image.mean())
        shares += found.low <= 0.25 <= found.high
        plain += too_narrow.low <= 0.25 <= too_narrow.high
    assert 0.89 < shares / 200 < 0.99
    assert plain / 200 < 0.8


def test_images_without_pairs_have_no_share_in_them():
    found = shares_in_pairs(np.array([0.1, np.nan, 0.5]))
    assert_allclose(found, [-0.1, np.nan, 0.7])
    assert np.isnan(shares_in_pairs(np.full(3, np.nan))).all()


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
