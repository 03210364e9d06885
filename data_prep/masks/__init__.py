"""Nodules from masks: label maps, DICOM segmentations, radiotherapy structure sets."""

from data_prep.masks.index import MaskIndex, masks_of_series
from data_prep.masks.nodules import (
    ContourWarning,
    EmptyLabelWarning,
    MaskedNodules,
    MaskSource,
    nodules_from_masks,
    read_masks,
)

__all__ = [
    "ContourWarning",
    "EmptyLabelWarning",
    "MaskIndex",
    "MaskSource",
    "MaskedNodules",
    "masks_of_series",
    "nodules_from_masks",
    "read_masks",
]
