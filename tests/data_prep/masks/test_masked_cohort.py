"""Masks on their way into a cohort: found, chosen, left out by name, without anybody's name."""

import csv
import shutil
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from typer.testing import CliRunner

from cdam_med.cli import app
from data_prep import InputError, check_path, prepare_cohort, series_tasks
from data_prep.cohort.check import check_cohort
from data_prep.cohort.folder import read_cohort
from data_prep.cohort.select import PROTOCOLS
from data_prep.errors import MaskError


@pytest.fixture
def folders(scan, tmp_path) -> tuple[Path, Path]:
    """The CT alone in one folder, and an empty one for masks."""
    series, masks = tmp_path / "ct", tmp_path / "masks"
    series.mkdir()
    masks.mkdir()
    for path in scan.paths:
        shutil.copy(path, series)
    return series, masks


def square(scan, k: int, first: tuple[float, float] = (10.5, 10.5), side: int = 6) -> np.ndarray:
    i, j = first
    corners = [[i, j], [i + side, j], [i + side, j + side], [i, j + side]]
    return scan.lps(np.column_stack([corners, np.full(4, float(k))]))


def named(names: Mapping[int, str]):
    def edit(dataset: Dataset) -> None:
        dataset.StructureSetROISequence = []
        for number, name in names.items():
            item = Dataset()
            item.ROINumber, item.ROIName = number, name
            dataset.StructureSetROISequence.append(item)

    return edit


def prepared(tasks, out: Path):
    prepare_cohort(tasks.tasks, PROTOCOLS["clinical"], out, exclusions=tasks.exclusions)
    assert [each.name for each in check_cohort(out) if each.severity == "error"] == []
    return read_cohort(out)


def test_rows_of_a_clinical_structure_set(scan, folders, write_rtstruct, tmp_path):
    """One row for each region that is left out; what may name the patient is in no file."""
    series, masks = folders
    drawn = {
        1: [square(scan, k) for k in (3, 4)],
        2: [square(scan, 5)],
        3: [square(scan, 6), square(scan, 6)[:2]],
        4: [square(scan, 9, (10.5, 10.5), 40)],
        5: [square(scan, k, (20.5, 20.5)) for k in (9, 10)],
    }
    names = {1: "GTV-1", 2: "Heart", 3: "Miller", 4: "Nodule Jane", 5: "tumor Doe 4711"}
    path = write_rtstruct(drawn, edit=named(names), name="Doe_Jane_rs.dcm")
    path.rename(masks / path.name)
    cohort = prepared(series_tasks(series, masks=masks), tmp_path / "cohort")
    assert [nodule.region for nodule in cohort.nodules] == ["ROI 5", "GTV-1"]
    assert [(row.nodule_id, row.reason) for row in cohort.exclusions] == [
        ("series_0001_ROI_2", "organ_name"),
        ("series_0001_ROI_3", "bad_contour"),
        ("series_0001_ROI_4", "outside_volume"),
    ]
    messages = [row.message for row in cohort.exclusions]
    assert messages[0].startswith("ROI 2 'Heart' of the mask isn't taken as a nodule")
    assert "ROI 4 of the mask reaches outside" in messages[2]
    for file in ("manifest.csv", "exclusions.csv", "cohort.json"):
        text = (tmp_path / "cohort" / file).read_text()
        assert not any(word in text for word in ("Doe", "Jane", "Miller", "4711", "rs.dcm"))
    # a manifest from before there were regions
    manifest = tmp_path / "cohort" / "manifest.csv"
    rows = list(csv.DictReader(manifest.read_text().splitlines()))
    with manifest.open("w", newline="") as file:
        columns = [name for name in rows[0] if name != "region"]
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    assert [nodule.region for nodule in read_cohort(tmp_path / "cohort").nodules] == ["", ""]


def test_regions_of_choice(scan, folders, write_rtstruct, tmp_path):
    series, masks = folders
    drawn = {1: [square(scan, 3)], 2: [square(scan, 6)]}
    path = write_rtstruct(drawn, edit=named({1: "GTV-1", 2: "Heart"}))
    path.rename(masks / path.name)
    (task,) = series_tasks(series, masks=masks, regions="hea*").tasks
    loaded = task.load()
    assert ([nodule.region for nodule in loaded.nodules], loaded.exclusions) == (["Heart"], [])
    (other,) = series_tasks(series, masks=masks).tasks
    assert task.settings != other.settings
    with pytest.raises(MaskError, match=r"'GVT\*'\. The regions are: 'GTV-1', 'Heart'"):
        series_tasks(series, masks=masks, regions=["heart", "GVT*"])
    with pytest.raises(InputError, match="no masks are given"):
        series_tasks(series, nodules=tmp_path / "t.csv", regions=["heart"])


def test_a_series_without_the_region_asked_for(scan, folders, write_rtstruct, write_ct_series):
    """It is known elsewhere, so this series is left out, without a word of its names."""
    series, masks = folders
    other = write_ct_series(folder=series / "other", shape=(40, 36, 14))
    first = write_rtstruct({1: [square(scan, 3)]}, edit=named({1: "GTV"}), name="1.dcm")
    second = write_rtstruct(
        {1: [square(scan, 3)]},
        edit=named({1: "Miller"}),
        name="2.dcm",
        series_uid=other.series_uid,
    )
    for path in (first, second):
        path.rename(masks / path.name)
    tasks = series_tasks(series, masks=masks, regions=["GTV*"]).tasks
    by_uid = {task.series.series_uid: task for task in tasks}
    assert len(by_uid[scan.volume.series_uid].load().nodules) == 1
    with pytest.raises(InputError, match="named like 'GTV") as raised:
        by_uid[other.series_uid].load()
    assert "Miller" not in str(raised.value)


@pytest.mark.parametrize("kind", ["rt", "seg"])
def test_masks_that_name_images_but_no_series(scan, folders, write_rtstruct, write_seg, kind):
    """The command finds what Python reads."""
    series, masks = folders

    def name_image(dataset: Dataset) -> None:
        image = Dataset()
        image.ReferencedSOPInstanceUID = scan.volume.sop_instance_uids[3]
        dataset.ROIContourSequence[0].ContourSequence[0].ContourImageSequence = [image]

    def without_series(dataset: Dataset) -> None:
        del dataset.ReferencedSeriesSequence

    if kind == "rt":
        path = write_rtstruct({1: [square(scan, 3)]}, series_uid=None, edit=name_image)
    else:
        path = write_seg([scan.ball((20, 18, 7), 4.0)], edit=without_series)
    path.rename(masks / path.name)
    found = series_tasks(series, masks=masks)
    assert found.exclusions == ()
    (task,) = found.tasks
    assert len(task.load().nodules) == 1


def test_masks_of_the_same_frame_of_reference(scan, folders, write_rtstruct, tmp_path):
    series, masks = folders
    path = write_rtstruct({1: [square(scan, 3)]}, series_uid="1.2.3.4")
    path.rename(masks / path.name)
    found = series_tasks(series, masks=masks)
    assert found.tasks == ()
    message = next(row.message for row in found.exclusions if row.reason == "no_series")
    assert "1 of them" in message
    assert "same_frame=True" in message
    cohort = prepared(series_tasks(series, masks=masks, same_frame=True), tmp_path / "cohort")
    assert "mask_of_other_series" in cohort.nodules[0].flags
    # a mask whose own series is there isn't taken for its neighbour as well
    for path in series.iterdir():
        dataset = dcmread(path)
        dataset.SeriesInstanceUID = "1.2.3.4"
        dataset.save_as(series / f"again_{path.name}")
    tasks = series_tasks(series, masks=masks, same_frame=True).tasks
    assert [task.series.series_uid for task in tasks] == ["1.2.3.4"]


def test_what_the_commands_print(scan, folders, write_rtstruct, write_seg, tmp_path):
    series, masks = folders
    drawn = {1: [square(scan, k) for k in (3, 4)], 2: [square(scan, 6)], 3: [square(scan, 7)[:1]]}
    names = {1: "GTV-1", 2: "Heart\x1b[31m", 3: "spot"}
    rt, seg = write_rtstruct(drawn, edit=named(names)), write_seg([scan.ball((20, 18, 7), 4.0)])
    for path in (rt, seg):
        path.rename(masks / path.name)

    listed = CliRunner().invoke(app, ["check", str(masks)]).stdout.splitlines()
    (of_rt,) = [n for n, line in enumerate(listed) if "rt.dcm, drawn on series" in line]
    assert listed[of_rt].endswith("(not below this path)")
    cells = [[cell for cell in line.split("  ") if cell] for line in listed[of_rt + 1 : of_rt + 5]]
    texts = [[cell.strip() for cell in row] for row in cells]
    assert texts[0] == ["number", "name", "slices", "size in mm", "nodule", "type"]
    assert texts[1] == ["ROI 1", "GTV-1", "2", "8 x 8 x 2", "yes"]
    assert texts[2] == ["ROI 2", "Heart?[31m", "1", "8 x 8 x 0", "no: organ_name"]
    assert texts[3] == ["ROI 3", "spot", "-", "-", "no: no outline"]
    assert "organ_name: named like an organ, a device or an aid of planning" in listed
    assert any("segment 1  nodule 1" in line for line in listed)
    report = check_path(masks)
    assert [stack.verdict for stack in report.stacks] == ["mask", "mask"]
    headers = check_path(masks, read_pixels=False)
    titles = [r.name for stack in headers.stacks for m in stack.masks for r in m.regions]
    assert sorted(titles) == ["GTV-1", "Heart?[31m", "nodule 1", "spot"]

    command = ["prepare", "series", str(series), "--masks", str(masks), "--out"]
    result = CliRunner().invoke(app, [*command, str(tmp_path / "c"), "--regions", "GTV*"])
    assert result.exit_code == 0, result.output
    assert "1 nodules" in result.stdout
    assert "left out" not in result.stdout


def test_a_mask_of_another_grid(scan, folders, tmp_path):
    """The command says why in its own words, and takes the CT's grid where asked."""
    series, masks = folders
    mask = scan.ball((20, 18, 7), 4.0).astype(np.uint8)
    nib.save(nib.Nifti1Image(mask, np.eye(4)), masks / f"{scan.volume.series_uid}.nii.gz")
    command = ["prepare", "series", str(series), "--masks", str(masks), "--out"]
    refused = CliRunner().invoke(app, [*command, str(tmp_path / "a")])
    assert refused.exit_code == 2
    assert "its affine is the identity" in refused.stderr
    assert "take the scan's grid (--mask-grid ct)" in refused.stderr
    assert scan.volume.series_uid not in refused.output
    taken = CliRunner().invoke(app, [*command, str(tmp_path / "b"), "--mask-grid", "ct"])
    assert taken.exit_code == 0, taken.output
    (nodule,) = read_cohort(tmp_path / "b").nodules
    assert nodule.region == "label 1"
    center = scan.volume.affine[:3] @ [*np.argwhere(mask).mean(axis=0), 1]
    assert nodule.center_xyz_mm == pytest.approx(center, abs=1e-3)
