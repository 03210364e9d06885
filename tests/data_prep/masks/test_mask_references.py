"""What a mask must say to belong to a series, and what an option takes."""

from dataclasses import replace

import numpy as np
import pytest
from pydicom import Dataset

from data_prep.errors import MaskError
from data_prep.masks import MaskWarning, nodules_from_masks, read_masks


def square(scan) -> np.ndarray:
    corners = [[10.5, 10.5, 4], [16.5, 10.5, 4], [16.5, 16.5, 4], [10.5, 16.5, 4]]
    return scan.lps(np.array(corners, float))


def refused(path, volume, **options) -> str:
    with pytest.raises(MaskError) as raised:
        nodules_from_masks(path, volume, **options)
    return f"{raised.value.reason}: {raised.value}"


def test_same_frame_of_reference(scan, write_rtstruct, write_seg):
    """The same CT under another series: refused with the remedy, taken where asked."""
    exported_again = replace(scan.volume, series_uid="1.2.3.4", sop_instance_uids=())
    rt = write_rtstruct({1: [square(scan)]})
    seg = write_seg([scan.ball((20, 18, 7), 4.0)])
    for path in (rt, seg):
        assert "other_series" in (text := refused(path, exported_again))
        assert "same_frame=True" in text
        with pytest.warns(MaskWarning, match="which has the same frame of reference"):
            (nodule,) = nodules_from_masks(path, exported_again, same_frame=True)
        assert nodule.flags == ("mask_of_other_series",)
        (own,) = nodules_from_masks(path, scan.volume, same_frame=True)
        assert own.flags == ()
        np.testing.assert_array_equal(nodule.mask, own.mask)
    elsewhere = replace(exported_again, frame_uid="1.2.3.5")
    assert "same_frame=True" not in refused(rt, elsewhere)
    assert "other_series" in refused(rt, elsewhere, same_frame=True)
    assert "other_series" in refused(rt, replace(exported_again, frame_uid=""), same_frame=True)


def test_no_series_but_the_frame(scan, write_rtstruct):
    path = write_rtstruct({1: [square(scan)]}, series_uid=None)
    assert "no_reference" in (text := refused(path, scan.volume))
    assert "same_frame=True" in text
    with pytest.warns(MaskWarning, match="another series"):
        assert len(nodules_from_masks(path, scan.volume, same_frame=True)) == 1


def test_another_frame_of_the_same_series_is_noted(scan, write_rtstruct):
    def move(dataset: Dataset) -> None:
        dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = "1.2.3.5"

    path = write_rtstruct({1: [square(scan)]}, edit=move)
    masked = read_masks([path], scan.volume)
    assert masked.nodules[0].flags == ("mask_of_other_frame",)
    (note,) = masked.notes
    assert "another frame of reference" in note
    with pytest.warns(MaskWarning, match="another frame of reference"):
        nodules_from_masks(path, scan.volume)
