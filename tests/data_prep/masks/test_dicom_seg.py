"""DICOM segmentations written by highdicom give the voxels that were drawn."""

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import RLELossless

from data_prep.errors import MaskError
from data_prep.masks import MaskWarning, nodules_from_masks, read_masks


def two_masks(scan) -> list[np.ndarray]:
    first = scan.ball((10, 12, 4), 4.0) | scan.ball((30, 30, 3), 3.0)  # two parts
    return [first, scan.ball((28, 20, 10), 5.5)]


def reason_of(path, volume) -> str:
    with pytest.raises(MaskError) as raised:
        nodules_from_masks(path, volume)
    assert str(raised.value).isprintable()
    return raised.value.reason


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_same_voxels(scan, write_seg, kind):
    masks = two_masks(scan)
    masked = read_masks([write_seg(masks, kind)], scan.volume)
    assert [source.label for source in masked.sources] == ["segment 2", "segment 1"]
    assert [nodule.nodule_id for nodule in masked.nodules] == ["nodule_1", "nodule_2"]
    for nodule, mask in zip(masked.nodules, masks[::-1], strict=True):
        np.testing.assert_array_equal(nodule.mask, mask)
    assert masked.left_out == ()


def test_fractions_from_half_on(scan, write_seg):
    fraction = np.zeros(scan.volume.shape)
    fraction[10, 10, 4:7], fraction[11, 10, 4:7], fraction[12, 10, 4:7] = 0.45, 0.55, 1.0
    (nodule,) = nodules_from_masks(write_seg([fraction], "FRACTIONAL"), scan.volume)
    np.testing.assert_array_equal(nodule.mask, fraction >= 0.5)


def test_overlapping_segments_stay_whole(scan, write_seg):
    masks = [scan.ball((20, 18, 7), 6.0), scan.ball((22, 18, 7), 3.0)]
    masked = read_masks([write_seg(masks)], scan.volume)
    by_label = dict(zip([s.label for s in masked.sources], masked.nodules, strict=True))
    np.testing.assert_array_equal(by_label["segment 1"].mask, masks[0])
    np.testing.assert_array_equal(by_label["segment 2"].mask, masks[1])


def test_empty_segment_is_told(scan, write_seg):
    masks = [np.zeros(scan.volume.shape, bool), scan.ball((20, 18, 7), 6.0)]
    path = write_seg(masks)
    with pytest.warns(MaskWarning, match="segment 1 'nodule 1' of seg.dcm is empty"):
        (nodule,) = nodules_from_masks(path, scan.volume)
    np.testing.assert_array_equal(nodule.mask, masks[1])
    assert read_masks([path], scan.volume).left_out[0].region.label == "segment 1"


def test_compressed(scan, write_seg):
    def compress(dataset: Dataset) -> None:
        dataset.compress(RLELossless)

    masks = two_masks(scan)
    path = write_seg(masks, "FRACTIONAL", compress)
    masked = read_masks([path], scan.volume)
    np.testing.assert_array_equal(masked.nodules[0].mask, masks[1])


def test_other_series(scan, write_seg):
    def refer_elsewhere(dataset: Dataset) -> None:
        dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"

    def without_series(dataset: Dataset) -> None:
        del dataset.ReferencedSeriesSequence

    def without_any(dataset: Dataset) -> None:
        del dataset.ReferencedSeriesSequence, dataset.SourceImageSequence
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            del frame.DerivationImageSequence

    def other_images(dataset: Dataset) -> None:
        del dataset.ReferencedSeriesSequence, dataset.SourceImageSequence
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            image = frame.DerivationImageSequence[0].SourceImageSequence[0]
            image.ReferencedSOPInstanceUID = "1.2.3.4"

    masks = two_masks(scan)
    assert reason_of(write_seg(masks, edit=refer_elsewhere), scan.volume) == "other_series"
    assert reason_of(write_seg(masks, edit=other_images), scan.volume) == "other_series"
    assert reason_of(write_seg(masks, edit=without_any), scan.volume) == "no_reference"
    assert len(nodules_from_masks(write_seg(masks, edit=without_series), scan.volume)) == 2


@pytest.mark.parametrize(
    ("reason", "attribute", "value"),
    [
        ("too_large", "NumberOfFrames", 2**30),
        ("too_large", "NumberOfFrames", -3),
        ("unreadable_mask", "NumberOfFrames", 4000),
        ("unreadable_mask", "Rows", 3000),
    ],
)
def test_absurd_sizes(scan, write_seg, reason, attribute, value):
    def claim(dataset: Dataset) -> None:
        setattr(dataset, attribute, value)

    assert reason_of(write_seg(two_masks(scan), edit=claim), scan.volume) == reason


def test_frame_far_away_takes_no_memory(scan, write_seg):
    """One frame at the other end of the universe doesn't make a volume that reaches there."""

    def move(dataset: Dataset) -> None:
        frame = dataset.PerFrameFunctionalGroupsSequence[0]
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 1.5e7]

    path = write_seg(two_masks(scan), edit=move)
    assert reason_of(path, scan.volume) in ("too_large", "sheared_mask", "unreadable_mask")


def test_cut_off(scan, write_seg, tmp_path):
    whole = write_seg(two_masks(scan)).read_bytes()
    for size in (len(whole) // 2, len(whole) - 200, 500, 140):
        path = tmp_path / "cut.dcm"
        path.write_bytes(whole[:size])
        reason = reason_of(path, scan.volume)
        assert reason in ("unreadable_mask", "unsupported_mask", "no_reference")


def without_spacing(dataset: Dataset) -> None:
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    del measures.SpacingBetweenSlices


@pytest.mark.parametrize("slices", [[3], [3, 4], [3, 10], [3, 4, 9]])
@pytest.mark.parametrize("edit", [lambda dataset: None, without_spacing])
def test_frames_left_out(scan, write_seg, slices, edit):
    """Few frames, far apart: never thicker than the scan's slices."""
    mask = np.zeros(scan.volume.shape, bool)
    mask[10:14, 8:12, slices] = True
    path = write_seg([mask], edit=edit)
    if edit is without_spacing and slices == [3, 10]:
        assert reason_of(path, scan.volume) == "other_spacing"
        return
    (nodule,) = nodules_from_masks(path, scan.volume)
    np.testing.assert_array_equal(nodule.mask, mask)


@pytest.mark.parametrize(
    "attribute",
    [
        "DimensionIndexSequence",
        "SegmentSequence",
        "SegmentationType",
        "SharedFunctionalGroupsSequence",
        "Rows",
        "PixelData",
    ],
)
def test_attributes_left_out(scan, write_seg, attribute):
    """Whatever the libraries raise is an error that names the file."""
    path = write_seg(two_masks(scan), edit=lambda dataset: delattr(dataset, attribute))
    with pytest.raises(MaskError, match=r"seg\.dcm") as raised:
        nodules_from_masks(path, scan.volume)
    assert raised.value.reason == "unreadable_mask"
    assert str(raised.value).isprintable()
    assert "FrameLUT" not in str(raised.value)  # a table of the library's own
