"""Label maps in NIfTI, NRRD and MetaImage files: which voxels belong to which label."""

from pathlib import Path

import numpy as np
from jaxtyping import Float64
from scipy import ndimage

from data_prep.errors import MaskError
from data_prep.formats import read_stored
from data_prep.formats.stored import StoredImage
from data_prep.geometry import apply_affine
from data_prep.masks.grid import LabelledMask, label_box

MAX_LABELS = 1000
"""More nodules than any patient has: such a file is noise, or no mask."""

MAX_LABEL_VALUE = 2**16 - 1


def read_label_map(path: Path) -> list[LabelledMask]:
    """Read the labels of an image file.

    Each value above 0 is a label. A map that holds one value only is binary: its connected
    components (26 neighbours) are labels of their own.

    Raises
    ------
    ImageError
        If the file can't be read, see `data_prep.formats.read_image`.
    MaskError
        ``not_labels``, ``empty_mask`` or ``too_many_labels``.
    """
    stored = read_stored(path)
    labels = _to_labels(stored)
    counts = np.zeros(MAX_LABEL_VALUE + 1, dtype=np.int64)
    for k in range(labels.shape[2]):
        counts += np.bincount(labels[:, :, k].ravel(), minlength=len(counts))
    values = [int(value) for value in np.flatnonzero(counts) if value]
    if not values:
        raise MaskError("empty_mask", f"{stored.name} is empty: it marks no voxel.")
    _check_count(len(values), stored.name)
    whole = label_box("", labels > 0, stored.affine)
    if len(values) == 1:
        return _components(whole, values[0], stored.name)
    boxes = ndimage.find_objects(labels)
    masks = []
    for value in values:
        box = boxes[value - 1]
        inside = labels[box] == value
        masks.append(LabelledMask(f"label {value}", inside, _moved(stored.affine, box)))
    return masks


def _components(whole: LabelledMask, value: int, name: str) -> list[LabelledMask]:
    numbered, n_components = ndimage.label(whole.voxels, structure=np.ones((3, 3, 3)))
    _check_count(n_components, name)
    if n_components == 1:
        return [LabelledMask(f"label {value}", whole.voxels, whole.affine)]
    masks = []
    for number, box in enumerate(ndimage.find_objects(numbered), start=1):
        label = f"component {number} of label {value}"
        masks.append(LabelledMask(label, numbered[box] == number, _moved(whole.affine, box)))
    return masks


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
