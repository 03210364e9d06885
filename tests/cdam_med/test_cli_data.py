"""The commands that need no model: check, prepare, download; and repairs on the way to a case."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid
from typer.testing import Result

from cdam_med.cli.command import names
from cdam_med.demo import extract_path
from data_prep import CTVolume, Nodule, read_cohort

Run = Callable[..., Result]


@pytest.fixture
def with_gap(tmp_path: Path) -> Path:
    """The extract that ships, one slice in the middle taken out."""
    folder = tmp_path / "with_gap"
    shutil.copytree(extract_path(), folder)
    by_z = sorted(
        folder.glob("*.dcm"), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2]
    )
    by_z[len(by_z) // 2].unlink()
    return folder


def test_names_are_split_and_trimmed() -> None:
    assert names(" missing_slices, gantry_tilt ,") == ("missing_slices", "gantry_tilt")
    assert names("") == ()


def test_check_lists_geometry_and_problems_of_each_series(run: Run, with_gap: Path) -> None:
    (with_gap / "note.txt").write_text("no DICOM")
    result = run("check", with_gap)
    assert result.exit_code == 1
    assert "refused" in result.stdout
    assert "missing_slices, refused" in result.stdout
    assert "5.00 mm" in result.stdout
    assert "512 x 512" in result.stdout
    assert "24 files" in result.stdout
    repaired = run("check", with_gap, "--repair", "missing_slices")
    assert repaired.exit_code == 0
    assert "missing_slices, repaired" in repaired.stdout
    assert "512 x 512 x 24" in repaired.stdout


def test_check_says_what_image_files_are(run: Run, volume: CTVolume, tmp_path: Path) -> None:
    mask = np.zeros(volume.shape, np.uint8)
    mask[5:9, 5:9, 5:9], mask[20:24, 5:9, 5:9] = 1, 2
    affine = volume.affine
    nibabel.save(nibabel.Nifti1Image(np.asarray(volume.hu), affine), tmp_path / "ct.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / "mask.nii.gz")
    noise = np.random.default_rng(0).random(volume.shape, np.float32)
    nibabel.save(nibabel.Nifti1Image(noise, affine), tmp_path / "pet.nii.gz")
    result = run("check", tmp_path)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    size = " x ".join(map(str, volume.shape))
    assert lines[0] == "ct        ct.nii.gz"
    assert lines[1].startswith(f"          {size}, ")
    assert f"LPS, values {volume.hu.min()} to {volume.hu.max()}" in lines[1]
    assert "mask      mask.nii.gz" in lines
    labels = [line.split()[1] for line in lines if line.startswith("          label ")]
    assert labels == ["1", "2"]
    assert "refused   pet.nii.gz" in lines
    assert "as a CT, not_hu: " in result.stdout
    assert "as a mask, not_labels: " in result.stdout
    for name, code in (("ct.nii.gz", 0), ("mask.nii.gz", 0), ("pet.nii.gz", 1)):
        result = run("check", tmp_path / name, "--json")
        assert result.exit_code == code
        (image,) = json.loads(result.stdout)["images"]
        assert image["shape"] == list(volume.shape)


def test_check_of_nothing_is_no_success(run: Run, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no CT")
    for path in (tmp_path, tmp_path / "note.txt"):
        result = run("check", path)
        assert result.exit_code == 2
        for expected in (path.name, "DICOM", ".nii.gz", ".mha", "cohort.json", "case.json"):
            assert expected in result.stderr
    (tmp_path / "manifest.csv").write_text("nodule_id\n")
    result = run("check", tmp_path)
    assert result.exit_code == 2
    assert "manifest.csv but no cohort.json" in result.stderr.replace("\n", " ")


def test_check_of_a_table_of_nodules(run: Run, tmp_path: Path) -> None:
    table = tmp_path / "nodules.csv"
    table.write_text("PatientID,X,Y,Z,Malignancy,remark\nP1,1,2,3,4,a\nP1,one,2,3,4,b\n")
    result = run("check", table)
    assert result.exit_code == 1
    for told in ("1 nodules; 0 series and 1 patients", "--frame ras or lps", "'remark'", "Row 3"):
        assert told in result.stdout
    table.write_text("seriesuid,coordX,coordY,coordZ,class\n1.2,1,2,3,1\n1.2,1,3,3,0\n")
    result = run("check", table, "--json")
    assert result.exit_code == 0
    (report,) = json.loads(result.stdout)
    assert (report["rows"], report["frame"]) == (1, "lps")
    assert "1 rows of nodules.csv say that they are no nodule" in report["unused"]


def test_check_as_json_has_everything(run: Run, with_gap: Path) -> None:
    result = run("check", with_gap, "--json", "--headers-only")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    (stack,) = report["stacks"]
    assert stack["verdict"] == "refused"
    assert "missing_slices" in [problem["name"] for problem in stack["problems"]]
    assert "LIDC-IDRI-0001" not in result.stdout  # the patient's ID


def test_check_refuses_an_unknown_problem(run: Run, with_gap: Path) -> None:
    result = run("check", with_gap, "--repair", "no_such_problem")
    assert result.exit_code == 2
    assert "'no_such_problem'" in result.stderr
    assert "gantry_tilt" in result.stderr


def test_a_cohort_from_a_table_of_points(
    run: Run, volume: CTVolume, nodule: Nodule, tmp_path: Path
) -> None:
    x, y, z = nodule.center_xyz_mm
    table = tmp_path / "nodules.csv"
    table.write_text(
        "series_uid,x,y,z,diameter_mm,malignancy\n"
        f"{volume.series_uid},{-x},{-y},{z},32,5\n"
        "1.2.3,0,0,0,5,1\n"
    )
    out, key = tmp_path / "cohort", tmp_path / "key.csv"
    options = ["--nodules", table, "--frame", "lps", "--size-mm", 24, "--out", out]
    result = run("prepare", "series", extract_path(), *options, "--key-file", key, "--overview")
    assert result.exit_code == 0, result.stderr
    assert "1 nodules of 1 patients (1 malignant)" in result.stdout
    assert "1 left out: no_series" in result.stdout
    cohort = read_cohort(out)
    (row,) = cohort.nodules
    np.testing.assert_allclose(row.center_xyz_mm, nodule.center_xyz_mm, atol=1e-5)
    assert row.ratings["diameter"] == 32
    assert row.label == "malignant"
    images = cohort.read_images(row)
    assert images.hu.shape == (24, 24, 24)
    assert images.hu.max() > 0  # the nodule is there
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    for private in (volume.series_uid, "LIDC-IDRI-0001"):
        assert private.encode() not in everything
        assert private in key.read_text()
    assert (out / "overview" / "nodules_01.png").is_file()
    checked = run("check", out)
    assert checked.exit_code == 0, checked.stdout
    (out / "crops" / f"{row.nodule_id}.nii.gz").write_bytes(b"something else")
    broken = run("check", out)
    assert broken.exit_code == 1
    assert "error" in broken.stdout


def test_nothing_kept_is_no_success(run: Run, volume: CTVolume, tmp_path: Path) -> None:
    uid = volume.series_uid
    table = tmp_path / "nodules.csv"
    table.write_text(
        f"series_uid,x,y,z,remark\n{uid},9000,0,0,far\n{uid},0,9000,0,far\n1.2.3,0,0,0,other\n"
    )
    out, key = tmp_path / "cohort", tmp_path / "key.csv"
    options = ["--nodules", table, "--frame", "lps", "--key-file", key, "--out", out]
    result = run("prepare", "series", extract_path(), *options)
    assert result.exit_code == 2
    assert "columns that aren't used: 'remark'" in result.stderr
    assert "2 left out: outside_volume" in result.stderr
    assert "Row 3 of the table of nodules can't be used: The point at" in result.stderr
    assert "1 left out: no_series" in result.stderr
    assert "left out: 2 outside_volume, 1 no_series." in result.stderr.replace("\n", " ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nodules.csv"]
    table.write_text("patient_id,x,y,z\nnobody,0,0,0\n")
    result = run("prepare", "series", extract_path(), *options)
    assert result.exit_code == 2
    assert "1 left out: no_nodules" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nodules.csv"]


def test_a_cohort_from_a_mask_has_the_outline(
    run: Run, volume: CTVolume, nodule: Nodule, tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    image = nibabel.Nifti1Image(nodule.mask.astype(np.uint8), volume.affine)
    nibabel.save(image, masks / f"{volume.series_uid}.nii.gz")
    out = tmp_path / "cohort"
    result = run("prepare", "series", extract_path(), "--masks", masks, "--out", out, "--jobs", 2)
    assert result.exit_code == 0, result.stderr
    cohort = read_cohort(out)
    (row,) = cohort.nodules
    np.testing.assert_allclose(row.center_xyz_mm, nodule.center_xyz_mm, atol=1e-3)
    mask_mm3 = cohort.read_images(row).mask.sum() * 1.0
    assert mask_mm3 == pytest.approx(nodule.mask.sum() * np.prod(volume.spacing_mm), rel=0.03)


def test_a_patient_in_several_series_needs_their_names(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    for name in ("first", "second"):
        shutil.copytree(extract_path(), folder / name)
        series_uid = generate_uid()
        for path in (folder / name).glob("*.dcm"):
            dataset = pydicom.dcmread(path)
            dataset.SeriesInstanceUID = series_uid
            dataset.SOPInstanceUID = generate_uid()
            dataset.save_as(path)
    table = tmp_path / "nodules.csv"
    table.write_text("patient_id,x,y,z,frame\nLIDC-IDRI-0001,56,86,-116,lps\n")
    result = run("prepare", "series", folder, "--nodules", table, "--out", tmp_path / "cohort")
    assert result.exit_code == 2
    assert "2 left out: ambiguous_series" in result.stderr
    assert not (tmp_path / "cohort").exists()


def test_prepare_says_what_is_missing(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    neither = run("prepare", "series", extract_path(), "--out", out)
    assert neither.exit_code == 2
    assert "--masks" in neither.stderr
    nowhere = run("prepare", "lidc", "--out", out)
    assert nowhere.exit_code == 2
    assert "--dry-run" in nowhere.stderr
    assert not out.exists()


def test_dry_run_prints_the_counts_of_the_archive(run: Run) -> None:
    result = run("prepare", "lidc", "--protocol", "paper", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "2651 nodules in 1018 scans of 1010 patients" in result.stdout
    # the reference counts, without the scans whose outlines can't be told apart
    assert "1366  unambiguous_scans: 445 benign, 413 malignant, 508 indeterminate" in result.stdout
    assert "LIDC-IDRI-0055" in result.stdout
    assert "not a cancer outcome" in result.stdout
    as_json = json.loads(run("prepare", "lidc", "--dry-run", "--json").stdout)
    taken = [nodule for nodule in as_json["nodules"] if not nodule["reason"]]
    assert len(taken) == as_json["taken"]["nodules"]


@pytest.mark.shared_data
@pytest.mark.parametrize("source", ["database", "xml"])
def test_a_cohort_of_lidc(run: Run, shared_data: Path, tmp_path: Path, source: str) -> None:
    out = tmp_path / "cohort"
    options = ["--annotations", source, "--patients", "LIDC-IDRI-0003", "--out", out]
    result = run("prepare", "lidc", shared_data / "lidc", *options)
    assert result.exit_code == 0, result.stderr
    assert "3 nodules of 1 patients (3 malignant)" in result.stdout
    assert run("check", out).exit_code == 0
    cohort = read_cohort(out)
    assert {row.patient_id for row in cohort.nodules} == {"LIDC-IDRI-0003"}
    assert {"too_few_readers"} <= {row.reason for row in cohort.exclusions}


def test_unknown_patients_and_missing_extras_are_named(run: Run, tmp_path: Path) -> None:
    result = run("download", "lidc", "--patients", "LIDC-IDRI-9999", "--out", tmp_path / "lidc")
    assert result.exit_code == 2
    assert "LIDC-IDRI-9999" in result.stderr or "cdam-med[download]" in result.stderr


def test_a_repair_is_asked_for_printed_and_written_down(
    run: Run, with_gap: Path, at: list[str], model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cases"
    options = [*at, "--targets", "margin", "--model", model_folder]
    refused = run("explain", with_gap, *options, "--out", out)
    assert refused.exit_code == 2
    assert "missing_slices" in refused.stderr
    assert not out.exists()
    result = run("explain", with_gap, *options, "--repair", "missing_slices", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "Warning: missing_slices: " in result.stderr
    (folder,) = out.iterdir()
    inputs = json.loads((folder / "case.json").read_text())["inputs"]
    assert inputs["problems"]["missing_slices"] == "repair"
    assert inputs["interpolated_slices"] == [12]
    checked = run("check", out)
    assert checked.exit_code == 0, checked.stdout
    assert f"case folder {folder.name}" in checked.stdout
    assert "model tiny, method cdam" in checked.stdout
    (folder / "ct.nii.gz").write_bytes(b"something else")
    (folder / "overview.png").unlink()
    checked = run("check", folder, "--json")
    assert checked.exit_code == 1
    assert json.loads(checked.stdout)[0]["faults"] == [
        "overview.png (missing)",
        "ct.nii.gz (changed)",
    ]


def test_image_files_of_one_name_are_told_apart_by_their_place(
    run: Run, volume: CTVolume, nodule: Nodule, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    for patient in ("P01", "P02"):
        (root / patient).mkdir(parents=True)
        image = nibabel.Nifti1Image(np.asarray(volume.hu), volume.affine)
        nibabel.save(image, root / patient / "ct.nii.gz")
    x, y, z = nodule.center_xyz_mm
    table = tmp_path / "nodules.csv"
    table.write_text(f"series_uid,x,y,z,frame\nP02/ct,{x},{y},{z},ras\n")
    result = run("prepare", "series", root, "--nodules", table, "--out", tmp_path / "cohort")
    assert result.exit_code == 0, result.stderr
    cohort = read_cohort(tmp_path / "cohort")
    assert len(cohort.nodules) == 1
    assert [row.reason for row in cohort.exclusions] == ["no_nodules"]
