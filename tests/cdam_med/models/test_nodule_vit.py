"""The model: what goes in, what comes out, and that storing it changes nothing."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub.hub_mixin
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cdam_med.errors import ModelError
from cdam_med.models.nodule_vit import ModelConfig, NoduleViT
from cdam_med.models.store import load_model
from cdam_med.targets import TARGET_NAMES
from data_prep.errors import InputError

MakeModel = Callable[..., NoduleViT]
RANK = 9


def outputs(model: NoduleViT, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(images).clone()


def test_outputs_are_the_heads_on_timms_class_token(
    make_model: MakeModel, grey_images: Tensor
) -> None:
    model = make_model()
    colours = torch.cat([(grey_images - 0.45) / 0.225] * 3, dim=1)
    with torch.inference_mode():
        expected = model.heads(model.backbone.forward_features(colours)[:, 0])
    found = outputs(model, grey_images)
    assert found.shape == (3, len(TARGET_NAMES))
    torch.testing.assert_close(found, expected)


def test_an_attribution_reads_the_same_outputs(make_model: MakeModel, grey_images: Tensor) -> None:
    model = make_model()
    described = model.class_token_model()
    assert described.vit is model.backbone
    assert described.target_names == TARGET_NAMES
    with torch.inference_mode():
        tokens = described.vit.forward_features(described.prepare(grey_images))
        torch.testing.assert_close(described.readout(tokens[:, 0]), model(grey_images))


def test_images_in_colour_are_refused(make_model: MakeModel, grey_images: Tensor) -> None:
    for channels in (2, 3):
        with pytest.raises(InputError, match=f"small takes grey images .* not of {channels}: "):
            make_model()(grey_images.repeat(1, channels, 1, 1))


def test_a_new_model_may_start_from_a_backbone(
    make_model: MakeModel, small_config: ModelConfig, tmp_path: Path
) -> None:
    backbone = make_model().backbone.state_dict()
    save_file(backbone, tmp_path / "backbone.safetensors")
    model = NoduleViT.from_backbone(small_config, tmp_path / "backbone.safetensors")
    torch.testing.assert_close(model.backbone.state_dict(), backbone, atol=0, rtol=0)


@pytest.mark.parametrize("load", [load_model, NoduleViT.from_pretrained])
def test_round_trip_is_exact(
    make_model: MakeModel,
    grey_images: Tensor,
    tmp_path: Path,
    load: Callable[[Path], NoduleViT],
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.config == model.config
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
    assert torch.equal(outputs(loaded, grey_images), outputs(model, grey_images))
    assert loaded.weights_sha256 == model.weights_sha256
    weights = tmp_path / "model" / "model.safetensors"
    assert weights.stat().st_mode & 0o444 == weights.parent.stat().st_mode & 0o444
    if load is load_model:
        assert capsys.readouterr() == ("", "")


def test_round_trip_in_half_precision_gives_the_same_numbers_as_float32(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model().half()
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path).state_dict()
    expected = {name: value.float() for name, value in model.state_dict().items()}
    torch.testing.assert_close(loaded, expected, atol=0, rtol=0)


@pytest.mark.parametrize("half", [False, True])
def test_matrices_of_low_rank_are_stored_as_factors(
    make_model: MakeModel, grey_images: Tensor, tmp_path: Path, half: bool
) -> None:
    model = make_model(RANK)
    names = set(model.state_dict())
    (model.half() if half else model).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    loaded = load_model(tmp_path)
    assert set(loaded.state_dict()) == set(model.state_dict()) == names
    factors = {name for name in stored if ".parametrizations." in name}
    assert len(factors) == 2 * 4 * 6
    for name in sorted(factors):
        if name.endswith("original0"):
            left, right = stored[name], stored[name.replace("original0", "original1")]
            assert left.shape[1] == right.shape[0] == RANK
            whole = loaded.state_dict()[name.replace("parametrizations.weight.original0", "weight")]
            torch.testing.assert_close(whole, left.float() @ right.float())
    for name in stored.keys() - factors:
        assert torch.equal(loaded.state_dict()[name], stored[name].float())
    # what is saved is what the model is from then on, and a second round changes nothing more
    tolerance = 0.05 if half else 1e-3
    torch.testing.assert_close(
        outputs(loaded, grey_images), outputs(model.float(), grey_images), atol=tolerance, rtol=0.01
    )
    loaded.save_pretrained(tmp_path / "again")
    again = load_model(tmp_path / "again")
    torch.testing.assert_close(
        outputs(again, grey_images), outputs(loaded, grey_images), atol=1e-3, rtol=1e-3
    )


def test_the_hash_is_of_every_weight(make_model: MakeModel) -> None:
    model = make_model()
    hashes = {model.weights_sha256}
    for name in ("backbone.blocks.5.mlp.fc2.bias", "heads.biomarker_scale"):
        model.state_dict()[name].view(-1)[0] += 1
        hashes.add(model.weights_sha256)
    assert len(hashes) == 3
    assert make_model().weights_sha256 in hashes


def test_a_hub_with_nothing_but_a_pickle_is_refused(
    write_bomb: Callable[[Path], Path],
    small_config: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tmp_path / "config.json"
    config.write_text(small_config.model_dump_json())
    files = {"config.json": config, "pytorch_model.bin": write_bomb(tmp_path / "pytorch_model.bin")}

    def download(*, filename: str, **_: object) -> str:
        if filename not in files:
            raise EntryNotFoundError(filename)
        return str(files[filename])

    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", download)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle.*safetensors"):
        NoduleViT.from_pretrained("someone/their-model")


def test_a_model_needs_a_view(small_config: ModelConfig) -> None:
    with pytest.raises(ValidationError, match="views"):
        ModelConfig.model_validate(small_config.model_dump() | {"views": []})
