"""Which nodules a cohort holds, how they are cropped and how they are split into folds."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

from data_prep.crop import voxels_per_edge
from data_prep.errors import InputError

SEEDS = 2**32
"""Seeds lie below this: what numpy takes."""

_SHOWN_LENGTH = 50

MOST_VOXELS = 512
"""Most voxels along the edge of a cube: half a gigabyte as float32."""


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


def protocol_from_json(values: Mapping[str, Any]) -> Protocol:
    """Return the protocol that ``dataclasses.asdict`` gave.

    Raises
    ------
    InputError
        If a setting is missing, unknown, of the wrong type or can't be used.
    """
    names = [setting.name for setting in fields(Protocol)]
    if sorted(values) != sorted(names):
        raise InputError(f"A protocol has the settings {', '.join(names)}, no more and no fewer.")
    for setting in fields(Protocol):
        value = values[setting.name]
        is_choice = get_origin(setting.type) is Literal
        wanted: Any = str if is_choice else setting.type
        accepted = (int, float) if wanted is float else (wanted,)
        # True is an int to Python
        if isinstance(value, bool) or not isinstance(value, accepted):
            raise InputError(
                f"{setting.name} is of type {type(value).__name__}, not {wanted.__name__}."
            )
        if is_choice and value not in get_args(setting.type):
            choices = " or ".join(repr(choice) for choice in get_args(setting.type))
            raise InputError(f"{setting.name} is {str(value)[:_SHOWN_LENGTH]!a}; give {choices}.")
    # an int where a float is meant would be written otherwise than it was read
    mm = {name: float(values[name]) for name in ("size_mm", "spacing_mm")}
    return Protocol(**{**values, **mm})


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

PAPER = Protocol(
    name="paper",
    min_readers=3,
    max_readers=4,
    scans="first",
    indeterminate="drop",
    center="box",
    size_mm=32.0,
    spacing_mm=1.0,
    rim="drop",
    too_large="cut",
    group_folds_by="nodule",
    n_folds=5,
    seed=44,
)
"""The published protocol of the CT experiments. Its folds share patients: compare with the
publication, and nothing else."""

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {protocol.name: protocol for protocol in (CLINICAL, PAPER)}
)
"""Every protocol by name; the first is the default."""
