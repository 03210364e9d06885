"""Which series and which stack is meant: the one asked for, the only one, or one by rule."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.dicom.contents import Contents, SeriesContents
from data_prep.dicom.findings import MAX_NAMED_FILES, Decision, Finding, refusal
from data_prep.dicom.judgement import JudgedStack, judge_series
from data_prep.dicom.stacks import list_stacks
from data_prep.problems import Action, Policy, SeriesError
from data_prep.text import printable


def choose_series(
    root: Path, contents: Contents, series_uid: str | None, policy: Policy
) -> tuple[SeriesContents, list[Decision]]:
    """Return the one CT series that is meant, and what was decided if there are several.

    Where ``several_series`` is repaired, it is the series whose default stack has the most slices;
    of several, the one with the smallest spacing between slices.

    Raises
    ------
    SeriesError
        ``no_dicom``, ``unknown_series``, ``not_ct`` or ``several_series``.
    """
    if not contents.series:
        raise SeriesError(
            "no_dicom",
            f"{printable(str(root))} holds no DICOM file: give the path of a CT series.",
            (root,),
        )
    if series_uid is not None:
        return _choose_by_uid(root, contents, series_uid), []
    ct = [series for series in contents.series.values() if series.is_ct]
    if not ct:
        raise _no_ct(next(iter(contents.series.values())))
    # a path with nothing but localizers is refused for them
    meant = [series for series in ct if series.is_meant] or ct
    if len(meant) == 1:
        return meant[0], []
    measured = [(_measure(series), series) for series in meant]
    measured.sort(key=lambda pair: (-pair[0][0], pair[0][1]))
    (size, best), (other_size, _), *_ = measured
    finding = Finding(
        "several_series",
        f"{printable(str(root))} holds {len(meant)} CT series: {_list_series(measured)}",
        "choose one with series_uid=",
        tuple(series.first_file for series in meant[:MAX_NAMED_FILES]),
        f"{printable(best.series_uid)} is read, which has the most slices or, of several, the "
        "smallest spacing",
        can_repair=size != other_size,
    )
    decision = finding.decide(policy)
    error = refusal([decision], root)
    if error is not None:
        raise error
    return best, [decision]


def _choose_by_uid(root: Path, contents: Contents, series_uid: str) -> SeriesContents:
    series = contents.series.get(series_uid)
    if series is None:
        ct = [(_measure(each), each) for each in contents.series.values() if each.is_ct]
        raise SeriesError(
            "unknown_series",
            f"{printable(str(root))} holds no series {printable(series_uid)}; its CT series: "
            f"{_list_series(ct) or 'none'}.",
            (root,),
        )
    if not series.is_ct:
        raise _no_ct(series)
    return series


def _no_ct(series: SeriesContents) -> SeriesError:
    file = series.first_file
    return SeriesError(
        "not_ct",
        f"There is no CT image: {file.name} is {series.kind}; give the path of a CT series.",
        (file.path,),
    )


def _measure(series: SeriesContents) -> tuple[int, float]:
    """Return the number of slices of the default stack and the spacing between them, else 0."""
    judged = judge_series(series, Policy())
    for each in judged:
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


def choose_stack(
    root: Path, series: SeriesContents, stack: int | None, policy: Policy
) -> JudgedStack:
    """Return the stack asked for, or the default one; where there is none, the first.

    Raises
    ------
    SeriesError
        ``unknown_series`` if there is no stack of the number, or the problem of the files if none
        of them is a slice.
    """
    judged = judge_series(series, policy, chosen=stack)
    if not judged:
        decisions = [each.decide(policy, Action.REFUSE) for each in series.findings]
        error = refusal(decisions, root)
        raise error or RuntimeError("a series without slices has no problem")
    if stack is None:
        return next((each for each in judged if each.stack.is_default), judged[0])
    for each in judged:
        if each.stack.number == stack:
            return each
    raise SeriesError(
        "unknown_series",
        f"Series {printable(series.series_uid)} has no stack {stack}; it has "
        f"{list_stacks([each.stack for each in judged])}.",
        (root,),
    )
