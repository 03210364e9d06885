"""Label maps in NIfTI, NRRD and MetaImage files: their regions, and the grid that is meant."""

import gzip
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from scipy import ndimage

from data_prep.errors import InputError, MaskError
from data_prep.formats import image_stem, read_stored
from data_prep.formats.stored import StoredImage
from data_prep.geometry import apply_affine, inverse_affine, spacing_mm
from data_prep.masks.grid import DrawnRegion, OwnGrid, place_on_grid, smallest_box
from data_prep.masks.regions import (
    MAX_NAME_LENGTH,
    MaskRegion,
    check_count,
    described_region,
    region_name,
)
from data_prep.text import printable
from data_prep.volume import CTVolume

MASK_GRIDS = ("ct", "own")
"""Whose grid a mask image lies on, where that is asked for."""

_MAX_LABEL_VALUE = 2**16 - 1
_MOST_DIGITS = 2

_HALF_VOXEL = 0.5
"""Grids that lie closer together than this give the same voxels by nearest neighbour."""

_FLIPS = tuple(np.ndindex(2, 2, 2))
_AXIS_NAMES = ("left and right", "front and back", "head and feet")

_MAX_HEADER_BYTES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
# 3D Slicer: "Segment0_Name:=nodule", "Segment0_LabelValue:=1", "Segment0_Tags:=..."
_SLICER = re.compile(r"^Segment(\d+)_(Name|LabelValue|Tags):=(.*)$", re.MULTILINE)
_SLICER_TYPE = re.compile(
    r"TerminologyEntry:[^~|]*~[^^~|]*\^([^^~|]*)\^([^^~|]*)~[^^~|]*\^([^^~|]*)\^([^^~|]*)"
)
# TotalSegmentator: a label table of Connectome Workbench as extension of the NIfTI header
_TABLE = re.compile(r'<Label Key="(\d{1,5})"[^>]{0,200}>\s*<!\[CDATA\[(.{0,200}?)\]\]>', re.DOTALL)


def read_label_map(
    path: Path, volume: CTVolume | None = None, *, mask_grid: str | None = None
) -> list[DrawnRegion]:
    """Read the labels of an image file, for a volume if there is one.

    Each value above 0 is a region. A map that holds one value only is binary: its connected
    components (26 neighbours) are regions of their own. Names are those that 3D Slicer and
    TotalSegmentator write into their files; a file of one value lends its own name, unless that
    is the scan's. Refused as ``not_labels``, ``empty_mask``, ``too_many_labels`` or ``other_grid``;
    an `ImageError` where the file can't be read.
    """
    stored = read_stored(path)
    if volume is not None:
        stored = _on_meant_grid(stored, volume, mask_grid)
    labels = _to_labels(stored)
    counts = np.zeros(_MAX_LABEL_VALUE + 1, dtype=np.int64)
    for k in range(labels.shape[2]):
        counts += np.bincount(labels[:, :, k].ravel(), minlength=len(counts))
    values = [int(value) for value in np.flatnonzero(counts) if value]
    check_count(len(values), stored.name, "label")
    names = _label_names(path)
    if len(values) == 1:
        own_name = _own_name(path, "" if volume is None else volume.series_uid)
        region = names.get(values[0]) or MaskRegion(stored.name, name=own_name)
        whole = smallest_box(labels > 0, stored.affine)
        return _components(whole, f"label {values[0]}", region)
    boxes = ndimage.find_objects(labels)
    return [
        _drawn(
            replace(names.get(value) or MaskRegion(stored.name), label=f"label {value}"),
            OwnGrid.cut(labels[boxes[value - 1]] == value, stored.affine, boxes[value - 1]),
        )
        for value in values
    ]


def _components(whole: OwnGrid, label: str, region: MaskRegion) -> list[DrawnRegion]:
    numbered, n_components = ndimage.label(whole.voxels, structure=np.ones((3, 3, 3)))
    check_count(n_components, region.file, "component")
    return [
        _drawn(
            replace(region, label=label if n_components == 1 else f"component {number} of {label}"),
            OwnGrid.cut(numbered[box] == number, whole.affine, box),
        )
        for number, box in enumerate(ndimage.find_objects(numbered), start=1)
    ]


def _drawn(region: MaskRegion, mask: OwnGrid) -> DrawnRegion:
    region = mask.measured(region)
    return DrawnRegion(region, lambda volume: place_on_grid(mask, volume, region))


def _own_name(path: Path, series_uid: str) -> str:
    """Return a file's name as that of what it marks, e.g. TotalSegmentator's ``heart.nii.gz``.

    More digits than ``rib_left_12`` has are a number of a patient, as in ``lung_001.nii.gz``.
    """
    stem = printable(image_stem(path))
    is_of_patient = stem == series_uid or sum(map(str.isdigit, stem)) > _MOST_DIGITS
    return "" if is_of_patient else stem[:MAX_NAME_LENGTH]


def _to_labels(stored: StoredImage) -> np.ndarray:
    """Return the values as unsigned 16-bit integers, or refuse what is no label map."""
    labels = np.empty(stored.values.shape, dtype=np.uint16, order="F")
    is_whole = stored.values.dtype.kind in "iu" and not stored.is_scaled
    for k in range(stored.values.shape[2]):
        values = stored.values[:, :, k] if is_whole else stored.slice_values(k)
        if not (values.min() >= 0 and values.max() <= _MAX_LABEL_VALUE) or not (
            is_whole or (values == np.rint(values)).all()
        ):
            raise MaskError(
                "not_labels",
                f"{stored.name} holds values that are no labels (whole numbers from 0 to "
                f"{_MAX_LABEL_VALUE}): give a label map or a binary mask, not a CT or "
                "probabilities.",
            )
        labels[:, :, k] = values
    return labels


def _label_names(path: Path) -> dict[int, MaskRegion]:
    """Return what 3D Slicer or TotalSegmentator wrote of each label into an image's header."""
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER_BYTES)
    file_name = printable(path.name)
    if head.startswith(b"NRRD"):
        return _slicer_names(head.split(b"\n\n")[0].decode("utf-8", "replace"), file_name)
    if head.startswith(_GZIP_MAGIC):
        with gzip.open(path) as stream:
            head = stream.read(_MAX_HEADER_BYTES)
    table = head.partition(b"</LabelTable>")
    text = table[0].decode("utf-8", "replace") if table[1] else ""
    return {
        int(number): MaskRegion(file_name, name=region_name(name))
        for number, name in _TABLE.findall(text)
    }


def _slicer_names(header: str, file: str) -> dict[int, MaskRegion]:
    fields: dict[str, dict[str, str]] = {}
    for segment, key, value in _SLICER.findall(header.replace("\r", "")):
        fields.setdefault(segment, {})[key] = value.strip()
    regions = {}
    for segment in fields.values():
        if segment.get("LabelValue", "").isdecimal():
            found = _SLICER_TYPE.search(segment.get("Tags", ""))
            category = (found[1], found[2]) if found else ("", "")
            kind = (found[3], found[4]) if found else ("", "")
            name = segment.get("Name")
            regions[int(segment["LabelValue"])] = described_region(file, "", name, category, kind)
    return regions


def check_mask_grid(mask_grid: str | None) -> None:
    """Refuse a grid that isn't known."""
    if mask_grid is not None and mask_grid not in MASK_GRIDS:
        raise InputError(f"The mask grid {mask_grid!r} is unknown; give 'ct' or 'own'.")


def _on_meant_grid(stored: StoredImage, volume: CTVolume, mask_grid: str | None) -> StoredImage:
    """Return a mask image on the grid that it is meant on, or refuse it as ``other_grid``.

    An image with exactly as many voxels along its axes as the scan was made on the scan's grid.
    Where its header says another place, one of the two is wrong, and placing it there would mark
    other tissue: `mask_grid` tells which one is right.
    """
    shape = stored.values.shape
    has_shape = sorted(shape) == sorted(volume.shape)
    if mask_grid == "own" or not has_shape or _is_same(stored.affine, shape, volume):
        return stored
    size = " x ".join(map(str, shape))
    if shape != volume.shape:
        raise MaskError(
            "other_grid",
            f"{stored.name} has the scan's numbers of voxels in another order ({size} instead of "
            f"{' x '.join(map(str, volume.shape))}), and its header places it elsewhere: its axes "
            "were exchanged when it was saved. Export it again with the scan's geometry; if it "
            "really lies there, take its own grid (mask_grid='own').",
        )
    if mask_grid == "ct":
        return replace(stored, affine=volume.affine)
    corners = _corners(shape)
    apart = apply_affine(stored.affine, corners) - apply_affine(volume.affine, corners)
    raise MaskError(
        "other_grid",
        f"{stored.name} has the shape of the scan ({size} voxels), but its header places it "
        f"elsewhere, up to {np.linalg.norm(apart, axis=1).max():.0f} mm off: "
        f"{_suspected_cause(stored.affine, volume)}. Export it again with the scan's geometry; "
        "or, if its voxels are the scan's one by one, take the scan's grid (mask_grid='ct'); if "
        "it really lies there, its own (mask_grid='own').",
    )


def _is_same(affine: Float64[np.ndarray, "4 4"], shape: tuple[int, ...], volume: CTVolume) -> bool:
    """Tell whether the voxel centres of a mask are the scan's, in whatever order of the axes."""
    to_volume = inverse_affine(volume.affine) @ affine
    steps = np.abs(np.rint(to_volume[:3, :3]))
    if not (steps.sum(axis=0) == 1).all() or not (steps.sum(axis=1) == 1).all():
        return False
    if (steps.T @ np.array(volume.shape)).tolist() != list(shape):
        return False
    reached = apply_affine(to_volume, _corners(shape))
    ends = np.array(volume.shape) - 1
    is_end = np.minimum(np.abs(reached), np.abs(reached - ends)) < _HALF_VOXEL
    return bool(is_end.all())


def _suspected_cause(affine: Float64[np.ndarray, "4 4"], volume: CTVolume) -> str:
    """Say what most likely happened to the header of a mask of the scan's shape."""
    if np.allclose(affine, np.eye(4)):
        return "its affine is the identity, so the geometry was lost when it was saved"
    flipped = [
        flip
        for flip in _FLIPS
        if any(flip)
        and _is_same(np.diag([*(1 - 2 * np.array(flip)), 1.0]) @ affine, volume.shape, volume)
    ]
    if (1, 1, 0) in flipped:
        return (
            "left and right, front and back are exchanged, as where LPS coordinates (DICOM, ITK) "
            "were written as RAS (NIfTI) without turning the signs"
        )
    if flipped:
        names = [name for name, is_turned in zip(_AXIS_NAMES, flipped[0], strict=True) if is_turned]
        return f"{' and '.join(names)} are exchanged in its coordinates"
    if np.allclose(spacing_mm(affine), volume.spacing_mm, rtol=1e-3):
        if not affine[:3, 3].any():
            return "its origin is 0, so its place was lost when it was saved"
        if np.allclose(affine[:3, :3], volume.affine[:3, :3], atol=1e-3):
            return "it is shifted against the scan"
        return "its axes point elsewhere, so their directions were lost or changed"
    if np.allclose(spacing_mm(affine), 1.0):
        return "its voxels are 1 mm wide, so the spacing was lost when it was saved"
    return "it was drawn on another reconstruction, or its geometry was changed"


def _corners(shape: tuple[int, ...]) -> np.ndarray:
    corners: np.ndarray = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)
    return corners
