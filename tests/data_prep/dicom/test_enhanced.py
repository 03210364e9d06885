"""Enhanced multi-frame CT: each frame in its place with its own rescale, as highdicom sees it."""

import warnings
import zipfile
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from numpy.testing import assert_allclose, assert_array_equal
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    LegacyConvertedEnhancedCTImageStorage,
    RLELossless,
    generate_uid,
)

from data_prep.dicom.files import DicomFile, find_files
from data_prep.dicom.header import PHASE_KEYWORDS, index_files, read_header
from data_prep.dicom.pixels import CTSlice, read_hu, with_default_rescale
from data_prep.dicom.slices import to_ct_slices
from data_prep.problems import PROBLEMS, SeriesError


def slices_of(path: Path) -> list[CTSlice]:
    return to_ct_slices(read_header(DicomFile(path)))


def refusal(path: Path) -> SeriesError:
    with pytest.raises(SeriesError) as caught:
        slices_of(path)
    assert caught.value.reason in PROBLEMS
    assert caught.value.files == (path,)
    assert path.name in str(caught.value)
    return caught.value


def along_normal(slices: list[CTSlice]) -> list[CTSlice]:
    row, column = slices[0].orientation_lps[:3], slices[0].orientation_lps[3:]
    return sorted(slices, key=lambda one: one.position_lps @ np.cross(row, column))


def test_each_frame_has_its_place_and_rescale(write_enhanced_ct):
    written = write_enhanced_ct()
    header = read_header(DicomFile(written.path))
    slices = to_ct_slices(header)
    assert [one.frame for one in slices] == list(range(7))
    assert {one.sop_instance_uid for one in slices} == {written.dataset.SOPInstanceUID}
    assert_array_equal([one.position_lps for one in slices], written.positions_lps)
    assert_array_equal(slices[0].orientation_lps, [1, 0, 0, 0, -1, 0])
    assert_array_equal(slices[0].pixel_spacing_mm, [0.8, 1.2])
    assert slices[2].name == "enhanced.dcm frame 3"
    hu, outside = read_hu(slices)
    assert (hu.dtype, outside) == (np.int16, None)
    assert_array_equal(hu.T, written.hu)


def test_the_marker_is_where_it_was_put(write_enhanced_ct):
    written = write_enhanced_ct()
    slices = along_normal(slices_of(written.path))
    weights = read_hu(slices)[0].T + 1000.0
    k, j, i = (float((index * weights).sum() / weights.sum()) for index in np.indices((7, 64, 72)))
    first, step = slices[0].position_lps, slices[1].position_lps - slices[0].position_lps
    between_rows, between_columns = slices[0].pixel_spacing_mm
    row, column = slices[0].orientation_lps[:3], slices[0].orientation_lps[3:]
    center = first + k * step + i * between_columns * row + j * between_rows * column
    assert np.linalg.norm(center - written.marker_lps) < 0.1


def test_highdicom_sees_the_same_volume(write_enhanced_ct):
    written = write_enhanced_ct()
    slices = along_normal(slices_of(written.path))
    hu, _ = read_hu(slices)
    volume = highdicom.imread(written.path).get_volume(apply_modality_transform=True)
    # theirs is (slice, row, column), maybe from the other end
    if volume.position[2] != pytest.approx(slices[0].position_lps[2]):
        volume = volume.flip_spatial(0)
    assert_array_equal(volume.array, hu.T)
    row, column = slices[0].orientation_lps[:3], slices[0].orientation_lps[3:]
    between_rows, between_columns = slices[0].pixel_spacing_mm
    assert_allclose(volume.affine[:3, 3], slices[0].position_lps, atol=1e-6)
    assert_allclose(
        volume.affine[:3, 0], slices[1].position_lps - slices[0].position_lps, atol=1e-6
    )
    assert_allclose(volume.affine[:3, 1], between_rows * column, atol=1e-6)
    assert_allclose(volume.affine[:3, 2], between_columns * row, atol=1e-6)


def test_what_may_tell_acquisitions_apart(write_enhanced_ct):
    one = slices_of(write_enhanced_ct().path)[1]
    assert tuple(one.phase_keys) == PHASE_KEYWORDS
    given = {keyword: text for keyword, text in one.phase_keys.items() if text}
    assert given == {
        "AcquisitionNumber": "2",
        "TemporalPositionIndex": "1",
        "StackID": "one",
        "ConvolutionKernel": "B70f",
        "ImageType": "ORIGINAL\\PRIMARY\\VOLUME\\NONE",
        "SliceThickness": "9.5",
        "ReconstructionDiameter": "350.0",
    }
    assert (one.instance_number, one.series_count) == (1, None)


def converted(series) -> pydicom.Dataset:
    """Convert single-frame slices as archives do, by other hands than ours."""
    datasets = [pydicom.dcmread(path) for path in series.paths]
    for number, dataset in enumerate(datasets):
        dataset.StudyInstanceUID = datasets[0].StudyInstanceUID
        dataset.InstanceNumber = number + 1
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"):
            setattr(dataset, keyword, "")
        for keyword in ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "Manufacturer"):
            setattr(dataset, keyword, "")
        dataset.ReferringPhysicianName, dataset.SeriesNumber = "", 1
        dataset.BurnedInAnnotation, dataset.PatientPosition = "NO", "HFS"
        dataset.PositionReferenceIndicator = ""
    with warnings.catch_warnings(action="ignore"):
        return LegacyConvertedEnhancedCTImage(datasets, generate_uid(), 1, generate_uid(), 1)


def test_legacy_converted(write_ct_series, tmp_path: Path):
    series = write_ct_series(rescale=lambda k: (1.0 + k % 2, -1024.0))
    made = converted(series)
    made.save_as(tmp_path / "converted.dcm", enforce_file_format=True)
    assert made.SOPClassUID == LegacyConvertedEnhancedCTImageStorage
    from_frames = along_normal(slices_of(tmp_path / "converted.dcm"))
    from_files = along_normal([one for path in series.paths for one in slices_of(path)])
    assert_array_equal(read_hu(from_frames)[0], read_hu(from_files)[0])
    assert_allclose(
        [one.position_lps for one in from_frames],
        [one.position_lps for one in from_files],
        atol=1e-9,
    )


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
)
def test_other_encodings_and_undefined_lengths(write_enhanced_ct, syntax: str):
    def edit(dataset):
        dataset.file_meta.TransferSyntaxUID = syntax
        for element in dataset.iterall():
            if element.VR == "SQ":
                element.is_undefined_length = True
        if syntax == ExplicitVRBigEndian:
            stored = np.frombuffer(dataset.PixelData, "<u2")
            dataset.PixelData = stored.astype(">u2").tobytes()

    written = write_enhanced_ct(edit=edit)
    assert_array_equal(read_hu(slices_of(written.path))[0].T, written.hu)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("table", ["basic", "none", "extended"])
def test_compressed_frames(write_enhanced_ct, syntax: str, table: str):
    written = write_enhanced_ct()
    dataset = pydicom.dcmread(written.path)
    dataset.compress(syntax, generate_instance_uid=False, encapsulate_ext=table == "extended")
    if table == "none":
        frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=7))
        dataset.PixelData = pydicom.encaps.encapsulate(frames, has_bot=False)
    dataset.save_as(written.path)
    slices = slices_of(written.path)
    assert_array_equal(read_hu(slices)[0].T, written.hu)
    backwards = read_hu(slices[::-1])[0].T
    assert_array_equal(backwards, written.hu[::-1])


@pytest.mark.parametrize("with_table", [True, False])
def test_frames_in_several_fragments(write_enhanced_ct, with_table: bool):
    written = write_enhanced_ct()
    dataset = pydicom.dcmread(written.path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=7))
    dataset.PixelData = pydicom.encaps.encapsulate(
        frames, fragments_per_frame=3, has_bot=with_table
    )
    dataset.save_as(written.path)
    if with_table:
        assert_array_equal(read_hu(slices_of(written.path))[0].T, written.hu)
    else:
        assert refusal(written.path).reason == "unreadable_pixels"


def test_in_an_archive(write_enhanced_ct, tmp_path: Path):
    written = write_enhanced_ct()
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(written.path, "1")
    (file,) = find_files(tmp_path / "x.zip")
    assert_array_equal(read_hu(to_ct_slices(read_header(file))[::-1])[0].T, written.hu[::-1])


def test_a_single_file_is_a_series(write_enhanced_ct):
    written = write_enhanced_ct()
    (series,) = index_files(written.path).series
    assert (series.modality, series.patient_id) == ("CT", "E1")
    assert series.description == "Enhanced CT Image Storage"
    assert series.series_uid == written.dataset.SeriesInstanceUID


def test_localizer_frames_are_no_slices(write_enhanced_ct):
    def edit(dataset):
        for number in frames:
            item = dataset.PerFrameFunctionalGroupsSequence[number]
            item.CTImageFrameTypeSequence[0].FrameType = [
                "ORIGINAL",
                "PRIMARY",
                "LOCALIZER",
                "NONE",
            ]

    frames = (0, 4)
    slices = slices_of(write_enhanced_ct(edit=edit).path)
    assert [one.frame for one in slices] == [1, 2, 3, 5, 6]
    frames = range(7)
    assert refusal(write_enhanced_ct(edit=edit).path).reason == "localizer"


def test_a_missing_rescale_is_marked(write_enhanced_ct):
    def edit(dataset):
        for item in dataset.PerFrameFunctionalGroupsSequence:
            del item.PixelValueTransformationSequence

    slices = slices_of(write_enhanced_ct(edit=edit).path)
    assert all(one.pixels.rescale_is_missing for one in slices)
    assert {(one.pixels.slope, one.pixels.intercept) for one in slices} == {(1.0, 0.0)}
    with pytest.raises(SeriesError) as caught:
        read_hu(slices)
    assert caught.value.reason == "no_rescale"
    repaired = with_default_rescale(slices)
    assert {(one.pixels.slope, one.pixels.intercept) for one in repaired} == {(1.0, -1024.0)}
    signed = slices_of(write_enhanced_ct(edit=edit, is_signed=True).path)
    assert not any(one.pixels.rescale_is_missing for one in signed)


def _drop(sequence: str):
    def edit(dataset):
        del dataset.PerFrameFunctionalGroupsSequence[3][sequence]

    return edit


def _set(sequence: str, keyword: str, value):
    def edit(dataset):
        setattr(dataset.PerFrameFunctionalGroupsSequence[3][sequence][0], keyword, value)

    return edit


def _top(keyword: str, value):
    def edit(dataset):
        setattr(dataset, keyword, value)

    return edit


@pytest.mark.parametrize(
    ("reason", "edit", "words"),
    [
        ("no_position", _drop("PlanePositionSequence"), "Frame 4"),
        (
            "not_hu",
            _set("PixelValueTransformationSequence", "RescaleType", "Z_EFF"),
            "Frame 4",
        ),
        ("bad_rescale", _set("PixelValueTransformationSequence", "RescaleSlope", 0), "Frame 4"),
        (
            "bad_header",
            _set("PlanePositionSequence", "ImagePositionPatient", [1, 2]),
            "functional groups",
        ),
        (
            "no_pixel_spacing",
            lambda dataset: dataset.SharedFunctionalGroupsSequence[0].pop("PixelMeasuresSequence"),
            "Frame 1",
        ),
        (
            "bad_header",
            lambda dataset: dataset.PerFrameFunctionalGroupsSequence.pop(),
            "7 frames",
        ),
        ("bad_header", lambda dataset: dataset.pop("PerFrameFunctionalGroupsSequence"), "7 frames"),
        ("bad_header", lambda dataset: dataset.pop("NumberOfFrames"), "NumberOfFrames"),
        ("bad_header", _top("NumberOfFrames", 0), "NumberOfFrames"),
        ("size_mismatch", _top("NumberOfFrames", 8), "rows, columns"),
        ("too_large", _top("NumberOfFrames", 2**31 - 1), "voxels"),
        ("size_mismatch", _top("Rows", 65535), "65535 rows"),
        ("unsupported_pixels", _top("BitsAllocated", 32), "bits allocated 32"),
        ("colour", _top("SamplesPerPixel", 3), "colour"),
        ("no_uid", _top("SOPInstanceUID", ""), "SOPInstanceUID"),
    ],
)
def test_one_wrong_thing(write_enhanced_ct, reason: str, edit, words: str):
    error = refusal(write_enhanced_ct(edit=edit).path)
    assert error.reason == reason
    assert words in str(error)


def test_several_frames_under_the_class_of_single_ones(write_ct_series):
    def edit(dataset, k):
        dataset.NumberOfFrames = 2
        dataset.PixelData = dataset.PixelData * 2

    assert refusal(write_ct_series(shape=(4, 4, 1), edit=edit).paths[0]).reason == "bad_header"


def test_a_cut_off_object(write_enhanced_ct):
    written = write_enhanced_ct()
    written.path.write_bytes(written.path.read_bytes()[:-1])
    assert refusal(written.path).reason == "truncated_pixels"
