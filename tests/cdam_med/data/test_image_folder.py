"""Folders of images by class: listed, drawn, and prepared as timm's classifiers take them."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.testing import assert_allclose
from PIL import Image
from timm.data import create_transform

from cdam_med.data.image_folder import ImagePreparation, load_images, read_image_folder
from data_prep.errors import InputError


@pytest.fixture(scope="module")
def vit():
    return timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=24, num_heads=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name, files in {"cat": ("2.JPG", "1.png"), "ant": ("x.jpeg",), "empty": ()}.items():
        (tmp_path / name).mkdir()
        for file in files:
            pixels = random.integers(0, 256, (300, 400, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / file)
    (tmp_path / "cat" / "readme.txt").write_text("no image")
    (tmp_path / "loose.png").write_bytes(b"")
    return tmp_path


def test_classes_are_the_folders_with_images(folder):
    found = read_image_folder(folder)
    assert found.classes == ("ant", "cat")
    assert [file.name for file in found.files] == ["x.jpeg", "1.png", "2.JPG"]
    assert found.labels == (0, 1, 1)
    assert len(found) == 3


def test_a_draw_is_seeded_and_keeps_order_and_classes(folder):
    found = read_image_folder(folder)
    assert found.sample(7) is found
    drawn = found.sample(2, seed=1)
    assert drawn.classes == found.classes
    assert len(drawn) == 2
    assert list(drawn.files) == sorted(drawn.files, key=found.files.index)
    assert drawn == found.sample(2, seed=1)
    assert len({found.sample(2, seed=seed).files for seed in range(20)}) == 3
    with pytest.raises(InputError, match="0 images can't be drawn"):
        found.sample(0)


def test_use_is_timms_own_evaluation_transform(folder, vit):
    found = read_image_folder(folder)
    config = vit.pretrained_cfg
    transform = create_transform(
        (3, 224, 224),
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=224 / 256,
    )
    images = load_images(found, ImagePreparation(vit))
    assert images.shape == (3, 3, 224, 224)
    for image, file in zip(images, found.files, strict=True):
        with Image.open(file) as opened:
            expected = transform(opened.convert("RGB"))
        assert_allclose(image.numpy(), expected.numpy(), atol=1e-6)


def test_size_is_the_models_as_it_was_built(folder):
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64)
    assert load_images(read_image_folder(folder), ImagePreparation(vit)).shape[-2:] == (64, 64)


def test_training_varies_by_torchs_seed(folder, vit):
    file = read_image_folder(folder).files[0]
    prepare = ImagePreparation(vit, "training")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, other = prepare(file), prepare(file)
        torch.manual_seed(0)
        again = prepare(file)
    assert one.shape == (3, 224, 224)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb(tmp_path, vit, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (256, 256), (200, 200, 200)).convert(mode).save(path)
    image = ImagePreparation(vit)(path)
    grey = (200 / 255 - np.array(vit.pretrained_cfg["mean"])) / vit.pretrained_cfg["std"]
    assert_allclose(image.mean((1, 2)).numpy(), grey, atol=0.02)


def test_what_is_no_image_is_refused(folder, vit):
    (folder / "cat" / "3.png").write_bytes(b"no image at all")
    with pytest.raises(InputError, match=r"3\.png can't be read as an image"):
        load_images(read_image_folder(folder), ImagePreparation(vit))


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="There is no folder"):
        read_image_folder(tmp_path / "none")
    with pytest.raises(InputError, match="holds no images in folders of classes"):
        read_image_folder(tmp_path)
