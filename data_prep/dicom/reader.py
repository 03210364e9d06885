"""One DICOM CT series below a path -> a volume in patient space, or a named refusal."""

import os
import warnings
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_prep import geometry
from data_prep.dicom.files import DicomFile, search
from data_prep.dicom.pixels import CTSlice, read_hu, with_default_rescale
from data_prep.dicom.placement import Placement, place_slices
from data_prep.dicom.plausibility import find_implausible, sample_hu
from data_prep.dicom.regrid import regrid
from data_prep.dicom.slices import SeriesContents, read_contents
from data_prep.dicom.stacks import Stack, list_stacks, split_stacks
from data_prep.problems import (
    MAX_NAMED_FILES,
    Action,
    Finding,
    Policy,
    SeriesError,
    SeriesWarning,
)
from data_prep.text import printable
from data_prep.volume import CTVolume, SourceImage

_DEFAULT_POLICY = Policy()
_EXPORT_AGAIN = "export the original series again"

_UNPLACEABLE = (
    *("bad_orientation", "bad_header", "conflicting_slices", "too_large"),
    *("truncated_pixels", "unreadable_file", "unreadable_pixels"),
)
"""Findings of a stack that has no place: several images at one position have no spacing."""


def read_series(
    path: str | os.PathLike[str],
    *,
    series_uid: str | None = None,
    stack: int | None = None,
    repair: Collection[str] = (),
    refuse: Collection[str] = (),
) -> CTVolume:
    """Read one CT series.

    Files may be nested, carry any name, lie in zip archives and beside files of other kinds. Slices
    are sorted by position along the normal that ImageOrientationPatient gives; the rescale to HU is
    each slice's own. All headers are checked before a pixel is read.

    Parameters
    ----------
    path
        Folder, zip archive, DICOMDIR or single (multi-frame) file that holds the series.
    series_uid
        SeriesInstanceUID of the series to read. Needed where the path holds several CT series.
    stack
        Number of a stack within the series, as `check_path` lists them. By default the one with
        the most slices is read.
    repair, refuse
        Names of problems to be repaired or refused, where that differs from their default: see
        `data_prep.problems.PROBLEMS`.

    Returns
    -------
    CTVolume
        ``hu`` is int16, or float32 where a rescale isn't integral or a value doesn't fit into
        int16. Voxels that hold a padding value are marked in ``outside``; their HU stays what the
        file says. What was repaired or noted is in ``problems``.

    Raises
    ------
    SeriesError
        If a problem is refused: the first one's name is the error's ``reason``, and all that
        were found are its ``problems``.
    InputError
        If `repair` or `refuse` names no problem, or one that has no repair.

    Warns
    -----
    SeriesWarning
        If the values don't look like Hounsfield units (``implausible_hu``).

    Notes
    -----
    Slices missing at either end leave no trace in the positions; they are noticed only where the
    headers count more images than there are (``missing_end_slices``).
    """
    policy = Policy(repair, refuse)
    with _without_warnings():
        found = search(Path(path))
        volume = _read(Path(path), found.files, found.findings, series_uid, stack, policy)
    _warn_if_implausible(volume)
    return volume


def read_files(
    files: Sequence[DicomFile],
    *,
    series_uid: str,
    stack: int | None = None,
    policy: Policy = _DEFAULT_POLICY,
) -> CTVolume:
    """Read one CT series whose files are known, e.g. from `data_prep.dicom.header.index_files`.

    Parameters are those of `read_series`; files of other series are passed over.
    """
    with _without_warnings():
        volume = _read(files[0].path.parent, files, [], series_uid, stack, policy)
    _warn_if_implausible(volume)
    return volume


def _without_warnings() -> AbstractContextManager[object]:
    # pydicom warns of any value that bends the standard; those that are used are checked here
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _warn_if_implausible(volume: CTVolume) -> None:
    for problem in volume.problems:
        if problem.name == "implausible_hu":
            warnings.warn(problem.message, SeriesWarning, stacklevel=3)


def _read(
    root: Path,
    files: Sequence[DicomFile],
    of_no_series: Sequence[Finding],
    series_uid: str | None,
    stack: int | None,
    policy: Policy,
) -> CTVolume:
    contents, unreadable = read_contents(files, series_uid)
    findings = [*of_no_series, *unreadable]
    try:
        series, of_choice = _choose_series(root, contents, series_uid, policy)
        placed = _choose_stack(root, series, stack, policy)
    except SeriesError:
        policy.settle(findings)  # what can't be read may be what was looked for
        raise
    findings += [*of_choice, *placed.findings]
    policy.settle(findings)
    if placed.placement is None:
        raise RuntimeError("a stack without a place has no problem")
    placement = placed.placement
    slices = with_default_rescale(placement.slices)
    hu, outside = read_hu(slices)
    lacks_rescale = any(one.pixels.rescale_is_missing for one in placement.slices)
    findings += find_implausible(sample_hu(hu, outside), slices, lacks_rescale=lacks_rescale)
    problems = policy.settle(findings)
    levels, shift_ij = placement.levels, placement.shift_ij
    if not placement.is_identity:
        hu, outside = regrid(
            hu, outside, shape=placement.shape, source_k=levels.source_k, shift_ij=shift_ij
        )
    return CTVolume(
        hu,
        geometry.affine_lps_to_ras(placement.affine_lps),
        series.series_uid,
        _uids(placement),
        outside,
        problems,
        levels.interpolated_slices,
        _images(placement),
        slices[0].frame_of_reference_uid,
    )


def _images(placement: Placement) -> tuple[SourceImage, ...]:
    """Return where the images lie on the grid, where they aren't its slices."""
    if placement.is_identity:
        return ()
    places_ijk = np.column_stack([placement.shift_ij, placement.levels.image_k])
    return tuple(
        SourceImage("" if one.frame is not None else one.sop_instance_uid, (i, j, k))
        for one, (i, j, k) in zip(placement.slices, places_ijk.tolist(), strict=True)
    )


def _uids(placement: Placement) -> tuple[str, ...]:
    """Return the UID of the image of each slice; none where slices aren't images."""
    if placement.is_resampled or any(one.frame is not None for one in placement.slices):
        return ()
    uids = [""] * placement.levels.count
    for k, one in zip(placement.levels.image_k, placement.slices, strict=True):
        uids[int(k)] = one.sop_instance_uid
    return tuple(uids)


@dataclass(frozen=True, eq=False)
class PlacedStack:
    """A stack, where it lies (None if that can't be told), and all that is wrong with it."""

    stack: Stack
    placement: Placement | None
    findings: tuple[Finding, ...]


def place_stacks(series: SeriesContents, *, chosen: int | None = None) -> list[PlacedStack]:
    """Split a series into stacks, and find where each lies and what is wrong; pixels aren't read.

    Parameters
    ----------
    series
        All its slices.
    chosen
        Number of the stack that was asked for. It stops mattering then that there are several,
        unless a policy refuses that by name.
    """
    if not series.slices:
        return []
    return [_place(stack, series, stack.number == chosen) for stack in split_stacks(series.slices)]


def _place(stack: Stack, series: SeriesContents, is_chosen: bool) -> PlacedStack:
    splits = stack.splits
    if is_chosen:
        done = f"stack {stack.number} was asked for"
        splits = tuple(
            replace(each, done=done, can_repair=True, default=Action.REPAIR) for each in splits
        )
    findings = [*series.findings, *splits, *stack.findings]
    findings += [*_missing_rescale(stack), *_unspecified_units(stack)]
    placement = None
    if not any(each.name in _UNPLACEABLE for each in stack.findings):
        placement, from_place = place_slices(stack.slices)
        findings += from_place
    if placement is not None:
        findings += _missing_ends(series, stack.slices, placement)
        findings += _late_start(series, placement)
    return PlacedStack(stack, placement, tuple(findings))


def _missing_rescale(stack: Stack) -> list[Finding]:
    missing = [one for one in stack.slices if one.pixels.rescale_is_missing]
    if not missing:
        return []
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    what = (
        f"{missing[0].name}{more} lacks RescaleSlope or RescaleIntercept, so its stored values "
        "can't be turned into Hounsfield units"
    )
    return [Finding("no_rescale", what, _EXPORT_AGAIN, (missing[0].file,))]


def _unspecified_units(stack: Stack) -> list[Finding]:
    first = next((one for one in stack.slices if one.left_open), None)
    if first is None:
        return []
    what = (
        f"{first.name} leaves open whether its values are Hounsfield units ({first.left_open}); "
        "they are taken for them, as they look like them"
    )
    return [Finding("unspecified_units", what, "choose the series with CT numbers", (first.file,))]


def _missing_ends(
    series: SeriesContents, slices: Sequence[CTSlice], placement: Placement
) -> list[Finding]:
    """Find that a series holds fewer images than its headers count: ``missing_end_slices``.

    The count (ImagesInAcquisition or NumberOfSeriesRelatedInstances) is compared with all images
    of the series, whichever stack they are in, and with what is missing in gaps added. Nothing is
    found if the slices of the stack give different counts (none is to be trusted), or if the count
    is a multiple of what is there: several reconstructions of one acquisition share its count, and
    lie in series of their own. A series cut exactly in half passes by this.
    """
    counts = {one.series_count for one in slices}
    count = counts.pop()
    if counts or not count:
        return []
    images = {(one.sop_instance_uid, one.frame) for one in series.slices}
    n_images = len(images) + series.n_left_out
    n_missing = count - n_images - (placement.levels.count - len(slices))
    if n_missing <= 0 or count % n_images == 0:
        return []
    first = slices[0]
    what = (
        f"{first.name} and others count {count} images in the series and {n_images} are there: "
        f"{n_missing} are missing where no gap shows, at an end"
    )
    done = "those that are there are read; nothing is added"
    return [Finding("missing_end_slices", what, "fetch the series again", (first.file,), done)]


def _late_start(series: SeriesContents, placement: Placement) -> list[Finding]:
    """Find that instance numbers run in step with the positions, and don't start at 0 or 1.

    That is so of a part cut out of a series, and of series that are numbered on from another: so
    it is no more than noted. Images of the series outside of the stack may have the numbers before.
    """
    numbers = [one.instance_number for one in placement.slices]
    if placement.is_resampled or None in numbers:
        return []
    steps = np.diff(np.array(numbers, np.float64)) / np.diff(placement.levels.image_k)
    if abs(steps[0]) != 1 or (steps != steps[0]).any():
        return []
    first, last = sorted((int(numbers[0] or 0), int(numbers[-1] or 0)))
    if first <= 1 + len(series.slices) - len(numbers) + series.n_left_out:
        return []
    ends = (placement.slices[0], placement.slices[-1])
    what = (
        f"Instance numbers run from {first} to {last} in step with the positions "
        f"({ends[0].name} to {ends[1].name}): it may be a part of a longer series"
    )
    return [Finding("late_first_instance", what, files=(ends[0].file, ends[1].file))]


def _choose_series(
    root: Path, contents: dict[str, SeriesContents], series_uid: str | None, policy: Policy
) -> tuple[SeriesContents, list[Finding]]:
    """Return the one CT series that is meant, and what was found if there are several.

    Where ``several_series`` is repaired, it is the series whose default stack has the most slices;
    of several, the one with the smallest spacing between slices.
    """
    place, where = DicomFile(root), printable(str(root))
    if not contents:
        what, remedy = f"{where} holds no DICOM file", "give the path of a CT series"
        raise SeriesError(Finding("no_dicom", what, remedy, (place,)))
    ct = [series for series in contents.values() if series.is_ct]
    if series_uid is not None and series_uid not in contents:
        listed = _list_series([(_measure(each), each) for each in ct]) or "none"
        what = f"{where} holds no series {printable(series_uid)}; its CT series: {listed}"
        raise SeriesError(Finding("unknown_series", what, files=(place,)))
    asked = contents[series_uid] if series_uid is not None else next(iter(contents.values()))
    if not ct or (series_uid is not None and not asked.is_ct):
        file = asked.first_file
        what = f"There is no CT image: {file.name} is {asked.kind}"
        raise SeriesError(Finding("not_ct", what, "give the path of a CT series", (file,)))
    # a path with nothing but localizers is refused for them
    meant = [asked] if series_uid is not None else [each for each in ct if each.is_meant] or ct
    if len(meant) == 1:
        return meant[0], []
    measured = [(_measure(series), series) for series in meant]
    measured.sort(key=lambda pair: (-pair[0][0], pair[0][1]))
    (size, best), (other_size, _), *_ = measured
    finding = Finding(
        "several_series",
        f"{where} holds {len(meant)} CT series: {_list_series(measured)}",
        "choose one with series_uid=",
        tuple(series.first_file for series in meant[:MAX_NAMED_FILES]),
        f"{printable(best.series_uid)} is read, which has the most slices or, of several, the "
        "smallest spacing",
        can_repair=size != other_size,
    )
    policy.settle([finding])
    return best, [finding]


def _measure(series: SeriesContents) -> tuple[int, float]:
    """Return the number of slices of the default stack and the spacing between them, else 0."""
    for each in place_stacks(series):
        if each.stack.is_default:
            spacing_mm = each.placement.levels.spacing_mm if each.placement is not None else 0.0
            return len(each.stack.slices), spacing_mm
    return 0, 0.0


def _list_series(measured: Sequence[tuple[tuple[int, float], SeriesContents]]) -> str:
    shown = []
    for (count, spacing_mm), series in measured[:MAX_NAMED_FILES]:
        what = f"{count} slices of {spacing_mm:.4g} mm" if spacing_mm else f"{series.n_files} files"
        shown.append(f"{printable(series.series_uid)} ({what})")
    if len(measured) > MAX_NAMED_FILES:
        shown.append(f"{len(measured) - MAX_NAMED_FILES} more")
    return ", ".join(shown)


def _choose_stack(
    root: Path, series: SeriesContents, number: int | None, policy: Policy
) -> PlacedStack:
    """Return the stack asked for, or the default one; where there is none, the first."""
    placed = place_stacks(series, chosen=number)
    if not placed:  # no file is a slice, so that leaving one out helps nobody
        policy.settle(replace(each, can_repair=False) for each in series.findings)
        raise RuntimeError("a series without slices has no problem")
    if number is None:
        return next((each for each in placed if each.stack.is_default), placed[0])
    for each in placed:
        if each.stack.number == number:
            return each
    listed = list_stacks([each.stack for each in placed])
    what = f"Series {printable(series.series_uid)} has no stack {number}; it has {listed}"
    raise SeriesError(Finding("unknown_series", what, files=(DicomFile(root),)))
