"""What an image file (NIfTI, NRRD, MetaImage) is, and whether it can be used as a CT or a mask."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep import geometry
from data_prep.dicom.plausibility import describe_implausible, sample_hu
from data_prep.errors import ImageError, NamedError
from data_prep.formats import find_images, read_stored
from data_prep.formats.hounsfield import to_hu
from data_prep.formats.stored import StoredImage
from data_prep.masks import MaskRegion, regions_of_mask
from data_prep.text import printable


@dataclass(frozen=True)
class RegionReport:
    """A region of a structure set or a segment of a segmentation; its texts are printable.

    Parameters
    ----------
    number
        ``ROI 4`` or ``segment 3``.
    name, kind
        What the file calls it, and what it says that it is; a name may name a patient.
    n_slices
        Slices that it is drawn on; 0 where nothing is, or pixels weren't read.
    size_mm
        Extent from right to left, posterior to anterior, inferior to superior.
    not_a_nodule
        Why it isn't taken unless it is chosen by name, a key of
        `data_prep.masks.regions.LEFT_OUT_REASONS`; empty where it is.
    """

    number: str
    name: str
    kind: str
    n_slices: int
    size_mm: tuple[float, float, float] | None
    not_a_nodule: str


@dataclass(frozen=True)
class ImageReport:
    """An image file.

    Parameters
    ----------
    file
        Its place below the path that was looked at, printable.
    verdict
        ``ct`` or ``mask``: what it can be used as; ``refused``: as neither.
    shape
        Voxels (i, j, k); None where the file can't be read.
    spacing_mm
        Distance of voxels along (i, j, k).
    axcodes
        Where the axes run closest to, e.g. ``("L", "P", "S")``.
    values
        The lowest and the highest, NaN and infinity left out.
    regions
        Labels of a mask, or components if it has one label.
    remarks
        Why it isn't usable as a CT or as a mask, or looks odd: the problem's name and a sentence.
    """

    file: str
    verdict: Literal["ct", "mask", "refused"]
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    axcodes: tuple[str, str, str] | None = None
    values: tuple[float, float] | None = None
    regions: tuple[RegionReport, ...] = ()
    remarks: tuple[str, ...] = ()


def report_region(region: MaskRegion) -> RegionReport:
    """Return what is told of a region."""
    return RegionReport(
        region.label,
        region.name,
        region.kind,
        region.n_slices,
        region.size_mm,
        region.why_no_nodule,
    )


def report_images(root: Path) -> Iterator[ImageReport]:
    """Report every image file below a folder, or one file.

    Raises
    ------
    ImageError
        If there is nothing at `root`, or a folder can't be listed.
    """
    for path in find_images(root):
        place = path.name if path == root else path.relative_to(root).as_posix()
        yield _report(path, printable(place))


def _report(path: Path, file: str) -> ImageReport:
    try:
        stored = read_stored(path)
    except ImageError as error:
        return ImageReport(file, "refused", remarks=(_remark(error),))
    remarks: list[str] = []
    regions: tuple[RegionReport, ...] = ()
    try:
        oddity = describe_implausible(sample_hu(to_hu(stored), None))
        is_ct = True
        if oddity:
            remarks.append(f"implausible_hu: the values don't look like Hounsfield units: {oddity}")
    except ImageError as error:
        is_ct = False
        try:
            regions = tuple(map(report_region, regions_of_mask(path)))
        except NamedError as mask_error:
            remarks += [f"as a CT, {_remark(error)}", f"as a mask, {_remark(mask_error)}"]
    size_i, size_j, size_k = stored.values.shape
    spacing_i, spacing_j, spacing_k = geometry.spacing_mm(stored.affine).round(6).tolist()
    return ImageReport(
        file,
        "ct" if is_ct else "mask" if regions else "refused",
        (size_i, size_j, size_k),
        (spacing_i, spacing_j, spacing_k),
        geometry.axcodes(stored.affine),
        _range(stored),
        regions,
        tuple(remarks),
    )


def _range(stored: StoredImage) -> tuple[float, float] | None:
    low, high = np.inf, -np.inf
    for k in range(stored.values.shape[2]):
        values = stored.slice_values(k)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else None


def _remark(error: NamedError) -> str:
    return f"{error.reason}: {error.message}"
