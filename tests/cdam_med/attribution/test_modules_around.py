"""A ViT within another module: explained by the module's own pass, or refused with what to do."""

import peft
import pytest
import slow_backbones
import timm
import torch
import transformers
from backbone_families import outputs, small_huggingface, with_other_weights
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from cdam_med.attribution.cdam import cdam_scores
from cdam_med.attribution.class_token import ClassTokenModel, class_token_model
from cdam_med.attribution.concept import concept_from_images
from cdam_med.attribution.registry import estimator
from cdam_med.errors import ModelError

SETTINGS = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
SMALL_HF = {"hidden_size": 24, "image_size": (16, 24), "patch_size": 4}


def vit(**options):
    return timm.create_model("vit_small_patch16_224", **SETTINGS, **options)


def numbers(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.drop, self.head = vit(num_classes=0), nn.Dropout(0.5), nn.Linear(24, 2)

    def forward(self, images):
        return self.head(self.drop(self.net(images)))


class Grey(Around):
    def forward(self, images):
        return super().forward(images.expand(-1, 3, -1, -1))


class Views(Around):
    def forward(self, images):
        return super().forward(images) + super().forward(images.flip(-1))


class Folded(Around):
    def forward(self, images):
        both = super().forward(torch.cat((images, images.flip(-1))))
        return both[: len(images)] + both[len(images) :]


class Resizing(Around):
    def forward(self, images):
        return super().forward(functional.interpolate(images, scale_factor=0.5))


class Named(Around):
    def forward(self, images):
        return {"mine": super().forward(images)}


class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList([vit(num_classes=2), vit(num_classes=2)])

    def forward(self, images):
        return self.nets[0](images) + self.nets[1](images)


def with_lora(model, modules):
    config = peft.LoraConfig(target_modules=modules, r=2, init_lora_weights=False)
    return peft.get_peft_model(model, config)


def timm_wrapper():
    config = transformers.TimmWrapperConfig(
        architecture="vit_small_patch16_224", model_args=SETTINGS, num_labels=2
    )
    return transformers.TimmWrapperForImageClassification(config)


KINDS = {
    "module": (Around, "net.blocks.1.norm1", 3),
    "module of grey images": (Grey, "net.blocks.1.norm1", 1),
    "PEFT around transformers": (
        lambda: with_lora(
            small_huggingface("ViT", "ForImageClassification", **SMALL_HF), ["q_proj", "v_proj"]
        ),
        "base_model.model.vit.layers.1.layernorm_before",
        3,
    ),
    "PEFT around timm": (
        lambda: with_lora(vit(num_classes=2), ["qkv"]),
        "base_model.model.blocks.1.norm1",
        3,
    ),
    "TimmWrapper": (timm_wrapper, "timm_model.blocks.1.norm1", 3),
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_cdam_equals_a_full_backward_pass(kind):
    build, norm, channels = KINDS[kind]
    model, images = with_other_weights(build), numbers(2, channels, 16, 24)
    found = cdam_scores(model.train(), images)
    assert model.training
    expected = slow_backbones.cdam(model, images, (norm,), outputs)
    everything = torch.cat((found.prefix_scores, found.scores.flatten(2)), dim=2)
    assert_close(everything, expected, rtol=1e-9, atol=1e-11 * expected.abs().max().item())
    assert found.scores.shape == (2, 2, 4, 6)
    with torch.no_grad():
        assert_close(found.outputs, outputs(model.eval(), images), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "size", "reason"),
    [
        (Views, (16, 24), r"Views around vit_small.* runs the ViT on 2 images for one"),
        (Folded, (16, 24), r"Folded around .* runs the ViT on 2 images for one"),
        (Resizing, (32, 48), "25 tokens in its last block, and the images have 96 patches"),
        (Named, (16, 24), "gives dict for 1 image.*ClassTokenModel"),
        (
            Twins,
            (16, 24),
            r"Twins holds 2 .*\(model.nets\[0\], .*forward=model\)",
        ),
    ],
)
@pytest.mark.parametrize("name", ["cdam", "attention_map", "occlusion"])
def test_what_a_map_would_be_wrong_of_is_refused(kind, size, reason, name):
    if kind is Resizing and name == "occlusion":
        return  # it doesn't ask where tokens lie
    with pytest.raises(ModelError, match=reason):
        estimator(name)(with_other_weights(kind), numbers(1, 3, *size))


def test_the_remedies_that_are_named_work():
    images = numbers(2, 3, 16, 24)
    model = with_other_weights(Named)
    described = ClassTokenModel(
        model.net, lambda given: given, None, forward=lambda given: model(given)["mine"]
    )
    expected = slow_backbones.cdam(
        model, images, ("net.blocks.1.norm1",), lambda own, given: own(given)["mine"]
    )
    found = cdam_scores(described, images)
    assert_close(found.scores.flatten(2), expected[:, :, 1:], rtol=1e-9, atol=1e-10)
    twins = with_other_weights(Twins)
    first = ClassTokenModel(twins.nets[0], lambda given: given, None, forward=twins)
    expected = slow_backbones.cdam(twins, images, ("nets.0.blocks.1.norm1",), outputs)
    found = cdam_scores(first, images)
    assert_close(found.scores.flatten(2), expected[:, :, 1:], rtol=1e-9, atol=1e-10)


def test_a_bare_vit_has_its_feature_as_outputs_and_takes_concepts():
    options = {**SMALL_HF, "image_size": 16, "num_register_tokens": 2}
    model = small_huggingface("Dinov2WithRegisters", "Model", **options)
    images = numbers(3, 3, 16, 24)
    described = class_token_model(model)
    assert described.output_count == 24
    concept = concept_from_images(model, images, label="these")
    found = cdam_scores(model, images, [concept, 5])
    with torch.no_grad():
        feature = model(images).pooler_output
    assert_close(found.outputs[:, 0], feature @ feature.mean(0), rtol=0, atol=1e-9)
    assert_close(found.outputs[:, 1], feature[:, 5], rtol=0, atol=1e-12)
    assert (found.path, found.prefix_scores.shape[2]) == ("closed form", 3)
