"""DICOM headers -> the CT slices of a series: their place and how their pixels are stored."""

from collections.abc import Iterable, Sequence
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

from data_prep.dicom.enhanced import (
    FrameAttributes,
    has_modality_lut,
    read_frames,
    read_real_world,
)
from data_prep.dicom.files import DicomFile
from data_prep.dicom.header import PHASE_KEYWORDS, Header, read_header
from data_prep.dicom.pixels import MAX_ABSOLUTE_HU, CTSlice, StoredPixels
from data_prep.dicom.stored_pixels import locate_frames, matrix_size
from data_prep.dicom.units import RealWorldMapping, contradicts, left_open, other_quantity
from data_prep.problems import PROBLEMS, Action, Finding, SeriesError
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
_TAKE_OUT = "take it out of the folder"
_EXPORT_AGAIN = "export the original series again"
_CHOOSE_CT_NUMBERS = "choose the series with CT numbers"


@dataclass
class SeriesContents:
    """What the files of one series hold.

    Parameters
    ----------
    series_uid
        SeriesInstanceUID.
    modality, kind
        Modality and, for a sentence, name of the SOP class: those of a CT image if there is one.
    first_file
        The first one of this kind.
    is_ct
        Whether any file is a CT image by its SOP class.
    slices
        Every CT slice.
    faults
        By the name of a problem: what is wrong with the first file, and how many files have it.
    n_files
        All files of the series.
    """

    series_uid: str
    modality: str
    kind: str
    first_file: DicomFile
    is_ct: bool = False
    slices: list[CTSlice] = field(default_factory=list)
    faults: dict[str, tuple[Finding, int]] = field(default_factory=dict)
    n_files: int = 0

    @property
    def findings(self) -> list[Finding]:
        """What is wrong with single files, those that are refused first."""
        faults = sorted(
            self.faults.values(),
            key=lambda fault: PROBLEMS[fault[0].name].default is not Action.REFUSE,
        )
        return [
            replace(finding, what=f"{finding.what} ({count - 1} more file(s) likewise)")
            if count > 1
            else finding
            for finding, count in faults
        ]

    @property
    def n_left_out(self) -> int:
        """Number of files that are no slice."""
        return sum(count for _, count in self.faults.values())

    @property
    def is_meant(self) -> bool:
        """Whether somebody who asks for a CT may mean this series.

        A series of nothing but localizers isn't meant, nor is one of other values than HU. One
        whose slices are all damaged is.
        """
        names = {name for name in self.faults if PROBLEMS[name].default is Action.REFUSE}
        return self.is_ct and bool(self.slices or names - {"not_hu"})


def read_contents(
    files: Iterable[DicomFile], series_uid: str | None = None
) -> tuple[dict[str, SeriesContents], list[Finding]]:
    """Read the headers of files and turn them into slices.

    Parameters
    ----------
    files
        Of any kind; those that aren't DICOM are passed over.
    series_uid
        The series of which slices are made; of the others it is only told what they are. None
        for all.

    Returns
    -------
    contents : dict
        By SeriesInstanceUID, in the order of their first files.
    unreadable : list of Finding
        Files that are DICOM and can't be parsed, of whichever series.
    """
    contents: dict[str, SeriesContents] = {}
    unreadable: list[Finding] = []
    for file in files:
        try:
            header = read_header(file)
        except SeriesError as error:
            unreadable.append(error.finding)
            continue
        if header is None:
            continue
        uid = header.text("SeriesInstanceUID")
        is_ct = header.text("SOPClassUID") in _CT_CLASSES
        series = contents.get(uid)
        if series is None or (is_ct and not series.is_ct):
            series = contents.setdefault(uid, SeriesContents(uid, "", "", file))
            series.modality, series.kind = printable(header.text("Modality")), header.kind
            series.first_file, series.is_ct = file, is_ct
        series.n_files += 1
        if series_uid in (None, uid):
            _add(series, header)
    return contents, unreadable


def _add(series: SeriesContents, header: Header) -> None:
    findings = []
    try:
        slices = to_ct_slices(header)
        series.slices += slices
        n_localizers = (header.integer("NumberOfFrames") or 1) - len(slices)
        if n_localizers:
            what = f"{header.file.name} holds {n_localizers} localizer frame(s) (scout views)"
            findings.append(Finding("localizer", what, "take them out", (header.file,)))
    except SeriesError as error:
        findings.append(error.finding)
    for finding in findings:
        first, count = series.faults.get(finding.name, (finding, 0))
        series.faults[finding.name] = first, count + 1


def to_ct_slices(header: Header) -> list[CTSlice]:
    """Check one header of a CT series and return what the reader needs of it.

    Returns
    -------
    list
        One slice; of an enhanced multi-frame CT (also legacy converted) one for each frame that
        isn't a localizer, in the order of the file. A rescale that is missing is no refusal here:
        see `StoredPixels` and `with_default_rescale`.

    Raises
    ------
    SeriesError
        If the file isn't a CT image that can be placed and decoded.
    """
    _check_kind(header)
    uid = header.text("SOPInstanceUID")
    if not uid:
        raise header.refusal("no_uid", "has no SOPInstanceUID", "export the series again")
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
        raise header.refusal("localizer", "is a localizer (scout view), not a slice", _TAKE_OUT)
    return [
        CTSlice(
            header.file,
            numbers[n],
            uid,
            header.text("FrameOfReferenceUID"),
            rows,
            columns,
            *_place(header, frames[n], numbers[n]),
            _with_rescale(header, stored[n], frames[n], numbers[n]),
            frames[n].number,
            series_count,
            frames[n].phase_keys,
            frames[n].position_rounding_mm,
            frames[n].orientation_rounding,
            left_open(*_said_of_values(header, frames[n])),
        )
        for n in wanted
    ]


def _check_kind(header: Header) -> None:
    sop_class = header.text("SOPClassUID")
    if sop_class in _SECONDARY_CAPTURE_CLASSES:
        what = "is a secondary capture, not a slice"
        raise header.refusal("secondary_capture", what, _TAKE_OUT)
    if sop_class not in _CT_CLASSES:
        what = f"is not a CT image ({header.kind})"
        raise header.refusal("derived_object", what, _TAKE_OUT)
    is_grey = header.text("PhotometricInterpretation").upper() in _GREY
    presentation = header.text("PixelPresentation").upper()
    has_one_sample = (header.integer("SamplesPerPixel") or 1) == 1
    if not (has_one_sample and is_grey and presentation in ("", "MONOCHROME")):
        raise header.refusal("colour", "is a colour image, not CT numbers", _TAKE_OUT)
    if header.text("VolumeBasedCalculationTechnique").upper() in _SHADED:
        what = "holds shaded views of a volume, not Hounsfield units"
        raise header.refusal("not_hu", what, _CHOOSE_CT_NUMBERS)
    if has_modality_lut(header):
        what = (
            "maps its stored values through a table (ModalityLUTSequence), which can't hold a "
            "Hounsfield unit below 0"
        )
        raise header.refusal("not_hu", what, _CHOOSE_CT_NUMBERS)


def _count_frames(header: Header) -> int:
    n_frames = header.integer("NumberOfFrames")
    is_enhanced = header.text("SOPClassUID") in _ENHANCED_CT_CLASSES
    if n_frames is None and not is_enhanced:
        return 1
    if n_frames is None or n_frames < 1 or (n_frames > 1 and not is_enhanced):
        what = f"has NumberOfFrames {n_frames}, which an object of its kind can't have"
        remedy = "the file is damaged or not made to the standard; export the series again"
        raise header.refusal("bad_header", what, remedy)
    return n_frames


def _single_frame(header: Header) -> FrameAttributes:
    return FrameAttributes(
        header.numbers("ImagePositionPatient", 3),
        header.numbers("ImageOrientationPatient", 6),
        header.numbers("PixelSpacing", 2),
        header.number("RescaleSlope"),
        header.number("RescaleIntercept"),
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
        what = "has no ImagePositionPatient or no ImageOrientationPatient, so it can't be placed"
        raise header.refusal("no_position", f"{what} in the patient", _EXPORT_AGAIN, frame)
    spacing_mm = attributes.pixel_spacing_mm
    if spacing_mm is None or not (spacing_mm > 0).all():
        what = "has no positive PixelSpacing, so its scale is unknown"
        raise header.refusal("no_pixel_spacing", what, _EXPORT_AGAIN, frame)
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
        what = f"holds other values than Hounsfield units ({other})"
        raise header.refusal("not_hu", what, _CHOOSE_CT_NUMBERS, frame)
    slope, intercept = attributes.slope, attributes.intercept
    # without any rescale the stored values are the output (PS3.3 C.11.1); unsigned ones are no HU
    are_both_absent = slope is None and intercept is None
    is_missing = (slope is None or intercept is None) and not (are_both_absent and pixels.is_signed)
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    what = f"has rescale slope {slope:g} and intercept {intercept:g}, "
    if slope == 0 or abs(slope) * 2.0**pixels.bits_stored + abs(intercept) > MAX_ABSOLUTE_HU:
        what += "which can't give Hounsfield units"
        raise header.refusal("bad_rescale", what, _EXPORT_AGAIN, frame)
    if contradicts(slope, intercept, pixels.bits_stored, attributes.real_world):
        what += "and real world values in Hounsfield units with others"
        raise header.refusal("bad_rescale", what, _EXPORT_AGAIN, frame)
    return pixels._replace(slope=slope, intercept=intercept, rescale_is_missing=is_missing)
