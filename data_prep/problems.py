"""What can be wrong with a CT series: every problem by its stable name, its default, its repair.

A problem is either refused, or repaired in one documented way; a repair never happens without
being written into `data_prep.CTVolume.problems`. Some are only noted: nothing is changed.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from data_prep.errors import InputError, NamedError

MAX_NAMED_FILES = 8
"""Most files that a problem names."""


class Action(StrEnum):
    """What is done about a problem."""

    REFUSE = "refuse"
    REPAIR = "repair"
    NOTE = "note"


@dataclass(frozen=True)
class ProblemKind:
    """A problem that a series can have.

    Parameters
    ----------
    name
        Stable; scripts may rely on it.
    meaning
        What is wrong, for a table.
    default
        What is done unless asked otherwise.
    repair
        What a repair does; None where there is none (then it is refused or noted).
    """

    name: str
    meaning: str
    default: Action
    repair: str | None = None


@dataclass(frozen=True)
class Problem:
    """One problem that was found.

    Parameters
    ----------
    name
        A key of `PROBLEMS`.
    message
        One sentence for a person: the thing, what was expected, what was done or is to be done.
    action
        What was done about it.
    files
        Names of the files concerned, the fewest that show the problem.
    """

    name: str
    message: str
    action: Action
    files: tuple[str, ...] = ()


@runtime_checkable
class NamedFile(Protocol):
    """A file that is named to a person: the path on disk, and a name that may be shown."""

    @property
    def path(self) -> Path:
        """The file on disk."""

    @property
    def name(self) -> str:
        """Its name, printable."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a series, before it is decided what is done about it.

    Parameters
    ----------
    name
        A key of `PROBLEMS`.
    what
        What is wrong, with the things' names: a sentence without its end.
    remedy
        What a person can do about it; empty where nothing is to be done.
    files
        The fewest that show it.
    done
        What a repair did, where that is more than the general description.
    can_repair
        False where the repair of this name can't help in this case.
    default
        What is done unless the policy names the problem; None for the default of this name.
    """

    name: str
    what: str
    remedy: str = ""
    files: tuple[NamedFile, ...] = ()
    done: str = ""
    can_repair: bool = True
    default: Action | None = None

    def decide(self, policy: "Policy") -> Problem:
        """Return the problem, with what is done about it."""
        repair = PROBLEMS[self.name].repair if self.can_repair else None
        action = policy.action(self.name, self.default)
        if action is Action.REPAIR and repair is None:
            action = Action.REFUSE
        end = f": {self.remedy}" if self.remedy else ""
        if action is Action.REPAIR:
            end = f"; {self.done or repair}"
        elif action is Action.NOTE:
            end = ""
        elif repair is not None:
            end = f": {self.remedy}, or read it with repair={{'{self.name}'}} ({repair})"
        names = tuple(dict.fromkeys(file.name for file in self.files[:MAX_NAMED_FILES]))
        return Problem(self.name, f"{self.what}{end}.", action, names)


class SeriesError(NamedError):
    """A DICOM series that can't be placed in patient space without guessing.

    Parameters
    ----------
    finding : Finding
        What is wrong. Its name is the ``reason``, which scripts may rely on.
    message : str
        The sentence for a person, where it says more than the finding.
    problems : tuple of Problem
        Everything that was found, also what would have been repaired or only noted; empty where
        the series was refused before all of it was looked at.
    """

    def __init__(
        self, finding: Finding, message: str = "", problems: tuple[Problem, ...] = ()
    ) -> None:
        sentence = f"{finding.what}: {finding.remedy}." if finding.remedy else f"{finding.what}."
        super().__init__(finding.name, message or sentence)
        self.finding = finding
        self.problems = problems

    def __reduce__(self) -> tuple[type["SeriesError"], tuple[object, ...]]:
        return type(self), (self.finding, self.message, self.problems)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files concerned, the fewest that show the problem."""
        return tuple(dict.fromkeys(file.path for file in self.finding.files))


class SeriesWarning(UserWarning):
    """A DICOM series was read, but something about it is unlikely to be right."""


def _refused(name: str, meaning: str) -> ProblemKind:
    return ProblemKind(name, meaning, Action.REFUSE)


def _repairable(name: str, meaning: str, repair: str) -> ProblemKind:
    return ProblemKind(name, meaning, Action.REFUSE, repair)


def _left_out(name: str, meaning: str) -> ProblemKind:
    return ProblemKind(name, meaning, Action.REPAIR, "it is left out")


def _split(name: str, meaning: str) -> ProblemKind:
    return ProblemKind(
        name,
        meaning,
        Action.REPAIR,
        "they are split; the stack with the most slices is read, refused where two have as many",
    )


def _noted(name: str, meaning: str) -> ProblemKind:
    return ProblemKind(name, meaning, Action.NOTE)


_KINDS: tuple[ProblemKind, ...] = (
    # the path and the choice of a series
    _refused("not_found", "there is nothing at the path"),
    _refused("no_dicom", "no DICOM file lies below the path"),
    _refused("not_ct", "the series holds no CT image"),
    _refused("unknown_series", "no series or stack of the name asked for"),
    _repairable(
        "several_series",
        "the path holds several CT series",
        "the one with the most slices is read; of several, the one with the smallest spacing",
    ),
    # single files
    _repairable("unreadable_file", "a file can't be read or parsed", "it is left out"),
    _repairable("truncated_pixels", "a file ends before its pixels do", "it is left out"),
    _left_out("secondary_capture", "a secondary capture lies among the slices"),
    _left_out("localizer", "a localizer (scout view) lies among the slices"),
    _left_out("colour", "a colour image lies among the slices"),
    _left_out("derived_object", "an object that is no CT image lies in the series"),
    _refused("bad_header", "an attribute doesn't hold what the standard says"),
    _refused("no_uid", "a file has no SOPInstanceUID"),
    _refused("no_position", "a file has no position or orientation"),
    _refused("no_pixel_spacing", "a file has no positive PixelSpacing"),
    _refused("no_pixels", "a file holds no pixel data"),
    _refused("size_mismatch", "a header claims another size than its pixels have"),
    _refused("too_large", "the headers claim more voxels than any patient's CT has"),
    _refused("unreadable_pixels", "pixels can't be decoded"),
    _refused("unsupported_syntax", "no decoder for the transfer syntax is installed"),
    _refused("unsupported_pixels", "pixels are stored in a way that isn't read"),
    _refused("not_hu", "the values are not Hounsfield units"),
    _refused("bad_rescale", "the rescale can't give Hounsfield units"),
    _repairable(
        "no_rescale",
        "unsigned values without a rescale to Hounsfield units",
        "the usual intercept of -1024 is taken, if air and tissue then lie where they belong",
    ),
    # the files of a series against each other
    _split("mixed_orientation", "images of several orientations"),
    _split("mixed_matrix_size", "images of several matrix sizes"),
    _split("mixed_pixel_spacing", "images of several pixel spacings"),
    _split("mixed_frame_of_reference", "images of several frames of reference"),
    _repairable(
        "several_phases",
        "several time points or reconstructions at the same positions",
        "they are split by the attribute that tells them apart; the first of them is read",
    ),
    ProblemKind(
        "duplicate_slices",
        "exact copies of an image",
        Action.REPAIR,
        "one of each is kept",
    ),
    _refused("conflicting_slices", "different images at one position, nothing tells them apart"),
    _refused("conflicting_uids", "different images under one SOPInstanceUID"),
    # the place of the stack
    _refused("bad_orientation", "the orientation isn't two unit vectors at a right angle"),
    _refused("single_slice", "one slice alone has no spacing"),
    _refused("shifted_slices", "slices are shifted sideways against each other"),
    _repairable(
        "gantry_tilt",
        "the slices run askew to their normal (from the positions)",
        "resampled to perpendicular axes, linearly within each slice",
    ),
    _repairable(
        "missing_slices",
        "a gap between slices",
        "the gap is filled by linear interpolation between its two neighbours, and flagged",
    ),
    _repairable(
        "missing_end_slices",
        "fewer slices than the headers count",
        "the slices that are there are read; nothing is added",
    ),
    _repairable(
        "variable_spacing",
        "the spacing of the slices changes",
        "resampled linearly from the true positions to the smallest spacing",
    ),
    # only noted
    _noted("position_rounding", "positions differ from a regular stack by rounding"),
    _noted(
        "unspecified_units",
        "the header leaves open whether the values are Hounsfield units, and they look like them",
    ),
    _noted("late_first_instance", "instance numbers run regularly, but don't start at 1"),
    _noted("implausible_hu", "air, soft tissue or bone isn't where it belongs in Hounsfield units"),
)

PROBLEMS = MappingProxyType({kind.name: kind for kind in _KINDS})
"""Every problem by name."""


@dataclass(frozen=True)
class Policy:
    """Which problems are repaired and which refused, where that differs from the defaults.

    Parameters
    ----------
    repair, refuse
        Names of problems.

    Raises
    ------
    InputError
        If a name is unknown, is in both, or has no repair.
    """

    repair: Collection[str] = ()
    refuse: Collection[str] = ()

    def __post_init__(self) -> None:
        for name in (*self.repair, *self.refuse):
            if name not in PROBLEMS:
                raise InputError(
                    f"There is no problem {name!a}; the names are {', '.join(sorted(PROBLEMS))}."
                )
        both = sorted(set(self.repair) & set(self.refuse))
        if both:
            raise InputError(f"{both[0]} can't be both repaired and refused; choose one.")
        for name in self.repair:
            if PROBLEMS[name].repair is None:
                raise InputError(
                    f"{name} can't be repaired: no volume can be made without guessing."
                )

    def action(self, name: str, default: Action | None = None) -> Action:
        """Return what to do about a problem; `default` stands for the one of its name."""
        if name in self.repair:
            return Action.REPAIR
        if name in self.refuse:
            return Action.REFUSE
        return PROBLEMS[name].default if default is None else default

    def settle(self, findings: Iterable[Finding]) -> tuple[Problem, ...]:
        """Return what was found as problems, with what is done about each.

        Raises
        ------
        SeriesError
            For the first that is refused; its message names the others.
        """
        decided = [(finding, finding.decide(self)) for finding in findings]
        problems = tuple(problem for _, problem in decided)
        refused = [pair for pair in decided if pair[1].action is Action.REFUSE]
        if not refused:
            return problems
        (finding, problem), *others = refused
        message = problem.message
        if others:
            names = ", ".join(dict.fromkeys(each.name for _, each in others))
            message = f"{message[:-1]} (refused as well: {names})."
        raise SeriesError(finding, message, problems)
