"""Series that hold more than one stack of slices: split, chosen by a rule, never interleaved."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal
from pydicom import Dataset
from pydicom.uid import EncapsulatedPDFStorage, SecondaryCaptureImageStorage, generate_uid

from data_prep import CTVolume, SeriesError, read_series
from data_prep.problems import Action


def names(volume: CTVolume) -> list[str]:
    return [problem.name for problem in volume.problems]


def refused(folder: Path, **options) -> SeriesError:
    with pytest.raises(SeriesError) as caught:
        read_series(folder, **options)
    assert str(caught.value).endswith(".")
    assert str(caught.value).isprintable()
    return caught.value


def setting(series_uid: str | None = None, **attributes) -> Callable[[Dataset, int], None]:
    """Return an edit that sets attributes of every slice; a function of k gives each its own."""

    def edit(dataset: Dataset, k: int) -> None:
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value(k) if callable(value) else value)
        if series_uid is not None:
            dataset.SeriesInstanceUID = series_uid

    return edit


@pytest.fixture
def write_parts(write_ct_series, tmp_path):
    """Return the function that writes several parts of one series into one folder."""

    def write(*parts: dict) -> tuple[Path, list]:
        uid, frame_uid = generate_uid(), generate_uid()
        written = []
        for number, part in enumerate(parts):
            edit = setting(uid, **({"FrameOfReferenceUID": frame_uid} | part.pop("tags", {})))
            folder = tmp_path / "parts" / f"{number}"
            written.append(write_ct_series(folder=folder, edit=edit, **part))
        return tmp_path / "parts", written

    return write


LEFT_OUT = {
    "localizer": setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    "secondary_capture": setting(SOPClassUID=SecondaryCaptureImageStorage),
    "derived_object": setting(SOPClassUID=EncapsulatedPDFStorage),
    "colour": setting(SamplesPerPixel=3, PhotometricInterpretation="RGB"),
}


@pytest.mark.parametrize(("name", "edit"), LEFT_OUT.items(), ids=LEFT_OUT)
def test_what_is_no_slice_is_left_out_and_named(write_ct_series, tmp_path, name: str, edit):
    series = write_ct_series()
    for k in range(2):
        dataset = pydicom.dcmread(series.paths[k])
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        edit(dataset, k)
        dataset.save_as(series.folder / f"other{k}.dcm")
    volume = read_series(series.folder)
    assert_array_equal(volume.hu, series.hu)
    assert series.marker_error_mm(volume.hu, volume.affine) < 0.1
    (problem,) = volume.problems
    assert (problem.name, problem.action) == (name, Action.REPAIR)
    assert problem.files == ("other0.dcm",)
    assert "1 more file" in problem.message
    assert "left out" in problem.message
    error = refused(series.folder, refuse={name})
    assert (error.reason, error.files) == (name, (series.folder / "other0.dcm",))


def test_nothing_but_localizers(write_ct_series):
    edit = LEFT_OUT["localizer"]
    assert refused(write_ct_series(edit=edit).folder).reason == "localizer"


def test_a_series_of_localizers_beside_the_ct_is_not_meant(write_ct_series, tmp_path):
    wanted = write_ct_series(folder=tmp_path / "both" / "ct")
    write_ct_series(folder=tmp_path / "both" / "scout", edit=LEFT_OUT["localizer"])
    assert_array_equal(read_series(tmp_path / "both").hu, wanted.hu)


MIXED = {
    "mixed_orientation": {"orientation_lps": (1, 0, 0, 0, 0, -1)},
    "mixed_matrix_size": {"shape": (20, 24, 7)},
    "mixed_pixel_spacing": {"spacing_mm": (1.0, 0.9, 1.5)},
    "mixed_frame_of_reference": {"tags": {"FrameOfReferenceUID": "1.2.3"}},
}


@pytest.mark.parametrize(("name", "other"), MIXED.items(), ids=MIXED)
def test_stacks_are_split_and_the_largest_is_read(write_parts, name: str, other: dict):
    folder, (small, large) = write_parts({"shape": (24, 20, 7)} | other, {})
    volume = read_series(folder)
    assert_array_equal(volume.hu, large.hu)
    assert large.marker_error_mm(volume.hu, volume.affine) < 0.1
    (problem,) = volume.problems
    assert (problem.name, problem.action) == (name, Action.REPAIR)
    assert "stack 1 (" in problem.message
    assert "12 slices), stack 2 (" in problem.message
    assert refused(folder, refuse={name}).reason == name
    volume = read_series(folder, stack=2)
    assert_array_equal(volume.hu, small.hu)
    assert small.marker_error_mm(volume.hu, volume.affine) < 0.1
    assert "stack 2 was asked for" in volume.problems[0].message
    error = refused(folder, stack=3)
    assert error.reason == "unknown_series"
    assert "has no stack 3" in str(error)


@pytest.mark.parametrize(("name", "other"), MIXED.items(), ids=MIXED)
def test_stacks_of_one_size_are_not_chosen_between(write_parts, name: str, other: dict):
    other = other | ({"shape": (20, 24, 12)} if "shape" in other else {})
    folder, (second, first) = write_parts(other, {})
    error = refused(folder)
    assert error.reason == name
    assert "choose one with stack=" in str(error)
    assert refused(folder, repair={name}).reason == name
    hu = [read_series(folder, stack=number).hu for number in (1, 2)]
    assert_array_equal(hu[0], second.hu)
    assert_array_equal(hu[1], first.hu)


def test_one_odd_slice_among_many(write_ct_series):
    def edit(dataset: Dataset, k: int) -> None:
        if k == 11:
            dataset.ImageOrientationPatient = ["1", "0", "0", "0", "0.999", "0.0447"]

    series = write_ct_series(edit=edit)
    volume = read_series(series.folder)
    assert_array_equal(volume.hu, series.hu[:, :, :11])
    assert "slice011.dcm" in volume.problems[0].message
    error = refused(series.folder, stack=2)
    assert error.reason == "single_slice"


def test_a_missing_frame_of_reference_contradicts_nothing(write_ct_series):
    def edit(dataset: Dataset, k: int) -> None:
        if k % 3 == 0:
            del dataset.FrameOfReferenceUID

    volume = read_series(write_ct_series(edit=edit).folder)
    assert volume.problems == ()


PHASES = {
    "AcquisitionNumber": (3, 12),
    "TemporalPositionIdentifier": (1, 2),
    "ConvolutionKernel": ("B30f", "B70f"),
    "SliceThickness": ("1.5", "3"),
    "ImageType": (["DERIVED", "PRIMARY", "AXIAL"], ["ORIGINAL", "PRIMARY", "AXIAL"]),
    "AcquisitionTime": ("101500", "101533.5"),
    "ContentTime": (lambda k: f"1015{k:02d}", lambda k: f"1016{k:02d}.25"),
}


@pytest.mark.parametrize(("keyword", "values"), PHASES.items(), ids=PHASES)
def test_phases_are_split_never_interleaved(write_parts, keyword: str, values: Sequence):
    # InstanceNumbers say nothing: they are the same in both
    folder, parts = write_parts(
        *({"tags": {keyword: value}, "sigma_mm": 1.8 + n} for n, value in enumerate(values))
    )
    error = refused(folder)
    assert error.reason == "several_phases"
    assert keyword in str(error)
    assert "stack 1 (" in str(error)
    assert "choose one with stack=, or read it with repair={'several_phases'}" in str(error)
    first = read_series(folder, repair={"several_phases"})
    assert_array_equal(first.hu, parts[0].hu)
    assert names(first) == ["several_phases"]
    assert "stack 1, the first" in first.problems[0].message
    for number, part in enumerate(parts, start=1):
        volume = read_series(folder, stack=number)
        assert_array_equal(volume.hu, part.hu)
        assert part.marker_error_mm(volume.hu, volume.affine) < 0.1
        assert volume.sop_instance_uids == tuple(part.sop_instance_uids)
    assert refused(folder, stack=1, refuse={"several_phases"}).reason == "several_phases"


def test_a_perfusion_of_five_time_points(write_parts):
    folder, parts = write_parts(
        *(
            {"tags": {"AcquisitionNumber": 7 + n}, "shape": (24, 20, 4), "sigma_mm": 1.5 + n / 3}
            for n in range(5)
        )
    )
    for number, part in enumerate(parts, start=1):
        assert_array_equal(read_series(folder, stack=number).hu, part.hu)


def test_phases_by_two_attributes(write_parts):
    tags = [
        {"AcquisitionNumber": number, "ConvolutionKernel": kernel}
        for number in (1, 2)
        for kernel in ("B30f", "B70f")
    ]
    folder, parts = write_parts(
        *({"tags": tag, "sigma_mm": 1.8 + n / 4} for n, tag in enumerate(tags))
    )
    assert "AcquisitionNumber and ConvolutionKernel" in str(refused(folder))
    for number, part in enumerate(parts, start=1):
        assert_array_equal(read_series(folder, stack=number).hu, part.hu)


def test_the_largest_phase_is_the_default(write_parts):
    """Bolus tracking: single images at one level, then the scan."""
    monitor = [
        {
            "tags": {"AcquisitionNumber": n},
            "shape": (24, 20, 1),
            "sigma_mm": 2.0 + n,
            "first_position_lps": (-31.5, 17.25, -114.0),
        }
        for n in (1, 2, 3)
    ]
    folder, (*_, scan) = write_parts(*monitor, {"tags": {"AcquisitionNumber": 4}})
    volume = read_series(folder, repair={"several_phases"})
    assert_array_equal(volume.hu, scan.hu)
    assert "stack 4, the first of those with the most slices" in volume.problems[0].message


def test_regions_that_overlap(write_parts):
    positions = [(-31.5, 17.25, -120 + 1.5 * start) for start in (0, 10, 20)]
    folder, parts = write_parts(
        *(
            {"tags": {"AcquisitionNumber": n}, "first_position_lps": position}
            for n, position in enumerate(positions)
        )
    )
    for number, part in enumerate(parts, start=1):
        volume = read_series(folder, stack=number)
        assert_array_equal(volume.hu, part.hu)
        assert part.marker_error_mm(volume.hu, volume.affine) < 0.1


def test_reconstructions_with_other_centres(write_parts):
    folder, parts = write_parts({}, {"first_position_lps": (-21.5, 17.25, -120.0)})
    assert "position within the slice" in str(refused(folder))
    for part in parts:
        volumes = [read_series(folder, stack=number) for number in (1, 2)]
        assert min(part.marker_error_mm(each.hu, each.affine) for each in volumes) < 0.1


def test_times_that_overlap_tell_nothing(write_parts):
    folder, _ = write_parts(
        {"tags": {"ContentTime": lambda k: f"1015{2 * k:02d}"}},
        {"tags": {"ContentTime": lambda k: f"1015{2 * k + 1:02d}"}, "sigma_mm": 3.0},
    )
    assert refused(folder).reason == "conflicting_slices"


def test_an_attribute_of_every_slice_is_no_phase(write_parts):
    """Step and shoot: each image is an acquisition of its own."""
    folder, _ = write_parts(
        {"tags": {"AcquisitionNumber": lambda k: k}},
        {"tags": {"AcquisitionNumber": lambda k: 12 + k}, "sigma_mm": 3.0},
    )
    assert refused(folder).reason == "conflicting_slices"


def test_reconstructions_that_lie_between_one_another(write_parts):
    """Together they would be regular slices of half the spacing."""
    folder, parts = write_parts(
        {"tags": {"ConvolutionKernel": "B30f"}},
        {
            "tags": {"ConvolutionKernel": "B70f"},
            "first_position_lps": (-31.5, 17.25, -119.25),
            "sigma_mm": 3.0,
        },
    )
    error = refused(folder)
    assert error.reason == "several_phases"
    assert "ConvolutionKernel B30f; 12 slices" in str(error)
    for number, part in enumerate(parts, start=1):
        volume = read_series(folder, stack=number)
        assert_array_equal(volume.hu, part.hu)
        assert part.marker_error_mm(volume.hu, volume.affine) < 0.1


def test_an_attribute_that_changes_once_splits_nothing(write_ct_series):
    series = write_ct_series(edit=setting(AcquisitionNumber=lambda k: 1 + (k > 4)))
    assert read_series(series.folder).problems == ()


def test_nothing_tells_two_images_apart(write_parts):
    folder, _ = write_parts({}, {"sigma_mm": 3.0})
    error = refused(folder)
    assert error.reason == "conflicting_slices"
    assert "no attribute tells them apart" in str(error)
    assert "repair=" not in str(error)
    assert len(error.files) == 2


@pytest.mark.parametrize("changes_uid", [True, False])
def test_exact_copies_are_dropped(write_ct_series, changes_uid: bool):
    series = write_ct_series(has_body=True)
    for k in (3, 4, 9):
        dataset = pydicom.dcmread(series.paths[k])
        dataset.InstanceNumber, dataset.ContentTime = 77, "235959"
        dataset.RescaleIntercept = "-1000"  # the same HU, stored in another way
        dataset.PixelData = (dataset.pixel_array - 24).astype("<i2").tobytes()
        if changes_uid:
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.save_as(series.folder / f"z again {k}.dcm")
    volume = read_series(series.folder)
    assert_array_equal(volume.hu, series.hu)
    assert volume.sop_instance_uids == tuple(series.sop_instance_uids)
    (problem,) = volume.problems
    assert (problem.name, problem.action) == ("duplicate_slices", Action.REPAIR)
    assert "copies in all: 3" in problem.message
    assert problem.files[:2] == ("slice003.dcm", "z again 3.dcm")
    assert refused(series.folder, refuse={"duplicate_slices"}).reason == "duplicate_slices"


def test_the_same_folder_twice(write_ct_series, tmp_path):
    series = write_ct_series(folder=tmp_path / "both" / "a")
    (tmp_path / "both" / "b").mkdir()
    for path in series.paths:
        (tmp_path / "both" / "b" / path.name).write_bytes(path.read_bytes())
    volume = read_series(tmp_path / "both")
    assert_array_equal(volume.hu, series.hu)
    assert "copies in all: 12" in volume.problems[0].message


def test_copies_within_a_phase(write_parts):
    folder, parts = write_parts(
        {"tags": {"AcquisitionNumber": 1}}, {"tags": {"AcquisitionNumber": 2}, "sigma_mm": 3.0}
    )
    (folder / "copy.dcm").write_bytes(parts[1].paths[4].read_bytes())
    volume = read_series(folder, stack=2)
    assert_array_equal(volume.hu, parts[1].hu)
    assert names(volume) == ["several_phases", "duplicate_slices"]


def test_one_slice_sent_again_with_other_pixels(write_ct_series):
    series = write_ct_series()
    dataset = pydicom.dcmread(series.paths[5])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.PixelData = dataset.PixelData[2:] + b"\0\0"
    dataset.save_as(series.folder / "again.dcm")
    error = refused(series.folder)
    assert error.reason == "conflicting_slices"
    assert {path.name for path in error.files} == {"again.dcm", "slice005.dcm"}
    assert "1 of 12 positions" in str(error)


def test_a_copy_that_cannot_be_decoded(write_ct_series):
    series = write_ct_series()
    dataset = pydicom.dcmread(series.paths[5])
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    dataset.PixelData = pydicom.encaps.encapsulate([bytes(range(256))])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(series.folder / "again.dcm")
    error = refused(series.folder)
    assert error.reason == "unreadable_pixels"
    assert "again.dcm" in str(error)


def test_several_series_are_listed(write_ct_series, tmp_path: Path):
    both = [
        write_ct_series(folder=tmp_path / "both" / name, shape=(9, 9, count))
        for name, count in (("a", 5), ("b", 7))
    ]
    error = refused(tmp_path / "both")
    assert error.reason == "several_series"
    assert "series_uid=" in str(error)
    for series, count in zip(both, (5, 7), strict=True):
        assert f"{series.series_uid} ({count} slices of 1.5 mm)" in str(error)
    volume = read_series(tmp_path / "both", repair={"several_series"})
    assert_array_equal(volume.hu, both[1].hu)
    assert f"{both[1].series_uid} is read" in volume.problems[0].message
    error = refused(tmp_path / "both", series_uid="1.2.3")
    assert error.reason == "unknown_series"
    assert both[0].series_uid in str(error)


def test_of_series_with_as_many_slices_the_thinnest_is_read(write_ct_series, tmp_path: Path):
    for name, mm in (("a", 2.0), ("b", 1.0), ("c", 3.0)):
        write_ct_series(folder=tmp_path / "all" / name, spacing_mm=(1.1, 0.9, mm))
    volume = read_series(tmp_path / "all", repair={"several_series"})
    assert volume.spacing_mm[2] == pytest.approx(1.0)
    write_ct_series(folder=tmp_path / "all" / "d", spacing_mm=(1.2, 0.9, 1.0))
    error = refused(tmp_path / "all", repair={"several_series"})
    assert error.reason == "several_series"


def test_patient_positions_are_only_names(write_ct_series, tmp_path: Path):
    """Prone, feet first: the axes say it, and PatientPosition is free to be wrong."""
    for number, (position, orientation_lps) in enumerate(
        (("HFP", (-1, 0, 0, 0, -1, 0)), ("FFS", (-1, 0, 0, 0, 1, 0)), ("FFP", (1, 0, 0, 0, -1, 0)))
    ):
        series = write_ct_series(
            folder=tmp_path / str(number),
            orientation_lps=orientation_lps,
            edit=setting(PatientPosition=position, InstanceNumber=lambda k: 12 - k),
        )
        volume = read_series(series.folder)
        assert series.marker_error_mm(volume.hu, volume.affine) < 0.1
        assert volume.problems == ()
        truth = series.hu_on_grid(volume.shape, volume.affine)
        assert np.abs(volume.hu - truth).max() <= 0.51


def test_an_archive_in_an_archive_is_named(write_ct_series, tmp_path: Path):
    series = write_ct_series()
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for path in series.paths:
            archive.write(path, path.name)
        archive.writestr("more.zip", b"PK")
    volume = read_series(tmp_path / "export.zip")
    assert_array_equal(volume.hu, series.hu)
    (problem,) = volume.problems
    assert problem.name == "unreadable_file"
    assert "more.zip" in problem.message
    assert refused(tmp_path / "export.zip", refuse={"unreadable_file"}).reason == "unreadable_file"
