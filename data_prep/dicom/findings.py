"""What is found wrong with a series, before it is decided what is done about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.dicom.files import DicomFile
from data_prep.problems import PROBLEMS, Action, Policy, Problem, SeriesError

MAX_NAMED_FILES = 8
"""Most files that a problem names."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a series or a stack.

    Parameters
    ----------
    name
        A key of `data_prep.problems.PROBLEMS`.
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
    """

    name: str
    what: str
    remedy: str = ""
    files: tuple[DicomFile, ...] = ()
    done: str = ""
    can_repair: bool = True

    def decide(self, policy: Policy, action: Action | None = None) -> "Decision":
        """Decide what is done about it.

        Parameters
        ----------
        policy
            What is repaired and refused.
        action
            Overrules the policy.
        """
        repair = PROBLEMS[self.name].repair if self.can_repair else None
        action = action or policy.action(self.name)
        if action is Action.REPAIR and repair is None:
            action = Action.REFUSE
        if action is Action.REPAIR:
            end = f"; {self.done or repair}"
        elif action is Action.NOTE:
            end = ""
        elif repair is None:
            end = f": {self.remedy}" if self.remedy else ""
        else:
            end = f": {self.remedy}, or read it with repair={{'{self.name}'}} ({repair})"
        names = tuple(file.name for file in self.files[:MAX_NAMED_FILES])
        return Decision(self, Problem(self.name, f"{self.what}{end}.", action, names))


@dataclass(frozen=True)
class Decision:
    """What was found, and the problem that says what is done about it."""

    finding: Finding
    problem: Problem


def finding_from_error(error: SeriesError, file: DicomFile | None, count: int = 1) -> Finding:
    """Return the finding that a refusal of a file states.

    Parameters
    ----------
    error
        The refusal; its message ends with the remedy, behind a colon.
    file
        The file; None where there is none.
    count
        How many files have the same fault.
    """
    what, _, remedy = str(error).rstrip(".").rpartition(": ")
    if count > 1:
        what = f"{what} ({count - 1} more file(s) likewise)"
    return Finding(error.reason, what, remedy, () if file is None else (file,))


def refusal(decisions: Sequence[Decision], folder: Path) -> SeriesError | None:
    """Return the error for the first problem that is refused, or None.

    Parameters
    ----------
    decisions
        Everything that was found.
    folder
        Stands for the files where a finding names none.
    """
    refused = [each for each in decisions if each.problem.action is Action.REFUSE]
    if not refused:
        return None
    first, *others = refused
    message = first.problem.message
    if others:
        names = ", ".join(dict.fromkeys(each.problem.name for each in others))
        message = f"{message[:-1]} (refused as well: {names})."
    files = tuple(dict.fromkeys(file.path for file in first.finding.files)) or (folder,)
    problems = tuple(each.problem for each in decisions)
    return SeriesError(first.problem.name, message, files, problems)
