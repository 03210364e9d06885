"""The listing of a path: what is there, and the verdict that reading it gives."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal
from pydicom import Dataset
from pydicom.uid import SegmentationStorage, generate_uid

from data_prep import SeriesError, read_series
from data_prep.dicom import read_files
from data_prep.dicom.header import index_files
from data_prep.problems import Action, Policy, SeriesWarning
from data_prep.reports import StackReport, check_path


def named(dataset: Dataset, k: int) -> None:
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "MRN-4711"
    dataset.PatientBirthDate, dataset.AccessionNumber = "19700101", "A-99"
    dataset.StudyDate = "20200202"


def only(path: Path, **options) -> StackReport:
    (stack,) = check_path(path, **options).stacks
    return stack


def names(report: StackReport) -> list[str]:
    return [problem.name for problem in report.problems]


def test_a_hospital_folder(write_ct_series, tmp_path):
    root = tmp_path / "export"
    good = write_ct_series(folder=root / "a", edit=named)
    gap = write_ct_series(folder=root / "b", edit=named)
    gap.paths[4].unlink()
    scout = write_ct_series(
        folder=root / "c",
        shape=(24, 20, 2),
        edit=lambda dataset, k: setattr(dataset, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    )
    other = pydicom.dcmread(good.paths[0])
    other.SOPClassUID, other.Modality = SegmentationStorage, "SEG"
    other.SeriesInstanceUID = other.SOPInstanceUID = generate_uid()
    other.file_meta.MediaStorageSOPClassUID = other.SOPClassUID
    other.save_as(root / "segmentation.dcm")
    (root / "page.dcm").write_text("<html>not found</html>")
    (root / "readme.txt").write_text("hello")
    report = check_path(root)
    assert report.n_files == 12 + 11 + 2 + 3
    by_uid = {one.series_uid: one for one in report.stacks}
    first, second, third, last = (
        by_uid[uid]
        for uid in (good.series_uid, gap.series_uid, scout.series_uid, other.SeriesInstanceUID)
    )
    assert [first.stack, second.stack, third.stack, last.stack] == [1, 1, 0, 0]
    assert [first.verdict, second.verdict] == ["ok", "refused"]
    assert [third.verdict, last.verdict] == ["other", "mask"]
    assert first.n_slices == 12
    assert first.is_default
    assert first.problems == ()
    assert names(second) == ["missing_slices"]
    assert names(third) == ["localizer"]
    assert (last.modality, last.problems) == ("SEG", ())
    assert last.kind.startswith("Segmentation Storage")
    (problem,) = report.problems
    assert (problem.name, problem.action) == ("unreadable_file", Action.REFUSE)
    text = report.to_json()
    assert json.loads(text)["problems"][0]["action"] == "refuse"
    for private in ("Doe", "Jane", "MRN", "19700101", "A-99", "20200202"):
        assert private not in text


def test_geometry_is_that_of_the_volume(write_ct_series):
    series = write_ct_series(orientation_lps=(1, 0, 0, 0, 0, -1))
    report, volume = only(series.folder), read_series(series.folder)
    assert report.grid is not None
    assert report.grid.shape == volume.shape
    assert report.grid.axcodes == volume.axcodes
    assert report.grid.spacing_mm == pytest.approx(volume.spacing_mm)
    ends = np.array([[i, j, k, 1] for i in (0, 23) for j in (0, 19) for k in (0, 11)])
    corners = (ends @ volume.affine.T)[:, :3]
    assert np.array(report.grid.extent_xyz_mm) == pytest.approx(
        np.stack([corners.min(axis=0), corners.max(axis=0)], axis=1), abs=1e-3
    )


def test_all_problems_are_collected(write_ct_series):
    def edit(dataset: Dataset, k: int) -> None:
        y_mm, z_mm = 0.3 * k, 1.5 * k
        dataset.ImagePositionPatient = ["0", f"{y_mm:g}", f"{z_mm:g}"]
        if k == 1:
            dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"
        if k == 4:
            del dataset.ImagePositionPatient
        if k == 9:
            dataset.Rows, dataset.Columns = 24, 20

    series = write_ct_series(edit=edit)
    series.paths[7].write_bytes(series.paths[7].read_bytes()[:-1])
    report = check_path(series.folder)
    default, odd = report.stacks
    assert names(default) == [
        "no_position",
        "truncated_pixels",
        "colour",
        "mixed_matrix_size",
        "missing_slices",
        "gantry_tilt",
    ]
    assert names(odd)[-1] == "single_slice"
    assert (default.is_default, odd.is_default) == (True, False)
    with pytest.raises(SeriesError) as caught:
        read_series(series.folder)
    assert caught.value.problems == default.problems
    assert caught.value.reason == "no_position"
    assert "refused as well: truncated_pixels, missing_slices, gantry_tilt" in str(caught.value)


POLICIES = [
    ((), ()),
    (("missing_slices",), ()),
    (("gantry_tilt", "missing_slices"), ()),
    ((), ("duplicate_slices",)),
]


@pytest.mark.parametrize(("repair", "refuse"), POLICIES)
def test_the_verdict_is_that_of_reading(write_ct_series, repair, refuse):
    def edit(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient = ["0", f"{0.3 * k:g}", f"{1.5 * k:g}"]

    series = write_ct_series(edit=edit)
    series.paths[5].unlink()
    (series.folder / "copy").write_bytes(series.paths[2].read_bytes())
    report = only(series.folder, policy=Policy(repair, refuse))
    if report.verdict == "refused":
        with pytest.raises(SeriesError) as caught:
            read_series(series.folder, repair=repair, refuse=refuse)
        assert caught.value.problems == report.problems
    else:
        volume = read_series(series.folder, repair=repair, refuse=refuse)
        assert volume.problems == report.problems
        assert report.grid is not None
        assert volume.shape == report.grid.shape
    assert report.verdict == ("repaired" if len(repair) == 2 else "refused")


def test_phases_are_listed_with_what_tells_them_apart(write_ct_series, tmp_path):
    uid = generate_uid()
    for number in (1, 2):

        def edit(dataset: Dataset, k: int, number: int = number) -> None:
            dataset.SeriesInstanceUID, dataset.AcquisitionNumber = uid, number
            dataset.FrameOfReferenceUID = "1.2.3"

        write_ct_series(folder=tmp_path / "all" / str(number), sigma_mm=1.5 + number, edit=edit)
    report = check_path(tmp_path / "all")
    assert [one.label for one in report.stacks] == ["AcquisitionNumber 1", "AcquisitionNumber 2"]
    assert [one.verdict for one in report.stacks] == ["refused", "refused"]
    report = check_path(tmp_path / "all", policy=Policy(repair={"several_phases"}))
    assert [one.verdict for one in report.stacks] == ["repaired", "repaired"]
    assert [one.is_default for one in report.stacks] == [True, False]


def test_pixels_are_decoded_unless_told_not_to(write_ct_series):
    series = write_ct_series()
    dataset = pydicom.dcmread(series.paths[7])
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    dataset.PixelData = pydicom.encaps.encapsulate([bytes(range(256))])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(series.paths[7])
    assert names(only(series.folder)) == ["unreadable_pixels"]
    assert only(series.folder, read_pixels=False).verdict == "ok"


def test_implausible_values_are_noted(write_ct_series):
    def edit(dataset: Dataset, k: int) -> None:
        dataset.RescaleIntercept = "0"

    series = write_ct_series(shape=(40, 44, 20), has_body=True, edit=edit)
    report = only(series.folder)
    assert (report.verdict, names(report)) == ("ok", ["implausible_hu"])
    with pytest.warns(SeriesWarning):
        volume = read_series(series.folder)
    assert volume.problems == report.problems
    report = only(series.folder, policy=Policy(refuse={"implausible_hu"}))
    assert report.verdict == "refused"


def test_an_enhanced_object(write_enhanced_ct, tmp_path):
    enhanced = write_enhanced_ct()
    report, volume = only(enhanced.path), read_series(enhanced.path)
    assert (report.verdict, report.n_slices) == ("ok", len(enhanced.hu))
    assert volume.sop_instance_uids == ()
    marker_xyz_mm = enhanced.marker_lps * [-1, -1, 1]
    weights = volume.hu.astype(float) + 1000
    center_ijk = [(weights * index).sum() / weights.sum() for index in np.indices(volume.shape)]
    assert np.linalg.norm((volume.affine @ [*center_ijk, 1])[:3] - marker_xyz_mm) < 0.1


def test_files_of_an_index_are_read(write_ct_series):
    series = write_ct_series()
    (found,) = index_files(series.folder).series
    volume = read_files(found.files, series_uid=found.series_uid)
    assert_array_equal(volume.hu, series.hu)
    series.paths[3].unlink()
    (found,) = index_files(series.folder).series
    volume = read_files(
        found.files, series_uid=found.series_uid, policy=Policy(repair={"missing_slices"})
    )
    assert volume.interpolated_slices == (3,)


def test_nothing_there(tmp_path):
    with pytest.raises(SeriesError) as caught:
        check_path(tmp_path / "nowhere")
    assert caught.value.reason == "not_found"
    assert check_path(tmp_path).stacks == ()


@pytest.mark.shared_data
def test_real_series_are_in_order(shared_data):
    report = check_path(shared_data / "lidc")
    dicom = [one for one in report.stacks if one.modality == "CT"]
    assert [(one.verdict, one.n_slices) for one in dicom] == [("ok", 133), ("ok", 140)]
    assert [one.grid.axcodes for one in dicom if one.grid] == [("L", "P", "S")] * 2
    assert report.problems == ()
