"""From single readers' outlines to nodules: grouped, voted, rated, numbered."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from data_prep.errors import AnnotationError, InputError
from data_prep.geometry import apply_affine
from data_prep.lidc.outlines import MAX_READERS, Outline, cluster_outlines, mask_on_volume
from data_prep.nodules import MaskBox, Nodule, Reader, reading_order, trimmed_box
from data_prep.ratings import consensus_ratings
from data_prep.sections import drawable_places
from data_prep.volume import CTVolume

_REMEDY = "look at them in a viewer and take a nodule by its place (nodule_at) instead."


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


def warn_of_left_out(left_out: Sequence[LeftOutFinding]) -> None:
    """Warn the caller's caller of what is left out without having been asked for."""
    for finding in left_out:
        if finding.reason not in ("too_few_readers", "small_nodule", "no_nodule"):
            warnings.warn(finding.message, LeftOutNoduleWarning, stacklevel=3)


@dataclass(frozen=True, eq=False)
class NoduleGroup:
    """Outlines of one scan that show the same nodule; ``nodule_1`` is the most superior."""

    nodule_id: str
    outlines: tuple[Outline, ...]

    @property
    def is_ambiguous(self) -> bool:
        """Whether there are more outlines than a scan has readers: it is several nodules."""
        return len(self.outlines) > MAX_READERS

    @property
    def n_readers(self) -> int:
        """Readers, a reader with two outlines once; outlines where they don't say who drew."""
        sessions = {outline.reading_session for outline in self.outlines}
        return len(self.outlines) if None in sessions else len(sessions)

    def described(self, source: str) -> str:
        """Return number and place of the outlines, for a sentence."""
        slices = {contour.k for outline in self.outlines for contour in outline.contours}
        return f"{len(self.outlines)} outlines in {source} on slices {min(slices)} to {max(slices)}"


def group_outlines(
    outlines: Sequence[Outline],
    affine: Float64[np.ndarray, "4 4"],
    places: Float64[np.ndarray, "plane 3"],
    *,
    slice_thickness_mm: float,
) -> list[NoduleGroup]:
    """Group all outlines of a scan into nodules, in the order of their numbers.

    Nodules are numbered from superior to inferior by the mean position of all points drawn
    (ties: from left to right, from posterior to anterior). The affine goes from voxel index to
    RAS millimetres; `places` are where the planes of the outlines lie on that grid, see
    `data_prep.sections`.
    """

    def order(group: Sequence[Outline]) -> tuple[float, float, float]:
        points = np.vstack([outline.points_ijk for outline in group])
        index = places[points[:, 2]]
        index[:, :2] += points[:, :2]
        # sums of whole numbers, but for a resampled volume: the same whatever the order
        return reading_order(apply_affine(affine, index.sum(axis=0) / len(index)))

    clusters = cluster_outlines([outline.points_ijk for outline in outlines], slice_thickness_mm)
    groups = [tuple(outlines[number] for number in cluster) for cluster in clusters]
    return [
        NoduleGroup(f"nodule_{number}", group)
        for number, group in enumerate(sorted(groups, key=order), start=1)
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
    `min_readers`. A group with more outlines than a scan has readers is several nodules, and is
    left out as in the paper's CT experiments.
    """
    if min_readers < 1:
        raise InputError(f"min_readers is {min_readers}; give a number of readers from 1 on.")
    nodules: list[Nodule] = []
    left_out: list[LeftOutFinding] = []
    groups = group_outlines(
        outlines, volume.affine, drawable_places(volume), slice_thickness_mm=slice_thickness_mm
    )
    for group in groups:
        if group.n_readers < min_readers:
            reason = "too_few_readers"
            message = (
                f"{group.nodule_id} was outlined by {group.n_readers}; asked for are "
                f"{min_readers} readers or more."
            )
        elif group.is_ambiguous:
            reason = "ambiguous_cluster"
            message = (
                f"{group.described(source)} lie too close together to tell their nodules apart, "
                f"and are left out; {_REMEDY}"
            )
        else:
            try:
                nodules.append(nodule_from_group(group, volume, source=source))
                continue
            except AnnotationError as error:
                reason, message = "no_consensus", str(error)
        left_out.append(LeftOutFinding(group.nodule_id, reason, message))
    return nodules, left_out


def nodule_from_group(group: NoduleGroup, volume: CTVolume, *, source: str) -> Nodule:
    """Make a nodule of the outlines that show it, or an `AnnotationError` if they don't agree.

    Its mask is what at least half of the outlines enclose, its centre the centre of mass of
    that mask.
    """
    readers = tuple(
        Reader(
            ratings=outline.with_diameter(volume.spacing_mm[:2]),
            outline=mask_on_volume(outline, volume),
            reading_session=outline.reading_session,
            annotation_id=outline.annotation_id,
        )
        for outline in group.outlines
    )
    consensus = consensus_mask([reader.outline for reader in readers])
    if consensus is None:
        raise AnnotationError(
            f"{group.nodule_id} can't be made: the {group.described(source)} have no voxel that "
            f"half of them enclose; {_REMEDY}"
        )
    return Nodule(
        nodule_id=group.nodule_id,
        center_xyz_mm=apply_affine(volume.affine, consensus.center_ijk),
        ratings=consensus_ratings([reader.ratings for reader in readers]),
        readers=readers,
        outline=consensus,
    )


def consensus_mask(masks: Sequence[MaskBox | None]) -> MaskBox | None:
    """Return the voxels inside at least half of the masks; None if there are none.

    The masks lie on the same grid, at least one is given; None votes against all voxels.
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
