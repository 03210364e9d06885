"""What a header says its values are: Hounsfield units however spelled, or another quantity."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut

from data_prep import SeriesError, check_path, read_series


def item(**attributes) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def real_world(unit: str, slope: float = 1.0, intercept: float = 0.0) -> list[Dataset]:
    code = item(CodeValue=unit, CodingSchemeDesignator="UCUM", CodeMeaning=unit)
    mapping = item(RealWorldValueSlope=slope, RealWorldValueIntercept=intercept, LUTLabel="X")
    mapping.MeasurementUnitsCodeSequence = [code]
    mapping.RealWorldValueFirstValueMapped, mapping.RealWorldValueLastValueMapped = 0, 4095
    return [mapping]


def setting(**attributes):
    def edit(dataset, k=0):
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)

    return edit


def reason_of(path: Path, words: str = "", **options) -> str:
    with pytest.raises(SeriesError) as caught:
        read_series(path, **options)
    assert words in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize(
    "spelling",
    [
        *("HU", "hu", "HU ", "Hu", "Hounsfield", "HOUNSFIELD", "Hounsfield Unit"),
        *("Hounsfield Units", "hounsfield units", "Houndsfield Unit", "HOUNSFIELD_UNIT"),
        *("HU (Hounsfield)", "[hnsf'U]", "CT number", "", None),
    ],
)
def test_hounsfield_units_however_spelled(write_ct_series, spelling: str | None):
    """GE workstations write "Houndsfield Unit" into reformatted series."""

    def edit(dataset, k):
        dataset.RescaleType = spelling
        if spelling is None:
            del dataset.RescaleType

    series = write_ct_series(edit=edit)
    volume = read_series(series.folder)
    np.testing.assert_array_equal(volume.hu, series.hu)
    assert volume.problems == ()


@pytest.mark.parametrize("rescale_type", ["US", "us", "UNSPECIFIED", "HU_MOD"])
def test_units_left_open_are_noted_and_must_look_like_hu(write_ct_series, rescale_type: str):
    right = write_ct_series(
        has_body=True, shape=(40, 36, 20), edit=setting(RescaleType=rescale_type)
    )
    volume = read_series(right.folder)
    np.testing.assert_array_equal(volume.hu, right.hu)
    (problem,) = volume.problems
    assert (problem.name, problem.action) == ("unspecified_units", "note")
    assert rescale_type.upper() in problem.message
    assert reason_of(right.folder, refuse=["unspecified_units"]) == "unspecified_units"
    for path in right.paths:  # a map of 0 to 100 ml/100 ml/min: no air
        dataset = pydicom.dcmread(path)
        dataset.PixelData = (np.arange(40 * 36) % 101 + 1024).astype("<i2").tobytes()
        dataset.save_as(path)
    assert reason_of(right.folder, rescale_type.upper()) == "not_hu"
    (report,) = check_path(right.folder).stacks
    assert report.verdict == "refused"


SAYINGS = {
    "another unit": setting(RescaleType="MGML"),
    "a unit in words": setting(RescaleType="100ug/cc"),
    "blood flow": setting(ImageType=["DERIVED", "PRIMARY", "PERFUSION", "RCBF"]),
    "a subtraction": setting(ImageType=["DERIVED", "SECONDARY", "AXIAL", "SUBTRACTION"]),
    "iodine density": setting(ImageType=["DERIVED", "PRIMARY", "AXIAL", "MAT_SPECIFIC"]),
    "effective Z, fifth value": setting(
        ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "NONE", "EFF_ATOMIC_NUM"]
    ),
    "real world values": setting(RealWorldValueMappingSequence=real_world("mg/ml")),
    "a table": setting(
        ModalityLUTSequence=[
            item(
                LUTDescriptor=[4096, 0, 16],
                ModalityLUTType="HU",
                LUTData=np.arange(4096, dtype="<u2").tobytes(),
            )
        ]
    ),
    "a surface": setting(VolumeBasedCalculationTechnique="SURFACE_RENDER"),
}


@pytest.mark.parametrize("is_undefined", [False, True])
@pytest.mark.parametrize("edit", SAYINGS.values(), ids=SAYINGS)
def test_another_quantity_is_refused(write_ct_series, edit, is_undefined: bool):
    def edited(dataset, k):
        edit(dataset)
        for element in dataset:
            if element.VR == "SQ":
                element.is_undefined_length = is_undefined

    assert reason_of(write_ct_series(edit=edited).folder) == "not_hu"


def test_a_table_gives_no_negative_number(write_ct_series):
    """Why a ModalityLUTSequence can't give HU: pydicom's own result is unsigned."""
    dataset = pydicom.dcmread(write_ct_series(edit=SAYINGS["a table"]).paths[0])
    assert apply_modality_lut(dataset.pixel_array, dataset).dtype.kind == "u"


@pytest.mark.parametrize(
    "edit",
    [
        setting(ImageType=["ORIGINAL", "PRIMARY", "PERFUSION", "NONE"]),  # the scan of a perfusion
        setting(ImageType=["DERIVED", "PRIMARY", "AXIAL", "VMI"]),
        setting(ImageType=["DERIVED", "PRIMARY", "AXIAL", "MAT_REMOVED"]),
        setting(RealWorldValueMappingSequence=real_world("[hnsf'U]", intercept=-1024)),
        setting(RealWorldValueMappingSequence=[]),
        setting(ModalityLUTSequence=[]),
        setting(RescaleType="US", RealWorldValueMappingSequence=real_world("HU", 1, -1024)),
        setting(PixelPresentation="MONOCHROME", VolumeBasedCalculationTechnique="NONE"),
    ],
)
def test_what_still_is_hu(write_ct_series, edit):
    series = write_ct_series(edit=edit)
    volume = read_series(series.folder)
    np.testing.assert_array_equal(volume.hu, series.hu)
    assert volume.problems == ()


def test_two_rescales_that_contradict_each_other(write_ct_series):
    mapping = real_world("[hnsf'U]", intercept=-1000)
    series = write_ct_series(edit=setting(RealWorldValueMappingSequence=mapping))
    assert reason_of(series.folder, "real world") == "bad_rescale"


def _in_groups(shared: bool, sequence: str, value):
    def edit(dataset):
        per_frame = dataset.PerFrameFunctionalGroupsSequence
        for groups in dataset.SharedFunctionalGroupsSequence if shared else per_frame:
            setattr(groups, sequence, value)

    return edit


@pytest.mark.parametrize(
    ("reason", "edit"),
    [
        (
            "not_hu",
            _in_groups(True, "RealWorldValueMappingSequence", real_world("ml/100ml/s")),
        ),
        (
            "not_hu",
            _in_groups(
                False,
                "CTImageFrameTypeSequence",
                [item(FrameType=["DERIVED", "PRIMARY", "PERFUSION", "MTT"])],
            ),
        ),
        ("not_hu", setting(ImageType=["DERIVED", "PRIMARY", "VOLUME", "ELECTRON_DENSITY"])),
        ("colour", setting(PixelPresentation="COLOR")),
        ("not_hu", setting(ModalityLUTSequence=[item(LUTDescriptor=[1, 0, 8], LUTData=b"\0\0")])),
    ],
)
def test_maps_among_enhanced_objects(write_enhanced_ct, reason: str, edit):
    path = write_enhanced_ct(edit=edit).path
    assert reason_of(path) == reason
    (report,) = check_path(path).stacks
    assert reason in {problem.name for problem in report.problems}


def test_a_map_beside_a_ct_is_not_what_is_meant(write_ct_series, tmp_path: Path):
    ct = write_ct_series(folder=tmp_path / "both" / "ct")
    write_ct_series(folder=tmp_path / "both" / "map", edit=SAYINGS["blood flow"])
    np.testing.assert_array_equal(read_series(tmp_path / "both").hu, ct.hu)
