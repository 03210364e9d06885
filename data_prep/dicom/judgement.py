"""One series under a policy -> its stacks, each with everything that is wrong and what is done."""

from dataclasses import dataclass, replace

from data_prep.dicom.contents import SeriesContents
from data_prep.dicom.counts import find_late_start, find_missing_ends
from data_prep.dicom.findings import Decision, Finding
from data_prep.dicom.placement import Placement, place_slices
from data_prep.dicom.slices import CTSlice
from data_prep.dicom.stacks import Stack, split_stacks
from data_prep.problems import Action, Policy


@dataclass(frozen=True, eq=False)
class JudgedStack:
    """A stack, and what is known of it before its pixels are read.

    Parameters
    ----------
    stack
        Its slices.
    placement
        Where they lie; None if that can't be told.
    decisions
        Everything that is wrong, and what is done about it.
    """

    stack: Stack
    placement: Placement | None
    decisions: tuple[Decision, ...]


def judge_series(
    series: SeriesContents, policy: Policy, *, chosen: int | None = None
) -> list[JudgedStack]:
    """Split a series into stacks and judge each.

    Parameters
    ----------
    series
        All its slices.
    policy
        What is repaired and refused.
    chosen
        Number of the stack that was asked for. It stops mattering then that there are several,
        unless the policy refuses that by name.

    Returns
    -------
    list of JudgedStack
        Empty where there is no slice.
    """
    if not series.slices:
        return []
    from_files = series.findings
    return [
        _judge(stack, series, from_files, policy, is_chosen=stack.number == chosen)
        for stack in split_stacks(series.slices)
    ]


def _judge(
    stack: Stack,
    series: SeriesContents,
    from_files: list[Finding],
    policy: Policy,
    *,
    is_chosen: bool,
) -> JudgedStack:
    decisions = [each.decide(policy) for each in (*from_files, *stack.splits)]
    if is_chosen:
        done = f"stack {stack.number} was asked for"
        decisions = [each.decide(policy) for each in from_files] + [
            replace(each, done=done, can_repair=True).decide(
                policy, None if each.name in policy.refuse else Action.REPAIR
            )
            for each in stack.splits
        ]
    findings = [*stack.findings, *_missing_rescale(stack), *_unspecified_units(stack)]
    placement = None
    # several images at one position have no spacing
    if not any(each.name in _UNPLACEABLE for each in stack.findings):
        placement, from_place = place_slices(stack.slices)
        findings += from_place
    if placement is not None:
        findings += find_missing_ends(series, stack.slices, placement)
        findings += find_late_start(series, placement)
    decisions += [each.decide(policy) for each in findings]
    return JudgedStack(stack, placement, tuple(decisions))


_UNPLACEABLE = (
    "bad_orientation",
    "bad_header",
    "conflicting_slices",
    "too_large",
    "truncated_pixels",
    "unreadable_file",
    "unreadable_pixels",
)


def _missing_rescale(stack: Stack) -> list[Finding]:
    missing: list[CTSlice] = [one for one in stack.slices if one.pixels.rescale_is_missing]
    if not missing:
        return []
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    return [
        Finding(
            "no_rescale",
            f"{missing[0].name}{more} lacks RescaleSlope or RescaleIntercept, so its stored values "
            "can't be turned into Hounsfield units",
            "export the original series again",
            (missing[0].file,),
        )
    ]


def _unspecified_units(stack: Stack) -> list[Finding]:
    open_ones = [one for one in stack.slices if one.left_open]
    if not open_ones:
        return []
    first = open_ones[0]
    what = (
        f"{first.name} leaves open whether its values are Hounsfield units ({first.left_open}); "
        "they are taken for them, as they look like them"
    )
    return [Finding("unspecified_units", what, "choose the series with CT numbers", (first.file,))]
