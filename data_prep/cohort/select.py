"""Protocols: which nodules a cohort takes, how they are cropped and split into folds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, Literal

from pydantic import ConfigDict

from data_prep.cohort.schema import label_of
from data_prep.crop import voxels_per_edge
from data_prep.errors import InputError, NamedError

SEEDS = 2**32
"""Seeds lie below this: what numpy takes."""

MOST_VOXELS = 512
"""Most voxels along the edge of a cube: half a gigabyte as float32."""

REASONS = {
    "second_scan": "the protocol takes the first scan of a patient only",
    "ambiguous_cluster": "more outlines than readers: several nodules that can't be told apart",
    "too_few_readers": "fewer readers outlined it than the protocol asks for",
    "too_many_readers": "more readers outlined it than the protocol asks for",
    "indeterminate": "its median malignancy is exactly 3",
    "missing_slices": "slices are missing in the scan, which is refused unless repaired",
    "variable_spacing": "the scan's slice spacing changes, which is refused unless repaired",
    "larger_than_crop": "it reaches beyond the cube",
    "reaches_beyond_scan": "its cube reaches beyond the scan",
}
"""Why a protocol leaves a nodule out, in the order in which it is looked at."""


@dataclass(frozen=True)
class Protocol:
    """The settings that decide what a cohort holds.

    Parameters
    ----------
    name
        Of the protocol, e.g. ``"clinical"``.
    min_readers, max_readers
        Fewest and most readers of a nodule. They apply where readers are known: a nodule that
        comes from a table or a mask has none and is never left out for that.
    scans
        Of a patient with several: ``"first"`` or ``"all"``.
    indeterminate
        A nodule with a median malignancy of exactly 3: ``"keep"`` or ``"drop"``.
    center
        Middle of the cube: ``"mass"``, the centre of mass of the consensus, or ``"box"``, the
        middle of the box around all readers' outlines (without readers: around the mask). A
        nodule without outline is centred on its point.
    size_mm, spacing_mm
        Edge of the cube, and of a voxel, in millimetres.
    rim
        A cube that reaches beyond the scan: ``"pad"`` with air, or ``"drop"`` the nodule.
    too_large
        A nodule that reaches beyond the cube: ``"cut"``, or ``"drop"`` it.
    group_folds_by
        ``"patient"``: no patient is in two folds. ``"nodule"``: nodules are split one by one, so
        that a model is tested on patients it was trained on.
    n_folds, seed
        Number of folds, and the seed of their shuffle.

    Raises
    ------
    InputError
        If a setting can't be used; the message names it.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    name: str
    min_readers: int
    max_readers: int
    scans: Literal["first", "all"]
    indeterminate: Literal["keep", "drop"]
    center: Literal["mass", "box"]
    size_mm: float
    spacing_mm: float
    rim: Literal["pad", "drop"]
    too_large: Literal["cut", "drop"]
    group_folds_by: Literal["patient", "nodule"]
    n_folds: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.min_readers <= self.max_readers:
            raise InputError(
                f"min_readers {self.min_readers} and max_readers {self.max_readers} don't fit; "
                f"give 0 or more, and no fewer at most than at least."
            )
        if voxels_per_edge(self.size_mm, self.spacing_mm) > MOST_VOXELS:
            raise InputError(
                f"A cube of {self.size_mm:g} mm at {self.spacing_mm:g} mm has more than "
                f"{MOST_VOXELS} voxels along an edge; give a smaller cube or larger voxels."
            )
        if self.n_folds < 2:
            raise InputError(f"n_folds is {self.n_folds}; give 2 or more.")
        if not 0 <= self.seed < SEEDS:
            raise InputError(f"seed is {self.seed}; give a number from 0 to {SEEDS - 1}.")

    @property
    def n_voxels(self) -> int:
        """Number of voxels along each edge of the cube."""
        return voxels_per_edge(self.size_mm, self.spacing_mm)


CLINICAL = Protocol(
    name="clinical",
    min_readers=3,
    max_readers=4,
    scans="all",
    indeterminate="keep",
    center="mass",
    size_mm=64.0,
    spacing_mm=1.0,
    rim="pad",
    too_large="drop",
    group_folds_by="patient",
    n_folds=5,
    seed=0,
)
"""The default: all nodules of three readers or more, and no patient in two folds."""

PAPER = replace(
    CLINICAL,
    name="paper",
    scans="first",
    indeterminate="drop",
    center="box",
    size_mm=32.0,
    rim="drop",
    too_large="cut",
    group_folds_by="nodule",
    seed=44,
)
"""The published protocol of the CT experiments. Its folds share patients: compare with the
publication, and nothing else."""

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {protocol.name: protocol for protocol in (CLINICAL, PAPER)}
)
"""Every protocol by name; the first is the default."""


def nodule_refusal(
    n_readers: int, malignancy: float | None, protocol: Protocol
) -> NamedError | None:
    """Return why a protocol leaves a nodule out, whatever its image, by one of `REASONS`.

    Nodules of no known readers (0), as from a table or a mask, aren't left out for that.
    """
    if 0 < n_readers < protocol.min_readers:
        return refusal("too_few_readers", f"{n_readers}, asked for are {protocol.min_readers}")
    if n_readers > protocol.max_readers:
        most = f"{protocol.max_readers} at most"
        return refusal("too_many_readers", f"{n_readers}, asked for are {most}")
    if protocol.indeterminate == "drop" and label_of(malignancy) == "indeterminate":
        return refusal("indeterminate")
    return None


def cube_refusal(
    protocol: Protocol, *, is_cut: bool, is_beyond_scan: bool, detail: str = ""
) -> NamedError | None:
    """Return why a protocol leaves a nodule out for its cube, by one of `REASONS`."""
    if is_cut and protocol.too_large == "drop":
        return refusal("larger_than_crop", detail)
    if is_beyond_scan and protocol.rim == "drop":
        return refusal("reaches_beyond_scan", detail)
    return None


def refusal(reason: str, detail: str = "") -> NamedError:
    """Return one of `REASONS` with its sentence, and the numbers behind it."""
    text = REASONS[reason]
    message = f"{text[0].upper()}{text[1:]}{f' ({detail})' if detail else ''}."
    return NamedError(reason, message)
