"""Files -> the CT slices of each series, and what of it can't be one."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from data_prep.dicom.files import DicomFile
from data_prep.dicom.findings import Finding, finding_from_error
from data_prep.dicom.headers import Header, read_header
from data_prep.dicom.slices import CTSlice, describe_kind, is_ct_image, to_ct_slices
from data_prep.problems import PROBLEMS, Action, SeriesError
from data_prep.text import printable

_OTHER_VALUES = "not_hu"


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
        By the name of a problem: the first error, its file, and how many files have it.
    n_files
        All files of the series.
    """

    series_uid: str
    modality: str
    kind: str
    first_file: DicomFile
    is_ct: bool = False
    slices: list[CTSlice] = field(default_factory=list)
    faults: dict[str, tuple[SeriesError, DicomFile, int]] = field(default_factory=dict)
    n_files: int = 0

    @property
    def findings(self) -> list[Finding]:
        """What is wrong with single files, those that are refused first."""
        names = sorted(self.faults, key=lambda name: PROBLEMS[name].default is not Action.REFUSE)
        return [finding_from_error(*self.faults[name]) for name in names]

    @property
    def n_left_out(self) -> int:
        """Number of files that are no slice."""
        return sum(count for _, _, count in self.faults.values())

    @property
    def is_meant(self) -> bool:
        """Whether somebody who asks for a CT may mean this series.

        A series of nothing but localizers isn't meant, nor is one of other values than HU. One
        whose slices are all damaged is.
        """
        names = {name for name in self.faults if PROBLEMS[name].default is Action.REFUSE}
        return self.is_ct and bool(self.slices or names - {_OTHER_VALUES})


@dataclass
class Contents:
    """What files hold.

    Parameters
    ----------
    series
        By SeriesInstanceUID, in the order of their first files.
    unreadable
        Files that are DICOM and can't be parsed, of whichever series.
    """

    series: dict[str, SeriesContents] = field(default_factory=dict)
    unreadable: list[Finding] = field(default_factory=list)


def read_contents(files: Iterable[DicomFile], series_uid: str | None = None) -> Contents:
    """Read the headers of files and turn them into slices.

    Parameters
    ----------
    files
        Of any kind; those that aren't DICOM are passed over.
    series_uid
        The series of which slices are made; of the others it is only told what they are. None
        for all.
    """
    contents = Contents()
    for file in files:
        try:
            header = read_header(file)
        except SeriesError as error:
            contents.unreadable.append(finding_from_error(error, file))
            continue
        if header is None:
            continue
        uid = header.text("SeriesInstanceUID")
        series = contents.series.get(uid)
        if series is None:
            series = contents.series[uid] = _new_series(uid, header)
        _add(series, header, is_wanted=series_uid in (None, uid))
    return contents


def _new_series(series_uid: str, header: Header) -> SeriesContents:
    modality = printable(header.text("Modality"))
    return SeriesContents(series_uid, modality, describe_kind(header), header.file)


def _add(series: SeriesContents, header: Header, *, is_wanted: bool) -> None:
    series.n_files += 1
    if is_ct_image(header) and not series.is_ct:
        series.is_ct = True
        series.modality, series.kind = printable(header.text("Modality")), describe_kind(header)
        series.first_file = header.file
    if not is_wanted:
        return
    try:
        slices = to_ct_slices(header)
    except SeriesError as error:
        _add_fault(series, error, header.file)
        return
    series.slices += slices
    n_localizers = slices[0].localizer_frames
    if n_localizers:
        name = header.file.name
        what = f"{name} holds {n_localizers} localizer frame(s) (scout views): take them out."
        _add_fault(series, SeriesError("localizer", what, (header.file.path,)), header.file)


def _add_fault(series: SeriesContents, error: SeriesError, file: DicomFile) -> None:
    first, first_file, count = series.faults.get(error.reason, (error, file, 0))
    series.faults[error.reason] = first, first_file, count + 1
