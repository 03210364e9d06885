"""Sequences of a header: of enhanced multi-frame CT, what each frame says of itself.

References
----------
PS3.3 A.38 (Enhanced CT Image), A.70 (Legacy Converted), C.7.6.16 (functional groups), C.8.15.3.
"""

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64
from pydicom import Dataset, dcmread

from data_prep.dicom.elements import PARSE_ERRORS
from data_prep.dicom.header import PHASE_KEYWORDS, Header
from data_prep.dicom.units import RealWorldMapping
from data_prep.problems import Finding, SeriesError
from data_prep.rounding import last_place
from data_prep.text import printable

MAX_HEADER_BYTES = 2**24
"""Longest header whose sequences are parsed, of some 10,000 frames: the parser takes sixty times
its size in memory."""

# Where a frame keeps what may tell acquisitions apart: (macro, attribute) by phase keyword.
_PHASE_SOURCES = {
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "TemporalPositionIndex": ("FrameContentSequence", "TemporalPositionIndex"),
    "StackID": ("FrameContentSequence", "StackID"),
    "ConvolutionKernel": ("CTReconstructionSequence", "ConvolutionKernel"),
    "ImageType": ("CTImageFrameTypeSequence", "FrameType"),
    "SliceThickness": ("PixelMeasuresSequence", "SliceThickness"),
    "ReconstructionDiameter": ("CTReconstructionSequence", "ReconstructionDiameter"),
    "KVP": ("CTXRayDetailsSequence", "KVP"),
    "NominalCardiacTriggerDelayTime": (
        "CardiacSynchronizationSequence",
        "NominalCardiacTriggerDelayTime",
    ),
    "AcquisitionDateTime": ("FrameContentSequence", "FrameAcquisitionDateTime"),
}


@dataclass(frozen=True, eq=False)
class FrameAttributes:
    """What is said of one frame, or of a single-frame image; None or empty where nothing is.

    Parameters
    ----------
    position_lps, orientation_lps, pixel_spacing_mm
        ImagePositionPatient (3,), ImageOrientationPatient (6,), PixelSpacing (2,).
    slope, intercept, rescale_type
        Of the rescale to HU.
    number
        Ordinal in the stack, as the file counts.
    phase_keys
        What may tell acquisitions apart, by `data_prep.dicom.header.PHASE_KEYWORDS`.
    position_rounding_mm, orientation_rounding
        How far each number of the position, shape (3,), and any of the orientation may be off by
        its written digits.
    real_world
        Mappings to real world values.
    """

    position_lps: np.ndarray | None
    orientation_lps: np.ndarray | None
    pixel_spacing_mm: np.ndarray | None
    slope: float | None
    intercept: float | None
    rescale_type: str
    number: int | None
    phase_keys: Mapping[str, str]
    position_rounding_mm: np.ndarray = field(default_factory=lambda: np.zeros(3))
    orientation_rounding: float = 0.0
    real_world: tuple[RealWorldMapping, ...] = ()

    @property
    def is_localizer(self) -> bool:
        """Whether the image type says so (PS3.3 C.8.2.1.1.1, C.8.15.3.1.1)."""
        return "LOCALIZER" in self.phase_keys["ImageType"].upper().split("\\")


def read_frames(header: Header, n_frames: int) -> list[FrameAttributes]:
    """Read the functional groups of an enhanced multi-frame object.

    Raises
    ------
    SeriesError
        ``bad_header`` if they can't be parsed or aren't those of `n_frames` frames, ``too_large``,
        or ``unreadable_file``.
    """
    groups = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
    what = f"The functional groups of {header.file.name} don't describe its {n_frames} frames"
    with _sequences(header, groups, what) as dataset:
        return list(_to_frames(dataset, n_frames))


def has_modality_lut(header: Header) -> bool:
    """Tell whether the stored values are mapped through a table (PS3.3 C.11.1)."""
    return bool(_top_sequence(header, "ModalityLUTSequence"))


def read_real_world(header: Header) -> tuple[RealWorldMapping, ...]:
    """Return the mappings to real world values of a single-frame image."""
    return _real_world(_top_sequence(header, "RealWorldValueMappingSequence"))


def _top_sequence(header: Header, keyword: str) -> Sequence[Dataset]:
    if keyword not in header.attributes:
        return ()
    what = f"{keyword} of {header.file.name} can't be read"
    with _sequences(header, (keyword,), what) as dataset:
        return dataset.get(keyword) or ()


@contextmanager
def _sequences(header: Header, keywords: Collection[str], what: str) -> Iterator[Dataset]:
    """Give sequences of a file, parsed; if one is damaged, `what` begins the refusal."""
    if (header.pixel_offset or 0) > MAX_HEADER_BYTES:
        large = f"has a header of {header.pixel_offset} bytes, more than {MAX_HEADER_BYTES}"
        raise header.refusal("too_large", large, "it is damaged, or no patient's CT")
    try:
        # pydicom warns of any value that bends the standard; those that are used are checked
        with warnings.catch_warnings(action="ignore"), header.file.open() as stream:
            yield dcmread(stream, stop_before_pixels=True, force=True, specific_tags=list(keywords))
    except SeriesError:  # a ValueError as well, but already the answer
        raise
    except OSError as error:
        raise header.file.unreadable(f"can't be read ({error.strerror})") from error
    except PARSE_ERRORS as error:
        remedy = "the file is damaged or not made to the standard; export the series again"
        raise SeriesError(Finding("bad_header", what, remedy, (header.file,))) from error


def _to_frames(dataset: Dataset, n_frames: int) -> Iterator[FrameAttributes]:
    shared_groups = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    per_frame = dataset.PerFrameFunctionalGroupsSequence
    if len(per_frame) != n_frames:
        raise ValueError(f"{len(per_frame)} functional groups for {n_frames} frames")
    for own in per_frame:
        yield _to_frame(_Groups(own, shared_groups[0]))


def _to_frame(groups: "_Groups") -> FrameAttributes:
    rescale = groups.macro("PixelValueTransformationSequence")
    phase_keys = dict.fromkeys(PHASE_KEYWORDS, "")
    for keyword, (macro, attribute) in _PHASE_SOURCES.items():
        phase_keys[keyword] = _text(groups.macro(macro), attribute)
    number = groups.macro("FrameContentSequence").get("InStackPositionNumber")
    plane = groups.macro("PlanePositionSequence")
    orientation = groups.macro("PlaneOrientationSequence")
    return FrameAttributes(
        _numbers(plane, "ImagePositionPatient", 3),
        _numbers(orientation, "ImageOrientationPatient", 6),
        _numbers(groups.macro("PixelMeasuresSequence"), "PixelSpacing", 2),
        _number(rescale, "RescaleSlope"),
        _number(rescale, "RescaleIntercept"),
        _text(rescale, "RescaleType"),
        number if isinstance(number, int) else None,
        phase_keys,
        _rounding(plane, "ImagePositionPatient"),
        float(_rounding(orientation, "ImageOrientationPatient").min(initial=1)),
        _real_world(groups.items("RealWorldValueMappingSequence")),
    )


def _real_world(items: Iterable[Dataset]) -> tuple[RealWorldMapping, ...]:
    return tuple(
        RealWorldMapping(
            _text((item.get("MeasurementUnitsCodeSequence") or [Dataset()])[0], "CodeValue"),
            _number(item, "RealWorldValueSlope"),
            _number(item, "RealWorldValueIntercept"),
        )
        for item in items
    )


class _Groups:
    """The functional groups of a frame: its own, else the shared ones (PS3.3 C.7.6.16.1.1)."""

    def __init__(self, own: Dataset, shared: Dataset) -> None:
        self._own, self._shared = own, shared

    def macro(self, keyword: str) -> Dataset:
        return next(iter(self.items(keyword)), Dataset())

    def items(self, keyword: str) -> Sequence[Dataset]:
        items: Sequence[Dataset] = self._own.get(keyword) or self._shared.get(keyword) or ()
        return items


def _numbers(item: Dataset, keyword: str, count: int) -> Float64[np.ndarray, " count"] | None:
    value = item.get(keyword)
    if value is None or value == "":
        return None
    numbers = np.atleast_1d(np.array(value, np.float64))
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"{keyword} doesn't hold {count} number(s)")
    return numbers


def _number(item: Dataset, keyword: str) -> float | None:
    numbers = _numbers(item, keyword, 1)
    return None if numbers is None else float(numbers[0])


def _rounding(item: Dataset, keyword: str) -> Float64[np.ndarray, " count"]:
    """Return how far each number of a decimal string may be off by its written digits."""
    value = item.get(keyword) or ()
    # pydicom keeps a decimal string as it is written
    return np.array([last_place(str(one)) / 2 for one in value], np.float64)


def _text(item: Dataset, keyword: str) -> str:
    value = item.get(keyword)
    if value is None:
        return ""
    values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else value
    return printable("\\".join(map(str, values)))
