"""Which CT series LIDC-IDRI has in the Imaging Data Commons, known offline from idc-index."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from data_prep.errors import InputError
from data_prep.text import printable

_PATIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")  # PS3.5 9.1
_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]+/[A-Za-z0-9_/-]+/\*")


@dataclass(frozen=True)
class RemoteSeries:
    """One series of the archive, as the index knows it.

    Parameters
    ----------
    patient_id
        For example ``LIDC-IDRI-0001``.
    series_uid
        SeriesInstanceUID.
    n_images
        Number of files.
    size_bytes
        Of all files together.
    url
        ``s3://bucket/folder/*``.

    Raises
    ------
    InputError
        If an identifier can't be a folder's name, the address isn't of that form, or a number
        isn't positive.
    """

    patient_id: str
    series_uid: str
    n_images: int
    size_bytes: int
    url: str

    def __post_init__(self) -> None:
        if not _PATIENT_ID.fullmatch(self.patient_id):
            raise InputError(
                f"{self.patient_id!a} can't be a folder's name: patient identifiers hold letters, "
                "digits, hyphens and underscores; leave this series out."
            )
        if len(self.series_uid) > 64 or not _UID.fullmatch(self.series_uid):
            raise InputError(
                f"{self.series_uid!a} is no SeriesInstanceUID: digits and dots are expected, 64 "
                "at most; leave this series out."
            )
        if not _URL.fullmatch(self.url):
            raise InputError(
                f"{self.url!a} is no address of a series: s3://bucket/folder/* is expected."
            )
        if self.n_images < 1 or self.size_bytes < 1:
            raise InputError(
                f"Series {self.series_uid} has {self.n_images} images and {self.size_bytes} bytes "
                "by the index; leave it out."
            )


def list_lidc_series(patients: Sequence[str] | None = None) -> tuple[RemoteSeries, ...]:
    """Return LIDC-IDRI's CT series from the index that idc-index brings along; needs no network.

    Parameters
    ----------
    patients
        Patient identifiers; None = all 1,010.

    Returns
    -------
    tuple of RemoteSeries
        By patient, then by series; eight patients have two.

    Raises
    ------
    InputError
        If idc-index isn't installed or isn't one that is understood, or a patient is unknown.
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
        raise InputError(
            "Listing the archive needs idc-index, which isn't installed; install it with "
            "pip install 'cdam-med[download]'."
        ) from error
    # IDCClient() loads this whole file (5 s, 1.8 GB); a query of it takes 0.4 s and 0.15 GB
    try:
        with duckdb.connect() as connection:
            rows = connection.execute(
                "SELECT PatientID, SeriesInstanceUID, instanceCount, series_size_MB, "
                "series_aws_url FROM read_parquet(?) "
                "WHERE collection_id = 'lidc_idri' AND Modality = 'CT'",
                [str(idc_index_data.IDC_INDEX_PARQUET_FILEPATH)],
            ).fetchall()
    except duckdb.Error as error:
        raise InputError(
            "The installed idc-index lists its series in a way that isn't known here; install "
            "the versions that belong together with pip install -U 'cdam-med[download]'."
        ) from error
    return [(str(p), str(s), int(n), float(size_mb), str(url)) for p, s, n, size_mb, url in rows]
