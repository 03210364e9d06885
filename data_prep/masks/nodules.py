"""From masks in any format to nodules: placed, measured, numbered."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.dicom.files import printable
from data_prep.errors import MaskError
from data_prep.formats import is_image
from data_prep.geometry import apply_affine
from data_prep.masks.dicom_seg import read_segmentation
from data_prep.masks.grid import PlacedMask, axial_diameter_mm, place_on_grid
from data_prep.masks.images import read_label_map
from data_prep.masks.references import SEGMENTATIONS, read_references
from data_prep.masks.rtstruct import read_structure_set
from data_prep.nodules import Nodule, reading_order
from data_prep.volume import CTVolume

MAX_FILE_BYTES = 1 << 30
"""DICOM masks are read whole; one bit for each of `data_prep.formats.stored.MAX_VOXELS` is less."""


class EmptyLabelWarning(UserWarning):
    """A segment or region that outlines nothing was left out."""


class ContourWarning(UserWarning):
    """The contours of a region can be read in several ways, and a rule decided."""


@dataclass(frozen=True)
class MaskSource:
    """Where a nodule's mask comes from.

    Parameters
    ----------
    file
        The file's own name, printable.
    label
        What it is called there: ``label 2``, ``component 1 of label 1``, ``segment 3``,
        ``ROI 4``. Numbers only: free text may name a patient.
    """

    file: str
    label: str


@dataclass(frozen=True, eq=False)
class MaskedNodules:
    """The nodules of one or more mask files.

    Parameters
    ----------
    nodules
        In the order of their numbers.
    sources
        Where each nodule comes from, in the same order.
    left_out
        Segments and regions that outline nothing.
    notes
        What the files don't say themselves and a rule decided: one sentence each.
    """

    nodules: tuple[Nodule, ...]
    sources: tuple[MaskSource, ...]
    left_out: tuple[MaskSource, ...]
    notes: tuple[str, ...] = ()


def nodules_from_masks(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], volume: CTVolume
) -> list[Nodule]:
    """Return the nodules that masks of a volume mark.

    Read are label maps and binary masks in NIfTI, NRRD and MetaImage, DICOM segmentations and
    radiotherapy structure sets. See `read_masks` for which file label each nodule was.

    Parameters
    ----------
    path
        One mask file, or several of the same scan.
    volume
        The scan.

    Returns
    -------
    list of Nodule
        ``nodule_1`` ... from superior to inferior (ties: from left to right, from posterior to
        anterior). The centre is the centre of mass of the mask; ``ratings`` holds the
        ``diameter`` (`data_prep.masks.grid.axial_diameter_mm`) where one can be measured.

    Raises
    ------
    MaskError
        If a mask can't be used. The reasons: ``unsupported_mask``, ``unreadable_mask``,
        ``too_large``, ``not_labels``, ``too_many_labels``, ``empty_mask``, ``other_series``,
        ``no_reference``, ``outside_volume``, ``no_voxel``, ``sheared_mask``, ``not_on_slice``,
        ``other_spacing``.
    ImageError
        If an image file can't be read, see `data_prep.formats.read_image`.

    Warns
    -----
    EmptyLabelWarning
        If a segment or region outlines nothing while others do.
    ContourWarning
        If contours overlap, lie within each other or wind around themselves, and are not of the
        type that says what is meant, see `data_prep.masks.polygons.fill_contours`.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else path
    masked = read_masks(paths, volume)
    for source in masked.left_out:
        warnings.warn(
            f"{source.label} of {source.file} outlines nothing and is left out.",
            EmptyLabelWarning,
            stacklevel=2,
        )
    for note in masked.notes:
        warnings.warn(note, ContourWarning, stacklevel=2)
    return list(masked.nodules)


def read_masks(paths: Sequence[str | os.PathLike[str]], volume: CTVolume) -> MaskedNodules:
    """Read the masks of a volume, with the file and label that each nodule comes from.

    Each value of a label map is a nodule; of a binary mask each connected component (26
    neighbours); of a DICOM segmentation each segment (fractional: from 0.5 on); of a structure
    set each region with a closed contour. Masks on another grid are sampled at the volume's
    voxel centres by nearest neighbour.

    Parameters and errors are those of `nodules_from_masks`.
    """
    found: list[tuple[PlacedMask, MaskSource]] = []
    left_out: list[MaskSource] = []
    for path in map(Path, paths):
        file = printable(path.name)
        masks, empty = _read(path, volume)
        found += [(mask, MaskSource(file, mask.label)) for mask in masks]
        left_out += [MaskSource(file, label) for label in empty]
    centers = [_center_ras(mask, volume) for mask, _ in found]
    order = sorted(range(len(found)), key=lambda n: reading_order(centers[n]))
    nodules = []
    for number, place in enumerate(order, start=1):
        mask = found[place][0]
        outline = mask.outline
        diameter_mm = axial_diameter_mm(outline, volume)
        nodules.append(
            Nodule(
                f"nodule_{number}",
                centers[place],
                {} if diameter_mm is None else {"diameter": diameter_mm},
                outline=outline,
                flags=("combined_contours",) if mask.notes else (),
            )
        )
    return MaskedNodules(
        tuple(nodules),
        tuple(found[place][1] for place in order),
        tuple(left_out),
        tuple(note for mask, _ in found for note in mask.notes),
    )


def _read(path: Path, volume: CTVolume) -> tuple[list[PlacedMask], list[str]]:
    source = printable(path.name)
    if is_image(path):
        masks = read_label_map(path)
        return [place_on_grid(mask, volume, source) for mask in masks], []
    if not path.is_file():
        raise MaskError(
            "unreadable_mask", f"There is no file {printable(str(path))}: check the path."
        )
    references = read_references(path)
    if references is None:
        raise MaskError(
            "unsupported_mask",
            f"{source} is no mask: expected NIfTI, NRRD, MetaImage, a DICOM segmentation or a "
            "radiotherapy structure set.",
        )
    if path.stat().st_size > MAX_FILE_BYTES:
        raise MaskError("too_large", f"{source} is larger than any patient's mask: fetch it again.")
    read = read_segmentation if references[0] in SEGMENTATIONS else read_structure_set
    return read(path, volume)


def _center_ras(mask: PlacedMask, volume: CTVolume) -> np.ndarray:
    center_ijk = np.argwhere(mask.outline.voxels).mean(axis=0) + mask.outline.origin_ijk
    return apply_affine(volume.affine, center_ijk)
