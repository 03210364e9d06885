"""A model opened for perturbed images: its outputs, its seeds, and that it is left as it was."""

import numpy as np
import pytest
import torch
from oracles import patch_models
from torch.testing import assert_close

from cdam_med.attribution.combinations import PerImage, difference
from cdam_med.attribution.patch_embed_3d import PatchEmbed3d
from cdam_med.errors import ModelError, TargetError
from cdam_med.evaluation.metrics.perturbation import perturbing

IMAGES = torch.randn(3, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_outputs_are_those_of_the_changed_images(at_once):
    vit = patch_models.small_vit()
    hidden = torch.rand(7, 16, 24) < 0.4
    with perturbing(vit, IMAGES, targets=PerImage((2, 0, 2)), images_at_once=at_once) as opened:
        found = opened.outputs(2, hidden, torch.zeros_like(IMAGES))
    changed = torch.stack([IMAGES[2] * ~some for some in hidden])
    with torch.no_grad():
        expected = vit.eval()(changed)[:, 2]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-10)


def test_targets_may_be_one_for_all_repeated_or_derived():
    vit = patch_models.small_vit()
    none = torch.zeros(1, 16, 24, dtype=torch.bool)
    gap = difference(0, 1)
    with torch.no_grad():
        whole = vit.eval()(IMAGES).numpy()
    for one in (1, np.int64(1), torch.tensor(1), [1], PerImage(torch.tensor([1, 1, 1]))):
        with perturbing(vit, IMAGES, targets=one) as opened:
            assert opened.columns == (1, 1, 1)
            assert len(opened) == 3
    with perturbing(vit, IMAGES, targets=PerImage([gap, 2, gap])) as opened:
        found = [opened.outputs(i, none, IMAGES)[0] for i in range(3)]
    expected = [whole[0, 0] - whole[0, 1], whole[1, 2], whole[2, 0] - whole[2, 1]]
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    with perturbing(vit, IMAGES, targets=gap) as opened:
        assert opened.columns == (3, 3, 3)


def test_chance_depends_on_seed_and_image_alone():
    vit = patch_models.small_vit()
    with perturbing(vit, IMAGES, targets=0) as opened:
        draws = [opened.generator(i, 5).random(4) for i in range(3)]
        other_seed = opened.generator(1, 6).random(4)
    with perturbing(vit, IMAGES[[1]], targets=2) as alone:
        np.testing.assert_array_equal(alone.generator(0, 5).random(4), draws[1])
    assert len({tuple(d) for d in [*draws, other_seed]}) == 4


def test_model_is_left_as_it_was_also_after_an_error():
    vit = patch_models.small_vit()
    vit.blocks[0].eval()
    before = [part.training for part in vit.modules()]

    def refuse(*_):
        raise RuntimeError("stop")

    with perturbing(vit, IMAGES, targets=0) as opened:
        assert not any(part.training for part in vit.modules())
        assert not torch.is_grad_enabled()
        outputs = opened.subject.model.outputs(opened.images)
        assert not outputs.requires_grad
    assert [part.training for part in vit.modules()] == before
    handle = vit.norm.register_forward_hook(refuse)
    none = torch.zeros(1, 16, 24, dtype=torch.bool)
    with pytest.raises(ModelError, match="stop"), perturbing(vit, IMAGES, targets=0) as opened:
        opened.outputs(0, none, IMAGES)
    handle.remove()
    assert [part.training for part in vit.modules()] == before
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in vit.parameters())


def test_what_does_not_fit_is_refused():
    vit = patch_models.small_vit()
    with pytest.raises(TargetError, match=r"2 target\(s\) for 3 image\(s\): give one for each"):
        perturbing(vit, IMAGES, targets=PerImage((0, 1))).__enter__()
    with pytest.raises(TargetError, match=r"one target each, not for 2: .* PerImage\(\[...\]\)"):
        perturbing(vit, IMAGES, targets=[0, 1]).__enter__()
    with pytest.raises(TargetError, match="no target 7"):
        perturbing(vit, IMAGES, targets=7).__enter__()


def test_single_precision_is_kept():
    vit = patch_models.small_vit().float()
    with perturbing(vit, IMAGES, targets=0) as opened:
        assert opened.images.dtype == torch.float32
        hidden = torch.zeros(1, 16, 24, dtype=torch.bool)
        found = opened.outputs(0, hidden, opened.images)
        assert_close(found[0], vit(opened.images[:1])[0, 0].double().item(), rtol=1e-5, atol=1e-5)


def test_slices_as_channels_and_all_tokens_pooled():
    """Whatever is described can be perturbed: the paper's 3-D patches, no class token."""
    vit = patch_models.small_vit(
        embed_layer=PatchEmbed3d, in_chans=5, class_token=False, global_pool="avg"
    ).eval()
    images = torch.randn(2, 5, 16, 24, dtype=torch.float64)
    hidden = torch.rand(3, 16, 24) < 0.4
    with perturbing(vit, images, targets=1) as opened:
        found = opened.outputs(1, hidden, torch.zeros_like(images))
    with torch.no_grad():
        expected = vit(images[1] * ~hidden[:, None])[:, 1]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-10)
