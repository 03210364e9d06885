"""The case folder as a whole: what is in it, that it fits together, what it gives away."""

import dataclasses
import gzip
import hashlib
import json
import re
from datetime import datetime, timedelta

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from cdam_med.export.case import case_record, map_name, write_case
from cdam_med.targets import TARGET_NAMES
from data_prep.crop import Crop
from data_prep.errors import OutputError

VIEWS = ("axial", "coronal", "sagittal")


@pytest.fixture(scope="module")
def full_case(make_case, tmp_path_factory):
    content = make_case()
    folder = tmp_path_factory.mktemp("full") / "case"
    return content, write_case(folder, content, annotation_sha256="ef" * 32)


@pytest.fixture
def small_files():
    """Let no file grow beyond 20 kB: the system then refuses in the middle of writing."""
    resource = pytest.importorskip("resource", reason="needs POSIX resource limits")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def snapshot(folder):
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def test_the_files_are_those_promised(full_case):
    _, folder = full_case
    maps = {f"attribution_{target}.nii.gz" for target in TARGET_NAMES}
    # the axial map is the one that the model's view gives, and has no second file
    further = ("coronal", "sagittal", "mean_of_views")
    maps |= {f"attribution_{target}_{kind}.nii.gz" for target in TARGET_NAMES for kind in further}
    expected = {"ct.nii.gz", "nodule.nii.gz", "case.json", "overview.png"} | maps
    expected.add(".cdam-med-case.sha256")
    assert {entry.name for entry in folder.iterdir()} == expected
    assert set(json.loads((folder / "case.json").read_text())["files"]) == expected


def test_ct_mask_and_maps_lie_on_each_other(full_case):
    content, folder = full_case
    for path in folder.glob("*.nii.gz"):
        image = nib.load(path)
        assert image.shape == content.crop.hu.shape
        np.testing.assert_allclose(image.affine, content.crop.affine, atol=1e-5)
    images = [SimpleITK.ReadImage(str(path)) for path in folder.glob("*.nii.gz")]
    assert (
        len({(image.GetOrigin(), image.GetSpacing(), image.GetDirection()) for image in images})
        == 1
    )


def test_the_arrays_are_those_that_went_in(full_case):
    content, folder = full_case
    ct = np.asanyarray(nib.load(folder / "ct.nii.gz").dataobj)
    assert ct.dtype == np.int16
    assert np.abs(ct - content.crop.hu).max() <= 0.5
    mask = np.asanyarray(nib.load(folder / "nodule.nii.gz").dataobj)
    np.testing.assert_array_equal(mask, content.crop.mask)
    for name in TARGET_NAMES:
        maps = {view: content.map(name, view)[0] for view in VIEWS}
        mean = np.mean(list(maps.values()), axis=0, dtype=np.float64).astype(np.float32)
        for end, scores in {
            "": maps["axial"],
            "_coronal": maps["coronal"],
            "_sagittal": maps["sagittal"],
            "_mean_of_views": mean,
        }.items():
            image = nib.load(folder / f"attribution_{name}{end}.nii.gz")
            np.testing.assert_array_equal(np.asanyarray(image.dataobj), scores)


def test_views_that_are_predicted_from_together_have_a_file_each(make_case, tmp_path):
    content = make_case(targets=1, views=("axial", "sagittal"))
    mean = np.mean([content.map("malignancy", view)[0] for view in ("axial", "sagittal")], axis=0)
    both = dataclasses.replace(content.attribution, model_views=("axial", "sagittal"))
    folder = write_case(tmp_path / "case", dataclasses.replace(content, attribution=both))
    maps = {path.name: np.asanyarray(nib.load(path).dataobj) for path in folder.glob("attr*")}
    assert set(maps) == {
        f"attribution_malignancy{end}.nii.gz" for end in ("", "_axial", "_sagittal")
    }
    np.testing.assert_allclose(maps["attribution_malignancy.nii.gz"], mean, rtol=1e-6)
    files = json.loads((folder / "case.json").read_text())["files"]
    assert "axial and sagittal slices, which the model" in files["attribution_malignancy.nii.gz"]


def test_every_target_has_one_scale(full_case):
    _, folder = full_case
    record = json.loads((folder / "case.json").read_text())
    for name in TARGET_NAMES:
        paths = list(folder.glob(f"attribution_{name}*.nii.gz"))
        assert len(paths) == 4
        scores = nib.load(folder / f"attribution_{name}.nii.gz").get_fdata()
        limit = np.quantile(np.abs(scores), 0.995)
        assert record["targets"][name]["symmetric_limit"] == pytest.approx(limit, rel=1e-6)
        largest = max(scores.max(), scores.min(), key=abs)
        assert record["targets"][name]["largest_score"] == largest
        beyond = record["targets"][name]["voxels_beyond_limit"]
        assert 0 < beyond == (np.abs(scores) > limit).sum() <= 0.005 * scores.size
        for path in paths:
            header = nib.load(path).header
            assert header["cal_max"] == -header["cal_min"] == pytest.approx(limit, rel=1e-6)


def test_the_record_says_where_everything_came_from(full_case):
    content, folder = full_case

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads((folder / "case.json").read_text(), parse_constant=refuse)
    assert (record["format"], record["schema_version"]) == ("cdam-med case", 2)
    assert record["statement"] == "Research only, not for diagnosis."
    assert "radiologists' opinions" in record["ratings_note"]
    created = datetime.fromisoformat(record["created_utc"])
    assert created.utcoffset() == timedelta(0)
    assert record["inputs"] == {
        "volume_sha256": "cd" * 32,
        "series_uid_sha256": hashlib.sha256(content.source.series_uid.encode()).hexdigest(),
        "annotation_sha256": "ef" * 32,
        "left_out": [],
        "problems": {"missing_slices": "repair"},
        "interpolated_slices": [3, 4],
    }
    assert record["crop"] == {
        "shape": [32, 32, 32],
        "spacing_mm": [2.0, 2.0, 2.0],
        "affine_ras_mm": content.crop.affine.tolist(),
        "padding_fraction": 0.0,
    }
    assert record["nodule"]["nodule_id"] == "scan_n1"
    assert record["nodule"]["center_ras_mm"] == content.nodule.center_xyz_mm.tolist()
    assert record["nodule"]["reader_count"] == len(record["nodule"]["reader_ratings"]) == 4
    assert record["nodule"]["consensus_ratings"] == content.nodule.ratings
    assert record["nodule"]["interpolated_slices"] == [4]
    assert record["nodule"]["flags"] == ["combined_contours"]
    assert list(record["targets"]) == list(TARGET_NAMES)
    assert record["method"]["name"] == "cdam"
    assert record["method"]["path"] == "closed form"
    assert record["method"]["meaning"] == content.method.meaning
    assert list(record["method"]["views"]) == list(VIEWS)
    assert record["method"]["model_views"] == ["axial"]
    assert record["method"]["views"]["axial"] == {"patch_size_mm": [8.0, 8.0]}
    assert record["model"]["weights_sha256"] == "ab" * 32
    assert record["model"]["config"] == {"depth": 6, "views": ["axial"]}
    for name in ("cdam-med", "torch", "timm", "numpy", "nibabel", "python"):
        assert record["versions"][name]
    assert record["versions"]["numpy"] == np.__version__


def test_predictions_are_recorded_by_their_names(make_case, tmp_path):
    content = make_case(targets=2)
    record = json.loads((write_case(tmp_path / "case", content) / "case.json").read_text())
    # all of them, whatever was explained
    assert record["predictions"] == content.predictions
    assert set(record["predictions"]) == {*TARGET_NAMES, "malignancy_probability"}
    malignancy, subtlety = (record["targets"][name] for name in TARGET_NAMES[:2])
    assert (malignancy["unit"], malignancy["score_unit"]) == ("logit", "logit")
    assert (subtlety["unit"], subtlety["score_unit"]) == ("rating 1-5", "rating points")
    assert subtlety["prefix_share"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("changes", "unit"),
    [
        ({}, "logit"),
        ({"is_signed": False}, "none (a method without sign)"),
        ({"path": "no model"}, "none (a control, which knows nothing of the model)"),
    ],
    ids=["signed", "unsigned", "control"],
)
def test_only_scores_that_are_parts_of_the_output_have_its_unit(make_case, changes, unit):
    record = case_record(make_case(targets=1, **changes))
    assert record["targets"]["malignancy"]["score_unit"] == unit
    maps = [text for name, text in record["files"].items() if name.startswith("attribution")]
    assert len(maps) == 4
    assert all(text.endswith(f"; unit: {unit}") for text in maps)


def test_the_series_uid_is_nowhere_in_the_folder(full_case):
    content, folder = full_case
    for path in folder.iterdir():
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        assert content.source.series_uid.encode() not in data


def test_a_bare_point_makes_a_case_without_a_mask(make_case, tmp_path):
    folder = write_case(tmp_path / "case", make_case(targets=1, is_annotated=False))
    record = json.loads((folder / "case.json").read_text())
    assert not (folder / "nodule.nii.gz").exists()
    assert "nodule.nii.gz" not in record["files"]
    assert record["nodule"]["reader_count"] == 0
    assert record["inputs"]["annotation_sha256"] is None


def test_an_old_case_is_replaced_as_a_whole(make_case, tmp_path):
    write_case(tmp_path / "case", make_case(targets=2))
    folder = tmp_path / "case"
    write_case(folder, make_case(targets=1, views=("axial",)), overwrite=True)
    assert {entry.name for entry in folder.glob("attribution*")} == {
        "attribution_malignancy.nii.gz"
    }
    assert [entry.name for entry in tmp_path.iterdir()] == ["case"]


def test_a_full_disk_leaves_nothing(make_case, tmp_path, small_files):
    with pytest.raises(OutputError, match=r"case folder .*out/case: file too large"):
        write_case(tmp_path / "out" / "case", make_case(targets=1))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_case(make_case, tmp_path, request):
    folder = write_case(tmp_path / "case", make_case(targets=1))
    before = snapshot(folder)
    request.getfixturevalue("small_files")
    with pytest.raises(OutputError, match="file too large"):
        write_case(folder, make_case(targets=1, seed=1), overwrite=True)
    assert snapshot(folder) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["case"]


def test_a_map_that_is_not_finite_leaves_nothing(make_case, tmp_path):
    content = make_case(targets=2)
    content.attribution.views["coronal"].scores[3, 1, 4, 5] = np.nan
    with pytest.raises(OutputError, match=r"attribution_subtlety_coronal\.nii\.gz"):
        write_case(tmp_path / "case", content)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_values_that_are_no_hu_leave_nothing(make_case, tmp_path, value):
    content = make_case(targets=1)
    content.crop.hu[0, 0, 0] = value
    with pytest.raises(OutputError, match="are no HU"):
        write_case(tmp_path / "case", content)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_prediction_that_is_no_number_is_refused(make_case, value):
    with pytest.raises(OutputError, match="malignancy"):
        dataclasses.replace(make_case(targets=1), predictions={"malignancy": value})


def test_the_crops_axes_must_be_ras(make_case):
    content = make_case(targets=1)
    affine = content.crop.affine @ np.diag([-1.0, 1.0, 1.0, 1.0])
    mirrored = dataclasses.replace(content.crop, affine=affine)
    with pytest.raises(ValueError, match="run closest to"):
        dataclasses.replace(content, crop=mirrored)


@pytest.mark.parametrize("name", ["../x", "a b", "ä", "\u7ed3\u8282", "a" * 300, "C:\\x", "a/b"])
def test_nothing_but_plain_words_gets_into_a_file_name(name):
    assert re.fullmatch(r"attribution_[A-Za-z0-9_-]{1,75}\.nii\.gz", map_name(name))
    assert map_name(name) != map_name(f"{name}.")


def test_names_that_are_plain_stay():
    assert map_name("lung opacity", "axial") == "attribution_lung_opacity_axial.nii.gz"


def test_padding_is_recorded(make_case, tmp_path):
    content = make_case(targets=1)
    padding = np.zeros(content.crop.hu.shape, bool)
    padding[:8] = True
    crop = Crop(content.crop.hu, content.crop.affine, content.crop.mask, padding)
    folder = write_case(tmp_path / "case", dataclasses.replace(content, crop=crop))
    assert json.loads((folder / "case.json").read_text())["crop"]["padding_fraction"] == 0.25
