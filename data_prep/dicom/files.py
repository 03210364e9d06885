"""Files that may be DICOM: found below a folder, in zip archives, through a DICOMDIR; opened.

Nothing is ever unpacked to disk, and no name from an archive or a DICOMDIR becomes a path.
"""

import io
import os
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pydicom import dcmread
from pydicom.multival import MultiValue
from pydicom.uid import MediaStorageDirectoryStorage

from data_prep.dicom.archives import is_archive, list_members, open_member
from data_prep.dicom.elements import HEAD_BYTES, PARSE_ERRORS, has_prefix, inflate, is_deflated
from data_prep.problems import Action, Finding, SeriesError
from data_prep.text import printable

_MAX_DICOMDIR_BYTES = 2**27  # some 300,000 images
_MAX_SHOWN = 3
_FETCH_AGAIN = (
    "fetch the file again, or take it out of the folder if it doesn't belong to the series"
)


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
        # "._x.dcm" is what macOS leaves beside x.dcm on foreign disks
        name = self._own_name
        return name.suffix.lower() in {".dcm", ".dicom", ".ima"} and not name.name.startswith(".")

    @property
    def is_named_as_archive(self) -> bool:
        """Whether the ending of the name promises a zip archive."""
        name = self._own_name
        return name.suffix.lower() == ".zip" and not name.name.startswith(".")

    @property
    def _own_name(self) -> PurePosixPath:
        return PurePosixPath(self.path.name if self.member is None else self.member)

    def open(self) -> io.BufferedIOBase:
        """Open for reading, as a seekable stream.

        A member of an archive is inflated into memory, see `open_member`; a file in the deflated
        transfer syntax is given as Explicit VR Little Endian, see `inflate`.

        Raises
        ------
        OSError
            If the file can't be opened.
        SeriesError
            ``unreadable_file`` if a member is encrypted or damaged, or if what is inflated grows
            beyond its bound. A damaged member may show only when it is read.
        """
        stream = self.path.open("rb") if self.member is None else open_member(self, self.member)
        try:
            head = stream.read(HEAD_BYTES)
            stream.seek(0)
            if not is_deflated(head):
                return stream
            with stream:
                return io.BytesIO(inflate(stream, head))
        except SeriesError:  # a ValueError as well, but already the answer
            stream.close()
            raise
        except ValueError as error:
            raise self.unreadable(f"is deflated and {error}") from error

    def unreadable(self, what: str, remedy: str = _FETCH_AGAIN) -> SeriesError:
        """Return the refusal ``unreadable_file``; `what` goes on after the name."""
        return SeriesError(Finding("unreadable_file", f"{self.name} {what}", remedy, (self,)))


@dataclass
class FoundFiles:
    """What a search found: each file once, in a fixed order, and what can't be looked into.

    The findings are ``unreadable_file``: folders that can't be listed, links named as DICOM that
    lead nowhere, archives that can't be read or lie in archives, files that a DICOMDIR lists and
    that are missing.
    """

    files: list[DicomFile] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


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
    """Return every regular file that a path leads to, or raise what `search` finds first."""
    found = search(path)
    for finding in found.findings:
        if finding.default is not Action.REPAIR:
            raise SeriesError(finding)
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
    file = DicomFile(path)
    if is_folder(path):
        _search_folder(path, found)
    elif not is_file(path):
        what = f"There is no file or folder {printable(str(path))}"
        raise SeriesError(Finding("not_found", what, "check the path", (file,)))
    elif is_archive(path):
        _search_archive(file, found)
    elif (listed := _read_dicomdir(path)) is not None:
        _search_folder(path.parent, found)
        _check_listed(file, listed, found)
    else:
        found.files.append(file)
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
        found.findings.append(unlisted.unreadable(f"can't be listed ({error.strerror})").finding)

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
                    unreached = file.unreadable(f"can't be reached ({error.strerror})")
                    found.findings.append(unreached.finding)
                continue
            if not stat.S_ISREG(status.st_mode) or not is_new(status):
                continue
            if file.is_named_as_archive:
                _search_archive(file, found)
            else:
                found.files.append(file)


def _search_archive(archive: DicomFile, found: FoundFiles) -> None:
    try:
        members = [DicomFile(archive.path, member) for member in list_members(archive)]
    except SeriesError as error:
        found.findings.append(error.finding)
        return
    for file in members:
        if not file.is_named_as_archive:
            found.files.append(file)
            continue
        what = f"{file.name} is an archive inside of an archive"
        done = "it is passed over"
        found.findings.append(
            # no file that was meant to be read, unless the policy says so by name
            Finding("unreadable_file", what, "unpack it", (file,), done, default=Action.REPAIR)
        )


def _is_unfinished(folder_name: str) -> bool:
    """Tell whether a folder is one that this package is still filling: see `data_prep.download`."""
    return folder_name.startswith(".") and folder_name.endswith((".part", ".partial"))


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
            records = dataset.get("DirectoryRecordSequence") or ()
            ids = [record.get("ReferencedFileID") for record in records]
            return [list(one) if isinstance(one, MultiValue) else [str(one)] for one in ids if one]
    except (OSError, *PARSE_ERRORS):
        return []


def _check_listed(dicomdir: DicomFile, listed: Sequence[Sequence[str]], found: FoundFiles) -> None:
    """Note listed files that were not found; the list is only compared, never followed."""
    folder = dicomdir.path.parent
    there = {
        tuple(map(_plain, file.path.relative_to(folder).parts))
        for file in found.files
        if file.member is None
    }
    missing = [file_id for file_id in listed if tuple(map(_plain, map(str, file_id))) not in there]
    if missing:
        shown = ", ".join(printable("/".join(map(str, one))) for one in missing[:_MAX_SHOWN])
        more = f" and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
        what = f"lists {len(missing)} file(s) that aren't in its folder ({shown}{more})"
        found.findings.append(dicomdir.unreadable(what, "copy the whole disc again").finding)


def _plain(part: str) -> str:
    """Return a component as it is compared: discs change its case and add a version."""
    return part.strip().split(";")[0].rstrip(".").casefold()
