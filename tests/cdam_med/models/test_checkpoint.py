"""Model folders: what is wrong with one is said in a sentence, and nothing in it is run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cdam_med.errors import ModelError
from cdam_med.models.nodule_vit import NoduleViT
from cdam_med.models.store import load_model


@pytest.fixture
def folder(make_model: Callable[..., NoduleViT], tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def assert_refused(folder: Path, *named: str) -> None:
    with pytest.raises(ModelError) as info:
        load_model(folder)
    message = str(info.value)
    assert "\n" not in message
    assert len(message) < 800
    for each in named:
        assert each in message


def test_a_path_may_be_text(folder: Path) -> None:
    assert load_model(str(folder)).weights_sha256 == load_model(folder).weights_sha256


def test_there_is_no_such_model(folder: Path, tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", "nowhere", "'demo'")
    assert_refused(folder / "config.json", "config.json", "'demo'")


def test_files_are_missing(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert_refused(folder, "model.safetensors")
    (folder / "config.json").unlink()
    assert_refused(folder, "config.json", "model.safetensors")
    (folder / "config.json").mkdir()
    assert_refused(folder, "config.json can't be read")


@pytest.mark.parametrize("load", [load_model, NoduleViT.from_pretrained])
def test_a_folder_with_nothing_but_a_pickle_is_refused(
    folder: Path, write_bomb: Callable[[Path], Path], load: Callable[[Path], NoduleViT]
) -> None:
    (folder / "model.safetensors").unlink()
    write_bomb(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"safetensors"):
        load(folder)


@pytest.mark.parametrize("load", [load_model, NoduleViT.from_pretrained])
def test_a_renamed_pickle_is_refused(
    folder: Path, write_bomb: Callable[[Path], Path], load: Callable[[Path], NoduleViT]
) -> None:
    write_bomb(folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors is no safetensors file"):
        load(folder)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config: config.pop("backbone"), "backbone"),
        (lambda config: config["backbone"].update(depth=3), "backbone.depth"),
        (lambda config: config["backbone"].update(image_size="large"), "backbone.image_size"),
        (lambda config: config["backbone"].update(rank=0), "backbone.rank"),
        (lambda config: config["backbone"].update(architecture="resnet18"), "resnet18"),
        (lambda config: config["backbone"].update(image_size=40), "16 x 16"),
        (lambda config: config["input"].update(intensity="loud"), "input.intensity"),
        (lambda config: config["input"].update(field_of_view_mm=16.5), "16.5 mm"),
        (lambda config: config.update(views=[]), "views"),
        (lambda config: config.clear(), "name"),
    ],
)
def test_configurations_that_make_no_sense(
    folder: Path, change: Callable[[dict], object], named: str
) -> None:
    edit(folder / "config.json", change)
    assert_refused(folder, named)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_what_is_no_configuration(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert_refused(folder, "config.json is no configuration")


def test_weights_that_do_not_fit(
    folder: Path, make_model: Callable[..., NoduleViT], tmp_path: Path
) -> None:
    weights = folder / "model.safetensors"
    # cloned: the file is mapped into memory and written over below
    whole = {name: value.clone() for name, value in load_file(weights).items()}
    save_file({name: value for name, value in whole.items() if "heads" not in name}, weights)
    assert_refused(folder, str(weights), "don't fit", "heads.malignancy.weight")
    save_file(whole | {"extra": whole["heads.malignancy.bias"].clone()}, weights)
    assert_refused(folder, str(weights), "don't fit", "extra")
    edit(folder / "config.json", lambda config: config["backbone"].update(image_size=64))
    save_file(whole, weights)
    assert_refused(folder, str(weights), "don't fit", "pos_embed")
    # factors for whole matrices
    make_model(5).save_pretrained(tmp_path / "factors")
    shutil.copy(tmp_path / "factors" / "config.json", folder)
    assert_refused(folder, str(weights), "don't fit", "stored as whole")


def test_an_error_does_not_change_later_loading(folder: Path) -> None:
    before = load_model(folder).weights_sha256
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:1000])
    assert_refused(folder, "no safetensors file")
    (folder / "model.safetensors").write_bytes(content)
    assert load_model(folder).weights_sha256 == before


def test_loading_decomposes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("a matrix is decomposed")

    monkeypatch.setattr(torch.linalg, "svd", refuse)
    load_model("demo")
