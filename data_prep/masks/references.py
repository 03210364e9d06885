"""What a DICOM mask is and which series it was drawn on, before its content is read."""

import warnings
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.uid import UID, RTStructureSetStorage, SegmentationStorage

from data_prep.dicom.elements import HEAD_BYTES, PARSE_ERRORS, has_prefix, read_meta
from data_prep.dicom.files import printable
from data_prep.errors import MaskError
from data_prep.volume import CTVolume

# PS3.6 table A-1: Label Map Segmentation Storage, newer than pydicom's names
SEGMENTATIONS = (SegmentationStorage, UID("1.2.840.10008.5.1.4.1.1.66.7"))
MASK_CLASSES = (*SEGMENTATIONS, RTStructureSetStorage)

_PREAMBLE_BYTES = 132
_CLASS_TAG = 0x00020002  # MediaStorageSOPClassUID
_TAGS = ["ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"]


def read_references(path: Path) -> tuple[str, frozenset[str]] | None:
    """Return the SOP class of a DICOM mask and the SeriesInstanceUIDs that it refers to.

    Returns
    -------
    tuple or None
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
            dataset = dcmread(file, specific_tags=_TAGS, stop_before_pixels=True)
            return uid, referenced_series(dataset)
    except (*PARSE_ERRORS, OSError) as error:
        raise unreadable(path) from error


def referenced_series(dataset: Dataset) -> frozenset[str]:
    """Return the SeriesInstanceUIDs that a SEG or RTSTRUCT object says it was drawn on.

    Of a segmentation PS3.3 C.12.1.1 (ReferencedSeriesSequence); of a structure set C.8.8.5
    (RTReferencedSeriesSequence, three sequences down).
    """
    series = list(dataset.get("ReferencedSeriesSequence") or [])
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            series.extend(study.get("RTReferencedSeriesSequence") or [])
    return frozenset(str(one.SeriesInstanceUID) for one in series if "SeriesInstanceUID" in one)


def check_reference(
    series_uids: frozenset[str], image_uids: frozenset[str], volume: CTVolume, source: str
) -> None:
    """Check that a mask was drawn on a volume.

    Parameters
    ----------
    series_uids
        The series that it refers to.
    image_uids
        The single images that it refers to: they count where no series is named.
    volume
        The scan.
    source
        Printable name of the mask's file.

    Raises
    ------
    MaskError
        ``other_series`` if it refers to another series, ``no_reference`` if to none.
    """
    if volume.series_uid in series_uids:
        return
    if series_uids or image_uids:
        if not series_uids and image_uids & set(volume.sop_instance_uids):
            return
        named = printable(", ".join(sorted(series_uids)[:3])) or "images of another series"
        raise MaskError(
            "other_series",
            f"{source} was drawn on {named}, not on series {volume.series_uid}: give the mask of "
            "this series.",
        )
    raise MaskError(
        "no_reference",
        f"{source} doesn't say on which series it was drawn: export it again with its "
        "references, or as NIfTI.",
    )


def unreadable(path: Path, what: str = "") -> MaskError:
    """Return the error of a DICOM mask that can't be read."""
    detail = f" ({what})" if what else ""
    return MaskError(
        "unreadable_mask",
        f"{printable(path.name)} can't be read as a DICOM mask{detail}: fetch or export it again.",
    )
