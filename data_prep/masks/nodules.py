"""From masks in any format to nodules: placed, measured, numbered."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import MaskError, NamedError
from data_prep.formats import is_image
from data_prep.geometry import apply_affine
from data_prep.masks.dicom_seg import read_segmentation
from data_prep.masks.grid import DrawnRegion, PlacedMask, axial_diameter_mm
from data_prep.masks.images import check_mask_grid, read_label_map
from data_prep.masks.references import SEGMENTATIONS, MaskReferences, read_references
from data_prep.masks.regions import LEFT_OUT_REASONS, MaskRegion, check_choice
from data_prep.masks.rtstruct import read_structure_set
from data_prep.nodules import Nodule, reading_order
from data_prep.text import printable
from data_prep.volume import CTVolume

MAX_FILE_BYTES = 1 << 30
"""DICOM masks are read whole; one bit for each of `data_prep.formats.stored.MAX_VOXELS` is less."""

_MOST_LISTED = 20


class MaskWarning(UserWarning):
    """A mask, or a part of one, was left out or needs a look."""


@dataclass(frozen=True)
class LeftOutRegion:
    """A region that is no nodule or can't be used, or a whole file: its label is empty then.

    The error is why; it was not raised.
    """

    region: MaskRegion
    error: NamedError

    @property
    def reason(self) -> str:
        """Stable name of the reason."""
        return self.error.reason

    @property
    def message(self) -> str:
        """The sentence for a person, with the region's name and the file's."""
        return self.error.message


@dataclass(frozen=True, eq=False)
class MaskedNodules:
    """The nodules of one or more mask files.

    Parameters
    ----------
    nodules
        In the order of their numbers.
    sources
        The region that each nodule is, in the same order.
    left_out
        Regions and files that are no nodule or can't be used, each by itself.
    notes
        Sentences on what to know: a mask that names another frame of reference, or contours
        that can be read in several ways.
    """

    nodules: tuple[Nodule, ...]
    sources: tuple[MaskRegion, ...]
    left_out: tuple[LeftOutRegion, ...]
    notes: tuple[str, ...]


def nodules_from_masks(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    volume: CTVolume,
    *,
    regions: str | Sequence[str] = (),
    mask_grid: str | None = None,
    same_frame: bool = False,
) -> list[Nodule]:
    """Return the nodules that masks of a volume mark.

    Read are label maps and binary masks in NIfTI, NRRD and MetaImage, DICOM segmentations and
    radiotherapy structure sets. Each region, segment and label stands for itself: what can't be
    used is left out with a warning, and the others are returned. See `read_masks` for which
    region each nodule was, and for what was left out.

    Parameters
    ----------
    path
        One mask file, or several of the same scan.
    volume
        The scan.
    regions
        Names or patterns of the regions that are nodules (``"GTV*"``; case doesn't count), or
        their numbers (``"ROI 4"``, ``"segment 2"``, ``"label 1"``). Without, what can't be a
        nodule is left out: what is named like an organ (AAPM TG-263, TotalSegmentator) or a target
        with a margin (CTV, ITV, PTV), what the file calls an organ or a device, and what is larger
        than `data_prep.masks.regions.MAX_NODULE_MM` and isn't named as a lesion. ``"*"`` takes all.
    mask_grid
        Where an image of exactly the scan's shape lies elsewhere by its header: refused by default;
        ``"ct"`` takes it for voxels of the scan, ``"own"`` takes its header as it is.
    same_frame
        Also take DICOM masks that were drawn on another series of the same frame of reference: of
        a CT that was exported again, cropped or reconstructed anew.

    Returns
    -------
    list of Nodule
        ``nodule_1`` ... from superior to inferior (ties: from left to right, from posterior to
        anterior). The centre is the centre of mass of the mask; ``ratings`` holds the
        ``diameter`` (`data_prep.masks.grid.axial_diameter_mm`) where one can be measured, and
        ``region`` what the file calls it.

    Raises
    ------
    MaskError
        If no region can be taken as a nodule. The reasons of a file: ``unsupported_mask``,
        ``unreadable_mask``, ``too_large``, ``not_labels``, ``too_many_labels``, ``empty_mask``,
        ``other_series``, ``no_reference``, ``other_grid``, ``sheared_mask``; of a region:
        ``empty_mask``, ``bad_contour``, ``outside_volume``, ``no_voxel``, ``not_on_slice``,
        ``other_spacing``, ``too_many_contours``, and the keys of
        `data_prep.masks.regions.LEFT_OUT_REASONS`;
        ``no_such_region`` if `regions` fits none; ``no_nodule`` for several reasons.
    ImageError
        If an image file can't be read, see `data_prep.formats.read_image`.
    InputError
        If `mask_grid` is unknown.

    Warns
    -----
    MaskWarning
        Of what is left out while other regions are taken, and of what else to know.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else path
    masked = read_masks(paths, volume, regions=regions, mask_grid=mask_grid, same_frame=same_frame)
    if not masked.nodules:
        raise _no_nodule(masked.left_out)
    no_nodules = [each for each in masked.left_out if each.reason in LEFT_OUT_REASONS]
    wrong = [each.message for each in masked.left_out if each.reason not in LEFT_OUT_REASONS]
    sentences = [*wrong, *masked.notes]
    if no_nodules:
        what = f"Not taken as nodules: {_listed(no_nodules)}."
        sentences.insert(0, f"{what} If one is, choose it by its name or number (regions=).")
    for sentence in sentences:
        warnings.warn(sentence, MaskWarning, stacklevel=2)
    return list(masked.nodules)


def read_masks(
    paths: Sequence[str | os.PathLike[str]],
    volume: CTVolume,
    *,
    regions: str | Sequence[str] = (),
    mask_grid: str | None = None,
    same_frame: bool = False,
) -> MaskedNodules:
    """Read the masks of a volume, with the region that each nodule is, and what is left out.

    Each value of a label map is a region; of a binary mask each connected component (26
    neighbours); of a DICOM segmentation each segment (fractional: from 0.5 on); of a structure
    set each region of interest. Masks on another grid are sampled at the volume's voxel centres
    by nearest neighbour. Parameters are those of `nodules_from_masks`.

    Raises
    ------
    MaskError
        ``no_such_region`` if `regions` fits no region, ``unreadable_mask`` if there is no such
        file. Anything else is in ``left_out``.
    ImageError
        ``not_found`` if there is no such image.
    InputError
        If `mask_grid` is unknown.
    """
    check_mask_grid(mask_grid)
    patterns = (regions,) if isinstance(regions, str) else tuple(regions)
    drawn: list[tuple[DrawnRegion, Mapping[str, str]]] = []
    left_out: list[LeftOutRegion] = []
    for path in map(Path, paths):
        source = printable(path.name)
        notes: Mapping[str, str] = {}
        try:
            references = _references(path)
            if references is not None:
                notes = references.check(volume, source, same_frame=same_frame)
            drawn += [(each, notes) for each in _drawn(path, references, volume, mask_grid)]
        except NamedError as error:
            if not path.is_file():
                raise
            left_out.append(LeftOutRegion(MaskRegion(source), error))
    if drawn:
        check_choice([each.region for each, _ in drawn], patterns)
    placed: list[tuple[PlacedMask, MaskRegion, Mapping[str, str]]] = []
    for (region, to_grid), notes in drawn:
        if patterns and not any(region.matches(pattern) for pattern in patterns):
            continue
        try:
            if not patterns and (reason := region.why_no_nodule):
                raise MaskError(
                    reason,
                    f"{region.place} isn't taken as a nodule: {LEFT_OUT_REASONS[reason]}. If it is "
                    "one, choose it by its name or number (regions=).",
                )
            placed.append((to_grid(volume), region, notes))
        except MaskError as error:
            left_out.append(LeftOutRegion(region, error))
    return _numbered(placed, left_out, volume)


def regions_of_mask(path: str | os.PathLike[str]) -> tuple[MaskRegion, ...]:
    """Return the regions of a mask file by name, number, kind and size, without a scan.

    Raises
    ------
    MaskError, ImageError
        As for a file of `nodules_from_masks`.
    """
    path = Path(path)
    return tuple(each.region for each in _drawn(path, _references(path)))


def _references(path: Path) -> MaskReferences | None:
    """Return what a DICOM mask was drawn on; None for an image, which doesn't say."""
    if is_image(path):
        return None
    if not path.is_file():
        raise MaskError(
            "unreadable_mask", f"There is no file {printable(str(path))}: check the path."
        )
    references = read_references(path)
    if references is None:
        raise MaskError(
            "unsupported_mask",
            f"{printable(path.name)} is no mask: expected NIfTI, NRRD, MetaImage, a DICOM "
            "segmentation or a radiotherapy structure set.",
        )
    return references


def _drawn(
    path: Path,
    references: MaskReferences | None,
    volume: CTVolume | None = None,
    mask_grid: str | None = None,
) -> list[DrawnRegion]:
    if references is None:
        return read_label_map(path, volume, mask_grid=mask_grid)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise MaskError(
            "too_large",
            f"{printable(path.name)} is larger than any patient's mask: fetch it again.",
        )
    read = read_segmentation if references.sop_class in SEGMENTATIONS else read_structure_set
    return read(path)


def _numbered(
    placed: Sequence[tuple[PlacedMask, MaskRegion, Mapping[str, str]]],
    left_out: Sequence[LeftOutRegion],
    volume: CTVolume,
) -> MaskedNodules:
    centers = [apply_affine(volume.affine, mask.outline.center_ijk) for mask, *_ in placed]
    order = sorted(range(len(placed)), key=lambda n: reading_order(centers[n]))
    nodules = []
    for number, place in enumerate(order, start=1):
        mask, region, notes = placed[place]
        diameter_mm = axial_diameter_mm(mask.outline, volume)
        nodules.append(
            Nodule(
                f"nodule_{number}",
                centers[place],
                {} if diameter_mm is None else {"diameter": diameter_mm},
                outline=mask.outline,
                region=region.called,
                flags=(*(["combined_contours"] if mask.notes else []), *notes),
            )
        )
    of_files = dict.fromkeys(sentence for *_, notes in placed for sentence in notes.values())
    of_regions = (sentence for mask, *_ in placed for sentence in mask.notes)
    sources = tuple(placed[place][1] for place in order)
    return MaskedNodules(tuple(nodules), sources, tuple(left_out), (*of_files, *of_regions))


def _listed(left_out: Sequence[LeftOutRegion]) -> str:
    shown = "; ".join(f"{each.region.place} ({each.reason})" for each in left_out[:_MOST_LISTED])
    more = len(left_out) - _MOST_LISTED
    return f"{shown}; and {more} more" if more > 0 else shown


def _no_nodule(left_out: Sequence[LeftOutRegion]) -> NamedError:
    """Return the error of masks of which nothing can be taken."""
    if len(left_out) == 1:
        return left_out[0].error
    reasons = {each.reason for each in left_out}
    return MaskError(
        reasons.pop() if len(reasons) == 1 else "no_nodule",
        f"No region can be taken as a nodule: {_listed(left_out) or 'there is none'}. If one is a "
        "nodule all the same, choose it by its name or number (regions=).",
    )
