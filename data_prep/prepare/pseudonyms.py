"""Names that don't tell who a patient is, and texts without the names that do."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.disk import csv_bytes, output_error, write_new_file
from data_prep.errors import InputError, OutputError
from data_prep.text import printable

_DEFAULT_KEY = "cdam-med"
_MOST_KEY_BYTES = 64
_MESSAGE_LENGTH = 500

# PS3.5 chapter 9: numbers with dots; five of them are no version and no decimal number
_UID = re.compile(r"(?<![\w.])[0-2](?:\.[0-9]+){4,}(?![\w.]*\w)")
_PATH = re.compile(r"(?<![\w.<])(?:[A-Za-z]:[\\/]|~?/|\\\\)[^\s'\",;:]+")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")


@dataclass(frozen=True)
class Pseudonyms:
    """Pseudonyms (``patient_0001``, ``series_0001``) by PatientID and by SeriesInstanceUID."""

    patients: Mapping[str, str]
    series: Mapping[str, str]

    def check_key_file(self, path: str | os.PathLike[str], *, cohort: Path) -> None:
        """Refuse a place for the key file at once that `write_key_file` would refuse later.

        Raises
        ------
        OutputError
            If the file would lie in the cohort folder, or holds anything but this key.
        """
        place, folder = Path(path).resolve(), Path(cohort).resolve()
        staging = folder.with_name(f".{folder.name}.partial")
        if place.is_relative_to(folder) or place.is_relative_to(staging):
            raise OutputError(
                f"The key file {printable(str(path))} would lie in the cohort folder and be passed "
                f"on with it; choose another place."
            )
        try:
            # a run that goes on finds the key of the run that was stopped
            if os.path.lexists(place) and not self._is_key(place):
                raise FileExistsError(17, "there is a file of that name", str(place))
        except OSError as error:
            raise output_error("the key file", place, error) from error

    def write_key_file(self, path: str | os.PathLike[str], *, cohort: Path) -> None:
        """Write which pseudonym stands for whom, as CSV that only its owner may read.

        Raises
        ------
        OutputError
            If the file would lie in the cohort folder, holds anything else, or can't be written.
        """
        self.check_key_file(path, cohort=cohort)
        place = Path(path).resolve()
        try:
            if not self._is_key(place):
                write_new_file(place, self._key(), mode=0o600)
        except OSError as error:
            raise output_error("the key file", place, error) from error

    def _is_key(self, place: Path) -> bool:
        return place.is_file() and place.read_bytes() == self._key()

    def _key(self) -> bytes:
        rows = [
            (kind, original, name)
            for kind, names in (("patient", self.patients), ("series", self.series))
            for original, name in sorted(names.items(), key=lambda item: item[1])
        ]
        return csv_bytes(("kind", "original", "pseudonym"), rows, quote_all=True)


def pseudonyms_for(
    patient_ids: Iterable[str], series_uids: Iterable[str], *, key: str = _DEFAULT_KEY
) -> Pseudonyms:
    """Give each patient and each series a pseudonym.

    The numbers follow the order of a keyed hash (BLAKE2b) of the originals: the same originals
    get the same pseudonyms whatever their order, so that a run can be resumed, and the numbers
    say nothing on the order of admission. One patient more may change all numbers. Whoever knows
    all originals and the key can work out who is who: with the default key that is everybody, so
    give a key of your own, and keep it secret, where that matters.

    Two texts that differ are two patients. A key longer than 64 bytes is an InputError.

    Examples
    --------
    >>> sorted(pseudonyms_for(["Doe^J", "Roe^R", "Doe^J"], ["1.2.3"]).patients.values())
    ['patient_0001', 'patient_0002']
    """
    secret = key.encode("utf-8", "surrogateescape")
    if len(secret) > _MOST_KEY_BYTES:
        raise InputError(f"The key for pseudonyms has {len(secret)} bytes; give at most 64.")
    return Pseudonyms(
        _numbered(patient_ids, "patient", secret), _numbered(series_uids, "series", secret)
    )


def without_identity(text: str, private: Iterable[str] = ()) -> str:
    """Return a message without UIDs, paths, memory addresses and other private texts.

    Private texts are e.g. the names of the patient's files; those shorter than three characters
    are left. The message has one line, no control characters, 500 characters at most.

    Examples
    --------
    >>> without_identity("Series 1.2.840.113.4.5 of /data/DOE_J/ct is odd.", ["DOE_J"])
    'Series <uid> of <path> is odd.'
    """
    # the longest first: it may hold another
    for word in sorted(set(private), key=lambda word: (-len(word), word)):
        if len(word) > 2:
            text = text.replace(word, "<private>")
    text = _PATH.sub("<path>", text)
    text = _UID.sub("<uid>", text)
    text = _ADDRESS.sub("<address>", text)
    return printable(" ".join(text.split()))[:_MESSAGE_LENGTH]


def _numbered(originals: Iterable[str], kind: str, secret: bytes) -> dict[str, str]:
    def rank(original: str) -> tuple[bytes, str]:
        data = f"{kind}\n{original}".encode("utf-8", "surrogateescape")
        return hashlib.blake2b(data, key=secret).digest(), original

    ordered = sorted(set(originals), key=rank)
    return {original: f"{kind}_{number:04d}" for number, original in enumerate(ordered, start=1)}
