"""Label maps in NIfTI, NRRD and MetaImage files: which voxels belong to which label."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from scipy import ndimage

from data_prep.errors import MaskError
from data_prep.formats import image_stem, read_stored
from data_prep.formats.stored import StoredImage
from data_prep.geometry import apply_affine
from data_prep.masks.grid import LabelledMask, label_box, place_on_grid
from data_prep.masks.label_names import read_label_names
from data_prep.masks.meant_grid import on_meant_grid
from data_prep.masks.regions import MAX_NAME_LENGTH, DrawnRegion, MaskRegion, measured
from data_prep.text import printable
from data_prep.volume import CTVolume

MAX_LABELS = 1000
"""More nodules than any patient has: such a file is noise, or no mask."""

MAX_LABEL_VALUE = 2**16 - 1
_MOST_DIGITS = 2


def read_label_map(
    path: Path, volume: CTVolume | None = None, *, mask_grid: str | None = None
) -> list[DrawnRegion]:
    """Read the labels of an image file.

    Each value above 0 is a region. A map that holds one value only is binary: its connected
    components (26 neighbours) are regions of their own. Names are those that 3D Slicer and
    TotalSegmentator write into their files; a file of one value lends its own name, unless that
    is the scan's.

    Parameters
    ----------
    path
        The file.
    volume
        The scan that it is meant for, to check the grid; None where only its content is asked for.
    mask_grid
        See `data_prep.masks.nodules_from_masks`.

    Raises
    ------
    ImageError
        If the file can't be read, see `data_prep.formats.read_image`.
    MaskError
        ``not_labels``, ``empty_mask``, ``too_many_labels`` or ``other_grid``.
    """
    stored = read_stored(path)
    if volume is not None:
        stored = on_meant_grid(stored, volume, mask_grid)
    labels = _to_labels(stored)
    counts = np.zeros(MAX_LABEL_VALUE + 1, dtype=np.int64)
    for k in range(labels.shape[2]):
        counts += np.bincount(labels[:, :, k].ravel(), minlength=len(counts))
    values = [int(value) for value in np.flatnonzero(counts) if value]
    if not values:
        raise MaskError("empty_mask", f"{stored.name} is empty: it marks no voxel.")
    _check_count(len(values), stored.name)
    names = read_label_names(path)
    whole = label_box("", labels > 0, stored.affine)
    if len(values) == 1:
        region = names.get(values[0]) or MaskRegion(
            stored.name, name=_own_name(path, "" if volume is None else volume.series_uid)
        )
        return _components(whole, values[0], region)
    boxes = ndimage.find_objects(labels)
    drawn = []
    for value in values:
        box = boxes[value - 1]
        region = replace(names.get(value) or MaskRegion(stored.name), label=f"label {value}")
        mask = LabelledMask(region.title, labels[box] == value, _moved(stored.affine, box))
        drawn.append(_to_drawn(region, mask))
    return drawn


def _to_drawn(region: MaskRegion, mask: LabelledMask) -> DrawnRegion:
    return DrawnRegion(
        measured(region, mask), lambda volume: place_on_grid(mask, volume, region.file)
    )


def _own_name(path: Path, series_uid: str) -> str:
    """Return a file's name as that of what it marks, e.g. TotalSegmentator's ``heart.nii.gz``.

    More digits than ``rib_left_12`` has are a number of a patient, as in ``lung_001.nii.gz``.
    """
    stem = printable(image_stem(path))
    is_of_patient = stem == series_uid or sum(map(str.isdigit, stem)) > _MOST_DIGITS
    return "" if is_of_patient else stem[:MAX_NAME_LENGTH]


def _components(whole: LabelledMask, value: int, region: MaskRegion) -> list[DrawnRegion]:
    numbered, n_components = ndimage.label(whole.voxels, structure=np.ones((3, 3, 3)))
    _check_count(n_components, region.file)
    if n_components == 1:
        region = replace(region, label=f"label {value}")
        return [_to_drawn(region, LabelledMask(region.title, whole.voxels, whole.affine))]
    drawn = []
    for number, box in enumerate(ndimage.find_objects(numbered), start=1):
        part = replace(region, label=f"component {number} of label {value}")
        mask = LabelledMask(part.title, numbered[box] == number, _moved(whole.affine, box))
        drawn.append(_to_drawn(part, mask))
    return drawn


def _moved(
    affine: Float64[np.ndarray, "4 4"], box: tuple[slice, ...]
) -> Float64[np.ndarray, "4 4"]:
    """Return the affine of a box of an array."""
    moved = affine.copy()
    moved[:3, 3] = apply_affine(affine, np.array([edge.start for edge in box]))
    return moved


def _to_labels(stored: StoredImage) -> np.ndarray:
    """Return the values as unsigned 16-bit integers, or refuse what is no label map."""
    labels = np.empty(stored.values.shape, dtype=np.uint16, order="F")
    is_whole = stored.values.dtype.kind in "iu" and not stored.is_scaled
    for k in range(stored.values.shape[2]):
        values = stored.values[:, :, k] if is_whole else stored.slice_values(k)
        if not (values.min() >= 0 and values.max() <= MAX_LABEL_VALUE) or not (
            is_whole or _is_integral(values)
        ):
            raise MaskError(
                "not_labels",
                f"{stored.name} holds values that are no labels (whole numbers from 0 to "
                f"{MAX_LABEL_VALUE}): give a label map or a binary mask, not a CT or "
                "probabilities.",
            )
        labels[:, :, k] = values
    return labels


def _is_integral(values: np.ndarray) -> bool:
    return bool((values == np.rint(values)).all())


def _check_count(count: int, name: str) -> None:
    if count > MAX_LABELS:
        raise MaskError(
            "too_many_labels",
            f"{name} holds {count} separate labels or components, more than nodules in any "
            f"patient ({MAX_LABELS}): give a mask of nodules.",
        )
