"""What can be wrong with a CT series: every problem by its stable name, its default, its repair.

A problem is either refused, or repaired in one documented way; a repair never happens without
being written into `data_prep.CTVolume.problems`. Some are only noted: nothing is changed.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from data_prep.errors import InputError, NamedError


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


class SeriesError(NamedError):
    """A DICOM series that can't be placed in patient space without guessing.

    Parameters
    ----------
    reason : str
        Stable name of the problem, e.g. ``"missing_slices"``; scripts may rely on it.
    message : str
        The sentence for a person.
    files : tuple of Path
        The files concerned, fewest that show the problem.
    problems : tuple of Problem
        Everything that was found, also what would have been repaired or only noted; empty where
        the series was refused before it was judged.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        files: tuple[Path, ...] = (),
        problems: tuple[Problem, ...] = (),
    ) -> None:
        super().__init__(reason, message, files, problems)
        self.files = files
        self.problems = problems


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

    def action(self, name: str) -> Action:
        """Return what to do about a problem."""
        if name in self.repair:
            return Action.REPAIR
        return Action.REFUSE if name in self.refuse else PROBLEMS[name].default
