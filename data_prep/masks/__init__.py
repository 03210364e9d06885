"""Nodules from masks: label maps, DICOM segmentations, radiotherapy structure sets."""

from data_prep.masks.nodules import (
    LeftOutRegion,
    MaskedNodules,
    MaskWarning,
    nodules_from_masks,
    read_masks,
    regions_of_mask,
)
from data_prep.masks.references import MaskIndex, masks_of_series
from data_prep.masks.regions import MaskRegion

__all__ = [
    "LeftOutRegion",
    "MaskIndex",
    "MaskRegion",
    "MaskWarning",
    "MaskedNodules",
    "masks_of_series",
    "nodules_from_masks",
    "read_masks",
    "regions_of_mask",
]
