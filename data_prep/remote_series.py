"""LIDC-IDRI's CT series in the Imaging Data Commons: listed offline, one loaded by s5cmd."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from data_prep.errors import InputError
from data_prep.text import printable

# Not by idc-index's own client (0.11): it takes 5 s and 1.8 GB to start, loads into the final
# folder, doesn't check what arrived, waits without end, and knows no other server.

_INSTALL = "install it with pip install -U 'cdam-med[download]'"
_PATIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")  # PS3.5 9.1
_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]+/[A-Za-z0-9_/-]+/\*")

_RETRIES = 5  # three seconds where nothing answers; s5cmd's own ten are a minute and a half
_WORKERS = 32
_LOOK_EVERY_S = 0.5
LEFT_BEHIND = re.compile(r"\.dcm[0-9]+$")
"""s5cmd writes ``NAME.dcm123456`` and renames it; a killed one leaves it behind."""

_UNREACHABLE = "no such host|dial tcp|connection re|timeout|eof|send request failed"
_ABSENT = "no object found|notfound|not found|nosuch"
# what s5cmd says; what that means and what helps; the first that fits
_CAUSES = (
    ("no space left|disk quota", "the disk is full; free some space"),
    ("proxyconnect|proxy", "the proxy refuses; look at HTTPS_PROXY"),
    (
        "x509|certificate",
        "the server's certificate isn't trusted; name the file of your institution's certificates "
        "in AWS_CA_BUNDLE",
    ),
    (
        _UNREACHABLE,
        "the server can't be reached; look at the network; behind a proxy set HTTPS_PROXY",
    ),
    (_ABSENT, "the server doesn't hold it; update idc-index or look at the endpoint's address"),
    ("forbidden|accessdenied|403", "the server refuses; look at the endpoint's address"),
    ("permission denied|read-only", "the folder can't be written; choose another place"),
)


@dataclass(frozen=True)
class RemoteSeries:
    """One series of the archive, as the index knows it; `url` is ``s3://bucket/folder/*``.

    What can't be a folder's name or isn't of that form is an InputError.
    """

    patient_id: str
    series_uid: str
    n_images: int
    size_bytes: int
    url: str

    def __post_init__(self) -> None:
        is_safe = (
            _PATIENT_ID.fullmatch(self.patient_id)
            and len(self.series_uid) <= 64
            and _UID.fullmatch(self.series_uid)
            and _URL.fullmatch(self.url)
            and min(self.n_images, self.size_bytes) > 0
        )
        if not is_safe:
            raise InputError(
                f"The index names a series that can't be loaded: {self!a:.300}. A patient of "
                "letters, digits, '-' and '_', a UID, an address s3://bucket/folder/* and positive "
                "numbers are expected; leave it out."
            )


def list_lidc_series(patients: Sequence[str] | None = None) -> tuple[RemoteSeries, ...]:
    """Return LIDC-IDRI's CT series by patient, then by series; eight patients have two.

    The index comes with idc-index: no network is needed. `patients` are identifiers, None = all
    1,010; an unknown one, and a missing idc-index, is an InputError.
    """
    rows = sorted(_read_index())
    if patients is not None:
        known = {patient_id for patient_id, *_ in rows}
        unknown = [patient for patient in dict.fromkeys(patients) if patient not in known]
        if unknown:
            raise InputError(
                f"LIDC-IDRI has no patient {printable(', '.join(unknown[:5]))!a}; its "
                f"{len(known)} patients are {min(known)} to {max(known)}, written in this way."
            )
        rows = [row for row in rows if row[0] in set(patients)]
    # the index counts in 10**6 bytes, exact to the byte
    return tuple(
        RemoteSeries(patient_id, series_uid, n_images, round(size_mb * 1e6), url)
        for patient_id, series_uid, n_images, size_mb, url in rows
    )


def _read_index() -> list[tuple[str, str, int, float, str]]:
    try:
        import duckdb
        import idc_index_data
    except ImportError as error:
        raise InputError(f"Listing the archive needs idc-index: {_INSTALL}.") from error
    # 0.4 s and 0.15 GB
    try:
        with duckdb.connect() as connection:
            rows = connection.execute(
                "SELECT PatientID, SeriesInstanceUID, instanceCount, series_size_MB, "
                "series_aws_url FROM read_parquet(?) "
                "WHERE collection_id = 'lidc_idri' AND Modality = 'CT'",
                [str(idc_index_data.IDC_INDEX_PARQUET_FILEPATH)],
            ).fetchall()
    except duckdb.Error as error:
        what = "The installed idc-index lists its series in a way that isn't known here"
        raise InputError(f"{what}: {_INSTALL}.") from error
    return [(str(p), str(s), int(n), float(size_mb), str(url)) for p, s, n, size_mb, url in rows]


class Transfer:
    """One s5cmd at work: the files of ``s3://bucket/folder/*`` that a local folder lacks.

    They go there by their own names. After `stalled_after_s` without a byte the program is ended.
    """

    def __init__(
        self, url: str, folder: Path, *, endpoint_url: str | None, stalled_after_s: float
    ) -> None:
        command = [str(find_s5cmd()), "--no-sign-request", "--log", "error"]
        command += ["--retry-count", str(_RETRIES), "--numworkers", str(_WORKERS)]
        command += ["--endpoint-url", endpoint_url] if endpoint_url else []
        self.n_bytes = 0
        self._folder = folder
        self._stalled_after_s, self._is_stalled = stalled_after_s, False
        self._grew_at = time.monotonic()
        self._looked_at = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        self.before = {path.name for path in file_sizes(folder)}
        # without --flatten a server's keys with ".." are written outside of the folder
        command += ["cp", "--flatten"]
        if self.before:
            # what is there in its size isn't loaded again; costs one request a file
            command += ["--no-clobber", "--if-size-differ"]
        command += [url, "."]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            # in the folder: s5cmd refuses a target whose path has a bracket or a star
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
            )
        except BaseException:
            self._said.close()
            raise

    def has_ended(self) -> bool:
        """Return whether the program ended; look how far it came; end it if nothing arrives."""
        if self._process.poll() is not None:
            return True
        now = time.monotonic()
        if now - self._looked_at < min(_LOOK_EVERY_S, self._stalled_after_s):
            return False
        self._looked_at = now
        n_bytes = sum(file_sizes(self._folder).values())
        if n_bytes != self.n_bytes:
            self.n_bytes, self._grew_at = n_bytes, now
        elif now - self._grew_at > self._stalled_after_s:
            self._is_stalled = True
            self._end()
            return True
        return False

    def stop(self) -> None:
        """End the program now."""
        self._end()
        self._said.close()

    def fault(self) -> str:
        """Return why the program that ended failed and what helps; empty if it didn't."""
        with self._said:
            if self._is_stalled:
                return f"nothing arrived for {self._stalled_after_s:g} s; look at the network"
            if self._process.returncode == 0:
                return ""
            self._said.seek(0)
            said = self._said.read(100_000).decode(errors="replace")
        for pattern, cause in _CAUSES:
            if re.search(pattern, said, re.IGNORECASE):
                return cause
        first = printable((said.strip().splitlines() or ["without a word"])[0])[:200]
        return f"s5cmd failed ({first}); look at the network and the disk"

    def _end(self) -> None:
        # asked politely it takes its unfinished files away
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def file_sizes(folder: Path) -> dict[Path, int]:
    """Return the plain files of a folder with their sizes in bytes; links don't count."""
    sizes = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            # a file may be renamed meanwhile
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    sizes[Path(entry.path)] = entry.stat(follow_symlinks=False).st_size
    return sizes


def find_s5cmd() -> Path:
    """Return the program s5cmd: the one of its package, else the one on PATH."""
    # the package's script on PATH is Python that starts the program; ending it wouldn't end that
    with suppress(PackageNotFoundError):
        for file in distribution("s5cmd").files or ():
            if str(file) in ("s5cmd/bin/s5cmd", "s5cmd/bin/s5cmd.exe"):
                return Path(str(file.locate())).resolve()
    found = shutil.which("s5cmd")
    if found is None:
        raise InputError(f"Loading needs the program s5cmd: {_INSTALL}.")
    return Path(found)
