"""From single readers' outlines to nodules: grouped, voted, rated, numbered."""

import warnings
from collections.abc import Sequence

import numpy as np

from data_prep.errors import AnnotationError, InputError
from data_prep.geometry import apply_affine
from data_prep.lidc.clusters import MAX_READERS, cluster_outlines
from data_prep.lidc.outlines import Outline, diameter_mm, rasterise, trimmed_box
from data_prep.lidc.ratings import consensus_ratings
from data_prep.nodules import MaskBox, Nodule, Reader
from data_prep.volume import CTVolume


class AmbiguousNoduleWarning(UserWarning):
    """Outlines of neighbouring nodules can't be told apart by pylidc's rule, and are left out."""


def nodules_from_outlines(
    outlines: Sequence[Outline],
    volume: CTVolume,
    *,
    slice_thickness_mm: float,
    min_readers: int,
    source: str,
) -> list[Nodule]:
    """Group outlines into nodules and keep those that enough readers outlined.

    Nodules are numbered from superior to inferior by the mean position of all points drawn
    (ties: from left to right, from posterior to anterior), also those that aren't returned, so
    that ``nodule_2`` keeps its name whatever `min_readers`. Where the source says who drew, a
    reader with two outlines in a nodule counts once; else every outline counts, as in pylidc.

    Parameters
    ----------
    outlines
        Of one scan, on the grid of `volume`.
    volume
        The scan.
    slice_thickness_mm
        Start of the clustering tolerance, see `data_prep.lidc.clusters.cluster_outlines`.
    min_readers
        Fewest readers of a nodule that is returned.
    source
        Name of the annotations for messages.

    Returns
    -------
    list of Nodule
        In the order of their numbers. The centre is the centre of mass of the consensus mask.

    Raises
    ------
    InputError
        If `min_readers` is below 1.
    AnnotationError
        If the readers of a nodule agree on no voxel.

    Warns
    -----
    AmbiguousNoduleWarning
        If a group has more outlines than a scan has readers: it is several nodules, and is left
        out, as in the paper's CT experiments (its number stays unused).
    """
    if min_readers < 1:
        raise InputError(f"min_readers is {min_readers}; give a number of readers from 1 on.")
    clusters = cluster_outlines([outline.points_ijk for outline in outlines], slice_thickness_mm)
    groups = [[outlines[number] for number in group] for group in clusters.groups]
    nodules = []
    in_order = sorted(groups, key=lambda group: _reading_order(group, volume))
    for number, group in enumerate(in_order, start=1):
        if _count_readers(group) < min_readers:
            continue
        if len(group) > MAX_READERS:
            warnings.warn(_ambiguous(group, source), AmbiguousNoduleWarning, stacklevel=3)
            continue
        nodules.append(_nodule(f"nodule_{number}", group, volume, source))
    return nodules


def consensus_mask(masks: Sequence[MaskBox | None]) -> MaskBox | None:
    """Return the voxels inside at least half of the masks, or None if there are none.

    Parameters
    ----------
    masks
        One for each outline, at least one, all on the same grid; None votes against all voxels.
    """
    boxes = [mask for mask in masks if mask is not None]
    if not boxes:
        return None
    first = np.min([box.origin_ijk for box in boxes], axis=0)
    ends = np.max([np.add(box.origin_ijk, box.voxels.shape) for box in boxes], axis=0)
    votes = np.zeros(ends - first, dtype=np.int64)
    for box in boxes:
        i, j, k = np.subtract(box.origin_ijk, first)
        size_i, size_j, size_k = box.voxels.shape
        votes[i : i + size_i, j : j + size_j, k : k + size_k] += box.voxels
    return trimmed_box(2 * votes >= len(masks), first, boxes[0].grid_shape)


def _nodule(nodule_id: str, group: Sequence[Outline], volume: CTVolume, source: str) -> Nodule:
    readers = tuple(
        Reader(
            ratings={
                **outline.ratings,
                "diameter": diameter_mm(outline, volume.spacing_mm[:2]),
            },
            outline=rasterise(outline, volume.shape),
            reading_session=outline.reading_session,
        )
        for outline in group
    )
    consensus = consensus_mask([reader.outline for reader in readers])
    if consensus is None:
        raise AnnotationError(
            f"The {len(group)} outlines of a nodule in {source} {_slices(group)} have no voxel "
            f"that half of them enclose; look at them in a viewer and take the nodule by its "
            f"place (nodule_at) instead."
        )
    center_ijk = np.argwhere(consensus.voxels).mean(axis=0) + consensus.origin_ijk
    return Nodule(
        nodule_id=nodule_id,
        center_xyz_mm=apply_affine(volume.affine, center_ijk),
        ratings=consensus_ratings([reader.ratings for reader in readers]),
        readers=readers,
        outline=consensus,
    )


def _count_readers(group: Sequence[Outline]) -> int:
    sessions = {outline.reading_session for outline in group}
    return len(group) if None in sessions else len(sessions)


def _ambiguous(group: Sequence[Outline], source: str) -> str:
    return (
        f"{len(group)} outlines in {source} {_slices(group)} lie too close together to tell their "
        f"nodules apart, and are left out; look at them in a viewer and take a nodule by its "
        f"place (nodule_at) instead."
    )


def _slices(group: Sequence[Outline]) -> str:
    slices = {contour.k for outline in group for contour in outline.contours}
    return f"on slices {min(slices)} to {max(slices)}"


def _reading_order(group: Sequence[Outline], volume: CTVolume) -> tuple[float, float, float]:
    """Sort key: superior first, then the patient's left, then posterior."""
    # integer sums: the same whatever the order of the outlines
    points = np.vstack([outline.points_ijk for outline in group])
    x, y, z = apply_affine(volume.affine, points.sum(axis=0) / len(points))
    return -float(z), float(x), float(y)
