"""Series that must be read right: SimpleITK, and markers at known places, are the judges."""

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.testing import assert_array_equal
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SegmentationStorage,
    generate_uid,
)
from scipy.spatial.transform import Rotation

from data_prep import CTVolume, SeriesError, read_series

PATIENTS = ("LIDC-IDRI-0001", "LIDC-IDRI-0003")

ORIENTATIONS_LPS = {
    "axial, supine": (1, 0, 0, 0, 1, 0),
    "axial, prone": (-1, 0, 0, 0, -1, 0),
    "axial, from above": (-1, 0, 0, 0, 1, 0),
    "axial, rows upside down": (1, 0, 0, 0, -1, 0),
    "axial, transposed": (0, 1, 0, 1, 0, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "sagittal, feet first": (0, -1, 0, 0, 0, 1),
} | {
    f"oblique {seed}": tuple(
        Rotation.random(rng=np.random.default_rng(seed)).as_matrix()[:2].ravel()
    )
    for seed in range(6)
}


def read_with_simpleitk(folder: Path) -> sitk.Image:
    return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))


def largest_disagreement_mm(volume: CTVolume, image: sitk.Image) -> float:
    """Compare voxel to mm at all corners and 200 random voxels."""
    ends = np.array(volume.shape) - 1
    corners = np.array(np.meshgrid(*[(0, end) for end in ends])).reshape(3, -1).T
    random = np.random.default_rng(0).integers(0, ends, size=(200, 3), endpoint=True)
    return max(
        float(
            np.abs(
                np.array(image.TransformIndexToPhysicalPoint(ijk.tolist())) * [-1, -1, 1]
                - (volume.affine @ [*ijk, 1])[:3]
            ).max()
        )
        for ijk in np.concatenate([corners, random])
    )


def marker_error_mm(volume: CTVolume, marker_xyz_mm: np.ndarray) -> float:
    """Distance of the blob's centre of mass from where it was put."""
    weights = volume.hu.astype(float) + 1000
    center_ijk = [(weights * index).sum() / weights.sum() for index in np.indices(volume.shape)]
    center_xyz_mm = (volume.affine @ [*center_ijk, 1])[:3]
    return float(np.linalg.norm(center_xyz_mm - marker_xyz_mm))


@pytest.mark.shared_data
@pytest.mark.parametrize("patient", PATIENTS)
def test_real_series_equals_simpleitk(shared_data: Path, patient: str):
    folder = shared_data / "lidc" / patient
    volume = read_series(folder)
    image = read_with_simpleitk(next(folder.rglob("*.dcm")).parent)
    assert_array_equal(volume.hu.T, sitk.GetArrayFromImage(image))
    assert volume.hu.dtype == np.int16
    assert volume.axcodes == ("L", "P", "S")
    assert largest_disagreement_mm(volume, image) < 1e-4


@pytest.mark.shared_data
def test_uids_name_the_slices(shared_data: Path):
    folder = shared_data / "lidc" / PATIENTS[0]
    volume = read_series(folder)
    dataset = pydicom.dcmread(next(folder.rglob("*.dcm")))
    assert volume.series_uid == dataset.SeriesInstanceUID
    k = volume.sop_instance_uids.index(dataset.SOPInstanceUID)
    height_mm = float(dataset.ImagePositionPatient[2])
    assert (volume.affine @ [0, 0, k, 1])[2] == pytest.approx(height_mm, abs=1e-4)
    assert_array_equal(volume.hu[:, :, k].T, dataset.pixel_array - 1024)


@pytest.mark.shared_data
def test_memory_stays_below_twice_the_volume(shared_data: Path):
    folder = shared_data / "lidc" / PATIENTS[0]
    tracemalloc.start()
    try:
        volume = read_series(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * volume.hu.nbytes


@pytest.mark.parametrize("orientation_lps", ORIENTATIONS_LPS.values(), ids=ORIENTATIONS_LPS)
def test_every_orientation_lands_in_its_place(write_ct_series, orientation_lps):
    series = write_ct_series(orientation_lps=orientation_lps)
    volume = read_series(series.folder)
    assert_array_equal(volume.hu, series.hu)
    assert volume.sop_instance_uids == tuple(series.sop_instance_uids)
    assert volume.outside is None
    assert marker_error_mm(volume, series.marker_xyz_mm) < 0.1
    image = read_with_simpleitk(series.folder)
    assert_array_equal(volume.hu.T, sitk.GetArrayFromImage(image))
    assert largest_disagreement_mm(volume, image) < 1e-4


def test_names_numbers_and_nesting_do_not_matter(write_ct_series):
    numbers = np.random.default_rng(1).permutation(12)

    def edit(dataset, k):
        dataset.InstanceNumber = int(numbers[k])
        dataset.SliceLocation, dataset.SliceThickness = "3", "99"
        dataset.SpacingBetweenSlices, dataset.GantryDetectorTilt = "-7", "20"
        if k % 3 == 0:
            del dataset.InstanceNumber

    endings = [".dcm", "", ".17", "/image.IMA"]
    names = [f"{99 - number}{endings[k % 4]}" for k, number in enumerate(numbers)]
    series = write_ct_series(names=names, edit=edit)
    (series.folder / "readers.xml").write_text("<LidcReadMessage/>")
    (series.folder / "empty").touch()
    (series.folder / "._1.dcm").write_bytes(b"\0\5\x16\7")
    (series.folder / "noise.bin").write_bytes(b"\x08\x00\x05\x00" + bytes(range(200)))
    volume = read_series(str(series.folder))
    assert_array_equal(volume.hu, series.hu)
    assert marker_error_mm(volume, series.marker_xyz_mm) < 0.1


def test_links_in_a_loop_end(write_ct_series):
    series = write_ct_series()
    for name in ("again", "and again"):  # two, or 40 rounds of links would pass unnoticed
        (series.folder / name).symlink_to(series.folder, target_is_directory=True)
    (series.folder / "copy of a slice").symlink_to(series.paths[3])
    (series.folder / "self").symlink_to(series.folder / "self")
    assert_array_equal(read_series(series.folder).hu, series.hu)


def test_positions_rounded_to_a_tenth_are_accepted(write_ct_series):
    def edit(dataset, k):
        dataset.ImagePositionPatient = ["-31.5", "17.2", f"{-120 + 1.25 * k:.1f}"]

    series = write_ct_series(spacing_mm=(1.1, 0.9, 1.25), edit=edit)
    volume = read_series(series.folder)
    assert volume.spacing_mm[2] == pytest.approx(1.25, abs=0.01)
    assert marker_error_mm(volume, series.marker_xyz_mm) < 0.1


@pytest.mark.parametrize("bits_stored", [12, 13, 16])
@pytest.mark.parametrize("is_signed", [True, False])
def test_signed_and_unsigned_pixels(write_ct_series, is_signed: bool, bits_stored: int):
    intercept = 0.0 if is_signed else -1024.0
    series = write_ct_series(
        is_signed=is_signed, bits_stored=bits_stored, rescale=lambda k: (1.0, intercept)
    )
    volume = read_series(series.folder)
    assert volume.hu.dtype == np.int16
    assert_array_equal(volume.hu, series.hu)
    assert_array_equal(volume.hu.T, sitk.GetArrayFromImage(read_with_simpleitk(series.folder)))


def test_what_scanners_keep_in_unused_bits_is_dropped(write_ct_series):
    def edit(dataset, k):
        stored = np.frombuffer(dataset.PixelData, "<u2")
        dataset.PixelData = (stored | 0x7000).astype("<u2").tobytes()

    series = write_ct_series(is_signed=False, bits_stored=12, edit=edit)
    assert_array_equal(read_series(series.folder).hu, series.hu)


@pytest.mark.parametrize("slope", [1, 4])
def test_eight_bits_and_an_odd_length(write_ct_series, slope: int):
    stored = np.random.default_rng(2).integers(0, 256, (5, 3, 4), np.uint8)  # k, j, i + 1 spare

    def edit(dataset, k):
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelData = stored[k, :, :3].tobytes() + b"\0"
        dataset["PixelData"].VR = "OB"

    series = write_ct_series(
        shape=(3, 3, 5), is_signed=False, edit=edit, rescale=lambda k: (slope, -1000)
    )
    expected = slope * stored[:, :, :3].astype(np.int16) - 1000
    assert_array_equal(read_series(series.folder).hu.T, expected)


def test_rescale_is_each_slices_own(write_ct_series):
    series = write_ct_series(rescale=lambda k: (1.0 + k % 2, -1024.0 + 2 * k))
    volume = read_series(series.folder)
    assert volume.hu.dtype == np.int16
    assert np.abs(volume.hu - series.hu).max() <= 1  # stored in steps of 2 HU
    assert_array_equal(volume.hu.T, sitk.GetArrayFromImage(read_with_simpleitk(series.folder)))


def test_fractional_rescale_gives_float32(write_ct_series):
    series = write_ct_series(rescale=lambda k: (0.37 + 0.01 * k, -1000.25))
    volume = read_series(series.folder)
    assert volume.hu.dtype == np.float32
    expected = sitk.GetArrayFromImage(read_with_simpleitk(series.folder)).astype(np.float32)
    assert_array_equal(volume.hu.T, expected)


def test_signed_pixels_without_rescale_are_hu(write_ct_series):
    def edit(dataset, k):
        del dataset.RescaleSlope, dataset.RescaleIntercept

    series = write_ct_series(rescale=lambda k: (1.0, 0.0), edit=edit)
    assert_array_equal(read_series(series.folder).hu, series.hu)


def test_hu_beyond_int16_is_kept_in_float32(write_ct_series):
    """Unsigned 65535 as padding: 64511 HU, as the file says, and never wrapped."""

    def edit(dataset, k):
        if k == 7:
            dataset.PixelData = b"\xff\xff" + dataset.PixelData[2:]

    series = write_ct_series(is_signed=False, edit=edit)
    volume = read_series(series.folder)
    assert volume.hu.dtype == np.float32
    expected = series.hu.copy()
    expected[0, 0, 7] = 65535 - 1024
    assert_array_equal(volume.hu, expected)


@pytest.mark.parametrize(
    ("is_signed", "stored", "tags"),
    [
        (True, -2000, {"PixelPaddingValue": ("SS", -2000)}),
        (True, -2000, {"PixelPaddingValue": ("US", 63536)}),  # as in LIDC-IDRI-0001
        (False, 63536, {"PixelPaddingValue": ("US", 63536)}),
        (False, 63536, {"PixelPaddingValue": ("SS", -2000)}),
        (
            True,
            -1990,
            {"PixelPaddingValue": ("SS", -2000), "PixelPaddingRangeLimit": ("SS", -1980)},
        ),
        (
            True,
            -1990,
            {"PixelPaddingValue": ("US", 63556), "PixelPaddingRangeLimit": ("US", 63536)},
        ),
    ],
)
def test_padding_is_outside_and_its_hu_stays(write_ct_series, is_signed, stored, tags):
    def edit(dataset, k):
        for keyword, (vr, value) in tags.items():
            dataset.add_new(keyword, vr, value)
        if k < 9:
            pixels = np.frombuffer(dataset.PixelData, "<i2").copy()
            pixels[: 3 + k] = np.array(stored).astype(np.int16)  # along the first row
            dataset.PixelData = pixels.tobytes()

    series = write_ct_series(is_signed=is_signed, edit=edit)
    volume = read_series(series.folder)
    expected = np.zeros(volume.shape, np.bool_)
    for k in range(9):
        expected[: 3 + k, 0, k] = True
    assert_array_equal(volume.outside, expected)
    assert_array_equal(volume.hu[expected], stored - 1024)
    assert_array_equal(volume.hu[~expected], series.hu[~expected])


def test_a_padding_value_that_no_pixel_can_hold_marks_nothing(write_ct_series):
    def edit(dataset, k):
        dataset.add_new("PixelPaddingValue", "US", 63536)  # 2096 in the lower 12 bits

        pixels = np.frombuffer(dataset.PixelData, "<u2").copy()
        pixels[5] = 2096
        dataset.PixelData = pixels.tobytes()

    series = write_ct_series(is_signed=False, bits_stored=12, edit=edit)
    assert read_series(series.folder).outside is None


def test_one_of_several_series_by_uid(write_ct_series, tmp_path: Path):
    wanted = write_ct_series(folder=tmp_path / "both" / "a")
    write_ct_series(folder=tmp_path / "both" / "b", shape=(9, 9, 5))
    volume = read_series(tmp_path / "both", series_uid=wanted.series_uid)
    assert volume.series_uid == wanted.series_uid
    assert_array_equal(volume.hu, wanted.hu)


def test_a_segmentation_beside_the_ct_does_not_count(write_ct_series):
    series = write_ct_series()
    other = pydicom.dcmread(series.paths[0])
    other.SOPClassUID, other.Modality = SegmentationStorage, "SEG"
    other.SeriesInstanceUID = other.SOPInstanceUID = generate_uid()
    other.file_meta.MediaStorageSOPClassUID = other.SOPClassUID
    other.save_as(series.folder / "segmentation.dcm")
    assert_array_equal(read_series(series.folder).hu, series.hu)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_uncompressed_syntaxes(write_ct_series, syntax: str):
    def edit(dataset, k):
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.add_new("PixelPaddingValue", "SS", -2024)
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()

    series = write_ct_series(edit=edit)
    assert_array_equal(read_series(series.folder).hu, series.hu)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_files_without_preamble_and_prefix(write_ct_series, syntax: str):
    def edit(dataset, k):
        dataset.file_meta.TransferSyntaxUID = syntax

    series = write_ct_series(edit=edit)
    for path in series.paths:
        content = path.read_bytes()
        meta_length = int.from_bytes(content[140:144], "little")
        path.write_bytes(content[144 + meta_length :])
    assert_array_equal(read_series(series.folder).hu, series.hu)


@pytest.mark.parametrize("is_signed", [True, False])
def test_run_length_encoded(write_ct_series, is_signed: bool):
    series = write_ct_series(is_signed=is_signed)
    for path in series.paths:
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
    assert_array_equal(read_series(series.folder).hu, series.hu)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["J2KI", "J2KR", "JLSL", "JLSN", "JPLL", "RLE"])
def test_compressed_slices_equal_simpleitk_or_are_refused(shared_data, tmp_path, name: str):
    source = shared_data / "dicom_syntaxes" / f"CT1_{name}.dcm"
    for k in range(2):
        dataset = pydicom.dcmread(source)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.ImagePositionPatient[2] += 5 * k
        dataset.save_as(tmp_path / f"{k}.dcm")
    if not get_decoder(dataset.file_meta.TransferSyntaxUID).is_available:
        with pytest.raises(SeriesError, match="install") as caught:
            read_series(tmp_path)
        assert caught.value.reason == "unsupported_syntax"
        return
    volume = read_series(tmp_path)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(source))
    assert_array_equal(volume.hu.T, np.concatenate([expected, expected]))


def test_a_folder_that_moves_reads_the_same(write_ct_series, tmp_path: Path):
    series = write_ct_series()
    before = read_series(series.folder)
    shutil.move(series.folder, tmp_path / "Ärzte, neu")
    after = read_series(tmp_path / "Ärzte, neu")
    assert after.sha256 == before.sha256
