"""The main job on a phantom: places in the patient, predictions, choices, the case folder."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jaxtyping
import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cdam_med.attribution.combinations import PerImage, Targets, difference, opposite
from cdam_med.attribution.method import Attribution, Resolution
from cdam_med.attribution.registry import METHODS
from cdam_med.data.transforms import slices_to_images
from cdam_med.data.views import VIEW_NAMES, VIEWS, volume_to_slices
from cdam_med.errors import MethodError, ViewError
from cdam_med.models.nodule_vit import ModelConfig, NoduleViT
from cdam_med.pipeline import Explanation, crop_slices, explain, predict
from cdam_med.targets import TARGET_NAMES
from data_prep.cohort.folder import CohortImages
from data_prep.crop import Crop, crop_nodule
from data_prep.errors import CropError, InputError
from data_prep.nodules import MaskBox, Nodule, Reader
from data_prep.volume import CTVolume

SHAPE = (70, 64, 28)
# a CT as scanners store it: columns to the left, rows to the back; here the table is turned too
AFFINE = nibabel.affines.from_matvec(
    nibabel.eulerangles.euler2mat(0.1, 0.05, -0.12) @ np.diag([-0.7, -0.8, 2.0]), [40.0, 10.0, -90]
)
CENTER_IJK = np.array([34.0, 30.0, 14.0])
BLOB_OFFSET_MM = np.array([6.0, -7.0, 5.0])  # to the right, back and head of the nodule's centre


@dataclass(frozen=True)
class Brightness:
    """Stand in for an estimator: the score of a patch is how bright it is."""

    name: ClassVar[str] = "brightness"
    title: ClassVar[str] = "Brightness"
    reference: ClassVar[str] = "this test"
    resolution: ClassVar[Resolution] = "patch"
    is_signed: ClassVar[bool] = True
    cost: ClassVar[str] = "nothing"
    meaning: ClassVar[str] = "How bright a patch is."
    power: int = 1

    def __call__(
        self, model: object, images: Tensor, targets: Targets = None, *, seed: int = 0
    ) -> Attribution:
        grid = functional.adaptive_avg_pool2d(images, 8) ** self.power
        return Attribution(
            scores=grid.expand(-1, len(targets), -1, -1),
            prefix_scores=None,
            outputs=torch.zeros(len(images), len(targets)),
            targets=tuple(targets),
            path="by hand",
            method=self.name,
            resolution=self.resolution,
            is_signed=self.is_signed,
        )


def ct(hu: np.ndarray) -> CTVolume:
    return CTVolume(hu.astype(np.int16), AFFINE, "1.2.3")


@pytest.fixture(scope="module")
def volume() -> CTVolume:
    return ct(np.random.default_rng(0).integers(-1000, 400, SHAPE))


@pytest.fixture(scope="module")
def nodule() -> Nodule:
    outline = MaskBox((31, 28, 13), np.ones((7, 5, 3), bool), SHAPE)
    ratings = {**dict.fromkeys(TARGET_NAMES, 3), "diameter": 5.5}
    return Nodule(
        nodule_id="nodule_1",
        center_xyz_mm=nibabel.affines.apply_affine(AFFINE, CENTER_IJK),
        ratings={name: float(value) for name, value in ratings.items()},
        readers=(Reader(ratings, outline, 1), Reader(ratings, outline, 2)),
        outline=outline,
    )


@pytest.fixture(scope="module")
def explanation(volume: CTVolume, nodule: Nodule, tiny_model: NoduleViT) -> Explanation:
    return explain(volume, nodule, tiny_model, views=VIEW_NAMES)


@pytest.mark.parametrize("view", [*VIEW_NAMES, None])
def test_bright_blob_is_found_at_its_place_in_the_patient(
    nodule: Nodule, tiny_model: NoduleViT, view: str | None
) -> None:
    blob_xyz_mm = nodule.center_xyz_mm + BLOB_OFFSET_MM
    voxels = np.moveaxis(np.indices(SHAPE), 0, -1)
    distance_mm = np.linalg.norm(
        nibabel.affines.apply_affine(AFFINE, voxels) - blob_xyz_mm, axis=-1
    )
    found = explain(
        ct(np.where(distance_mm < 2.5, 400, -1000)),
        nodule,
        tiny_model,
        targets="malignancy",
        method=Brightness(),
        views=VIEW_NAMES,
    )
    scores, affine = found.map("malignancy", view)
    brightest = np.argwhere(scores == scores.max())
    found_xyz_mm = nibabel.affines.apply_affine(affine, brightest.mean(axis=0))
    patch_mm = 24.0 / 8
    assert np.abs(found_xyz_mm - blob_xyz_mm).max() < patch_mm


def test_predictions_are_the_mean_over_the_central_slices_of_the_models_views(
    explanation: Explanation, tiny_model: NoduleViT
) -> None:
    hu = explanation.crop.hu
    assert hu.shape == (24, 24, 24)
    axial = [hu[::-1, ::-1, k].T for k in (11, 12)]
    sagittal = [hu[i, ::-1, ::-1].T for i in (11, 12)]
    slices = torch.from_numpy(np.stack([*axial, *sagittal]))
    with torch.no_grad():
        outputs = tiny_model(slices_to_images(slices, tiny_model.config.input))
    expected = dict(zip(TARGET_NAMES, outputs.mean(dim=0).tolist(), strict=True))
    probability = torch.tensor(expected["malignancy"]).sigmoid().item()
    expected["malignancy_probability"] = probability
    assert explanation.predictions == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_predictions_do_not_depend_on_what_is_explained(
    volume: CTVolume, nodule: Nodule, tiny_model: NoduleViT, explanation: Explanation
) -> None:
    other = explain(volume, nodule, tiny_model, targets=["margin"], views="coronal", batch_size=5)
    assert other.predictions == pytest.approx(explanation.predictions, rel=1e-6)
    assert other.attribution.targets == ("margin",)
    assert tuple(other.attribution.views) == ("axial", "sagittal", "coronal")
    np.testing.assert_allclose(
        other.map("margin")[0], explanation.map("margin")[0], rtol=1e-4, atol=1e-7
    )


def test_maps_lie_on_the_crop(explanation: Explanation, nodule: Nodule) -> None:
    for target in TARGET_NAMES:
        scores, affine = explanation.map(target)
        assert scores.shape == explanation.crop.hu.shape
        assert scores.dtype == np.float32
        np.testing.assert_array_equal(affine, explanation.crop.affine)
        # tiny_model predicts from these two; the third, which was asked for, has no part in it
        views = [explanation.map(target, view)[0] for view in ("axial", "sagittal")]
        np.testing.assert_allclose(scores, np.mean(views, axis=0), rtol=1e-4, atol=1e-7)
    middle = (np.array(explanation.crop.hu.shape) - 1) / 2
    np.testing.assert_allclose(
        nibabel.affines.apply_affine(affine, middle), nodule.center_xyz_mm, atol=1e-9
    )


def test_saved_case_holds_the_maps_and_their_record(
    explanation: Explanation, volume: CTVolume, tiny_model: NoduleViT, tmp_path: Path
) -> None:
    annotation = hashlib.sha256(b"annotations").hexdigest()
    folder = explanation.save(tmp_path / "cases" / "nodule_1", annotation_sha256=annotation)
    assert folder == tmp_path / "cases" / "nodule_1"
    record = json.loads((folder / "case.json").read_text())
    for target in TARGET_NAMES:
        kinds = {None: "", VIEW_NAMES: "_mean_of_views"}
        for view, end in {**kinds, **{view: f"_{view}" for view in VIEW_NAMES}}.items():
            image = nibabel.load(folder / f"attribution_{target}{end}.nii.gz")
            scores, affine = explanation.map(target, view)
            np.testing.assert_allclose(np.asarray(image.dataobj), scores, rtol=1e-6, atol=1e-12)
            np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    assert record["predictions"] == explanation.predictions
    assert record["inputs"]["volume_sha256"] == volume.sha256
    assert record["inputs"]["annotation_sha256"] == annotation
    assert record["model"]["weights_sha256"] == tiny_model.weights_sha256
    assert record["method"]["path"] == "closed form"
    assert "axial and sagittal" in record["method"]["prediction_rule"]
    assert record["method"]["views"]["axial"]["patch_size_mm"] == pytest.approx([6.0, 6.0])
    assert len(record["nodule"]["reader_ratings"]) == 2


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        ("malignacy", r"'malignacy'; did you mean 'malignancy'.*sphericity"),
        (["margin", "xyz"], r"'xyz'.*malignancy, subtlety"),
        (["margin", "margin"], "once"),
        (["margin", 3], "once each, not margin, margin"),
        ([], "No target is asked for"),
        (9, "no target 9: choose from 0 to 8"),
        ({"margin": 1.0}, r"Combination\(weights"),
        (PerImage(["margin"]), "PerImage is for batches"),
        (opposite("margin", label="texture"), "'texture' is the name of an output"),
        ([opposite("margin", label="a b"), opposite("margin", label="A_b")], "files of the same"),
    ],
)
def test_targets_that_are_refused_before_any_work(
    volume: CTVolume, nodule: Nodule, tiny_model: NoduleViT, targets: object, reason: str
) -> None:
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=reason):
            explain(volume, nodule, tiny_model, targets=targets, method=Brightness())
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_columns_and_combinations_are_explained(
    volume: CTVolume,
    nodule: Nodule,
    tiny_model: NoduleViT,
    explanation: Explanation,
    tmp_path: Path,
) -> None:
    gap = difference("margin", "texture", label="margin \u2212 texture")
    found = explain(volume, nodule, tiny_model, targets=[0, gap, difference(0, "margin")])
    assert [target.name for target in found.targets] == ["malignancy", gap.label, "0 - margin"]
    assert [target.unit for target in found.targets] == ["logit", "rating 1-5", "output"]
    assert found.targets[1].description == "+1 margin -1 texture"
    whole = found.predictions
    assert whole[gap.label] == pytest.approx(whole["margin"] - whole["texture"], rel=1e-5)
    maps = [explanation.map(name)[0] for name in ("margin", "texture")]
    np.testing.assert_allclose(found.map(gap.label)[0], maps[0] - maps[1], rtol=1e-3, atol=1e-6)
    folder = found.save(tmp_path / "case")
    names = sorted(path.name for path in folder.glob("attribution_*[!l].nii.gz"))
    record = json.loads((folder / "case.json").read_text())
    assert list(record["targets"]) == ["malignancy", gap.label, "0 - margin"]
    assert "attribution_0_-_margin.nii.gz" in names
    assert [name for name in names if name.startswith("attribution_margin_texture_")]


def test_unknown_method_and_view_are_refused(
    volume: CTVolume, nodule: Nodule, tiny_model: NoduleViT
) -> None:
    with pytest.raises(MethodError, match=r"'rollout'.*attention_rollout"):
        explain(volume, nodule, tiny_model, method="rollout")
    with pytest.raises(ViewError, match=r"'axila'.*'axial'"):
        explain(volume, nodule, tiny_model, views=["axila"])


def test_nodule_larger_than_the_crop_is_refused(volume: CTVolume, tiny_model: NoduleViT) -> None:
    large = Nodule(
        nodule_id="nodule_2",
        center_xyz_mm=nibabel.affines.apply_affine(AFFINE, CENTER_IJK),
        outline=MaskBox((10, 28, 13), np.ones((48, 5, 3), bool), SHAPE),
    )
    with pytest.raises(CropError, match="nodule_2"):
        explain(volume, large, tiny_model)


def test_output_errors_are_input_errors(explanation: Explanation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("taken")
    with pytest.raises(InputError, match="file"):
        explanation.save(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["attention_map", "input_x_gradient", "integrated_cdam"])
def test_any_estimator_makes_a_case(
    volume: CTVolume, nodule: Nodule, tiny_model: NoduleViT, tmp_path: Path, name: str
) -> None:
    found = explain(
        volume, nodule, tiny_model, targets=["malignancy", "margin"], views="axial", method=name
    )
    scores, _ = found.map("malignancy")
    assert scores.shape == found.crop.hu.shape
    assert np.abs(scores).max() > 0
    kind = METHODS[name]
    assert (scores.min() < 0) == kind.is_signed
    record = json.loads((found.save(tmp_path / "case") / "case.json").read_text())["method"]
    assert (record["name"], record["reference"]) == (name, kind.reference)
    assert record["settings"] == ({"steps": 50} if name == "integrated_cdam" else {})
    assert record["is_signed"] == kind.is_signed


def test_a_map_of_pixels_is_pooled_onto_the_voxels(
    volume: CTVolume, nodule: Nodule, tiny_model: NoduleViT
) -> None:
    found = explain(volume, nodule, tiny_model, views="axial", method="intensity")
    k = 20
    stack = crop_slices(found.crop, "axial")
    image = slices_to_images(stack[[len(stack) - 1 - k]], tiny_model.config.input)
    pixels = METHODS["intensity"]()(tiny_model, image, ["malignancy"]).scores
    voxels = functional.adaptive_avg_pool2d(pixels, found.crop.hu.shape[:2])[0, 0].numpy()
    scores, _ = found.map("malignancy", "axial")
    plane = volume_to_slices(scores, VIEWS["axial"])[len(stack) - 1 - k]
    np.testing.assert_allclose(plane, voxels, atol=1e-6)


def cohort_images(crop: Crop) -> CohortImages:
    """A crop as a cohort folder holds it: HU in whole numbers, no padding."""
    return CohortImages(np.rint(crop.hu).astype(np.int16), crop.affine, None, None)


def test_a_larger_crop_gives_the_predictions_of_the_models_own(
    volume: CTVolume, nodule: Nodule, tiny_model: NoduleViT, explanation: Explanation
) -> None:
    large = crop_nodule(volume, nodule, size_mm=40.0)
    assert large.hu.shape == (40, 40, 40)
    assert predict(tiny_model, large) == pytest.approx(explanation.predictions, rel=1e-6)
    # rounding to whole HU moves outputs a little, another field by far more
    from_cohort = predict(tiny_model, cohort_images(large))
    assert from_cohort == pytest.approx(explanation.predictions, abs=1e-3)
    squeezed = Crop(large.hu[::2, ::2, ::2], explanation.crop.affine, None, None)
    with pytest.raises(CropError, match="20 x 20 x 20 voxels"):
        predict(tiny_model, squeezed)


@pytest.mark.parametrize(
    ("size_mm", "spacing_mm"),
    [(20.0, 1.0), (25.0, 1.0), (24.0, 2.0), (48.0, 0.5), (40.0, 0.8)],
    ids=["smaller", "half a voxel off", "coarser", "finer", "another grid"],
)
def test_a_crop_that_cannot_be_cut_exactly_is_refused(
    volume: CTVolume, nodule: Nodule, tiny_model: NoduleViT, size_mm: float, spacing_mm: float
) -> None:
    crop = crop_nodule(volume, nodule, size_mm=size_mm, spacing_mm=spacing_mm)
    with pytest.raises(CropError, match=r"crop_nodule\(volume, nodule, size_mm=24, spacing_mm=1\)"):
        predict(tiny_model, crop)


@pytest.mark.parametrize("logit", [-800.0, 800.0])
def test_an_extreme_logit_has_a_probability(
    volume: CTVolume, nodule: Nodule, tiny_config: ModelConfig, logit: float
) -> None:
    model = NoduleViT(tiny_config).eval()
    torch.nn.init.constant_(model.heads.malignancy.bias, logit)
    predictions = predict(model, crop_nodule(volume, nodule, size_mm=24.0))
    assert predictions["malignancy"] == pytest.approx(logit, abs=5)
    assert predictions["malignancy_probability"] == float(logit > 0)


def test_the_map_handed_over_is_that_of_the_slices_predicted_from(
    volume: CTVolume, nodule: Nodule, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    """The file's central slices against the paper's equation, by one full backward pass."""
    model = NoduleViT(tiny_config.model_copy(update={"views": ("axial",)})).eval()
    found = explain(volume, nodule, model)
    folder = found.save(tmp_path / "case")
    assert sorted(path.name for path in folder.glob("*_malignancy*")) == [
        "attribution_malignancy.nii.gz"
    ]
    scores = nibabel.load(folder / "attribution_malignancy.nii.gz").get_fdata()
    tokens = []
    hook = model.backbone.blocks[-1].norm1.register_forward_hook(
        lambda module, args, output: tokens.append(output.requires_grad_())
    )
    for k in (11, 12):
        plane = torch.from_numpy(found.crop.hu[::-1, ::-1, k].T.copy())
        logit = model(slices_to_images(plane[None], tiny_config.input))[0, 0]
        (gradient,) = torch.autograd.grad(logit, tokens[-1])
        expected = (tokens[-1] * gradient).sum(-1)[0, 1:].reshape(4, 4).detach().numpy()
        found_here = scores[:, :, k].T[::-1, ::-1][3::6, 3::6]
        np.testing.assert_allclose(found_here, expected, atol=1e-4 * np.abs(expected).max())
    hook.remove()


def test_it_shows_in_one_line_what_it_is(explanation: Explanation, volume: CTVolume) -> None:
    shown = repr(explanation)
    logit, probability = (
        explanation.predictions[name] for name in ("malignancy", "malignancy_probability")
    )
    assert shown.startswith(
        f"Explanation(nodule_1: malignancy {logit:.3g}, malignancy_probability {probability:.3g}, "
    )
    assert shown.endswith("9 maps of axial and sagittal and coronal slices by cdam, model tiny)")
    assert "\n" not in shown
    assert volume.series_uid not in shown
