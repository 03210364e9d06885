"""Backbones: the paper's and others, with weights from a file or a hub, never from a pickle."""

import socket
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from cdam_med.errors import ModelError
from cdam_med.models.backbone import (
    PAPER_BACKBONES,
    BackboneSpec,
    build_backbone,
    check_safetensors,
    class_token,
)

SHAPES = {  # patch size, tokens before the patches, dimension
    "dino_vits8": (8, 1, 384),
    "dino_vitb8": (8, 1, 768),
    "dino_vits16": (16, 1, 384),
    "dino_vitb16": (16, 1, 768),
    "dinov2_vits14_reg": (14, 5, 384),
    "dinov2_vitb14_reg": (14, 5, 768),
    "vit_b_16": (16, 1, 768),
    "deit_small": (16, 1, 384),
    "deit_small_distilled_patch16_224": (16, 2, 384),
    "vit_small_patch14_dinov2": (14, 1, 384),
}

FAST = ("dinov2_vits14_reg", "deit_small_distilled_patch16_224")


def spec(architecture: str = "test_vit", image_size: int = 32) -> BackboneSpec:
    return BackboneSpec(architecture=architecture, image_size=image_size)


def test_every_backbone_of_the_paper_is_listed_here() -> None:
    assert PAPER_BACKBONES.keys() <= SHAPES.keys()


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES],
)
def test_backbones_of_the_paper(name: str) -> None:
    patch_size, prefix_tokens, dim = SHAPES[name]
    with torch.device("meta"):  # shapes without numbers: nothing is computed
        vit = build_backbone(spec(name, 3 * patch_size))
        images = torch.zeros(2, 3, 3 * patch_size, 3 * patch_size)
        assert class_token(vit, images).shape == (2, dim)
        assert vit.forward_features(images).shape == (2, prefix_tokens + 9, dim)
    assert vit.patch_embed.patch_size == (patch_size, patch_size)
    assert vit.num_prefix_tokens == prefix_tokens
    assert isinstance(vit.head, nn.Identity)
    assert not isinstance(vit.norm, nn.Identity)


def test_random_weights_follow_the_seed() -> None:
    torch.manual_seed(0)
    first = build_backbone(spec()).state_dict()
    torch.manual_seed(0)
    torch.testing.assert_close(build_backbone(spec()).state_dict(), first)
    assert not torch.equal(build_backbone(spec()).state_dict()["cls_token"], first["cls_token"])


@pytest.fixture
def weights(small_vit: VisionTransformer, tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(small_vit.state_dict(), path)
    return path


def test_weights_from_a_file(weights: Path, small_vit: VisionTransformer) -> None:
    loaded = build_backbone(spec(), weights=weights)
    torch.testing.assert_close(loaded.state_dict(), small_vit.state_dict(), atol=0, rtol=0)
    by_name = build_backbone(spec(), weights=str(weights))
    torch.testing.assert_close(by_name.state_dict(), small_vit.state_dict(), atol=0, rtol=0)


def test_half_precision_and_a_classifier_in_the_file(
    weights: Path, small_vit: VisionTransformer
) -> None:
    state = {name: value.half() for name, value in load_file(weights).items()}
    save_file(state | {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}, weights)
    loaded = build_backbone(spec(), weights=weights)
    expected = {name: value.half().float() for name, value in small_vit.state_dict().items()}
    torch.testing.assert_close(loaded.state_dict(), expected, atol=0, rtol=0)


def test_position_embedding_is_resampled_for_another_size(
    weights: Path, small_vit: VisionTransformer
) -> None:
    loaded = build_backbone(spec(image_size=80), weights=weights).state_dict()
    stored = small_vit.state_dict()
    old = stored.pop("pos_embed")
    new = loaded.pop("pos_embed")
    torch.testing.assert_close(loaded, stored, atol=0, rtol=0)
    # the embeddings of prefix tokens stay, those of the 2 x 2 grid become 5 x 5
    n_prefix = old.shape[1] - 4
    torch.testing.assert_close(new[:, :n_prefix], old[:, :n_prefix])
    grid = old[0, n_prefix:].T.reshape(1, -1, 2, 2)
    expected = functional.interpolate(
        grid, (5, 5), mode="bicubic", antialias=True, align_corners=False
    )
    torch.testing.assert_close(new[0, n_prefix:].T.reshape(1, -1, 5, 5), expected)


def test_weights_of_another_model_are_refused(weights: Path) -> None:
    state = load_file(weights)
    other = {name.replace("blocks.3", "stages.3"): value for name, value in state.items()}
    save_file(other, weights)
    with pytest.raises(ModelError, match=r"'test_vit' \(it lacks 12 .* blocks\.3\.") as info:
        build_backbone(spec(), weights=weights)
    assert "\n" not in str(info.value)
    save_file(state | {"norm.weight": torch.zeros(7)}, weights)
    with pytest.raises(ModelError, match=r"test_vit.*norm\.weight") as info:
        build_backbone(spec(), weights=weights)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "pytorch_model.bin"])
def test_pickles_are_refused_and_never_run(
    write_bomb: Callable[[Path], Path], tmp_path: Path, name: str
) -> None:
    path = write_bomb(tmp_path / name)
    with pytest.raises(ModelError, match=r"no safetensors file.*save_file"):
        build_backbone(spec(), weights=path)


@pytest.mark.parametrize("content", [b"", b"\x08", b"\xff" * 64, b'{"a": 1}'])
def test_damaged_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"damaged\.safetensors is no safetensors file"):
        check_safetensors(path)


def test_cut_off_weights_are_refused(weights: Path) -> None:
    assert check_safetensors(weights) == weights
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="no safetensors file"):
        check_safetensors(weights)


@pytest.mark.parametrize("make", [Path, Path.mkdir])
def test_missing_weights_are_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "nowhere.safetensors"
    make(path)
    with pytest.raises(ModelError, match=r"no weights file .*nowhere\.safetensors"):
        build_backbone(spec(), weights=path)


def test_hub_without_a_network_says_what_could_not_be_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(ModelError, match=r"'test_vit'.* hub") as info:
        build_backbone(spec(), weights="hub")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("architecture", "image_size", "named"),
    [
        ("vit_smal_patch16_224", 32, "vit_small_patch16_224"),
        ("../../etc/passwd", 32, "passwd"),
        ("", 32, "dino_vits8"),
        ("test_vit.no_such_weights", 32, "no_such_weights"),
        ("resnet18", 32, "resnet18"),
        ("swin_tiny_patch4_window7_224", 224, "no class token"),
        ("vit_medium_patch16_gap_240", 32, "no class token"),
        ("eva02_tiny_patch14_224", 28, "no class token"),
        ("test_vit", 33, "16 x 16"),
        ("test_vit", 8, "16 x 16"),
    ],
)
def test_what_is_no_such_backbone_is_refused(
    architecture: str, image_size: int, named: str
) -> None:
    with torch.device("meta"), pytest.raises(ModelError, match=named) as info:
        build_backbone(spec(architecture, image_size))
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 600
