"""Examples from disk: image and mask lie on each other, centred or shifted."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from cdam_med.data.image_folder import read_image_folder
from cdam_med.data.transforms import InputSpec
from cdam_med.evaluation.examples import (
    examples_from_cohort,
    examples_from_image_folder,
    examples_from_slices,
)
from cdam_med.models.backbone import BackboneSpec
from cdam_med.models.nodule_vit import ModelConfig, NoduleViT
from data_prep.cohort.folder import Cohort, CohortImages, CohortRecord
from data_prep.cohort.schema import CohortNodule
from data_prep.cohort.select import CLINICAL
from data_prep.errors import InputError

EDGE, SPACING_MM, FIELD_MM, IMAGE_SIZE = 80, 0.5, 24.0, 32
RADIUS_MM = 4.0
HEADER = ["nodule_id", "patient_id", "annotation_ids", "n_slices", "pixel_spacing_mm"]
IDS = ("LIDC-IDRI-0078_a", "LIDC-IDRI-0078_b", "LIDC-IDRI-0078_c")


@pytest.fixture(scope="module")
def model():
    """A model that sees 24 mm in 32 pixels."""
    return make_model("slice_stretch")


def make_model(intensity):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NoduleViT(
            ModelConfig(
                name="tiny",
                backbone=BackboneSpec(architecture="test_vit", image_size=IMAGE_SIZE),
                input=InputSpec(
                    field_of_view_mm=FIELD_MM, image_size=IMAGE_SIZE, intensity=intensity
                ),
            )
        ).eval()


def disc(edge, spacing_mm, radius_mm=RADIUS_MM):
    axis = (np.arange(edge) - (edge - 1) / 2) * spacing_mm
    return np.hypot(axis[:, None], axis) <= radius_mm


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three nodules: a bright disc of 8 mm in the middle of one slice, three slices, five."""
    path = tmp_path_factory.mktemp("slices")
    n_slices = (1, 3, 5)
    with (path / "nodules.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [
            [name, "LIDC-IDRI-0078", "2 6 10 13", str(n), str(SPACING_MM)]
            for name, n in zip(IDS, n_slices, strict=True)
        ]
        csv.writer(file).writerows([HEADER, *rows])
    shape = disc(EDGE, SPACING_MM)
    image = np.zeros((3, 5, EDGE, EDGE), np.uint8) + 20
    image[:, :, shape] = 200
    image[:, :, :2, :2] = 20 * np.arange(1, 6)[:, None, None]  # tells slices apart
    readers = np.zeros(image.shape, np.uint8)
    readers[:, :, shape] = 3
    np.savez(path / "slices.npz", image=image, reader_count=readers)
    return path


def centre(mask):
    return torch.nonzero(mask).double().mean(0) + 0.5


def test_nodules_are_in_the_middle(folder, model):
    found = examples_from_slices(folder, model)
    assert found.ids == IDS
    assert set(found.groups) == {"LIDC-IDRI-0078"}
    assert found.targets == ("malignancy",) * 3
    assert set(found.labels) <= {"malignant", "benign", "indeterminate"}
    assert found.images.shape == (3, 1, IMAGE_SIZE, IMAGE_SIZE)
    for image, mask in zip(found.images[:, 0], found.masks, strict=True):
        assert centre(mask).tolist() == [IMAGE_SIZE / 2] * 2
        area_mm2 = mask.sum().item() * (FIELD_MM / IMAGE_SIZE) ** 2
        assert area_mm2 == pytest.approx(np.pi * RADIUS_MM**2, rel=0.08)
        assert image[mask].mean() > 0.85
        assert image[~mask].mean() < 0.1


def test_shifted_nodules_take_their_masks_along(folder, model):
    found = examples_from_slices(folder, model, shift_mm=5.0, seed=1)
    moved = torch.stack([centre(mask) for mask in found.masks]) - IMAGE_SIZE / 2
    assert moved.abs().max() <= 5 * IMAGE_SIZE / FIELD_MM + 0.5
    assert (moved.abs().amax(1) > 0.5).any()
    assert len({tuple(row) for row in moved.tolist()}) == 3
    assert np.abs(moved.numpy() * FIELD_MM / IMAGE_SIZE - found.shifts_mm).max() < 0.3
    assert not examples_from_slices(folder, model).shifts_mm.any()
    for image, mask in zip(found.images[:, 0], found.masks, strict=True):
        assert image[mask].mean() > 0.85
        assert image[~mask].mean() < 0.1


def test_a_nodules_shift_is_its_own(folder, model):
    every = examples_from_slices(folder, model, shift_mm=5.0, seed=1)
    one = examples_from_slices(folder, model, shift_mm=5.0, seed=1, nodules=[IDS[2]])
    assert one.ids == IDS[2:]
    assert torch.equal(one.images[0], every.images[2])
    other = examples_from_slices(folder, model, shift_mm=5.0, seed=2)
    assert not torch.equal(other.masks, every.masks)


def test_no_pixel_is_made_up(folder, model):
    """40 mm are stored and 24 mm seen, so that 8 mm are the most."""
    found = [examples_from_slices(folder, model, shift_mm=50.0, seed=seed) for seed in range(8)]
    moved = [centre(mask) - IMAGE_SIZE / 2 for each in found for mask in each.masks]
    assert torch.stack(moved).abs().max() <= 8 * IMAGE_SIZE / FIELD_MM + 0.5
    assert torch.stack(moved).abs().max() >= 6 * IMAGE_SIZE / FIELD_MM


def test_other_slices(folder, model):
    found = examples_from_slices(folder, model, slice_offset=1)
    assert found.ids == IDS[1:]
    assert examples_from_slices(folder, model, slice_offset=-2).ids == IDS[2:]
    with pytest.raises(InputError, match="No nodule has the slice"):
        examples_from_slices(folder, model, slice_offset=3)


@pytest.mark.parametrize("shift_mm", [-1.0, float("nan"), float("inf")])
def test_impossible_shifts_are_refused(folder, model, shift_mm):
    with pytest.raises(InputError, match="shift_mm must be 0 or more"):
        examples_from_slices(folder, model, shift_mm=shift_mm)


def test_unknown_nodules_and_models_that_take_hu_are_refused(folder, model):
    with pytest.raises(InputError, match="no nodule nobody among the 3"):
        examples_from_slices(folder, model, nodules=["nobody"])
    with pytest.raises(InputError, match="takes HU"):
        examples_from_slices(folder, make_model("hu_window"))


NODULE = CohortNodule(
    nodule_id="n1",
    patient_id="p1",
    series_id="s1",
    fold=None,
    label="malignant",
    ratings={},
    reader_ratings={},
    n_readers=4,
    annotation_ids=(),
    center_xyz_mm=(0.0, 0.0, 0.0),
    padding_fraction=0.0,
    source_spacing_mm=(1.0, 1.0, 1.0),
    source_axcodes="LPS",
    interpolated_slices=0,
    repairs=(),
    notes=(),
    flags=(),
    crop_sha256="",
    mask_sha256="",
    readers_sha256="",
)


class BallCohort(Cohort):
    """Two nodules: a ball off the middle, known outline or none."""

    def read_images(self, nodule: CohortNodule) -> CohortImages:
        n, spacing = round(self.protocol.size_mm / self.protocol.spacing_mm), 1.0
        axis = (np.arange(n) - (n - 1) / 2) * spacing
        i, j, k = np.meshgrid(axis, axis, axis, indexing="ij")
        # to the patient's left and front of the middle, and towards the head
        ball = np.sqrt((i + 3) ** 2 + (j - 5) ** 2 + (k - 2) ** 2) <= 5
        hu = np.where(ball, 50, -850).astype(np.int16)
        affine = np.diag([spacing, spacing, spacing, 1.0])
        return CohortImages(hu, affine, ball if nodule.nodule_id == "n1" else None, None)


def ball_cohort(size_mm=40.0):
    protocol = dataclasses.replace(CLINICAL, size_mm=size_mm, spacing_mm=1.0)
    record = CohortRecord(protocol, {}, (), (), {}, {}, "")
    second = dataclasses.replace(NODULE, nodule_id="n2", patient_id="p2", label="")
    return BallCohort(Path("cohort"), record, (NODULE, second), ())


@pytest.mark.parametrize("shift_mm", [0.0, 6.0])
def test_a_cohorts_slices_are_as_they_are_displayed(shift_mm):
    model = make_model("hu_window")
    found = examples_from_cohort(ball_cohort(), model, shift_mm=shift_mm)
    assert found.ids == ("n1", "n2")
    assert found.groups == ("p1", "p2")
    assert found.labels == ("malignant", "")
    image, mask = found.images[0, 0], found.masks[0]
    assert image[mask].mean() > 0.6
    assert image[~mask].mean() < 0.2
    assert not found.masks[1].any()
    if shift_mm == 0:
        # front is up (rows fall with j), the patient's left on the right (columns fall with i)
        expected = torch.tensor([-5.0, 3.0]) * IMAGE_SIZE / FIELD_MM + IMAGE_SIZE / 2
        assert (centre(mask) - expected).abs().max() < 0.6


def test_slices_of_a_cohort_go_towards_the_head():
    model = make_model("hu_window")
    areas = [
        int(examples_from_cohort(ball_cohort(), model, slice_offset=offset).masks[0].sum())
        for offset in (-4, 1, 2, 7)
    ]
    assert areas[0] == areas[3] == 0  # beyond the ball
    assert areas[1] == areas[2] > 0  # 0.5 mm below and above its middle
    with pytest.raises(InputError, match="No nodule has the slice"):
        examples_from_cohort(ball_cohort(), model, slice_offset=30)


def test_cubes_that_are_too_small_are_refused(model):
    with pytest.raises(InputError, match="cubes of 20 mm, and the model tiny sees 24 mm"):
        examples_from_cohort(ball_cohort(20.0), model)


def test_images_by_class(tmp_path):
    for name in ("cat", "ant"):
        (tmp_path / name).mkdir()
        for number in range(3):
            image = Image.new("RGB", (80, 70), (10 * number, 90, 200))
            image.save(tmp_path / name / f"{number}.png")
    vit = timm.create_model("test_vit", img_size=64, num_classes=4)
    images = read_image_folder(tmp_path)
    found = examples_from_image_folder(images, vit)
    assert found.ids[:2] == ("ant/0.png", "ant/1.png")
    assert found.groups == found.ids
    assert found.labels == ("ant",) * 3 + ("cat",) * 3
    assert found.targets is None
    assert found.masks is None
    assert found.images.shape == (6, 3, 64, 64)
    drawn = examples_from_image_folder(images.sample(2, seed=3), vit)
    assert set(drawn.ids) <= set(found.ids)
    assert len(drawn) == 2
    (tmp_path / "cat" / "with a space.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes())
    images = read_image_folder(tmp_path)
    asked = images.select(["cat/with a space.png", "ant/2.png"])
    named = examples_from_image_folder(asked, vit)
    assert named.ids == ("ant/2.png", "cat/with a space.png")
    assert torch.equal(named.images[0], found.images[2])
    with pytest.raises(InputError, match=r"no image cat/9.png among the 7 of .*like ant/0.png"):
        images.select(["cat/9.png", "ant/0.png"])


@pytest.mark.shared_data
def test_real_nodules_are_brighter_than_what_is_around_them(shared_data, model):
    source = shared_data / "lidc_nodules"
    with (source / "nodules.csv").open() as file:
        names = [row["nodule_id"] for row in csv.DictReader(file)][::20]
    found = examples_from_slices(source, model, nodules=names, shift_mm=6.0)
    there = found.masks.flatten(1).any(1)
    assert there.float().mean() > 0.95
    pairs = zip(found.images[there, 0], found.masks[there], strict=True)
    inside = torch.stack([image[mask].mean() for image, mask in pairs])
    near = found.images[there, 0].flatten(1).median(1).values
    assert (inside > near).float().mean() > 0.8
