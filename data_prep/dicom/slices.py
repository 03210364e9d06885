"""One DICOM header -> its CT slices: their place and how their pixels are stored, or why not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameSingleBitSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from data_prep.dicom.elements import to_uid
from data_prep.dicom.enhanced import (
    FrameAttributes,
    has_modality_lut,
    read_frames,
    read_real_world,
)
from data_prep.dicom.files import DicomFile
from data_prep.dicom.headers import PHASE_KEYWORDS, Header
from data_prep.dicom.stored_pixels import (
    DEFAULT_INTERCEPT,
    MAX_ABSOLUTE_HU,
    StoredPixels,
    locate_frames,
    matrix_size,
    refusal,
)
from data_prep.dicom.units import RealWorldMapping, contradicts, left_open, other_quantity
from data_prep.problems import SeriesError
from data_prep.rounding import without_rounding
from data_prep.text import printable

_ENHANCED_CT_CLASSES = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_CT_CLASSES = (CTImageStorage, *_ENHANCED_CT_CLASSES)
_SECONDARY_CAPTURE_CLASSES = (
    SecondaryCaptureImageStorage,
    MultiFrameSingleBitSecondaryCaptureImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
)
_GREY = ("", "MONOCHROME1", "MONOCHROME2")
_SHADED = ("VOLUME_RENDER", "SURFACE_RENDER")  # PS3.3 C.8.16.2.1.3


@dataclass(frozen=True, eq=False)
class CTSlice:
    """One CT image that can be placed and decoded.

    Parameters
    ----------
    file
        The file.
    frame
        Which frame of an enhanced multi-frame object, from 0; None for a single-frame image.
    sop_instance_uid
        SOPInstanceUID; the frames of an object share it.
    frame_of_reference_uid
        Empty where the file doesn't say.
    rows, columns
        Matrix size.
    position_lps
        ImagePositionPatient, shape (3,): centre of the first pixel in mm.
    orientation_lps
        ImageOrientationPatient, shape (6,): direction cosines, without the rounding of three
        decimals.
    pixel_spacing_mm
        PixelSpacing, shape (2,): between rows, between columns.
    pixels
        How the pixels are stored.
    instance_number
        InstanceNumber, or InStackPositionNumber of a frame; None where absent or no number.
    series_count
        How many images the acquisition or series has, as the file says (ImagesInAcquisition or
        NumberOfSeriesRelatedInstances); None where it doesn't, and for frames.
    phase_keys
        Every one of `data_prep.dicom.headers.PHASE_KEYWORDS`, the most telling first, and its
        printable text, empty where the file doesn't say.
    localizer_frames
        How many other frames of the object are localizers, and so aren't given as slices.
    position_rounding_mm, orientation_rounding
        How far each number of the position, shape (3,), and any of the orientation may be off by
        the digits that it is written with.
    left_open
        Which word of the header leaves open whether the values are HU; empty where they are.
    """

    file: DicomFile
    frame: int | None
    sop_instance_uid: str
    frame_of_reference_uid: str
    rows: int
    columns: int
    position_lps: np.ndarray
    orientation_lps: np.ndarray
    pixel_spacing_mm: np.ndarray
    pixels: StoredPixels
    instance_number: int | None = None
    series_count: int | None = None
    phase_keys: Mapping[str, str] = field(default_factory=dict)
    localizer_frames: int = 0
    position_rounding_mm: np.ndarray = field(default_factory=lambda: np.zeros(3))
    orientation_rounding: float = 0.0
    left_open: str = ""

    @property
    def name(self) -> str:
        """The file's name, and which of its frames, as they may be shown."""
        return self.file.name if self.frame is None else f"{self.file.name} frame {self.frame + 1}"


def is_ct_image(header: Header) -> bool:
    """Tell whether a file is a CT image by its SOP class, single- or multi-frame."""
    return header.text("SOPClassUID") in _CT_CLASSES


def describe_kind(header: Header) -> str:
    """Return what a file is, for a sentence: its SOP class and modality."""
    kind = to_uid(header.text("SOPClassUID")).name
    return printable(f"{kind}, modality {header.text('Modality') or 'not stated'}")


def to_ct_slices(header: Header) -> list[CTSlice]:
    """Check one header of a CT series and return what the reader needs of it.

    Returns
    -------
    list
        One slice; of an enhanced multi-frame CT (also legacy converted) one for each frame that
        isn't a localizer, in the order of the file.

    Raises
    ------
    SeriesError
        If the file isn't a CT image that can be placed and decoded. Reasons: ``derived_object``,
        ``secondary_capture``, ``localizer``, ``colour``, ``not_hu``, ``no_uid``, ``no_position``,
        ``no_pixel_spacing``, ``size_mismatch``, ``too_large``, ``no_pixels``,
        ``truncated_pixels``, ``unreadable_pixels``, ``unsupported_pixels``,
        ``unsupported_syntax``, ``bad_rescale``, ``bad_header``, ``unreadable_file``. A rescale
        that is missing is no refusal: see `StoredPixels` and `with_default_rescale`.
    """
    _check_kind(header)
    if not header.text("SOPInstanceUID"):
        raise refusal(header, "no_uid", "has no SOPInstanceUID: export the series again.")
    rows, columns = matrix_size(header)
    n_frames = _count_frames(header)
    stored = locate_frames(header, n_frames)
    if header.text("SOPClassUID") in _ENHANCED_CT_CLASSES:
        frames: Sequence[FrameAttributes] = read_frames(header, n_frames)
        numbers: Sequence[int | None] = range(n_frames)
        series_count = None
    else:
        frames, numbers = [_single_frame(header)], [None]
        series_count = _count_series(header)
    wanted = [n for n, frame in enumerate(frames) if not frame.is_localizer]
    if not wanted:
        raise refusal(
            header,
            "localizer",
            "is a localizer (scout view), not a slice: take it out of the folder.",
        )
    return [
        CTSlice(
            header.file,
            numbers[n],
            header.text("SOPInstanceUID"),
            header.text("FrameOfReferenceUID"),
            rows,
            columns,
            *_place(header, frames[n], numbers[n]),
            _with_rescale(header, stored[n], frames[n], numbers[n]),
            frames[n].number,
            series_count,
            frames[n].phase_keys,
            len(frames) - len(wanted),
            frames[n].position_rounding_mm,
            frames[n].orientation_rounding,
            left_open(*_said_of_values(header, frames[n])),
        )
        for n in wanted
    ]


def with_default_rescale(slices: Sequence[CTSlice]) -> list[CTSlice]:
    """Give slices whose rescale is missing the usual one; what is there stays.

    The intercept becomes `DEFAULT_INTERCEPT` for unsigned pixels, 0 for signed ones; the slope 1.
    Whether air and tissue then lie where they belong is for the caller to check.
    """

    def repaired(one: CTSlice) -> CTSlice:
        pixels = one.pixels
        if not pixels.rescale_is_missing:
            return one
        usual = 0.0 if pixels.is_signed else DEFAULT_INTERCEPT
        return replace(
            one,
            pixels=pixels._replace(intercept=pixels.intercept or usual, rescale_is_missing=False),
        )

    return [repaired(one) for one in slices]


def _check_kind(header: Header) -> None:
    sop_class = header.text("SOPClassUID")
    grey = header.text("PhotometricInterpretation").upper()
    presentation = header.text("PixelPresentation").upper()
    checks = (
        (
            sop_class in _SECONDARY_CAPTURE_CLASSES,
            "secondary_capture",
            "is a secondary capture, not a slice: take it out of the folder.",
        ),
        (
            sop_class not in _CT_CLASSES,
            "derived_object",
            f"is not a CT image ({describe_kind(header)}): take it out of the folder.",
        ),
        (
            (header.integer("SamplesPerPixel") or 1) != 1
            or grey not in _GREY
            or presentation not in ("", "MONOCHROME"),
            "colour",
            "is a colour image, not CT numbers: take it out of the folder.",
        ),
        (
            header.text("VolumeBasedCalculationTechnique").upper() in _SHADED,
            "not_hu",
            "holds shaded views of a volume, not Hounsfield units: choose the series with CT "
            "numbers.",
        ),
        (
            has_modality_lut(header),
            "not_hu",
            "maps its stored values through a table (ModalityLUTSequence), which can't hold a "
            "Hounsfield unit below 0: choose the series with CT numbers.",
        ),
    )
    for is_wrong, reason, sentence in checks:
        if is_wrong:
            raise refusal(header, reason, sentence)


def _count_frames(header: Header) -> int:
    n_frames = header.integer("NumberOfFrames")
    is_enhanced = header.text("SOPClassUID") in _ENHANCED_CT_CLASSES
    if n_frames is None and not is_enhanced:
        return 1
    if n_frames is None or n_frames < 1 or (n_frames > 1 and not is_enhanced):
        raise refusal(
            header,
            "bad_header",
            f"has NumberOfFrames {n_frames}, which an object of its kind can't have: the file is "
            "damaged or not made to the standard; export the series again.",
        )
    return n_frames


def _single_frame(header: Header) -> FrameAttributes:
    slope, intercept = header.numbers("RescaleSlope", 1), header.numbers("RescaleIntercept", 1)
    return FrameAttributes(
        header.numbers("ImagePositionPatient", 3),
        header.numbers("ImageOrientationPatient", 6),
        header.numbers("PixelSpacing", 2),
        None if slope is None else float(slope[0]),
        None if intercept is None else float(intercept[0]),
        header.text("RescaleType"),
        _lenient_integer(header, "InstanceNumber"),
        {keyword: printable(header.text(keyword)) for keyword in PHASE_KEYWORDS},
        header.rounding("ImagePositionPatient"),
        float(header.rounding("ImageOrientationPatient").min(initial=1)),
        read_real_world(header),
    )


def _count_series(header: Header) -> int | None:
    counts = (
        _lenient_integer(header, keyword)
        for keyword in ("ImagesInAcquisition", "NumberOfSeriesRelatedInstances")
    )
    return next((count for count in counts if count is not None and count > 0), None)


def _lenient_integer(header: Header, keyword: str) -> int | None:
    """Return an integer that nothing depends on, None as well where it isn't one."""
    try:
        return header.integer(keyword)
    except SeriesError:
        return None


def _place(
    header: Header, attributes: FrameAttributes, frame: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return position, orientation and pixel spacing."""
    if attributes.position_lps is None or attributes.orientation_lps is None:
        raise refusal(
            header,
            "no_position",
            "has no ImagePositionPatient or no ImageOrientationPatient, so it can't be placed "
            "in the patient: export the original series again.",
            frame,
        )
    spacing_mm = attributes.pixel_spacing_mm
    if spacing_mm is None or not (spacing_mm > 0).all():
        raise refusal(
            header,
            "no_pixel_spacing",
            "has no positive PixelSpacing, so its scale is unknown: export the original series "
            "again.",
            frame,
        )
    written = attributes.orientation_lps.reshape(2, 3).T
    axes = without_rounding(written, attributes.orientation_rounding)
    return attributes.position_lps, axes.T.ravel(), spacing_mm


def _said_of_values(
    header: Header, attributes: FrameAttributes
) -> tuple[str, list[str], tuple[RealWorldMapping, ...]]:
    """Return rescale type, image types beyond the first two values, and real world values."""
    texts = (attributes.phase_keys["ImageType"], header.text("ImageType"))
    image_type = [value for text in texts for value in text.split("\\")[2:]]
    return attributes.rescale_type, image_type, attributes.real_world


def _with_rescale(
    header: Header, pixels: StoredPixels, attributes: FrameAttributes, frame: int | None
) -> StoredPixels:
    other = other_quantity(*_said_of_values(header, attributes))
    if other:
        raise refusal(
            header,
            "not_hu",
            f"holds other values than Hounsfield units ({other}): choose the series with CT "
            "numbers.",
            frame,
        )
    slope, intercept = attributes.slope, attributes.intercept
    # without any rescale the stored values are the output (PS3.3 C.11.1); unsigned ones are no HU
    are_both_absent = slope is None and intercept is None
    is_missing = (slope is None or intercept is None) and not (are_both_absent and pixels.is_signed)
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    if slope == 0 or abs(slope) * 2.0**pixels.bits_stored + abs(intercept) > MAX_ABSOLUTE_HU:
        raise refusal(
            header,
            "bad_rescale",
            f"has rescale slope {slope:g} and intercept {intercept:g}, which can't give "
            "Hounsfield units: export the original series again.",
            frame,
        )
    if contradicts(slope, intercept, pixels.bits_stored, attributes.real_world):
        raise refusal(
            header,
            "bad_rescale",
            f"has rescale slope {slope:g} and intercept {intercept:g}, and real world values in "
            "Hounsfield units with others: export the original series again.",
            frame,
        )
    return pixels._replace(slope=slope, intercept=intercept, rescale_is_missing=is_missing)
