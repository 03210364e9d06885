"""DICOM files told from other files, their headers read and grouped into series.

Nothing here knows what makes a CT readable. The pixels stay on disk: a header keeps where they
lie in the file, so that they can be read later without parsing the file again.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from pydicom import config
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.tag import Tag
from pydicom.uid import MediaStorageDirectoryStorage
from pydicom.valuerep import TEXT_VR_DELIMS

from data_prep.dicom.elements import (
    HEAD_BYTES,
    PARSE_ERRORS,
    has_prefix,
    read_elements,
    starts_like_bare_dataset,
    to_uid,
)
from data_prep.dicom.files import DicomFile, search
from data_prep.problems import Finding, Policy, Problem, SeriesError
from data_prep.rounding import last_place
from data_prep.text import comparable, printable

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


_DICOMDIR_CLASS = MediaStorageDirectoryStorage.encode()
_ESCAPE = b"\x1b"


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
        """PatientID, to group by and never to be shown; empty where the file doesn't say."""
        return self._decoded("PatientID")

    @property
    def kind(self) -> str:
        """What the file is, for a sentence: its SOP class and modality."""
        kind = to_uid(self.text("SOPClassUID")).name
        return printable(f"{kind}, modality {self.text('Modality') or 'not stated'}")

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

    def number(self, keyword: str) -> float | None:
        """Return an attribute of one finite number, as `numbers`."""
        numbers = self.numbers(keyword, 1)
        return None if numbers is None else float(numbers[0])

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
            if not value:
                return None
            return int.from_bytes(value, "little" if self.is_little_endian else "big")
        number = self.number(keyword)
        if number is not None and not number.is_integer():
            raise self._bad_value(keyword, "an integer")
        return None if number is None else int(number)

    def refusal(
        self, name: str, what: str, remedy: str = "", frame: int | None = None
    ) -> SeriesError:
        """Return a refusal of the file, or of a frame; `what` goes on after its name."""
        of = self.file.name if frame is None else f"Frame {frame + 1} of {self.file.name}"
        return SeriesError(Finding(name, f"{of} {what}", remedy, (self.file,)))

    def _bad_value(self, keyword: str, expected: str) -> SeriesError:
        what = f"{keyword} of {self.file.name} doesn't hold {expected}"
        remedy = "the file is damaged or not made to the standard; fetch it again"
        return SeriesError(Finding("bad_header", what, remedy, (self.file,)))


def read_header(file: DicomFile) -> Header | None:
    """Return the header of a file; None for a file that isn't DICOM, and for a DICOMDIR.

    Raises
    ------
    SeriesError
        ``unreadable_file`` for a file that can't be opened, or that is DICOM by its content or
        name and yet can't be parsed.
    """
    is_dicom = file.is_named_as_dicom
    not_parsed = "is named as DICOM but doesn't hold any"
    header = None
    try:
        with file.open() as stream:
            head = stream.read(HEAD_BYTES)
            if has_prefix(head):
                is_dicom, not_parsed = True, "can't be parsed as DICOM"
            if has_prefix(head) or starts_like_bare_dataset(head):
                stream.seek(0)
                elements = read_elements(stream, _TAGS)
                if elements.meta.get(_STORAGE_CLASS, b"").strip(b"\0 ") == _DICOMDIR_CLASS:
                    return None
                header = Header(
                    file,
                    {_TAGS[tag]: value for tag, value in elements.values.items()},
                    elements.is_little_endian,
                    elements.transfer_syntax_uid,
                    elements.pixel_offset,
                    elements.pixel_length,
                    stream.seek(0, os.SEEK_END),
                )
    except SeriesError:  # a ValueError as well, but already the answer
        raise
    except OSError as error:
        raise file.unreadable(f"can't be read ({error.strerror})") from error
    except PARSE_ERRORS as error:
        if is_dicom:
            raise file.unreadable(not_parsed) from error
        return None
    if header is not None and header.text("SOPClassUID") and header.text("SeriesInstanceUID"):
        return header
    if is_dicom:
        nameless = "says neither what it is nor of which series"
        raise file.unreadable(not_parsed if header is None or not has_prefix(head) else nameless)
    return None


def decode_text(value: bytes, character_set: bytes) -> str:
    """Return the text of an attribute, comparable.

    Parameters
    ----------
    value
        As in the file; several values are separated by backslashes.
    character_set
        SpecificCharacterSet, as in the file; empty where absent (PS3.3 C.12.1.1.2; code extensions
        PS3.5 6.1.2).

    Returns
    -------
    str
        Where the character set is unknown or the bytes don't fit it, what isn't ASCII is kept as
        Python's lone surrogates: different bytes stay different and equal no real text. See
        `is_decoded`.
    """
    if value.isascii() and _ESCAPE not in value:
        return comparable(value.decode("ascii"))
    # pydicom warns of the misspelt names that it understands
    with warnings.catch_warnings(action="ignore"), config.strict_reading():
        try:
            text = decode_bytes(value, list(_encodings(character_set)), TEXT_VR_DELIMS)
        except (LookupError, ValueError):
            text = value.decode("ascii", "surrogateescape")
    return comparable(text)


def is_decoded(text: str) -> bool:
    """Tell whether a text's character set was known, and its bytes fitted it."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


@lru_cache(maxsize=64)
def _encodings(character_set: bytes) -> tuple[str, ...]:
    """Return Python's names of the character sets; pydicom raises where one is unknown."""
    names = character_set.decode("ascii", "replace").upper().split("\\")
    return tuple(convert_encodings([name.strip(" \0") for name in names]))


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
    """What lies below a path: series in the order of their first files, and what can't be read."""

    series: tuple[SeriesFiles, ...]
    findings: tuple[Finding, ...]
    n_files: int

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What can't be read, as problems under the defaults."""
        return tuple(finding.decide(Policy()) for finding in self.findings)


def index_files(path: Path) -> FileIndex:
    """Find the files that a path leads to and group the DICOM ones by series.

    Only names are kept of each file: hundreds of thousands are no burden, and the headers of a
    series are read again where it is read, maybe in another process.

    Raises
    ------
    SeriesError
        ``not_found``.
    """
    found = search(path)
    findings = list(found.findings)
    grouped: dict[str, list[DicomFile]] = {}
    kinds: dict[str, tuple[str, str, str]] = {}
    for file in found.files:
        try:
            header = read_header(file)
        except SeriesError as error:
            findings.append(error.finding)
            continue
        if header is not None:
            uid = header.text("SeriesInstanceUID")
            grouped.setdefault(uid, []).append(file)
            if uid not in kinds or (header.text("Modality") == "CT" != kinds[uid][1]):
                name = printable(to_uid(header.text("SOPClassUID")).name)
                kinds[uid] = header.patient_id, printable(header.text("Modality")), name
    series = tuple(SeriesFiles(uid, *kinds[uid], tuple(grouped.pop(uid))) for uid in list(grouped))
    return FileIndex(series, tuple(findings), len(found.files))
