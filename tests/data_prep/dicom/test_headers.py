"""Headers are told from other files, read by an allow-list, and grouped into series."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    generate_uid,
)

from data_prep.dicom.files import DicomFile, find_files
from data_prep.dicom.header import PHASE_KEYWORDS, Header, index_files, read_header
from data_prep.dicom.pixels import with_default_rescale
from data_prep.dicom.slices import to_ct_slices
from data_prep.problems import SeriesError
from data_prep.text import printable


def header_of(path: Path) -> Header:
    header = read_header(DicomFile(path))
    assert header is not None
    return header


def test_no_name_is_kept_and_the_patient_id_never_shown(write_ct_series):
    def edit(dataset, k):
        dataset.PatientName, dataset.PatientID = "Doe^Jane", "77-88"
        dataset.PatientBirthDate, dataset.InstitutionName = "19700101", "Clinic"

    series = write_ct_series(shape=(4, 4, 2), edit=edit)
    header = header_of(series.paths[0])
    assert header.patient_id == "77-88"
    kept = b"".join(header.attributes.values())
    assert not any(word in kept for word in (b"Doe", b"19700101", b"Clinic"))
    index = index_files(series.folder)
    assert index.series[0].patient_id == "77-88"
    for shown in (header, index, to_ct_slices(header)):
        assert "77-88" not in repr(shown)


def test_patients_are_told_apart_in_any_character_set(write_ct_series, tmp_path: Path):
    def named(patient_id: str):
        def edit(dataset, k):
            dataset.SpecificCharacterSet, dataset.PatientID = "ISO_IR 192", patient_id

        return edit

    ids = set()
    for number, patient_id in enumerate(("Ä1", "Ö1", "山1", " Ä1 ")):
        folder = tmp_path / str(number)
        write_ct_series(folder=folder, shape=(4, 4, 1), edit=named(patient_id))
        ids.add(index_files(folder).series[0].patient_id)
    assert len(ids) == 3


def test_what_may_tell_acquisitions_apart(write_ct_series):
    def edit(dataset, k):
        dataset.AcquisitionNumber, dataset.ConvolutionKernel = 4, "B30f\x07"
        dataset.AcquisitionTime, dataset.SliceThickness = "101112.5", "2.5"
        dataset.InstanceNumber, dataset.ImagesInAcquisition = 17, 133

    series = write_ct_series(shape=(4, 4, 1), edit=edit)
    (one,) = to_ct_slices(header_of(series.paths[0]))
    assert tuple(one.phase_keys) == PHASE_KEYWORDS
    assert {key: text for key, text in one.phase_keys.items() if text} == {
        "AcquisitionNumber": "4",
        "ConvolutionKernel": "B30f?",
        "ImageType": "ORIGINAL\\PRIMARY\\AXIAL",
        "SliceThickness": "2.5",
        "AcquisitionTime": "101112.5",
    }
    assert (one.frame, one.instance_number, one.series_count) == (None, 17, 133)


@pytest.mark.parametrize("value", [b"", b"about ", b"1.5 ", b"1\\2 ", b"1e999 "])
def test_an_instance_number_that_is_none_matters_not(write_ct_series, value: bytes):
    def edit(dataset, k):
        dataset.add_new("InstanceNumber", "LO", value.decode())

    series = write_ct_series(shape=(4, 4, 1), edit=edit)
    assert to_ct_slices(header_of(series.paths[0]))[0].instance_number is None


@pytest.mark.parametrize(
    ("given", "is_signed", "expected", "repaired"),
    [
        ({}, False, (1.0, 0.0, True), (1.0, -1024.0, False)),
        ({"RescaleSlope": 2}, False, (2.0, 0.0, True), (2.0, -1024.0, False)),
        ({"RescaleIntercept": -1000}, False, (1.0, -1000.0, True), (1.0, -1000.0, False)),
        ({}, True, (1.0, 0.0, False), (1.0, 0.0, False)),
        ({"RescaleSlope": 2}, True, (2.0, 0.0, True), (2.0, 0.0, False)),
        (
            {"RescaleSlope": 2, "RescaleIntercept": 3},
            False,
            (2.0, 3.0, False),
            (2.0, 3.0, False),
        ),
    ],
)
def test_a_missing_rescale(write_ct_series, given, is_signed: bool, expected, repaired):
    def edit(dataset, k):
        del dataset.RescaleSlope, dataset.RescaleIntercept
        for keyword, value in given.items():
            setattr(dataset, keyword, value)

    path = write_ct_series(shape=(4, 4, 1), is_signed=is_signed, edit=edit).paths[0]
    slices = to_ct_slices(header_of(path))
    assert slices[0].pixels[-3:] == expected
    assert with_default_rescale(slices)[0].pixels[-3:] == repaired


@pytest.mark.parametrize(
    ("reason", "attributes"),
    [
        ("derived_object", {"SOPClassUID": SegmentationStorage}),
        ("secondary_capture", {"SOPClassUID": SecondaryCaptureImageStorage}),
        ("localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ("colour", {"PhotometricInterpretation": "PALETTE COLOR"}),
        ("colour", {"SamplesPerPixel": 3}),
        ("not_hu", {"RescaleType": "Z_EFF"}),
        ("bad_rescale", {"RescaleIntercept": "1e9"}),
        ("no_uid", {"SOPInstanceUID": ""}),
        ("no_position", {"ImagePositionPatient": ""}),
        ("no_pixel_spacing", {"PixelSpacing": ["1", "-1"]}),
        ("bad_header", {"ImageOrientationPatient": ["1", "0", "0"]}),
        ("bad_header", {"NumberOfFrames": 0}),
        ("size_mismatch", {"Rows": 5}),
        ("unsupported_pixels", {"BitsAllocated": 32}),
    ],
)
def test_what_is_no_slice(write_ct_series, reason: str, attributes: dict):
    def edit(dataset, k):
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)

    path = write_ct_series(shape=(4, 4, 1), edit=edit).paths[0]
    with pytest.raises(SeriesError, match=path.name) as caught:
        to_ct_slices(header_of(path))
    assert caught.value.reason == reason
    assert caught.value.files == (path,)


def nested(depth: int) -> Dataset:
    dataset = Dataset()
    dataset.Rows, dataset.ImageComments = 999, "x" * 501
    if depth:
        dataset.ReferencedImageSequence = [nested(depth - 1), nested(0)]
    return dataset


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]
)
@pytest.mark.parametrize("is_undefined", [True, False])
def test_sequences_are_stepped_over(write_ct_series, syntax: str, is_undefined: bool):
    def edit(dataset, k):
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.RequestAttributesSequence = [nested(3), nested(2)]
        dataset.IconImageSequence = [nested(1)]
        dataset.private_block(0x0029, "CLINIC", create=True).add_new(1, "SQ", [nested(2)])
        dataset.private_block(0x0031, "CLINIC", create=True).add_new(1, "UN", b"\1\2\3\4")
        for element in dataset.iterall():
            if element.VR == "SQ":
                element.is_undefined_length = is_undefined

    path = write_ct_series(shape=(5, 4, 1), edit=edit).paths[0]
    header = header_of(path)
    assert (header.integer("Rows"), header.integer("Columns")) == (4, 5)
    content = path.read_bytes()
    assert header.pixel_offset == len(content) - 40
    assert (header.pixel_length, header.file_size) == (40, len(content))


def test_implicit_items_within_an_explicit_unknown(write_ct_series):
    """UN of undefined length is a sequence in implicit VR (PS3.5 6.2.2)."""
    path = write_ct_series(shape=(5, 4, 1)).paths[0]
    content = path.read_bytes()
    at = content.index(b"\x28\x00\x02\x00US")
    element = b"\x08\x00\x18\x00" + (6).to_bytes(4, "little") + b"1.2.3\0"
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + element + b"\xfe\xff\x0d\xe0" + bytes(4)
    unknown = b"\x27\x00\x01\x10UN\0\0\xff\xff\xff\xff" + item + b"\xfe\xff\xdd\xe0" + bytes(4)
    path.write_bytes(content[:at] + unknown + content[at:])
    assert header_of(path).pixel_offset == len(content) + len(unknown) - 40


def test_files_that_are_no_dicom(tmp_path: Path, write_ct_series):
    contents = {
        "empty": b"",
        "readers.xml": b"<LidcReadMessage/>",
        "noise.bin": b"\x08\x00\x05\x00" + bytes(range(200)),
        "._1.dcm": b"\0\5\x16\7",
        "zeros": bytes(5000),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert read_header(DicomFile(tmp_path / name)) is None
    (tmp_path / "page.dcm").write_text("<html>not found</html>")
    with pytest.raises(SeriesError, match=r"page\.dcm is named as DICOM"):
        read_header(DicomFile(tmp_path / "page.dcm"))
    with pytest.raises(SeriesError, match="can't be read"):
        read_header(DicomFile(tmp_path / "gone"))
    assert index_files(tmp_path).series == ()


def test_an_index_keeps_every_kind(write_ct_series, tmp_path: Path):
    def other(sop_class, modality, series_uid):
        def edit(dataset, k):
            dataset.SOPClassUID, dataset.Modality = sop_class, modality
            dataset.SeriesInstanceUID = series_uid
            if modality != "OT":
                del dataset.PixelData

        return edit

    study = tmp_path / "study"
    ct = write_ct_series(folder=study / "b", shape=(4, 4, 3))
    structures = "1.2.840.10008.5.1.4.1.1.481.3"
    for name, edit in {
        "a": other(SecondaryCaptureImageStorage, "OT", ct.series_uid),
        "c": other(SegmentationStorage, "SEG", generate_uid()),
        "d": other(structures, "RTSTRUCT", generate_uid()),
        "e": other("1.2.3", "X_Y", generate_uid()),
    }.items():
        write_ct_series(folder=study / name, shape=(4, 4, 1), edit=edit)
    path = study / "e" / "slice000.dcm"
    path.write_bytes(path.read_bytes().replace(b"X_Y", b"X\x1bY"))
    index = index_files(study)
    assert [(one.modality, one.description, len(one.files)) for one in index.series] == [
        ("CT", "CT Image Storage", 4),
        ("SEG", "Segmentation Storage", 1),
        ("RTSTRUCT", "RT Structure Set Storage", 1),
        ("X?Y", "1.2.3", 1),
    ]
    assert (index.n_files, index.problems) == (7, ())


def test_an_index_is_light(write_ct_series):
    folder = write_ct_series(shape=(4, 4, 1)).folder
    content = (folder / "slice000.dcm").read_bytes()
    for number in range(200):
        (folder / f"{number}.dcm").write_bytes(content)
    index_files(folder)
    tracemalloc.start()
    try:
        index = index_files(folder)
        size, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index.series[0].files) == 201
    assert size < 800 * 201  # bytes
    assert peak < 3000 * 201


@pytest.mark.shared_data
def test_headers_are_read_in_no_time(shared_data: Path):
    files = find_files(shared_data / "lidc" / "LIDC-IDRI-0001")
    files = [file for file in files if file.is_named_as_dicom]
    assert len(files) == 133
    for file in files:
        header, dataset = read_header(file), pydicom.dcmread(file.path, stop_before_pixels=True)
        assert header.text("SOPInstanceUID") == dataset.SOPInstanceUID
        position = header.numbers("ImagePositionPatient", 3)
        np.testing.assert_array_equal(position, dataset.ImagePositionPatient)
    # in a process of its own: here every call is type-checked
    script = (
        "import sys, time, timeit, pathlib, data_prep.dicom.header as h\n"
        "files = h.search(pathlib.Path(sys.argv[1])).files\n"
        "read = lambda: [h.read_header(f) for f in files]\n"
        "print(min(timeit.repeat(read, number=1, timer=time.process_time)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, files[0].path.parent],
        capture_output=True,
        check=True,
        text=True,
    )
    assert float(done.stdout) < 0.1  # 0.012 s on a machine that does nothing else


def test_a_name_is_shown_without_control_characters():
    assert printable("CT\x1b[31m\n\u202e") == "CT?[31m??"
