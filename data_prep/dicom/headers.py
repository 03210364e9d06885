"""DICOM files told from other files, their headers read and grouped into series.

Nothing here knows what makes a CT readable. The pixels stay on disk: a header keeps where they
lie in the file, so that they can be read later without parsing the file again.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from pydicom.tag import Tag
from pydicom.uid import MediaStorageDirectoryStorage

from data_prep.dicom.character_sets import decode_text, is_decoded
from data_prep.dicom.elements import (
    HEAD_BYTES,
    PARSE_ERRORS,
    Elements,
    has_prefix,
    read_elements,
    starts_like_bare_dataset,
    to_uid,
)
from data_prep.dicom.files import DicomFile, search, to_problem, unreadable
from data_prep.problems import Action, Problem, SeriesError
from data_prep.rounding import last_place
from data_prep.text import printable

__all__ = [
    "PHASE_KEYWORDS",
    "FileIndex",
    "Header",
    "SeriesFiles",
    "index_files",
    "read_header",
]

PHASE_KEYWORDS = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "StackID",
    "ConvolutionKernel",
    "FilterType",
    "ImageType",
    "SliceThickness",
    "ReconstructionDiameter",
    "KVP",
    "TriggerTime",
    "NominalCardiacTriggerDelayTime",
    "AcquisitionDateTime",
    "AcquisitionTime",
    "ContentTime",
)
"""Attributes that may tell the acquisitions or reconstructions of one series apart, the most
telling first."""

# In binary at the top level of a data set; of the phase keywords, those of functional groups alone
_NOT_AT_TOP = ("TemporalPositionIndex", "StackID", "NominalCardiacTriggerDelayTime")
_TEXT_KEYWORDS = (
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "PatientID",
    "SeriesInstanceUID",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "ImagesInAcquisition",
    "NumberOfSeriesRelatedInstances",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "PixelSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "PixelPresentation",
    "VolumeBasedCalculationTechnique",
    *(keyword for keyword in PHASE_KEYWORDS if keyword not in _NOT_AT_TOP),
)
_BINARY_KEYWORDS = (
    "SamplesPerPixel",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
)
# Sequences of which it is only told that they are there
_SEQUENCE_KEYWORDS = ("ModalityLUTSequence", "RealWorldValueMappingSequence")
# All that is read of a header: nothing else, and so no patient's name, is ever kept.
_TAGS = {
    int(Tag(keyword)): keyword
    for keyword in (
        *_TEXT_KEYWORDS,
        *_BINARY_KEYWORDS,
        *_SEQUENCE_KEYWORDS,
        "ExtendedOffsetTable",
    )
}
_STORAGE_CLASS = int(Tag("MediaStorageSOPClassUID"))


@dataclass(frozen=True, eq=False)
class Header:
    """What is known of a DICOM file before its pixels are read.

    Parameters
    ----------
    file
        The file.
    attributes
        Values by keyword, encoded as in the file; empty where a value isn't kept.
    is_little_endian
        Order of bytes in the binary ones.
    transfer_syntax_uid
        Of what `DicomFile.open` gives (a deflated file is inflated by it); empty where the file
        doesn't say.
    pixel_offset
        Where the value of PixelData starts in the file; None if there is none.
    pixel_length
        Length of PixelData in bytes; None if there is none, or if it is encapsulated.
    file_size
        In bytes.
    """

    file: DicomFile
    attributes: Mapping[str, bytes] = field(repr=False)
    is_little_endian: bool
    transfer_syntax_uid: str
    pixel_offset: int | None
    pixel_length: int | None
    file_size: int

    @property
    def patient_id(self) -> str:
        """PatientID, to group by and never to be shown; empty where the file doesn't say.

        See `data_prep.dicom.character_sets.decode_text` of what isn't in its character set.
        """
        return self._decoded("PatientID")

    def text(self, keyword: str) -> str:
        r"""Return a text attribute: empty where absent, several values joined by ``\``."""
        text = self._decoded(keyword)
        return text if is_decoded(text) else text.encode("ascii", "replace").decode("ascii")

    def _decoded(self, keyword: str) -> str:
        value = self.attributes.get(keyword, b"")
        return decode_text(value, self.attributes.get("SpecificCharacterSet", b""))

    def numbers(self, keyword: str, count: int) -> Float64[np.ndarray, " count"] | None:
        """Return an attribute of `count` finite numbers, None where it is absent or empty.

        Raises
        ------
        SeriesError
            ``bad_header`` if it holds anything else.
        """
        text = self.text(keyword)
        if not text:
            return None
        try:
            numbers = np.array([float(value) for value in text.split("\\")])
        except ValueError as error:
            raise self._bad_value(keyword, f"{count} number(s)") from error
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise self._bad_value(keyword, f"{count} number(s)")
        return numbers

    def rounding(self, keyword: str) -> Float64[np.ndarray, " count"]:
        """Return how far each of the numbers of `numbers` may be off by its written digits."""
        texts = filter(None, self.text(keyword).split("\\"))
        return np.array([last_place(one) / 2 for one in texts])

    def integer(self, keyword: str) -> int | None:
        """Return an attribute that holds one integer, None where it is absent or empty.

        Binary ones (US, or US or SS) are read as unsigned, whatever the file says of their sign.

        Raises
        ------
        SeriesError
            ``bad_header`` if it holds anything else.
        """
        if keyword in _BINARY_KEYWORDS:
            value = self.attributes.get(keyword, b"")
            if len(value) not in (0, 2):
                raise self._bad_value(keyword, "one 16-bit integer")
            return (
                int.from_bytes(value, "little" if self.is_little_endian else "big")
                if value
                else None
            )
        number = self.numbers(keyword, 1)
        if number is None:
            return None
        if not float(number[0]).is_integer():
            raise self._bad_value(keyword, "an integer")
        return int(number[0])

    def _bad_value(self, keyword: str, expected: str) -> SeriesError:
        return SeriesError(
            "bad_header",
            f"{keyword} of {self.file.name} doesn't hold {expected}: the file is damaged "
            "or not made to the standard; fetch it again.",
            (self.file.path,),
        )


def read_header(file: DicomFile) -> Header | None:
    """Read the header of a file.

    Returns
    -------
    Header or None
        None for a file that isn't DICOM, and for a DICOMDIR.

    Raises
    ------
    SeriesError
        ``unreadable_file`` for a file that can't be opened, or that is DICOM by its content or
        name and yet can't be parsed.
    """
    is_dicom = False
    try:
        with file.open() as stream:
            head = stream.read(HEAD_BYTES)
            is_dicom = has_prefix(head)
            if not is_dicom and not starts_like_bare_dataset(head):
                _check_may_be_passed_over(file)
                return None
            stream.seek(0)
            elements = read_elements(stream, _TAGS)
            size = stream.seek(0, os.SEEK_END)
    except SeriesError:  # a ValueError as well, but already the answer
        raise
    except OSError as error:
        raise unreadable(file, f"can't be read ({error.strerror})") from error
    except PARSE_ERRORS as error:
        if not is_dicom:
            _check_may_be_passed_over(file)
            return None
        raise unreadable(file, "can't be parsed as DICOM") from error
    if elements.meta.get(_STORAGE_CLASS, b"").strip(b"\0 ") == _DICOMDIR_CLASS:
        return None
    header = _to_header(file, elements, size)
    if not header.text("SOPClassUID") or not header.text("SeriesInstanceUID"):
        if not is_dicom:
            _check_may_be_passed_over(file)
            return None
        raise unreadable(file, "says neither what it is nor of which series")
    return header


_DICOMDIR_CLASS = MediaStorageDirectoryStorage.encode()


def _check_may_be_passed_over(file: DicomFile) -> None:
    """Accept that a file isn't DICOM, unless its name says that it is."""
    if file.is_named_as_dicom:
        raise unreadable(file, "is named as DICOM but doesn't hold any")


def _to_header(file: DicomFile, elements: Elements, size: int) -> Header:
    return Header(
        file,
        {_TAGS[tag]: value for tag, value in elements.values.items()},
        elements.is_little_endian,
        elements.transfer_syntax_uid,
        elements.pixel_offset,
        elements.pixel_length,
        size,
    )


@dataclass(frozen=True, slots=True)
class SeriesFiles:
    """The files of one series, of any kind, without their headers.

    Parameters
    ----------
    series_uid
        SeriesInstanceUID.
    patient_id
        PatientID of its first file; never to be shown.
    modality
        Modality, ``CT`` if that of any file is.
    description
        Name of the SOP class of the same file, for a sentence.
    files
        In the order in which they were found.
    """

    series_uid: str
    patient_id: str = field(repr=False)
    modality: str
    description: str
    files: tuple[DicomFile, ...]


@dataclass(frozen=True, slots=True)
class FileIndex:
    """What lies below a path.

    Parameters
    ----------
    series
        In the order in which their first files were found.
    problems
        Files, folders and archives that can't be read.
    n_files
        Regular files found, DICOM or not.
    """

    series: tuple[SeriesFiles, ...]
    problems: tuple[Problem, ...]
    n_files: int


def index_files(path: Path) -> FileIndex:
    """Find the files that a path leads to and group the DICOM ones by series.

    Only names are kept of each file, so that hundreds of thousands are no burden.

    Raises
    ------
    SeriesError
        ``not_found``.
    """
    found = search(path)
    problems = [to_problem(error) for error in found.errors]
    for archive in found.passed_over:
        what, remedy = (
            "is an archive inside of an archive, and is passed over",
            "unpack the outer one",
        )
        problems.append(to_problem(unreadable(archive, what, remedy), Action.REPAIR))
    grouped: dict[str, list[DicomFile]] = {}
    kinds: dict[str, tuple[str, str, str]] = {}
    for file in found.files:
        try:
            header = read_header(file)
        except SeriesError as error:
            problems.append(to_problem(error))
            continue
        if header is not None:
            uid = header.text("SeriesInstanceUID")
            grouped.setdefault(uid, []).append(file)
            if uid not in kinds or (header.text("Modality") == "CT" != kinds[uid][1]):
                kinds[uid] = _kind(header)
    series = tuple(SeriesFiles(uid, *kinds[uid], tuple(grouped.pop(uid))) for uid in list(grouped))
    return FileIndex(series, tuple(problems), len(found.files))


def _kind(header: Header) -> tuple[str, str, str]:
    name = printable(to_uid(header.text("SOPClassUID")).name)
    return header.patient_id, printable(header.text("Modality")), name
