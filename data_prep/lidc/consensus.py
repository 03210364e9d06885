"""From single readers' outlines to nodules: grouped, voted, rated, numbered."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from data_prep.errors import AnnotationError, InputError
from data_prep.geometry import apply_affine
from data_prep.lidc.clusters import MAX_READERS, cluster_outlines
from data_prep.lidc.outlines import Outline, diameter_mm, mask_on_volume
from data_prep.nodules import MaskBox, Nodule, Reader, reading_order, trimmed_box
from data_prep.ratings import consensus_ratings
from data_prep.sections import drawable_places
from data_prep.volume import CTVolume


class LeftOutNoduleWarning(UserWarning):
    """Outlines can't be used, e.g. can't be told apart by pylidc's rule, and are left out."""


@dataclass(frozen=True)
class LeftOutFinding:
    """Something that readers marked and that gives no nodule.

    Parameters
    ----------
    name
        Of a nodule its id, e.g. ``nodule_2``; else empty.
    reason
        Stable name: ``too_few_readers``, ``ambiguous_cluster``, ``no_consensus`` (the readers
        agree on no voxel), ``bad_outline`` (one reader's outline can't be used), ``small_nodule``
        (below 3 mm: a point without outline and ratings), ``no_nodule`` (another finding).
    message
        One sentence for a person.
    count
        So many marks.
    """

    name: str
    reason: str
    message: str
    count: int = 1


_AS_ASKED = {"too_few_readers", "small_nodule", "no_nodule"}


def warn_of_left_out(left_out: Sequence[LeftOutFinding]) -> None:
    """Warn the caller's caller of what is left out without having been asked for."""
    for finding in left_out:
        if finding.reason not in _AS_ASKED:
            warnings.warn(finding.message, LeftOutNoduleWarning, stacklevel=3)


@dataclass(frozen=True, eq=False)
class NoduleGroup:
    """Outlines of one scan that show the same nodule.

    Parameters
    ----------
    nodule_id
        ``nodule_1`` is the most superior of the scan.
    outlines
        At least one.
    """

    nodule_id: str
    outlines: tuple[Outline, ...]

    @property
    def is_ambiguous(self) -> bool:
        """Whether there are more outlines than a scan has readers: it is several nodules."""
        return len(self.outlines) > MAX_READERS


def group_outlines(
    outlines: Sequence[Outline],
    affine: Float64[np.ndarray, "4 4"],
    places: Float64[np.ndarray, "plane 3"],
    *,
    slice_thickness_mm: float,
) -> list[NoduleGroup]:
    """Group the outlines of a scan into nodules and number these.

    Nodules are numbered from superior to inferior by the mean position of all points drawn
    (ties: from left to right, from posterior to anterior).

    Parameters
    ----------
    outlines
        Of one scan.
    affine
        Voxel index to RAS millimetres.
    places
        Where the planes of the outlines lie on that grid, see `data_prep.sections`.
    slice_thickness_mm
        Start of the clustering tolerance, see `data_prep.lidc.clusters.cluster_outlines`.

    Returns
    -------
    list of NoduleGroup
        In the order of their numbers; every outline is in one of them.
    """
    clusters = cluster_outlines([outline.points_ijk for outline in outlines], slice_thickness_mm)
    groups = [tuple(outlines[number] for number in group) for group in clusters.groups]
    in_order = sorted(groups, key=lambda group: _reading_order(group, affine, places))
    return [
        NoduleGroup(f"nodule_{number}", group) for number, group in enumerate(in_order, start=1)
    ]


def nodules_from_outlines(
    outlines: Sequence[Outline],
    volume: CTVolume,
    *,
    slice_thickness_mm: float,
    min_readers: int,
    source: str,
) -> tuple[list[Nodule], list[LeftOutFinding]]:
    """Group outlines into nodules and keep those that enough readers outlined.

    Nodules that aren't returned are numbered too, so that ``nodule_2`` keeps its name whatever
    `min_readers`. Where the source says who drew, a reader with two outlines in a nodule counts
    once; else every outline counts, as in pylidc.

    Parameters
    ----------
    outlines
        Of one scan, on the planes of `volume`.
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
    tuple of list
        The nodules in the order of their numbers, their centre being the centre of mass of the
        consensus mask; and those that are left out. A group with more outlines than a scan has
        readers is several nodules, and is left out as in the paper's CT experiments.

    Raises
    ------
    InputError
        If `min_readers` is below 1.
    """
    if min_readers < 1:
        raise InputError(f"min_readers is {min_readers}; give a number of readers from 1 on.")
    nodules, left_out = [], []
    groups = group_outlines(
        outlines, volume.affine, drawable_places(volume), slice_thickness_mm=slice_thickness_mm
    )
    for group in groups:
        n_readers = _count_readers(group.outlines)
        if n_readers < min_readers:
            message = (
                f"{group.nodule_id} was outlined by {n_readers}; asked for are {min_readers} "
                "readers or more."
            )
            left_out.append(LeftOutFinding(group.nodule_id, "too_few_readers", message))
        elif group.is_ambiguous:
            message = _ambiguous(group, source)
            left_out.append(LeftOutFinding(group.nodule_id, "ambiguous_cluster", message))
        else:
            try:
                nodules.append(nodule_from_group(group, volume, source=source))
            except AnnotationError as error:
                left_out.append(LeftOutFinding(group.nodule_id, "no_consensus", str(error)))
    return nodules, left_out


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
    consensus = trimmed_box(2 * votes >= len(masks), first, boxes[0].grid_shape)
    if consensus is None:
        return None
    made_up = {k for box in boxes for k in box.interpolated_slices}
    filled = np.flatnonzero(consensus.voxels.any(axis=(0, 1))) + consensus.origin_ijk[2]
    return replace(consensus, interpolated_slices=tuple(sorted(made_up & set(filled.tolist()))))


def nodule_from_group(group: NoduleGroup, volume: CTVolume, *, source: str) -> Nodule:
    """Make a nodule of the outlines that show it.

    Parameters
    ----------
    group
        Outlines on the planes of `volume`.
    volume
        The scan.
    source
        Name of the annotations for messages.

    Returns
    -------
    Nodule
        Its mask is what at least half of the outlines enclose, its centre the centre of mass of
        that mask.

    Raises
    ------
    AnnotationError
        If the readers agree on no voxel.
    """
    readers = tuple(
        Reader(
            ratings=outline_ratings(outline, volume.spacing_mm[:2]),
            outline=mask_on_volume(outline, volume),
            reading_session=outline.reading_session,
            annotation_id=outline.annotation_id,
        )
        for outline in group.outlines
    )
    consensus = consensus_mask([reader.outline for reader in readers])
    if consensus is None:
        raise AnnotationError(
            f"The {len(readers)} outlines of {group.nodule_id} in {source} "
            f"{_slices(group.outlines)} have no voxel that half of them enclose; look at them in "
            "a viewer and take the nodule by its place (nodule_at) instead."
        )
    return Nodule(
        nodule_id=group.nodule_id,
        center_xyz_mm=apply_affine(volume.affine, center_of_mass_ijk(consensus)),
        ratings=consensus_ratings([reader.ratings for reader in readers]),
        readers=readers,
        outline=consensus,
    )


def outline_ratings(
    outline: Outline, spacing_ij_mm: Float64[np.ndarray, "2"]
) -> dict[str, int | float]:
    """Return a reader's ratings with the diameter (millimetres) that was measured on the outline.

    Parameters
    ----------
    outline
        The reader's outline.
    spacing_ij_mm
        Distance between columns and between rows.
    """
    return {**outline.ratings, "diameter": diameter_mm(outline, spacing_ij_mm)}


def center_of_mass_ijk(mask: MaskBox) -> Float64[np.ndarray, "3"]:
    """Return the mean index of a mask's voxels on the volume's grid."""
    center_ijk: np.ndarray = np.argwhere(mask.voxels).mean(axis=0) + mask.origin_ijk
    return center_ijk


def _count_readers(group: Sequence[Outline]) -> int:
    sessions = {outline.reading_session for outline in group}
    return len(group) if None in sessions else len(sessions)


def _ambiguous(group: NoduleGroup, source: str) -> str:
    return (
        f"{len(group.outlines)} outlines in {source} {_slices(group.outlines)} lie too close "
        "together to tell their nodules apart, and are left out; look at them in a viewer and take "
        "a nodule by its place (nodule_at) instead."
    )


def _slices(group: Sequence[Outline]) -> str:
    slices = {contour.k for outline in group for contour in outline.contours}
    return f"on slices {min(slices)} to {max(slices)}"


def _reading_order(
    group: Sequence[Outline],
    affine: Float64[np.ndarray, "4 4"],
    places: Float64[np.ndarray, "plane 3"],
) -> tuple[float, float, float]:
    """Sort key: superior first, then the patient's left, then posterior."""
    points = np.vstack([outline.points_ijk for outline in group])
    index = places[points[:, 2]]
    index[:, :2] += points[:, :2]
    # sums of whole numbers, but for a resampled volume: the same whatever the order of outlines
    return reading_order(apply_affine(affine, index.sum(axis=0) / len(index)))
