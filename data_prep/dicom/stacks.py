"""The slices of one series -> stacks of one geometry and one time point, without copies."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_prep import geometry
from data_prep.dicom.phases import Pile, drop_copies, find_piles, split_phases
from data_prep.dicom.pixels import CTSlice
from data_prep.dicom.spacing import check_numbers
from data_prep.problems import MAX_NAMED_FILES, Finding, SeriesError

PIXEL_SPACING_TOLERANCE = 1e-4
"""Relative difference of pixel spacings that is rounding: 0.05 mm over 500 mm."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of one series that belong together.

    Parameters
    ----------
    number
        From 1 within the series.
    slices
        Each at its own place, copies dropped.
    label
        What tells it from the other stacks, for a person; empty where it is the only one.
    splits
        Why there are several stacks: ``mixed_orientation``, ``mixed_matrix_size``,
        ``mixed_pixel_spacing``, ``mixed_frame_of_reference``, ``several_phases``.
    findings
        What is wrong with this one: ``duplicate_slices``, ``conflicting_slices``,
        ``conflicting_uids``, ``bad_orientation``, ``bad_header``, and what reading the pixels of
        slices at one position met.
    is_default
        Whether it is the one that is read unless another is asked for.
    """

    number: int
    slices: tuple[CTSlice, ...]
    label: str
    splits: tuple[Finding, ...]
    findings: tuple[Finding, ...]
    is_default: bool


@dataclass(frozen=True, eq=False)
class _Group:
    """The slices of one geometry as stacks, one a phase, and what tells these apart."""

    first: CTSlice
    stacks: Sequence[Stack]
    told_apart_by: str = ""

    @property
    def count(self) -> int:
        return sum(len(stack.slices) for stack in self.stacks)


def split_stacks(slices: Sequence[CTSlice]) -> list[Stack]:
    """Split the slices of a series into stacks, numbered from 1.

    First come the groups of one orientation, matrix size, pixel spacing and frame of reference,
    the one with the most slices first. A group that holds several images at one position is split
    into phases by what tells them apart, see `data_prep.dicom.phases`; exact copies are dropped
    before. Phases are numbered in the order of the attribute that they differ in.

    By default, the group with the most slices is read, and of its phases the first one of those
    with the most slices. Of two groups with as many slices neither is the default.

    Parameters
    ----------
    slices
        All slices of one series; the pixels of those at the same position are read.
    """
    groups = [_split_group(group) for group in _group_by_geometry(_with_frame(slices))]
    groups.sort(key=lambda group: (-group.count, group.first.file))
    differing = _differing(groups)
    is_tied = len(groups) > 1 and groups[0].count == groups[1].count
    stacks: list[Stack] = []
    for group in groups:
        # max() takes the first of the largest
        largest = max(group.stacks, key=lambda stack: len(stack.slices))
        for stack in group.stacks:
            is_default = group is groups[0] and stack is largest and not is_tied
            label = "; ".join(filter(None, (_describe(group.first, differing), stack.label)))
            number = len(stacks) + 1
            stacks.append(replace(stack, number=number, label=label, is_default=is_default))
    mixed = _mixed_findings(groups, differing, stacks, is_tied)
    result: list[Stack] = []
    for group in groups:
        own = stacks[len(result) : len(result) + len(group.stacks)]
        splits = (*mixed, *_phase_finding(group.told_apart_by, own))
        result += [replace(stack, splits=splits) for stack in own]
    return result


def _with_frame(slices: Sequence[CTSlice]) -> Sequence[CTSlice]:
    """Give slices that name no frame of reference the only one that there is."""
    frames = {one.frame_of_reference_uid for one in slices}
    if len(frames) != 2 or "" not in frames:
        return slices
    (frame,) = frames - {""}
    return [replace(one, frame_of_reference_uid=frame) for one in slices]


def _group_by_geometry(slices: Sequence[CTSlice]) -> list[list[CTSlice]]:
    frames = sorted({one.frame_of_reference_uid for one in slices})
    groups: list[list[CTSlice]] = []
    firsts: list[np.ndarray] = []
    known: dict[tuple[object, ...], list[CTSlice]] = {}
    for one in sorted(slices, key=lambda one: (one.file, one.frame or 0)):
        frame = frames.index(one.frame_of_reference_uid)
        shape = (
            one.orientation_lps.tobytes(),
            one.pixel_spacing_mm.tobytes(),
            one.rows,
            one.columns,
        )
        exact = (*shape, frame)
        if exact not in known:
            values = np.array(
                [
                    *one.orientation_lps / geometry.ORIENTATION_TOLERANCE,
                    *np.log(one.pixel_spacing_mm) / PIXEL_SPACING_TOLERANCE,
                    2 * one.rows,
                    2 * one.columns,
                    2 * frame,  # other than the numbers before, it may not differ at all
                ]
            )
            near = np.flatnonzero(
                np.abs(np.array(firsts).reshape(-1, len(values)) - values).max(axis=1) <= 1
            )
            if not len(near):
                groups.append([])
                firsts.append(values)
            known[exact] = groups[near[0] if len(near) else -1]
        known[exact].append(one)
    return groups


_ATTRIBUTES = {
    "mixed_orientation": "orientation",
    "mixed_matrix_size": "matrix size",
    "mixed_pixel_spacing": "pixel spacing",
    "mixed_frame_of_reference": "frame of reference",
}


def _differences(one: CTSlice, other: CTSlice) -> Iterator[str]:
    """Yield the names of what keeps two slices out of one group."""
    if np.abs(one.orientation_lps - other.orientation_lps).max() > geometry.ORIENTATION_TOLERANCE:
        yield "mixed_orientation"
    if (one.rows, one.columns) != (other.rows, other.columns):
        yield "mixed_matrix_size"
    ratio = np.log(one.pixel_spacing_mm) - np.log(other.pixel_spacing_mm)
    if np.abs(ratio).max() > PIXEL_SPACING_TOLERANCE:
        yield "mixed_pixel_spacing"
    if one.frame_of_reference_uid != other.frame_of_reference_uid:
        yield "mixed_frame_of_reference"


def _differing(groups: Sequence[_Group]) -> dict[str, list[_Group]]:
    """Return for each name of a problem the groups that differ in it from the first one."""
    differing: dict[str, list[_Group]] = {}
    for group in groups[1:]:
        for name in _differences(groups[0].first, group.first):
            differing.setdefault(name, []).append(group)
    return {name: differing[name] for name in _ATTRIBUTES if name in differing}


def _describe(one: CTSlice, differing: Mapping[str, object]) -> str:
    texts = {
        "mixed_orientation": " ".join(f"{value:.4g}" for value in one.orientation_lps + 0.0),
        "mixed_matrix_size": f"{one.columns} x {one.rows}",
        "mixed_pixel_spacing": " x ".join(f"{mm:.4g}" for mm in one.pixel_spacing_mm) + " mm",
        "mixed_frame_of_reference": "of its own",
    }
    return ", ".join(f"{_ATTRIBUTES[name]} {texts[name]}" for name in differing)


def _mixed_findings(
    groups: Sequence[_Group],
    differing: Mapping[str, Sequence[_Group]],
    stacks: Sequence[Stack],
    is_tied: bool,
) -> list[Finding]:
    findings = []
    listed = list_stacks(stacks)
    for name, others in differing.items():
        files = [group.first.file for group in (groups[0], *others)]
        names = " and ".join(file.name for file in files[:2])
        findings.append(
            Finding(
                name,
                f"{names} differ in {_ATTRIBUTES[name]}, so the series is split into {listed}",
                "choose one with stack=",
                tuple(files[:MAX_NAMED_FILES]),
                "the one with the most slices is read unless stack= asks for another",
                can_repair=not is_tied,
            )
        )
    return findings


def list_stacks(stacks: Sequence[Stack]) -> str:
    """Return the stacks of a series for a sentence."""
    shown = [
        f"stack {stack.number} ({stack.label}; {len(stack.slices)} slices)"
        for stack in stacks[:MAX_NAMED_FILES]
    ]
    if len(stacks) > MAX_NAMED_FILES:
        shown.append(f"{len(stacks) - MAX_NAMED_FILES} more")
    return ", ".join(shown)


def _phase_finding(told_apart_by: str, stacks: Sequence[Stack]) -> list[Finding]:
    if len(stacks) == 1:
        return []
    default = max(stacks, key=lambda stack: len(stack.slices))
    what = f"{told_apart_by} tells apart several images at the same positions"
    done = (
        f"stack {default.number}, the first of those with the most slices, is read unless stack= "
        "asks for another"
    )
    files = tuple(stack.slices[0].file for stack in stacks[:MAX_NAMED_FILES])
    listed = f"{what}: {list_stacks(stacks)}"
    return [Finding("several_phases", listed, "choose one with stack=", files, done)]


def _split_group(slices: Sequence[CTSlice]) -> _Group:
    """Split the slices of one geometry into phases, each without copies."""
    findings = list(check_numbers(slices))
    phases = None
    if not findings:
        try:
            piles = find_piles(slices)
            phases = split_phases(piles)
            if phases is None:
                findings = [*_conflict(piles), *_same_uids(slices)]
        except SeriesError as error:
            findings = [replace(error.finding, can_repair=False)]
    if phases is None:
        return _Group(slices[0], [Stack(0, tuple(slices), "", (), tuple(findings), False)])
    stacks = []
    for label, part in phases.parts.items():
        kept, copies = drop_copies(part)
        wrong = (*copies, *_same_uids(kept))
        stacks.append(Stack(0, tuple(kept), label, (), wrong, False))
    return _Group(slices[0], stacks, phases.told_apart_by)


def _conflict(piles: Sequence[Pile]) -> list[Finding]:
    conflicts = [pile for pile in piles if pile.n_images > 1]
    one, other = conflicts[0].two_images()
    return [
        Finding(
            "conflicting_slices",
            f"{one.name} and {other.name} are different images at the same position "
            f"({conflicts[0].along_mm:.2f} mm along the normal), as are others at "
            f"{len(conflicts)} of {len(piles)} positions, and no attribute tells them apart",
            "keep one of each position in the folder",
            (one.file, other.file),
        )
    ]


def _same_uids(slices: Sequence[CTSlice]) -> list[Finding]:
    """Find two different images of one SOPInstanceUID; frames of a file share theirs."""
    by_uid: dict[str, CTSlice] = {}
    for one in slices:
        twin = by_uid.setdefault(one.sop_instance_uid, one)
        if twin is not one and (one.frame is None or one.file != twin.file):
            what = (
                f"{twin.name} and {one.name} have the same SOPInstanceUID and are "
                "different images, so one of them is wrong"
            )
            return [
                Finding("conflicting_uids", what, "fetch the series again", (twin.file, one.file))
            ]
    return []
