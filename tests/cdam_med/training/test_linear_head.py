"""The linear head: it learns, the backbone stays as it is, and it comes back from disk."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional

from cdam_med.attribution.cdam import Cdam
from cdam_med.data.image_folder import ImagePreparation, load_images, read_image_folder
from cdam_med.errors import ModelError
from cdam_med.models.backbone import BackboneSpec, build_backbone
from cdam_med.training.linear_head import (
    LinearClassifierRecord,
    LinearHeadConfig,
    check_backbone,
    load_linear_classifier,
    save_linear_classifier,
    train_linear_head,
)
from data_prep.errors import InputError, OutputError

SPEC = BackboneSpec(architecture="test_vit", image_size=32)
FAST = LinearHeadConfig(epochs=3, batch_size=8, learning_rate=3e-2, seed=3)
COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40)}


def write_shapes(folder, count, *, seed):
    """Discs and squares of three colours on grey; the colour is the class."""
    random = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (48, 40), (128, 128, 128))
            left, top = random.integers(0, 12, 2).tolist()
            draw = ImageDraw.Draw(image)
            shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
            shape((left, top, left + 26, top + 26), fill=colour)
            image.save(folder / name / f"{number}.png")
    return read_image_folder(folder)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    return write_shapes(folder / "train", 8, seed=0), write_shapes(folder / "val", 4, seed=1)


@pytest.fixture(scope="module")
def trained(sets, weights):
    return train_linear_head(*sets, SPEC, weights=weights, config=FAST)


def test_colours_are_told_apart(trained, sets):
    assert trained.record.classes == ("blue", "green", "red")
    assert [epoch.number for epoch in trained.record.epochs] == [1, 2, 3]
    assert trained.record.kept.validation_accuracy > 0.8
    assert trained.record.epochs[-1].training_loss < trained.record.epochs[0].training_loss
    images = load_images(sets[1], ImagePreparation(trained.vit))
    with torch.no_grad():
        found = trained.vit(images).argmax(1)
    accuracy = (found == torch.tensor(sets[1].labels)).float().mean().item()
    assert accuracy == pytest.approx(trained.record.kept.validation_accuracy, abs=0.06)  # bfloat16


def test_the_epoch_of_lowest_validation_loss_is_kept(sets, weights):
    training, validation = sets
    # with wrong labels the loss rises with every epoch
    wrong = dataclasses.replace(validation, labels=tuple((n + 1) % 3 for n in validation.labels))
    trained = train_linear_head(training, wrong, SPEC, weights=weights, config=FAST)
    losses = [epoch.validation_loss for epoch in trained.record.epochs]
    assert trained.record.kept.number == 1
    assert losses[0] == min(losses) < losses[-1]
    images = load_images(wrong, ImagePreparation(trained.vit))
    with torch.no_grad():
        loss = functional.cross_entropy(trained.vit(images), torch.tensor(wrong.labels))
    assert loss.item() == pytest.approx(losses[0], rel=0.05)  # validated in bfloat16


def test_the_backbone_stays_and_nothing_is_left_behind(trained, weights):
    before = load_file(weights)
    after = trained.vit.state_dict()
    assert {"head.weight", "head.bias"} == after.keys() - before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not trained.vit.training
    assert all(p.requires_grad for p in trained.vit.parameters())
    assert all(p.grad is None for name, p in trained.vit.named_parameters() if "head" not in name)


def test_the_seed_says_all(sets, weights, trained):
    state = torch.random.get_rng_state()
    again = train_linear_head(*sets, SPEC, weights=weights, config=FAST)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert again.record.epochs == trained.record.epochs
    assert torch.equal(again.vit.head.weight, trained.vit.head.weight)
    other = FAST.model_copy(update={"seed": 4})
    differing = train_linear_head(*sets, SPEC, weights=weights, config=other)
    assert differing.record.epochs != trained.record.epochs


def test_the_defaults_are_the_papers():
    config = LinearHeadConfig()
    assert (config.epochs, config.batch_size, config.learning_rate) == (10, 128, 3e-4)


def test_it_comes_back_from_disk_and_is_explained(trained, sets, tmp_path):
    folder = tmp_path / "models" / "colours"
    save_linear_classifier(folder, trained)
    assert {path.name for path in folder.iterdir()} == {
        ".cdam-med-model.sha256",
        "config.json",
        "model.safetensors",
    }
    assert [path.name for path in folder.parent.iterdir()] == ["colours"]
    loaded = load_linear_classifier(folder)
    assert type(loaded) is VisionTransformer
    assert not loaded.training
    images = load_images(sets[1], ImagePreparation(loaded))[:2]
    with torch.no_grad():
        assert torch.equal(loaded(images), trained.vit(images))
    assert Cdam()(loaded, images).scores.shape == (2, 3, 2, 2)
    stored = LinearClassifierRecord.model_validate_json((folder / "config.json").read_bytes())
    assert stored == trained.record
    with pytest.raises(OutputError, match="is there already"):
        save_linear_classifier(folder, trained)


def test_folders_that_are_no_classifier_are_refused(trained, tmp_path):
    with pytest.raises(ModelError, match="no linear classifier"):
        load_linear_classifier(tmp_path)
    folder = tmp_path / "colours"
    save_linear_classifier(folder, trained)
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | {"format": "something else"}))
    with pytest.raises(ModelError, match="no linear classifier"):
        load_linear_classifier(folder)
    (folder / "config.json").write_text(json.dumps(record | {"classes": ["a", "b"]}))
    with pytest.raises(ModelError, match="don't fit the configuration"):
        load_linear_classifier(folder)
    (folder / "model.safetensors").write_bytes(pickle.dumps({}))
    with pytest.raises(ModelError, match="no safetensors file"):
        load_linear_classifier(folder)


def test_only_backbones_that_fit_are_let_through(weights, tmp_path):
    missing = tmp_path / "none.safetensors"
    check_backbone(SPEC, weights)
    check_backbone(SPEC, "hub")
    # another image size is resampled, another head isn't used
    check_backbone(SPEC.model_copy(update={"image_size": 48}), weights)
    stored = load_file(weights)
    save_file({**stored, "head.weight": torch.zeros(7, 3)}, tmp_path / "with_head.safetensors")
    check_backbone(SPEC, tmp_path / "with_head.safetensors")
    for architecture, named in (
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
        ("vit_base_patch16_siglip_224", "no class token"),
        ("deit_tiny_distilled_patch16_224", "two tokens"),
    ):
        odd = BackboneSpec(architecture=architecture, image_size=224)
        with pytest.raises(ModelError, match=named):  # before the weights are looked at
            check_backbone(odd, missing)
    with pytest.raises(ModelError, match="no weights file"):
        check_backbone(SPEC, missing)


def test_weights_of_another_architecture_are_named(weights, tmp_path):
    stored = load_file(weights)
    width = stored["cls_token"].shape[-1]
    tiny = BackboneSpec(architecture="vit_tiny_patch16_224", image_size=32)
    with pytest.raises(
        ModelError, match=rf"cls_token is \[1, 1, {width}\], not \[1, 1, 192\]"
    ) as odd:
        check_backbone(tiny, weights)
    assert "size mismatch" not in str(odd.value)
    with pytest.raises(ModelError, match=r"cls_token is \[1, 1"):
        build_backbone(tiny, weights=weights)
    surplus = {**stored, "blocks.0.ls1.gamma": torch.ones(width)}
    save_file(surplus, tmp_path / "scaled.safetensors")
    with pytest.raises(ModelError, match=r"there is no blocks\.0\.ls1\.gamma"):
        check_backbone(SPEC, tmp_path / "scaled.safetensors")


def test_sets_that_cannot_be_trained_on_are_refused(sets, weights, tmp_path):
    training, validation = sets
    lone = dataclasses.replace(training, classes=("blue",))
    with pytest.raises(InputError, match="the same classes, two or more"):
        train_linear_head(lone, validation, SPEC, weights=weights)
    other = dataclasses.replace(validation, classes=("blue", "green", "violet"))
    with pytest.raises(InputError, match="in one of them only: red, violet"):
        train_linear_head(training, other, SPEC, weights=weights)
    with pytest.raises(InputError, match="can't be trained on the device"):
        train_linear_head(training, validation, SPEC, weights=weights, device="nonsense")


def test_progress_is_told(sets, weights, tmp_path):
    told = []
    quick = FAST.model_copy(update={"epochs": 1})
    train_linear_head(*sets, SPEC, weights=weights, config=quick, on_epoch=told.append)
    assert [epoch.number for epoch in told] == [1]
