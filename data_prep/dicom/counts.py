"""Slices missing at the ends of a stack: what the headers' counts and numbers say of them.

The positions can't show it. A count, where a header has one, can; instance numbers are a hint.
"""

from collections.abc import Sequence

import numpy as np

from data_prep.dicom.contents import SeriesContents
from data_prep.dicom.findings import Finding
from data_prep.dicom.placement import Placement
from data_prep.dicom.slices import CTSlice


def find_missing_ends(
    series: SeriesContents, slices: Sequence[CTSlice], placement: Placement
) -> list[Finding]:
    """Find that a series holds fewer images than its headers count.

    The count (ImagesInAcquisition or NumberOfSeriesRelatedInstances) is compared with all images
    of the series, whichever stack they are in, and with what is missing in gaps added: that is
    reported as ``missing_slices``. Nothing is found

    - if the slices of the stack give different counts: none is to be trusted;
    - if the count is a multiple of what is there: several reconstructions of one acquisition
      share its count, and lie in series of their own. A series cut exactly in half passes by this.

    Parameters
    ----------
    series
        All of the series.
    slices, placement
        The stack.
    """
    counts = {one.series_count for one in slices}
    count = counts.pop()
    if counts or not count:
        return []
    images = {(one.sop_instance_uid, one.frame) for one in series.slices}
    n_images = len(images) + series.n_left_out
    n_missing = count - n_images - (placement.levels.count - len(slices))
    if n_missing <= 0 or count % n_images == 0:
        return []
    first = slices[0]
    return [
        Finding(
            "missing_end_slices",
            f"{first.name} and others count {count} images in the series and {n_images} are there: "
            f"{n_missing} are missing where no gap shows, at an end",
            "fetch the series again",
            (first.file,),
            "those that are there are read; nothing is added",
        )
    ]


def find_late_start(series: SeriesContents, placement: Placement) -> list[Finding]:
    """Find that instance numbers run in step with the positions, and don't start at 0 or 1.

    That is so of a part cut out of a series, and of series that are numbered on from another: so
    it is no more than noted. Images of the series outside of the stack may have the numbers before.
    """
    numbers = [one.instance_number for one in placement.slices]
    if placement.is_resampled or None in numbers:
        return []
    steps = np.diff(np.array(numbers, np.float64)) / np.diff(placement.levels.image_k)
    if abs(steps[0]) != 1 or (steps != steps[0]).any():
        return []
    first, last = sorted((int(numbers[0] or 0), int(numbers[-1] or 0)))
    n_others = len(series.slices) - len(numbers) + series.n_left_out
    if first <= 1 + n_others:
        return []
    ends = (placement.slices[0], placement.slices[-1])
    return [
        Finding(
            "late_first_instance",
            f"Instance numbers run from {first} to {last} in step with the positions "
            f"({ends[0].name} to {ends[1].name}): it may be a part of a longer series",
            files=(ends[0].file, ends[1].file),
        )
    ]
