"""A CT explained with ViTs that know nothing of CTs: the demonstration series, end to end."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import slow_backbones
import timm
import torch
from backbone_families import outputs, small_huggingface, with_other_weights
from torch import nn
from torch.nn import functional

from cdam_med import ClassTokenModel, explain, predict
from cdam_med.attribution.concept import concept_from_images
from cdam_med.data.transforms import InputSpec
from cdam_med.demo import extract_path, xml_path
from cdam_med.errors import CdamError, ModelError, TargetError
from cdam_med.models.slice_model import slice_model
from data_prep import CTVolume, Nodule, crop_nodule, read_lidc_xml, read_series
from data_prep.errors import InputError

INPUT = InputSpec(
    field_of_view_mm=40, spacing_mm=2, image_size=32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)
)


@pytest.fixture(scope="module")
def volume() -> CTVolume:
    return read_series(extract_path())


@pytest.fixture(scope="module")
def nodule(volume: CTVolume) -> Nodule:
    return read_lidc_xml(xml_path(), volume)[0]


def small_timm(**options: object) -> nn.Module:
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    settings |= {"num_classes": 2} | options
    return with_other_weights(
        lambda: timm.create_model("vit_small_patch16_224", **settings)
    ).float()


def small_dino() -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 8}
    return small_huggingface("Dinov2", "ForImageClassification", **sizes).float()


class Around(nn.Module):
    """A wrapper that takes grey images."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_timm(num_classes=0)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(24, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.net(images.expand(-1, 3, -1, -1))))


MODELS = {
    "timm": (small_timm, "blocks.1.norm1", 1),
    "Hugging Face DINOv2": (small_dino, "dinov2.encoder.layer.1.norm1", 1),
    "a module around a ViT": (Around, "net.blocks.1.norm1", 1),
}


@pytest.mark.parametrize("name", MODELS)
def test_maps_of_a_case_are_the_scores_laid_on_the_grid(
    volume: CTVolume, nodule: Nodule, tmp_path: Path, name: str
) -> None:
    build, norm, prefix = MODELS[name]
    model = build().train()
    spec = (
        INPUT
        if name != "a module around a ViT"
        else INPUT.model_copy(update={"channels": 1, "mean": 0.4, "std": 0.3})
    )
    found = explain(
        volume, nodule, model, input=spec, target_names={"Solid part": "%", "b/\u00e4": "mm"}
    )
    assert model.training
    folder = found.save(tmp_path / "case")
    record = json.loads((folder / "case.json").read_text())

    # the images by hand: the lung window, enlarged, standardised
    hu = found.crop.hu
    assert hu.shape == (20, 20, 20)
    slices = torch.tensor(np.stack([hu[::-1, ::-1, k].T for k in range(20)]))
    grey = ((slices.clamp(-1000, 400) + 1000) / 1400)[:, None]
    grey = functional.interpolate(grey, (32, 32), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(value).reshape(-1, 1, 1) for value in (spec.mean, spec.std))
    images = ((grey - mean) / std).double()
    whole = model.double().eval()
    with torch.no_grad():
        central = outputs(whole, images[9:11]).mean(0)
    assert list(found.predictions) == ["Solid part", "b/\u00e4"]
    assert list(found.predictions.values()) == pytest.approx(central.tolist(), rel=1e-4, abs=1e-4)
    scores = slow_backbones.cdam(whole, images[::6], [norm], outputs)[:, :, prefix:]
    grids = scores.unflatten(2, (4, 4)).numpy()
    for column, file in enumerate(("attribution_Solid_part.nii.gz", "attribution_b_a_*.nii.gz")):
        (path,) = [p for p in folder.glob(file) if "axial" not in p.name and "mean" not in p.name]
        image = nibabel.load(path)
        np.testing.assert_allclose(image.affine, found.crop.affine, atol=1e-4)
        on_disk = np.asarray(image.dataobj)
        for index, k in enumerate(range(0, 20, 6)):
            shown = np.repeat(np.repeat(grids[index, column], 5, axis=0), 5, axis=1)
            np.testing.assert_allclose(
                on_disk[::-1, ::-1, k].T, shown, rtol=1e-3, atol=1e-4 * abs(grids).max()
            )
    assert record["targets"]["Solid part"]["unit"] == "%"
    assert record["ratings_note"] is not None  # the readers' ratings are shown
    assert record["model"]["config"]["input_given"] == sorted(spec.model_fields_set)
    assert record["model"]["config"]["input"]["mean"] == (
        [0.1, 0.2, 0.3] if prefix and name != "a module around a ViT" else 0.4
    )
    assert record["model"]["config"]["views"] == ["axial"]
    assert "malignancy" not in record["method"]["prediction_rule"]
    assert (folder / "overview.png").stat().st_size > 1000


def test_what_is_not_given_is_the_models_own_or_a_stated_default() -> None:
    plain = slice_model(small_timm())
    assert plain.target_names == ("output_0", "output_1")
    assert {target.unit for target in plain.targets} == {"output"}
    assert plain.input == InputSpec(
        field_of_view_mm=64, image_size=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3
    )  # timm's own statistics of this model
    assert plain.config["input_given"] == []
    assert plain.config["class"] == "timm.models.vision_transformer.VisionTransformer"
    named = small_huggingface(
        "Dinov2", "ForImageClassification", image_size=32, id2label={0: "benign", 1: "malignant"}
    )
    dino = slice_model(named, views=("coronal", "axial"), name="chest")
    assert (dino.name, dino.views) == ("chest", ("coronal", "axial"))
    assert dino.target_names == ("benign", "malignant")
    assert dino.input.image_size == 32
    grey = slice_model(small_timm(in_chans=1))
    assert grey.input.channels == 1
    assert grey.input.mean == pytest.approx(0.5)
    assert slice_model(dino) is dino


def test_weights_and_names_change_the_record() -> None:
    model = small_timm()
    first = slice_model(model).weights_sha256
    assert slice_model(model, target_names=("a", "b")).weights_sha256 == first
    with torch.no_grad():
        model.head.bias.add_(1)
    assert slice_model(model).weights_sha256 != first


def test_what_does_not_fit_is_refused(volume: CTVolume, nodule: Nodule, tiny_model) -> None:
    with pytest.raises(TargetError, match=r"2 output\(s\), and target_names are \['a'\]"):
        explain(volume, nodule, small_timm(), target_names=["a"])
    with pytest.raises(TargetError, match="all different"):
        explain(volume, nodule, small_timm(), target_names=["a", "a"])
    with pytest.raises(InputError, match="2 numbers as mean for 3"):
        explain(
            volume,
            nodule,
            small_timm(),
            input=InputSpec(field_of_view_mm=64, image_size=32, mean=(1.0, 2.0)),
        )
    with pytest.raises(InputError, match="NoduleViT has an input and target names of its own"):
        explain(volume, nodule, tiny_model, target_names=["a"])
    with pytest.raises(ModelError, match="32 x 48"):
        explain(volume, nodule, small_timm(img_size=(32, 48)))
    with pytest.raises(InputError, match="more than one size"):
        explain(volume, nodule, small_timm(dynamic_img_size=True))
    with pytest.raises(TargetError, match="has 60 outputs, and a case of all"):
        explain(volume, nodule, small_timm(num_classes=60))
    with pytest.raises(CdamError, match="takes images of 32 x 32"):
        explain(volume, nodule, small_timm(), input=InputSpec(field_of_view_mm=64, image_size=40))
    with pytest.raises(ModelError, match="ResNet is not a vision transformer of a known family"):
        explain(volume, nodule, timm.create_model("test_resnet", num_classes=2))


def test_two_of_many_outputs_and_a_concept(volume: CTVolume, nodule: Nodule) -> None:
    model = small_timm(num_classes=60)
    seen = slice_model(model, input=INPUT)
    examples = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    concept = concept_from_images(seen.model, examples, label="like these")
    found = explain(volume, nodule, seen, targets=[59, "output_3", concept])
    assert [target.name for target in found.targets] == ["output_59", "output_3", "like these"]
    crop = crop_nodule(volume, nodule, size_mm=40.0, spacing_mm=2.0)
    expected = predict(seen, crop, concepts=[concept])
    assert found.predictions == pytest.approx(expected, rel=1e-6)
    assert len(expected) == 61


def test_a_description_of_ones_own_is_explained(volume: CTVolume, nodule: Nodule) -> None:
    around = Around().eval()
    described = ClassTokenModel(
        around.net, lambda images: images, None, forward=lambda images: around(images) * 2
    )
    spec = INPUT.model_copy(update={"channels": 1, "mean": 0.4, "std": 0.3})
    twice = explain(volume, nodule, described, input=spec, targets=0)
    once = explain(volume, nodule, around, input=spec, targets=0)
    np.testing.assert_allclose(
        twice.map("output_0")[0], 2 * once.map("output_0")[0], rtol=1e-4, atol=1e-5
    )
