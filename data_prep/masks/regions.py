"""The regions of a mask file: named, chosen by name, or left out where they can't be a nodule.

Names follow AAPM TG-263 (Standardizing Nomenclatures in Radiation Oncology, 2018), the class names
of TotalSegmentator, or a clinic's own habit, in any case and with any separators. A name is an
organ's if all of its words are known and one of them is an organ: ``Lung_L``, ``Left lung``,
``LUNG LT`` and ``lung_upper_lobe_left`` are, ``lung nodule`` isn't.
"""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.resources import files
from types import MappingProxyType

from data_prep.errors import MaskError
from data_prep.text import printable

MAX_NODULE_MM = 50.0
"""Without a choice, what is larger isn't taken unless its name says that it is a lesion.

Radiologists call a lesion of up to 30 mm a nodule and a larger one a mass (Fleischner Society,
2024). Outlines run around the edge, and readers draw masses too: the largest of the 1,392 nodules
of LIDC-IDRI with three readers or more has a mean diameter of 46.8 mm in the axial plane.
"""

MAX_NAME_LENGTH = 64
"""As PS3.5 table 6.2-1 has it for ROIName and SegmentLabel (LO)."""

MAX_REGIONS = 1000
"""More nodules than any patient has: such a file is noise, or no mask."""

LEFT_OUT_REASONS = MappingProxyType(
    {
        "organ_name": "named like an organ, a device or an aid of planning",
        "target_with_margin": "a target with a margin around the lesion (CTV, ITV, PTV)",
        "region_type": "of a type that is no lesion",
        "too_large_for_nodule": f"larger than {MAX_NODULE_MM:g} mm",
    }
)
"""Why a region isn't taken as a nodule unless it is chosen by name."""

_MOST_LISTED = 40
_MOST_DIGITS = 3

_WORDS = {
    group: frozenset(words.split())
    for group, words in tomllib.loads(
        files("data_prep.masks").joinpath("words.toml").read_text("utf-8")
    ).items()
}
_ANATOMY = _WORDS["organ"] | _WORDS["modifier"]
_WORD = re.compile(r"[^\W\d_]+|\d+")
_CAPITAL_WITHIN = re.compile(r"(?<=[a-zäöüß])(?=[A-ZÄÖÜ])")
_MINUS_TARGET = re.compile(
    r"(.*?)[\s_]*(?:-|minus|not|sub|excl|without|w/o)[\s_]*(?:i?gtv|i?ctv|itv|ptv)",
    re.IGNORECASE | re.DOTALL,
)
# nothing that a spreadsheet takes for a formula
_PLAIN_TEXT = re.compile(r"[^\W_][\w .,+()/%-]*")


@dataclass(frozen=True)
class MaskRegion:
    """A region of a structure set, a segment of a segmentation, or a label of an image.

    Texts are printable; only `label` never tells who a patient is.

    Parameters
    ----------
    file
        The file's own name.
    label
        Its number there: ``ROI 4``, ``segment 3``, ``label 2``, ``component 1 of label 1``;
        empty for the file as a whole.
    name
        What the file calls it; empty where it doesn't say. An image file of one label lends its
        own name.
    kind
        What the file says it is: RTROIInterpretedType, or the property of a segment.
    is_no_lesion
        Whether `kind` says that it is an organ, a device or the like.
    n_slices
        Slices or planes that it is drawn on.
    size_mm
        Extent from right to left, posterior to anterior, inferior to superior; None where
        nothing is drawn.
    """

    file: str
    label: str = ""
    name: str = ""
    kind: str = ""
    is_no_lesion: bool = False
    n_slices: int = 0
    size_mm: tuple[float, float, float] | None = None

    @property
    def is_named(self) -> bool:
        """Whether it has a name of its own, not the file's."""
        return bool(self.name) and not self.file.startswith(f"{self.name}.")

    @property
    def title(self) -> str:
        """Number and name, for a sentence."""
        return f"{self.label} '{self.name}'" if self.is_named else self.label

    @property
    def place(self) -> str:
        """Number, name and file, for a sentence."""
        return f"{self.title} of {self.file}" if self.label else self.file

    @property
    def called(self) -> str:
        """The name; where there is none of its own, the number."""
        return self.name if self.is_named else self.label

    def matches(self, pattern: str) -> bool:
        """Tell whether a pattern (``*``, ``?``, ``[...]``) fits the name or the number.

        Examples
        --------
        >>> region = MaskRegion("rs.dcm", "ROI 4", "GTV-1")
        >>> region.matches("gtv*"), region.matches("ROI 4"), region.matches("Lung*")
        (True, True, False)
        """
        texts = {self.name.casefold(), self.label.casefold()} - {""}
        wanted = pattern.casefold()
        return wanted in texts or any(fnmatchcase(text, wanted) for text in texts)

    @property
    def why_no_nodule(self) -> str:
        """A key of `LEFT_OUT_REASONS`; empty for what may be a nodule.

        The name is more than the type: planning systems call every new region an organ.
        """
        if is_organ(self.name):
            return "organ_name"
        if has_margin(self.name):
            return "target_with_margin"
        if says_nodule(self.name):
            return ""
        if self.kind in ("CTV", "PTV"):
            return "target_with_margin"
        if self.is_no_lesion:
            return "region_type"
        is_large = self.size_mm is not None and max(self.size_mm) > MAX_NODULE_MM
        return "too_large_for_nodule" if is_large else ""


def is_no_lesion_type(kind: str) -> bool:
    """Tell whether an RTROIInterpretedType (PS3.3 C.8.8.8.1) is that of what is no lesion."""
    return kind in _WORDS["no_lesion_type"]


def region_name(text: object) -> str:
    """Return a name or a meaning from a file as it may be shown."""
    return printable(str(text or "").strip())[:MAX_NAME_LENGTH]


def described_region(
    file: str, label: str, name: object, category: tuple[str, str], kind: tuple[str, str]
) -> MaskRegion:
    """Return a segment by the codes and meanings of its category and type (PS3.3 C.8.20.4)."""
    meanings = [region_name(category[1]), region_name(kind[1])]
    # 3D Slicer calls whatever isn't specified tissue, of the type tissue
    is_no_lesion = category[0] in _WORDS["no_lesion_category"] and category[0] != kind[0]
    return MaskRegion(
        file,
        label,
        region_name(name),
        ", ".join(filter(None, meanings)),
        is_no_lesion and not says_nodule(meanings[1]),
    )


def check_count(count: int, source: str, what: str) -> None:
    """Refuse a file without regions, or with more than nodules in any patient."""
    if not count:
        raise MaskError("empty_mask", f"{source} is empty: it holds no {what}.")
    if count > MAX_REGIONS:
        raise MaskError(
            "too_many_labels",
            f"{source} holds {count} {what}s, more than nodules in any patient ({MAX_REGIONS}): "
            "give a mask of nodules.",
        )


def check_choice(regions: Sequence[MaskRegion], patterns: Sequence[str]) -> None:
    """Refuse patterns that fit no region as ``no_such_region``, with the names that there are."""
    if not patterns or any(region.matches(one) for region in regions for one in patterns):
        return
    wanted = ", ".join(f"{pattern!r}" for pattern in patterns)
    titles = list(dict.fromkeys(f"'{each.name}'" if each.name else each.label for each in regions))
    there_are = ", ".join(titles[:_MOST_LISTED]) or "none"
    more = f" and {len(titles) - _MOST_LISTED} more" if len(titles) > _MOST_LISTED else ""
    raise MaskError(
        "no_such_region",
        f"No region is named like {wanted}. The regions are: {there_are}{more}.",
    )


def says_nodule(name: str) -> bool:
    """Tell whether a name says that a lesion itself is outlined.

    >>> says_nodule("GTV-1"), says_nodule("Lung nodule"), says_nodule("PTV"), says_nodule("Lung_L")
    (True, True, False, False)
    """
    return bool(_WORDS["nodule"] & set(_split(name))) and not is_organ(name)


def has_margin(name: str) -> bool:
    """Tell whether a name is that of a target with a margin (ICRU 62 and 83: CTV, ITV, PTV).

    >>> has_margin("PTV_Lung_R"), has_margin("ptv60"), has_margin("IGTV")
    (True, True, False)
    """
    return bool(_WORDS["margin"] & set(_split(name)))


def is_organ(name: str) -> bool:
    """Tell whether a name is that of an organ, of a device or of an aid of planning.

    An organ without the target (``Lungs-GTV`` of TG-263) is an organ.

    >>> is_organ("Lung_L"), is_organ("SpinalCord_PRV05"), is_organ("rib_left_1"), is_organ("GTV-1")
    (True, True, True, False)
    >>> is_organ("Lungs-GTV"), is_organ("Left lung nodule")
    (True, False)
    """
    without_target = _MINUS_TARGET.match(name)
    if without_target and is_organ(without_target[1]):
        return True
    words = [word for word in _split(name) if not word.isdigit()]
    return all(_is_known(word, _ANATOMY) for word in words) and any(
        _is_known(word, _WORDS["organ"]) for word in words
    )


def names_nobody(name: str) -> bool:
    """Tell whether a name can be passed on: known words, too few digits for a date or number.

    >>> names_nobody("GTV-1"), names_nobody("PTV_60Gy"), names_nobody("GTV Miller")
    (True, True, False)
    >>> names_nobody("GTV 31.01.24"), names_nobody("Lungs-GTV Miller")
    (False, False)
    """
    words = _split(name)
    n_digits = sum(len(word) for word in words if word.isdigit())
    if not _PLAIN_TEXT.fullmatch(name) or n_digits > _MOST_DIGITS:
        return False
    targets = _WORDS["nodule"] | _WORDS["margin"]
    others = [word for word in words if not word.isdigit() and word not in targets]
    return all(word in _WORDS["plain"] for word in others) or (
        is_organ(name) and all(_is_known(word, _ANATOMY) for word in others)
    )


def _split(name: str) -> list[str]:
    """Return the words in small letters; ``SpinalCord`` are two, unless known as one."""
    words: list[str] = []
    for run in _WORD.findall(name):
        is_one = run.casefold() in _ANATOMY
        parts = [run] if is_one else _CAPITAL_WITHIN.split(run)
        words += [part.casefold() for part in parts]
    return words


def _is_known(word: str, known: frozenset[str]) -> bool:
    """Look a word up, also in the plural and where two words are written as one."""
    if word in known or word.removesuffix("s") in known:
        return True
    pairs = ((word[:place], word[place:]) for place in range(3, len(word) - 2))
    return any(first in known and last in known for first, last in pairs)
