"""Token grids on the voxels of a crop: place, sign, sums, means."""

import functools
from collections.abc import Sequence

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cdam_med import pipeline
from cdam_med.attribution.cdam import Cdam, cdam_scores
from cdam_med.attribution.method import Attribution
from cdam_med.data.transforms import slices_to_images
from cdam_med.data.views import VIEW_NAMES, VIEWS, volume_to_slices
from cdam_med.errors import CdamError, TargetError, ViewError
from cdam_med.explanation import grids_to_volume
from cdam_med.models.nodule_vit import NoduleViT
from cdam_med.pipeline import crop_slices
from data_prep.crop import Crop

attribute_volume = functools.partial(pipeline.attribute_volume, method=Cdam())
GRID_SHAPE = (13, 18, 24)  # no two sides alike, and not all of them multiples of the grids
SHAPE = (24, 24, 24)  # as the model wants it
# oblique, axes closest to R+, A+, S+
TURN = nibabel.eulerangles.euler2mat(0.2, -0.1, 0.15)
AFFINE = nibabel.affines.from_matvec(TURN, [-60.0, 25.0, 110.0])
BLOB_IJK = (19, 3, 14)  # towards the patient's right, back and head, each by another distance


def make_crop(hu: np.ndarray, padding: np.ndarray | None = None) -> Crop:
    return Crop(hu=hu.astype(np.float32), affine=AFFINE, mask=None, padding=padding)


@pytest.fixture
def crop() -> Crop:
    return make_crop(np.random.default_rng(1).uniform(-1000, 400, SHAPE))


def brightness(model: NoduleViT, images: Tensor, targets: Sequence[str]) -> Attribution:
    """Stand in for a method: the score of a patch is how bright it is."""
    grid = functional.adaptive_avg_pool2d(images, 4)
    return Attribution(
        scores=grid.expand(-1, len(targets), -1, -1),
        prefix_scores=torch.full((len(images), len(targets), 2), -0.5),
        outputs=images.mean(dim=(1, 2, 3))[:, None].expand(-1, len(targets)),
        targets=tuple(targets),
        path="autograd",
        method="brightness",
        resolution="patch",
        is_signed=True,
    )


@pytest.mark.parametrize("name", VIEW_NAMES)
@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (5, 3), (8, 24)])
def test_layback_agrees_with_torch_nearest_exact(name: str, grid: tuple[int, int]) -> None:
    view = VIEWS[name]
    count, rows, columns = (GRID_SHAPE[axis] for axis in view.axes)
    grids = np.random.default_rng(2).normal(size=(count, *grid)).astype(np.float32)
    resized = functional.interpolate(
        torch.from_numpy(grids)[:, None], size=(rows, columns), mode="nearest-exact"
    )
    laid_back = grids_to_volume(grids, GRID_SHAPE, name)
    np.testing.assert_array_equal(volume_to_slices(laid_back, view), resized[:, 0].numpy())


@pytest.mark.parametrize("name", VIEW_NAMES)
def test_sum_over_voxels_is_sum_over_tokens_by_voxel_count(name: str) -> None:
    view = VIEWS[name]
    count, rows, columns = (GRID_SHAPE[axis] for axis in view.axes)
    grids = np.random.default_rng(3).normal(size=(count, 5, 4)).astype(np.float32)
    numbers = np.arange(20, dtype=np.float32).reshape(1, 5, 4).repeat(count, axis=0)
    numbered = grids_to_volume(numbers, GRID_SHAPE, name).astype(int)
    voxels_of_token = np.bincount(numbered.ravel(), minlength=20).reshape(5, 4) / count
    assert voxels_of_token.sum() == rows * columns
    assert set(voxels_of_token.ravel()) <= {
        float(height * width)
        for height in (rows // 5, -(-rows // 5))
        for width in (columns // 4, -(-columns // 4))
    }
    np.testing.assert_allclose(
        grids_to_volume(grids, GRID_SHAPE, name).sum(dtype=np.float64),
        (grids * voxels_of_token).sum(dtype=np.float64),
        rtol=1e-6,
    )


@pytest.mark.parametrize("view", [*VIEW_NAMES, None])
def test_bright_blob_is_found_at_its_place_in_the_patient(
    tiny_model: NoduleViT, view: str | None
) -> None:
    hu = np.full(SHAPE, -1000.0)
    hu[tuple(slice(index - 1, index + 2) for index in BLOB_IJK)] = 400.0
    volumes = attribute_volume(
        tiny_model, make_crop(hu), targets=["malignancy"], views=VIEW_NAMES, method=brightness
    )
    scores = volumes.map("malignancy", view)
    brightest = np.argwhere(scores == scores.max())
    found_mm = nibabel.affines.apply_affine(volumes.affine, brightest.mean(axis=0))
    blob_mm = nibabel.affines.apply_affine(AFFINE, BLOB_IJK)
    along_axes_mm = TURN.T @ (found_mm - blob_mm)
    half_patch_mm = 24.0 / 4 / 2
    assert np.abs(along_axes_mm).max() <= half_patch_mm + 1e-9


def test_maps_are_those_of_the_method_slice_by_slice(tiny_model: NoduleViT, crop: Crop) -> None:
    targets = ("spiculation", "malignancy")
    volumes = attribute_volume(tiny_model, crop, targets=targets, views=VIEW_NAMES, batch_size=7)
    for name in VIEW_NAMES:
        images = slices_to_images(crop_slices(crop, name), tiny_model.config.input)
        for index in (0, len(images) // 2, len(images) - 1):
            alone = cdam_scores(tiny_model, images[index : index + 1], targets)
            for column, target in enumerate(targets):
                shown = volume_to_slices(volumes.map(target, name), VIEWS[name])[index]
                expected = functional.interpolate(
                    alone.scores[:, column : column + 1], size=shown.shape, mode="nearest-exact"
                )
                np.testing.assert_allclose(shown, expected[0, 0].numpy(), rtol=1e-4, atol=1e-7)


def test_batches_do_not_matter_and_progress_is_told(tiny_model: NoduleViT, crop: Crop) -> None:
    told: list[tuple[int, int]] = []
    whole = attribute_volume(tiny_model, crop, targets=["margin"], batch_size=1000)
    parts = attribute_volume(
        tiny_model,
        crop,
        targets=["margin"],
        batch_size=5,
        progress=lambda done, total: told.append((done, total)),
    )
    np.testing.assert_allclose(parts.map("margin"), whole.map("margin"), rtol=1e-4, atol=1e-7)
    done, totals = zip(*told, strict=True)
    assert set(totals) == {SHAPE[2] + SHAPE[0]}  # axial and sagittal, as the model was trained
    assert done[-1] == SHAPE[2] + SHAPE[0]
    assert all(0 < after - before <= 5 for before, after in zip((0, *done), done, strict=False))


def test_the_map_is_of_the_models_views_whatever_else_is_explained(
    tiny_model: NoduleViT, crop: Crop
) -> None:
    volumes = attribute_volume(
        tiny_model, crop, targets=["texture"], views="coronal", method=brightness
    )
    assert list(volumes.views) == ["axial", "sagittal", "coronal"]
    views = {name: volumes.map("texture", name) for name in VIEW_NAMES}
    assert not np.array_equal(views["axial"], views["sagittal"])
    own = np.mean([views["axial"], views["sagittal"]], axis=0)
    np.testing.assert_allclose(volumes.map("texture"), own, rtol=1e-6)
    mean = np.mean(list(views.values()), axis=0)
    np.testing.assert_allclose(volumes.map("texture", VIEW_NAMES), mean, rtol=1e-6)
    alone = attribute_volume(tiny_model, crop, targets=["texture"], method=brightness)
    np.testing.assert_array_equal(volumes.map("texture"), alone.map("texture"))
    assert volumes.prefix_share("texture") == alone.prefix_share("texture")


def test_a_larger_crop_is_cut_to_what_the_model_sees(tiny_model: NoduleViT, crop: Crop) -> None:
    affine = AFFINE.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, 5)
    hu = np.pad(crop.hu, 5, constant_values=900.0)
    large = Crop(hu, affine, None, np.pad(np.zeros(SHAPE, dtype=bool), 5, constant_values=True))
    cut = attribute_volume(tiny_model, large, targets=["margin"])
    np.testing.assert_allclose(cut.affine, AFFINE, atol=1e-12)
    assert cut.padding is None
    expected = attribute_volume(tiny_model, crop, targets=["margin"])
    np.testing.assert_array_equal(cut.map("margin"), expected.map("margin"))


def test_exactly_zero_outside_the_scan_and_unchanged_inside(tiny_model: NoduleViT) -> None:
    hu = np.random.default_rng(4).uniform(-1000, 400, SHAPE)
    padding = np.zeros(SHAPE, dtype=bool)
    padding[:, :, 20:] = True
    padding[:2, 4:] = True
    hu[padding] = -1000.0
    padded, plain = (
        attribute_volume(tiny_model, made, targets=["malignancy"], views=VIEW_NAMES)
        for made in (make_crop(hu, padding), make_crop(hu))
    )
    for view in (*VIEW_NAMES, None):
        scores = padded.map("malignancy", view)
        assert not scores[padding].any()
        np.testing.assert_array_equal(scores[~padding], plain.map("malignancy", view)[~padding])
        assert plain.map("malignancy", view)[padding].any()


def test_patch_size_is_a_share_of_the_field_of_view(tiny_model: NoduleViT, crop: Crop) -> None:
    volumes = attribute_volume(tiny_model, crop, targets=["margin"], method=brightness)
    for scores in volumes.views.values():
        assert scores.patch_size_mm == pytest.approx((6.0, 6.0))


def test_prefix_share_counts_magnitudes(tiny_model: NoduleViT) -> None:
    bright = make_crop(np.full(SHAPE, 400.0))
    volumes = attribute_volume(tiny_model, bright, targets=["margin"], method=brightness)
    patch = np.abs(volumes.views["axial"].scores).mean()
    # two tokens of -0.5 beside sixteen patches, all alike
    assert volumes.prefix_share("margin") == pytest.approx(1.0 / (1.0 + 16.0 * patch))


def test_what_was_not_computed_is_refused(tiny_model: NoduleViT, crop: Crop) -> None:
    volumes = attribute_volume(
        tiny_model, crop, targets=["margin"], views=["axial"], method=brightness
    )
    assert list(volumes.views) == ["axial", "sagittal"]
    with pytest.raises(TargetError, match=r"'malignancy'.*margin"):
        volumes.map("malignancy")
    with pytest.raises(ViewError, match=r"coronal.*axial"):
        volumes.map("margin", "coronal")
    with pytest.raises(ViewError, match="'oblique'"):
        volumes.map("margin", "oblique")


def test_what_there_is_not_is_refused(tiny_model: NoduleViT, crop: Crop) -> None:
    with pytest.raises(TargetError, match="'beauty'"):
        attribute_volume(tiny_model, crop, targets=["beauty"])
    with pytest.raises(ViewError, match="'oblique'"):
        attribute_volume(tiny_model, crop, targets=["margin"], views=["oblique"])
    with pytest.raises(CdamError, match=r"batch size.*0"):
        attribute_volume(tiny_model, crop, targets=["margin"], batch_size=0)
