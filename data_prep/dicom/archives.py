"""Members of zip archives, read in place: nothing is unpacked, no member's name becomes a path."""

import io
import lzma
import os
import struct
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import cast

from data_prep.dicom.elements import MAX_RATIO, MIN_BOMB_BYTES
from data_prep.problems import Finding, NamedFile, SeriesError

MAX_MEMBER_BYTES = 2**30
"""Largest member that is read (2,000 frames of 512 x 512): a whole member may be in memory."""

MAX_DIRECTORY_BYTES = 2**26
"""Largest list of members (about 500,000); Python holds some ten times as much in memory."""

ARCHIVE_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
"""First bytes of a zip archive; the second of an empty one."""

ARCHIVE_ERRORS = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    LookupError,
    struct.error,
)
"""What `zipfile` raises on archives that aren't what they claim to be."""

_HEAD_BYTES = 2**16
_CHUNK_BYTES = 2**20
_IS_ENCRYPTED = 0x1
_END_BYTES = 2**17  # holds the records that end an archive, with the longest comment


def is_archive(path: Path) -> bool:
    """Tell whether a file begins like a zip archive; False as well if it can't be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) in ARCHIVE_MAGIC
    except OSError:
        return False


def list_members(archive: NamedFile) -> list[str]:
    """Return the names of the files in an archive as the archive spells them, each once.

    Raises
    ------
    SeriesError
        ``unreadable_file`` if the archive is damaged or lists too much.
    """
    try:
        infos = _opened_archive(archive).infolist()
    except SeriesError:  # a ValueError as well, but already the answer
        raise
    except zipfile.LargeZipFile as error:
        raise _unreadable(archive, str(error)) from error
    except ARCHIVE_ERRORS as error:
        raise _unreadable(archive, "can't be read as a zip archive") from error
    return sorted({info.filename for info in infos if not info.is_dir()})


def open_member(file: NamedFile, member: str) -> io.BufferedIOBase:
    """Open a member of an archive, as a seekable stream.

    Up to `_HEAD_BYTES` are inflated for whoever reads the beginning alone; once more is asked for,
    the whole member is, and its checksum verified.

    Raises
    ------
    SeriesError
        ``unreadable_file`` if the member is missing, encrypted or damaged, or too large. That it
        is damaged may show only when it is read.
    """
    try:
        archive = _opened_archive(file)
        info = archive.getinfo(member)
        if info.flag_bits & _IS_ENCRYPTED:
            raise _unreadable(file, "is encrypted", "unpack the archive with its password")
        size, compressed = info.file_size, info.compress_size
        if size > MAX_MEMBER_BYTES or (size > MIN_BOMB_BYTES and size > MAX_RATIO * compressed):
            what = f"claims to inflate from {compressed} to {size} bytes, more than is read from an"
            raise _unreadable(file, f"{what} archive", "unpack the archive if you trust it")
        return io.BufferedReader(_Member(cast(zipfile.ZipExtFile, archive.open(info)), file, size))
    except SeriesError:  # a ValueError as well, but already the answer
        raise
    except ARCHIVE_ERRORS as error:
        raise _unreadable(file, "can't be read out of its archive") from error


class _Member(io.RawIOBase):
    """What has been inflated of a member so far, seekable."""

    def __init__(self, source: zipfile.ZipExtFile, file: NamedFile, size: int) -> None:
        self._source, self._file, self._size = source, file, size
        self.name = file.name  # pydicom asks for it
        self._inflated = bytearray()
        self._position = 0
        self._is_whole = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, target: "bytearray | memoryview") -> int:  # type: ignore[override]
        view = memoryview(target).cast("B")
        end = self._position + len(view)
        if end > len(self._inflated) and not self._is_whole:
            self._inflate(end)
        part = memoryview(self._inflated)[self._position : end]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def close(self) -> None:
        self._source.close()
        super().close()

    def _inflate(self, end: int) -> None:
        wanted = _HEAD_BYTES if end <= _HEAD_BYTES else self._size + 1
        try:
            while len(self._inflated) < wanted:
                chunk = self._source.read(min(_CHUNK_BYTES, wanted - len(self._inflated)))
                if not chunk:
                    self._is_whole = True
                    return
                self._inflated += chunk
        except ARCHIVE_ERRORS as error:
            raise _unreadable(self._file, "is damaged in its archive") from error


def _opened_archive(file: NamedFile) -> zipfile.ZipFile:
    """Return an archive whose directory is parsed once, also for hundreds of members.

    A child process opens it anew: a file's position is shared between processes.
    """
    status = file.path.stat()
    return _opened(file.path, status.st_mtime_ns, status.st_size, os.getpid())


@lru_cache(maxsize=4)
def _opened(path: Path, _mtime_ns: int, _size: int, _pid: int) -> zipfile.ZipFile:
    _check_directory(path)
    return zipfile.ZipFile(path)


def _check_directory(path: Path) -> None:
    """Refuse a list of members too long for memory, which `zipfile` would read whole."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _END_BYTES))
        tail = stream.read()
    for magic, layout in ((b"PK\x05\x06", "<12xI"), (b"PK\x06\x06", "<40xQ")):
        at = tail.rfind(magic)
        if at < 0 or len(tail) - at < struct.calcsize(layout):
            continue
        (n_bytes,) = struct.unpack_from(layout, tail, at)
        is_elsewhere = magic == b"PK\x05\x06" and n_bytes == 0xFFFFFFFF  # in the other record
        if n_bytes > MAX_DIRECTORY_BYTES and not is_elsewhere:
            raise zipfile.LargeZipFile("lists more files than are read from an archive")


def _unreadable(
    file: NamedFile, what: str, remedy: str = "fetch the archive again, or unpack it"
) -> SeriesError:
    return SeriesError(Finding("unreadable_file", f"{file.name} {what}", remedy, (file,)))
