"""The regions of a mask file: named, chosen by name, or left out where they can't be a nodule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType

from data_prep.errors import MaskError
from data_prep.geometry import closest_canonical_axes, spacing_mm
from data_prep.masks.grid import LabelledMask, PlacedMask
from data_prep.masks.region_names import has_margin, is_organ, says_nodule
from data_prep.text import printable
from data_prep.volume import CTVolume

MAX_NODULE_MM = 50.0
"""Without a choice, what is larger isn't taken unless its name says that it is a lesion.

Radiologists call a lesion of up to 30 mm a nodule and a larger one a mass (Fleischner Society,
2024). Outlines run around the edge, and readers draw masses too: the largest of the 1,392 nodules
of LIDC-IDRI with three readers or more has a mean diameter of 46.8 mm in the axial plane.
"""

MAX_NAME_LENGTH = 64
"""As PS3.5 table 6.2-1 has it for ROIName and SegmentLabel (LO)."""

_MOST_LISTED = 40

# Segmentation property categories (PS3.16 CID 7150) of what is no lesion, by their SNOMED CT codes
# and older SRT codes: anatomical structure, body structure, tissue, body substance, physical
# object, spatial concept, function, substance, body organ
_NO_LESION_CATEGORIES = frozenset(
    [
        *("91723000", "123037004", "T-D000A", "85756007", "T-D0050", "91720002", "T-D0080"),
        *("260787004", "A-00004", "309825002", "R-42018", "246464006", "105590001", "113343008"),
    ]
)

LEFT_OUT_REASONS = MappingProxyType(
    {
        "organ_name": "named like an organ, a device or an aid of planning",
        "target_with_margin": "a target with a margin around the lesion (CTV, ITV, PTV)",
        "region_type": "of a type that is no lesion",
        "too_large_for_nodule": f"larger than {MAX_NODULE_MM:g} mm",
    }
)
"""Why a region isn't taken as a nodule unless it is chosen by name."""


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
    def is_named_after_file(self) -> bool:
        """Whether the name is the file's."""
        return bool(self.name) and self.file.startswith(f"{self.name}.")

    @property
    def title(self) -> str:
        """Number and name, for a sentence."""
        if not self.name or self.is_named_after_file:
            return self.label
        return f"{self.label} '{self.name}'"

    @property
    def place(self) -> str:
        """Number, name and file, for a sentence."""
        return f"{self.title} of {self.file}" if self.label else self.file

    @property
    def called(self) -> str:
        """The name; where there is none of its own, the number."""
        return self.label if not self.name or self.is_named_after_file else self.name

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


@dataclass(frozen=True, eq=False)
class DrawnRegion:
    """A region and the way to its voxels.

    Parameters
    ----------
    region
        What it is.
    to_grid
        Places it on the grid of a volume; raises a `MaskError` where it can't be used.
    """

    region: MaskRegion
    to_grid: Callable[[CTVolume], PlacedMask]


def region_name(text: object) -> str:
    """Return a name or a meaning from a file as it may be shown."""
    return printable(str(text or "").strip())[:MAX_NAME_LENGTH]


def is_no_lesion_code(category: str) -> bool:
    """Tell whether the code of a segment's category is that of an organ, a device or the like."""
    return category in _NO_LESION_CATEGORIES


def measured(region: MaskRegion, mask: LabelledMask) -> MaskRegion:
    """Return a region with the number of axial slices and the size of its voxels' box."""
    order = closest_canonical_axes(mask.affine).order
    sides_mm = mask.voxels.shape * spacing_mm(mask.affine)
    x, y, z = (float(sides_mm[axis]) for axis in order)
    n_slices = int(mask.voxels.any(axis=(order[0], order[1])).sum())
    return replace(region, n_slices=n_slices, size_mm=(x, y, z))


def unusable(region: MaskRegion, error: MaskError) -> DrawnRegion:
    """Return a region that is refused by an error whenever it is wanted."""

    def refuse(_: CTVolume) -> PlacedMask:
        raise error

    return DrawnRegion(region, refuse)


def check_choice(regions: Sequence[MaskRegion], patterns: Sequence[str]) -> None:
    """Check that patterns choose a region at all.

    Raises
    ------
    MaskError
        ``no_such_region``, with the names that there are.
    """
    if not patterns or any(region.matches(one) for region in regions for one in patterns):
        return
    raise no_such_region(regions, patterns)


def no_such_region(regions: Sequence[MaskRegion], patterns: Sequence[str]) -> MaskError:
    """Return the refusal of patterns that fit none of some regions."""
    wanted = ", ".join(f"{pattern!r}" for pattern in patterns)
    titles = list(dict.fromkeys(f"'{each.name}'" if each.name else each.label for each in regions))
    there_are = ", ".join(titles[:_MOST_LISTED]) or "none"
    more = f" and {len(titles) - _MOST_LISTED} more" if len(titles) > _MOST_LISTED else ""
    return MaskError(
        "no_such_region",
        f"No region is named like {wanted}. The regions are: {there_are}{more}.",
    )
