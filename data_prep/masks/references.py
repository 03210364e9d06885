"""What a DICOM mask is and which series it was drawn on, before its content is read."""

import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydicom import Dataset, dcmread
from pydicom.uid import UID, RTStructureSetStorage, SegmentationStorage

from data_prep.dicom.elements import HEAD_BYTES, PARSE_ERRORS, has_prefix, read_meta
from data_prep.errors import MaskError
from data_prep.masks.regions import MaskRegion, region_name
from data_prep.text import printable
from data_prep.volume import CTVolume

# PS3.6 table A-1: Label Map Segmentation Storage, newer than pydicom's names
SEGMENTATIONS = (SegmentationStorage, UID("1.2.840.10008.5.1.4.1.1.66.7"))
MASK_CLASSES = (*SEGMENTATIONS, RTStructureSetStorage)

_PREAMBLE_BYTES = 132
_CLASS_TAG = 0x00020002  # MediaStorageSOPClassUID
_SERIES_TAGS = [
    "FrameOfReferenceUID",
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
    "StructureSetROISequence",
    "SegmentSequence",
]
_IMAGE_TAGS = [
    "ROIContourSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "SourceImageSequence",
]


@dataclass(frozen=True)
class MaskReferences:
    """What a DICOM mask says it was drawn on.

    Parameters
    ----------
    sop_class
        Of the mask itself.
    series_uids
        SeriesInstanceUIDs: PS3.3 C.12.1.1 (ReferencedSeriesSequence) of a segmentation, C.8.8.5
        (RTReferencedSeriesSequence) of a structure set.
    image_uids
        SOPInstanceUIDs of single images; asked for only where no series is named.
    frame_uids
        FrameOfReferenceUIDs.
    regions
        Its regions by number and name.
    """

    sop_class: str
    series_uids: frozenset[str]
    image_uids: frozenset[str]
    frame_uids: frozenset[str]
    regions: tuple[MaskRegion, ...] = ()


def read_references(path: Path) -> MaskReferences | None:
    """Return what a DICOM mask was drawn on.

    Returns
    -------
    MaskReferences or None
        None where the file is no DICOM file, or DICOM of another kind.

    Raises
    ------
    MaskError
        ``unreadable_mask`` if the file is DICOM and can't be parsed.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            # the class of the object, from the group that each DICOM file starts with
            is_dicom = has_prefix(file.read(HEAD_BYTES))
            file.seek(_PREAMBLE_BYTES)
            sop_class = read_meta(file).get(_CLASS_TAG, b"") if is_dicom else b""
            uid = sop_class.decode("ascii", "replace").strip(" \0")
            if uid not in MASK_CLASSES:
                return None
            file.seek(0)
            dataset = dcmread(file, specific_tags=_SERIES_TAGS, stop_before_pixels=True)
            series_uids, image_uids = _series_and_their_images(dataset)
            if not series_uids:
                file.seek(0)
                parts = dcmread(file, specific_tags=_IMAGE_TAGS, stop_before_pixels=True)
                image_uids |= _images(parts)
            return MaskReferences(
                uid, series_uids, image_uids, _frames(dataset), _regions(dataset, path)
            )
    except (*PARSE_ERRORS, OSError) as error:
        raise unreadable(path) from error


def _series_and_their_images(dataset: Dataset) -> tuple[frozenset[str], frozenset[str]]:
    """Return the series named, and images named at the same place without their series."""
    series = list(dataset.get("ReferencedSeriesSequence") or [])
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            series.extend(study.get("RTReferencedSeriesSequence") or [])
    images = [
        image
        for one in series
        for keyword in ("ContourImageSequence", "ReferencedInstanceSequence")
        for image in one.get(keyword) or []
    ]
    return _texts(series, "SeriesInstanceUID"), _texts(images, "ReferencedSOPInstanceUID")


def _images(dataset: Dataset) -> frozenset[str]:
    """Return the images that single contours (PS3.3 C.8.8.6) or frames (C.7.6.16.2.6) name."""
    images = list(dataset.get("SourceImageSequence") or [])
    for item in dataset.get("ROIContourSequence") or []:
        for contour in item.get("ContourSequence") or []:
            images.extend(contour.get("ContourImageSequence") or [])
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for frame in dataset.get(keyword) or []:
            for derivation in frame.get("DerivationImageSequence") or []:
                images.extend(derivation.get("SourceImageSequence") or [])
    return _texts(images, "ReferencedSOPInstanceUID")


def _frames(dataset: Dataset) -> frozenset[str]:
    """Return the frames of reference: of the whole, and of each region."""
    return _texts(
        [dataset, *(dataset.get("ReferencedFrameOfReferenceSequence") or [])],
        "FrameOfReferenceUID",
    ) | _texts(dataset.get("StructureSetROISequence") or [], "ReferencedFrameOfReferenceUID")


def _regions(dataset: Dataset, path: Path) -> tuple[MaskRegion, ...]:
    named = [
        *(
            (f"ROI {item.get('ROINumber')}", item.get("ROIName"))
            for item in dataset.get("StructureSetROISequence") or []
        ),
        *(
            (f"segment {item.get('SegmentNumber')}", item.get("SegmentLabel"))
            for item in dataset.get("SegmentSequence") or []
        ),
    ]
    file = printable(path.name)
    return tuple(MaskRegion(file, label, region_name(name)) for label, name in named)


def _texts(items: Iterable[Dataset], keyword: str) -> frozenset[str]:
    return frozenset(str(item.get(keyword) or "") for item in items) - {""}


def is_drawn_on(references: MaskReferences, series_uid: str, image_uids: Collection[str]) -> bool:
    """Tell whether a mask was drawn on a series: the one rule for reading and for searching.

    Parameters
    ----------
    references
        What the mask says.
    series_uid, image_uids
        SeriesInstanceUID and SOPInstanceUIDs of the series. Images count where no series is named.
    """
    return series_uid in references.series_uids or (
        not references.series_uids and not references.image_uids.isdisjoint(image_uids)
    )


class ReferenceNote(NamedTuple):
    """What to know of a mask that is taken: a name for the manifest's flags, and a sentence."""

    flag: str
    sentence: str


def check_reference(
    references: MaskReferences, volume: CTVolume, source: str, *, same_frame: bool
) -> ReferenceNote | None:
    """Check that a mask was drawn on a volume.

    Parameters
    ----------
    references
        What the mask says.
    volume
        The scan.
    source
        Printable name of the mask's file.
    same_frame
        Whether another series of the same frame of reference will do: of a CT that was exported
        again, cropped or reconstructed anew.

    Returns
    -------
    ReferenceNote or None
        None where all is well.

    Raises
    ------
    MaskError
        ``other_series`` if it refers to another series, ``no_reference`` if to none.
    """
    series_uid, frame_uid = volume.series_uid, volume.frame_uid
    named = printable(", ".join(sorted(references.series_uids)[:3]))
    has_frame = bool(frame_uid) and frame_uid in references.frame_uids
    if is_drawn_on(references, series_uid, volume.image_uids):
        if frame_uid and references.frame_uids and not has_frame:
            return ReferenceNote(
                "mask_of_other_frame",
                f"{source} was drawn on series {series_uid}, but names another frame of "
                "reference: compare one outline with the scan before it is used.",
            )
        return None
    if has_frame and same_frame:
        return ReferenceNote(
            "mask_of_other_series",
            f"{source} was drawn on {f'series {named}' if named else 'another series'} and is "
            f"taken for series {series_uid}, which has the same frame of reference.",
        )
    remedy = (
        "; both have the same frame of reference, so if the patient lay still between them take "
        "it (same_frame=True)"
        if has_frame
        else ""
    )
    if references.series_uids or references.image_uids:
        what = f"series {named}" if named else "images of another series"
        raise MaskError(
            "other_series",
            f"{source} was drawn on {what}, not on series {series_uid}: give the mask of this "
            f"series{remedy}.",
        )
    raise MaskError(
        "no_reference",
        f"{source} doesn't say on which series it was drawn: export it again with its "
        f"references, or as NIfTI{remedy}.",
    )


def unreadable(path: Path, what: str = "") -> MaskError:
    """Return the error of a DICOM mask that can't be read."""
    detail = f" ({what})" if what else ""
    return MaskError(
        "unreadable_mask",
        f"{printable(path.name)} can't be read as a DICOM mask{detail}: fetch or export it again.",
    )
