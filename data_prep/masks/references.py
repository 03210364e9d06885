"""Which series a mask was drawn on: asked of one file, and looked up among many."""

import os
import sqlite3
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.uid import UID, RTStructureSetStorage, SegmentationStorage

from data_prep.dicom.elements import HEAD_BYTES, PARSE_ERRORS, has_prefix, read_meta
from data_prep.dicom.files import find_files
from data_prep.errors import MaskError
from data_prep.formats import image_stem, is_image
from data_prep.masks.regions import MaskRegion, check_choice, region_name
from data_prep.text import comparable, printable
from data_prep.volume import CTVolume

# PS3.6 table A-1: Label Map Segmentation Storage, newer than pydicom's names
SEGMENTATIONS = (SegmentationStorage, UID("1.2.840.10008.5.1.4.1.1.66.7"))

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

    The series are those of PS3.3 C.12.1.1 (ReferencedSeriesSequence) of a segmentation, C.8.8.5
    (RTReferencedSeriesSequence) of a structure set; the images (SOPInstanceUIDs) are asked for
    only where no series is named. The regions are known by number and name.
    """

    sop_class: str
    series_uids: frozenset[str]
    image_uids: frozenset[str]
    frame_uids: frozenset[str]
    regions: tuple[MaskRegion, ...] = ()

    def is_of(self, series_uid: str, image_uids: Collection[str]) -> bool:
        """Tell whether it was drawn on a series; images count where no series is named."""
        if self.series_uids:
            return series_uid in self.series_uids
        return not self.image_uids.isdisjoint(image_uids)

    def check(self, volume: CTVolume, source: str, *, same_frame: bool) -> dict[str, str]:
        """Refuse a mask that wasn't drawn on a volume as ``other_series`` or ``no_reference``.

        With `same_frame` another series of the same frame of reference will do: of a CT that was
        exported again, cropped or reconstructed anew. What is then to know of the mask comes out,
        as a sentence by the name of a flag.
        """
        series_uid = volume.series_uid
        named = printable(", ".join(sorted(self.series_uids)[:3]))
        has_frame = bool(volume.frame_uid) and volume.frame_uid in self.frame_uids
        if self.is_of(series_uid, volume.image_uids):
            if has_frame or not volume.frame_uid or not self.frame_uids:
                return {}
            return {
                "mask_of_other_frame": f"{source} was drawn on series {series_uid}, but names "
                "another frame of reference: compare one outline with the scan before it is used."
            }
        if has_frame and same_frame:
            return {
                "mask_of_other_series": f"{source} was drawn on "
                f"{f'series {named}' if named else 'another series'} and is taken for series "
                f"{series_uid}, which has the same frame of reference."
            }
        remedy = (
            "; both have the same frame of reference, so if the patient lay still between them "
            "take it (same_frame=True)"
            if has_frame
            else ""
        )
        if self.series_uids or self.image_uids:
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


@dataclass(frozen=True)
class MaskIndex:
    """The masks below a path.

    Parameters
    ----------
    paths
        Every mask, each once.
    references
        What the DICOM masks among them say they were drawn on.
    by_name
        DICOM masks by each SeriesInstanceUID that they name, image files by their name without the
        format's ending.
    """

    paths: tuple[Path, ...]
    references: Mapping[Path, MaskReferences]
    by_name: Mapping[str, Sequence[Path]]

    def for_series(
        self, series_uid: str, patient_id: str, *, image_uids: Collection[str] = ()
    ) -> list[Path]:
        """Return the masks of a series: by what they refer to, or by their name.

        An image file belongs to a series if its name without the ending is the series' UID or
        the patient's ID. Where a patient has several series, name the files after the series: a
        file named after the patient is returned for each. `image_uids` are the series' images,
        for masks that name no series.
        """
        series_uid, patient_id = comparable(series_uid), comparable(patient_id)
        found = set(self.by_name.get(series_uid, ()))
        if image_uids:
            found |= {
                path for path, each in self.references.items() if each.is_of(series_uid, image_uids)
            }
        if patient_id:
            found |= {
                path for path in self.by_name.get(patient_id, ()) if path not in self.references
            }
        return sorted(found)

    def has_frame(self, path: Path, frame_uid: str) -> bool:
        """Tell whether a mask names a frame of reference; an empty one is none."""
        references = self.references.get(path)
        return bool(frame_uid) and references is not None and frame_uid in references.frame_uids

    @property
    def image_uids(self) -> frozenset[str]:
        """SOPInstanceUIDs of the images that masks without a series name."""
        return frozenset().union(
            *(each.image_uids for each in self.references.values() if not each.series_uids)
        )

    def check_choice(self, patterns: Sequence[str]) -> None:
        """Refuse a pattern that fits no region as ``no_such_region``, if all names are known."""
        if len(self.references) < len(self.paths):
            return  # the labels of images are known when they are read
        regions = [region for each in self.references.values() for region in each.regions]
        for pattern in patterns:
            check_choice(regions, [pattern])


def masks_of_series(path: str | os.PathLike[str]) -> MaskIndex:
    """Find the masks below a folder, or look at a single file.

    Files of other kinds are passed over, and so are hidden files and members of archives.

    Raises
    ------
    SeriesError
        ``not_found`` if there is nothing at `path`.
    MaskError
        ``unreadable_mask`` if a DICOM mask can't be parsed.
    """
    paths: list[Path] = []
    references: dict[Path, MaskReferences] = {}
    by_name: dict[str, list[Path]] = {}
    for file in find_files(Path(path)):
        if file.member is not None or file.path.name.startswith("."):
            continue
        names: Iterable[str] = [comparable(image_stem(file.path))]
        if not is_image(file.path):
            found = read_references(file.path)
            if found is None:
                continue
            references[file.path], names = found, found.series_uids
        paths.append(file.path)
        for name in names:
            by_name.setdefault(name, []).append(file.path)
    return MaskIndex(tuple(paths), references, by_name)


def read_references(path: Path) -> MaskReferences | None:
    """Return what a DICOM mask was drawn on; None for a file of another kind."""
    with as_unreadable(path), path.open("rb") as file:
        # the class of the object, from the group that each DICOM file starts with
        is_dicom = has_prefix(file.read(HEAD_BYTES))
        file.seek(_PREAMBLE_BYTES)
        sop_class = read_meta(file).get(_CLASS_TAG, b"") if is_dicom else b""
        uid = sop_class.decode("ascii", "replace").strip(" \0")
        if uid not in (*SEGMENTATIONS, RTStructureSetStorage):
            return None
        file.seek(0)
        dataset = dcmread(file, specific_tags=_SERIES_TAGS, stop_before_pixels=True)
        series_uids, image_uids = _series_and_their_images(dataset)
        if not series_uids:
            file.seek(0)
            parts = dcmread(file, specific_tags=_IMAGE_TAGS, stop_before_pixels=True)
            image_uids |= _images(parts)
        rois, segments = (
            dataset.get(keyword) or [] for keyword in ("StructureSetROISequence", "SegmentSequence")
        )
        frames = [dataset, *(dataset.get("ReferencedFrameOfReferenceSequence") or [])]
        named = [
            *((f"ROI {item.get('ROINumber')}", item.get("ROIName")) for item in rois),
            *(
                (f"segment {item.get('SegmentNumber')}", item.get("SegmentLabel"))
                for item in segments
            ),
        ]
        return MaskReferences(
            uid,
            series_uids,
            image_uids,
            _texts(frames, "FrameOfReferenceUID") | _texts(rois, "ReferencedFrameOfReferenceUID"),
            tuple(
                MaskRegion(printable(path.name), label, region_name(name)) for label, name in named
            ),
        )


@contextmanager
def as_unreadable(path: Path) -> Iterator[None]:
    """Turn what the libraries raise within the block into ``unreadable_mask``."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except MaskError:
        raise
    except sqlite3.Error as error:  # highdicom looks frames up by them
        raise unreadable(path, "its DimensionIndexSequence doesn't tell segments") from error
    except (*PARSE_ERRORS, RuntimeError, OSError) as error:
        raise unreadable(path, printable(str(error))[:80]) from error


def unreadable(path: Path, detail: str) -> MaskError:
    """Return the error of a DICOM mask that can't be read."""
    return MaskError(
        "unreadable_mask",
        f"{printable(path.name)} can't be read as a DICOM mask ({detail}): fetch or export it "
        "again.",
    )


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


def _texts(items: Iterable[Dataset], keyword: str) -> frozenset[str]:
    return frozenset(str(item.get(keyword) or "") for item in items) - {""}
