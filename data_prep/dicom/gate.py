"""One DICOM CT series below a path -> a volume in patient space, or a named refusal."""

import os
import warnings
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from data_prep import geometry
from data_prep.dicom.choice import choose_series, choose_stack
from data_prep.dicom.contents import read_contents
from data_prep.dicom.files import DicomFile, FoundFiles, search
from data_prep.dicom.findings import Decision, Finding, finding_from_error, refusal
from data_prep.dicom.pixels import read_hu
from data_prep.dicom.placement import Placement
from data_prep.dicom.plausibility import judge_values, sample_hu
from data_prep.dicom.regrid import regrid
from data_prep.dicom.slices import with_default_rescale
from data_prep.problems import Action, Policy, SeriesError, SeriesWarning
from data_prep.volume import CTVolume, SourceImage


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
    root = Path(path)
    with _without_warnings():
        found = search(root)
        volume = _read(root, found.files, _of_no_series(found, policy), series_uid, stack, policy)
    _warn_if_implausible(volume)
    return volume


def _of_no_series(found: FoundFiles, policy: Policy) -> list[Decision]:
    """Decide about what lies at the path and can't be looked into."""
    decisions = [
        finding_from_error(error, DicomFile(error.files[0])).decide(policy)
        for error in found.errors
    ]
    for archive in found.passed_over:
        what = f"{archive.name} is an archive inside of an archive"
        finding = Finding("unreadable_file", what, "unpack it", (archive,), "it is passed over")
        # no file that was meant to be read, unless policy says so by name
        is_refused = "unreadable_file" in policy.refuse
        decisions.append(finding.decide(policy, Action.REFUSE if is_refused else Action.REPAIR))
    return decisions


def read_files(
    files: Sequence[DicomFile],
    *,
    series_uid: str,
    stack: int | None = None,
    policy: Policy | None = None,
) -> CTVolume:
    """Read one CT series whose files are known, e.g. from `data_prep.dicom.headers.index_files`.

    Parameters
    ----------
    files
        One or more; those of other series are passed over.
    series_uid, stack
        As in `read_series`.
    policy
        What is repaired and refused, where that differs from the defaults.

    Returns
    -------
    CTVolume
        As from `read_series`, with the same warning.

    Raises
    ------
    SeriesError
        As `read_series`.
    """
    with _without_warnings():
        folder = files[0].path.parent
        volume = _read(folder, files, [], series_uid, stack, policy or Policy())
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
    of_no_series: Sequence[Decision],
    series_uid: str | None,
    stack: int | None,
    policy: Policy,
) -> CTVolume:
    contents = read_contents(files, series_uid)
    decisions = [*of_no_series, *(each.decide(policy) for each in contents.unreadable)]
    try:
        series, from_choice = choose_series(root, contents, series_uid, policy)
        judged = choose_stack(root, series, stack, policy)
    except SeriesError as error:
        # what can't be read may be what was looked for
        raise refusal(decisions, root) or error from None
    decisions += [*from_choice, *judged.decisions]
    refused = refusal(decisions, root)
    if refused is not None or judged.placement is None:
        raise refused or RuntimeError("a stack without a place has no problem")
    return _read_placed(series.series_uid, judged.placement, decisions, policy)


def _read_placed(
    series_uid: str, placement: Placement, decisions: Sequence[Decision], policy: Policy
) -> CTVolume:
    """Read a stack of which no problem is refused."""
    lacks_rescale = any(one.pixels.rescale_is_missing for one in placement.slices)
    slices = with_default_rescale(placement.slices)
    hu, outside = read_hu(slices)
    odd = judge_values(sample_hu(hu, outside), slices, policy, lacks_rescale=lacks_rescale)
    decisions = [*decisions, *odd]
    refused = refusal(decisions, slices[0].file.path)
    if refused is not None:
        raise refused
    if not placement.is_identity:
        hu, outside = regrid(hu, outside, placement)
    return CTVolume(
        hu,
        geometry.affine_lps_to_ras(placement.affine_lps),
        series_uid,
        _uids(placement),
        outside,
        tuple(each.problem for each in decisions),
        placement.levels.interpolated_slices,
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
