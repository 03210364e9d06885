"""Files that may be DICOM: found below a folder, in zip archives, through a DICOMDIR; opened.

Nothing is ever unpacked to disk, and no name from an archive or a DICOMDIR becomes a path.
"""

import io
import os
import stat
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pydicom import Dataset, dcmread
from pydicom.multival import MultiValue
from pydicom.uid import MediaStorageDirectoryStorage

from data_prep.dicom.archives import is_archive, list_members, open_member
from data_prep.dicom.elements import HEAD_BYTES, PARSE_ERRORS, has_prefix
from data_prep.dicom.syntaxes import inflate, is_deflated
from data_prep.problems import PROBLEMS, Action, Problem, SeriesError
from data_prep.text import printable as printable

_MAX_DICOMDIR_BYTES = 2**27  # some 300,000 images
_MAX_SHOWN = 3


@dataclass(frozen=True, order=True, slots=True)
class DicomFile:
    """A file on disk, or a member of a zip archive on disk.

    Parameters
    ----------
    path
        The file, or the archive.
    member
        Name inside of the archive, as the archive spells it; None for a file on disk.
    """

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        """Own name as it may be shown."""
        name = self.path.name if self.member is None else f"{self.path.name}/{self.member}"
        return printable(name)

    @property
    def is_named_as_dicom(self) -> bool:
        """Whether the ending of the name promises DICOM."""
        name = PurePosixPath(self.path.name if self.member is None else self.member)
        # "._x.dcm" is what macOS leaves beside x.dcm on foreign disks
        return name.suffix.lower() in {".dcm", ".dicom", ".ima"} and not name.name.startswith(".")

    def open(self) -> io.BufferedIOBase:
        """Open for reading; the stream is seekable.

        A member of an archive is inflated into memory: its first 64 KiB, or all of it once more
        is asked for (its checksum is then verified), see `data_prep.dicom.archives`. A file in the
        deflated transfer syntax is given as Explicit VR Little Endian, see
        `data_prep.dicom.syntaxes.inflate`.

        Raises
        ------
        OSError
            If the file can't be opened.
        SeriesError
            ``unreadable_file`` if the member is encrypted or damaged, or if what is inflated grows
            beyond its bound. A damaged member may show only when it is read.
        """
        with ExitStack() as stack:
            stream: io.BufferedIOBase
            if self.member is None:
                stream = stack.enter_context(self.path.open("rb"))
            else:
                stream = stack.enter_context(open_member(self.path, self.member, self.name))
            head = stream.read(HEAD_BYTES)
            stream.seek(0)
            if is_deflated(head):
                return io.BytesIO(self._inflate(stream, head))
            stack.pop_all()  # stays open
            return stream

    def _inflate(self, stream: io.BufferedIOBase, head: bytes) -> bytes:
        try:
            return inflate(stream, head)
        except SeriesError:  # a ValueError as well, but already the answer
            raise
        except ValueError as error:
            raise unreadable(self, f"is deflated and {error}") from error


_FETCH_AGAIN = (
    "fetch the file again, or take it out of the folder if it doesn't belong to the series"
)


def unreadable(file: DicomFile, what: str, remedy: str = _FETCH_AGAIN) -> SeriesError:
    """Return the refusal ``unreadable_file`` of a file; `what` goes on after its name."""
    return SeriesError("unreadable_file", f"{file.name} {what}: {remedy}.", (file.path,))


def to_problem(error: SeriesError, action: Action | None = None) -> Problem:
    """Return a refusal as a problem; its action is the default one unless stated."""
    return Problem(
        error.reason,
        str(error),
        PROBLEMS[error.reason].default if action is None else action,
        tuple(dict.fromkeys(printable(path.name) for path in error.files)),
    )


@dataclass
class FoundFiles:
    """What a search found.

    Parameters
    ----------
    files
        Each once, in a fixed order.
    errors
        ``unreadable_file`` of folders that can't be listed, links named as DICOM that lead
        nowhere, archives that can't be read, and files that a DICOMDIR lists and that are missing.
    passed_over
        Archives inside of archives.
    """

    files: list[DicomFile] = field(default_factory=list)
    errors: list[SeriesError] = field(default_factory=list)
    passed_over: list[DicomFile] = field(default_factory=list)


def is_folder(path: Path) -> bool:
    """Tell whether a folder lies at a path; also for a path that can't be looked at."""
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def is_file(path: Path) -> bool:
    """Tell whether a regular file lies at a path; also for a path that can't be looked at."""
    status = _status(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):  # nothing there, a name too long, no rights; a null byte
        return None


def find_files(path: Path) -> list[DicomFile]:
    """Return every regular file that a path leads to; see `search`.

    Raises
    ------
    SeriesError
        ``not_found``, or the first of what `search` gives as an error.
    """
    found = search(path)
    if found.errors:
        raise found.errors[0]
    return found.files


def search(path: Path) -> FoundFiles:
    """Find every regular file that a path leads to, whatever it holds.

    Parameters
    ----------
    path
        A folder of any structure; a single file; a zip archive; or a DICOMDIR, which stands for
        its folder. Zip archives below a folder, by the ending of their name, are looked into as
        well, those inside of an archive are not. Links are followed; a folder or file that is
        reached twice (a loop of links) counts once. Hidden folders of downloads and cohorts that
        aren't finished (``.*.part``, ``.*.partial``) are passed over.

    Raises
    ------
    SeriesError
        ``not_found``.
    """
    found = FoundFiles()
    if is_folder(path):
        _search_folder(path, found)
    elif not is_file(path):
        raise SeriesError(
            "not_found",
            f"There is no file or folder {printable(str(path))}: check the path.",
            (path,),
        )
    elif is_archive(path):
        _search_archive(path, found)
    elif (listed := _read_dicomdir(path)) is not None:
        _search_folder(path.parent, found)
        _check_listed(path, listed, found)
    else:
        found.files.append(DicomFile(path))
    return found


def _search_folder(folder: Path, found: FoundFiles) -> None:
    seen: set[tuple[int, int]] = set()

    def is_new(status: os.stat_result) -> bool:
        identity = (status.st_dev, status.st_ino)
        is_first = identity not in seen
        seen.add(identity)
        return is_first

    def note(error: OSError) -> None:
        unlisted = DicomFile(Path(error.filename))
        found.errors.append(unreadable(unlisted, f"can't be listed ({error.strerror})"))

    for parent, folders, names in os.walk(folder, onerror=note, followlinks=True):
        status = _status(Path(parent))
        if status is None or not is_new(status):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not _is_unfinished(name))
        for file in (DicomFile(Path(parent, name)) for name in sorted(names)):
            try:
                status = file.path.stat()
            except OSError as error:  # a link that leads nowhere
                if file.is_named_as_dicom:
                    found.errors.append(unreadable(file, f"can't be reached ({error.strerror})"))
                continue
            if not stat.S_ISREG(status.st_mode) or not is_new(status):
                continue
            if _is_named_as_archive(file):
                _search_archive(file.path, found)
            else:
                found.files.append(file)


def _search_archive(path: Path, found: FoundFiles) -> None:
    try:
        members = list_members(path)
    except SeriesError as error:
        found.errors.append(error)
        return
    for file in (DicomFile(path, member) for member in members):
        (found.passed_over if _is_named_as_archive(file) else found.files).append(file)


def _is_unfinished(folder_name: str) -> bool:
    """Tell whether a folder is one that this package is still filling: see `data_prep.download`."""
    return folder_name.startswith(".") and folder_name.endswith((".part", ".partial"))


def _is_named_as_archive(file: DicomFile) -> bool:
    name = file.path.name if file.member is None else PurePosixPath(file.member).name
    return name.lower().endswith(".zip") and not name.startswith(".")


def _read_dicomdir(path: Path) -> list[Sequence[str]] | None:
    """Return the file ids that a DICOMDIR lists, as lists of components; None for other files.

    A DICOMDIR that can't be parsed is taken for one that lists nothing: its folder is read.
    """
    try:
        with warnings.catch_warnings(action="ignore"), path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
            if not has_prefix(head) or MediaStorageDirectoryStorage.encode() not in head:
                return None
            if stream.seek(0, os.SEEK_END) > _MAX_DICOMDIR_BYTES:
                return []
            stream.seek(0)
            dataset = dcmread(stream, specific_tags=["DirectoryRecordSequence"])
            if dataset.file_meta.get("MediaStorageSOPClassUID") != MediaStorageDirectoryStorage:
                return None
            return list(_file_ids(dataset))
    except (OSError, *PARSE_ERRORS):
        return []


def _file_ids(dicomdir: Dataset) -> Iterator[Sequence[str]]:
    for record in dicomdir.get("DirectoryRecordSequence") or ():
        file_id = record.get("ReferencedFileID")
        if file_id:
            yield list(file_id) if isinstance(file_id, MultiValue) else [str(file_id)]


def _check_listed(path: Path, listed: Collection[Sequence[str]], found: FoundFiles) -> None:
    """Note listed files that were not found; the list is only compared, never followed."""
    folder = path.parent
    there = {
        tuple(_plain(part) for part in file.path.relative_to(folder).parts)
        for file in found.files
        if file.member is None
    }
    missing = [
        file_id for file_id in listed if tuple(_plain(str(part)) for part in file_id) not in there
    ]
    if missing:
        shown = ", ".join(printable("/".join(map(str, one))) for one in missing[:_MAX_SHOWN])
        more = f" and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
        found.errors.append(
            unreadable(
                DicomFile(path),
                f"lists {len(missing)} file(s) that aren't in its folder ({shown}{more})",
                "copy the whole disc again",
            )
        )


def _plain(part: str) -> str:
    """Return a component as it is compared: discs change its case and add a version."""
    return part.strip().split(";")[0].rstrip(".").casefold()
