"""The masks of a series as nodules of a cohort: what names nobody is passed on, nothing else."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.cohort.rows import Exclusion
from data_prep.dicom.files import DicomFile
from data_prep.dicom.headers import read_header
from data_prep.errors import NamedError
from data_prep.formats import image_stem
from data_prep.masks import LeftOutRegion, read_masks
from data_prep.masks.region_names import names_nobody
from data_prep.nodules import Nodule
from data_prep.prepare.pseudonyms import without_identity
from data_prep.problems import SeriesError
from data_prep.text import printable
from data_prep.volume import CTVolume


@dataclass(frozen=True)
class MaskOptions:
    """How masks are taken, see `data_prep.masks.nodules_from_masks`.

    Parameters
    ----------
    regions
        Names or patterns of the regions that are nodules.
    mask_grid
        Where a mask of the scan's shape lies elsewhere: ``"ct"``, ``"own"``, or None to refuse it.
    same_frame
        Whether masks of another series of the same frame of reference are taken.
    """

    regions: tuple[str, ...] = ()
    mask_grid: str | None = None
    same_frame: bool = False


def nodules_of_masks(
    paths: Sequence[Path], volume: CTVolume, options: MaskOptions
) -> tuple[list[Nodule], list[Exclusion]]:
    """Read the masks of a series for a cohort.

    Returns
    -------
    tuple of list
        The nodules, each with the name of its region if that names nobody (else its number), and
        a row for each region and file that is left out.

    Raises
    ------
    NamedError
        ``no_such_region`` if nothing is named as asked for; its message names nobody.
    """
    try:
        masked = read_masks(
            paths,
            volume,
            regions=options.regions,
            mask_grid=options.mask_grid,
            same_frame=options.same_frame,
        )
    except NamedError as error:
        if error.reason != "no_such_region":
            raise
        wanted = ", ".join(f"{pattern!r}" for pattern in options.regions)
        raise NamedError(
            error.reason, f"No region of the series' masks is named like {wanted}."
        ) from error
    nodules = [
        replace(nodule, region=region.called if names_nobody(region.name) else region.label)
        for nodule, region in zip(masked.nodules, masked.sources, strict=True)
    ]
    return nodules, [_exclusion(each, paths) for each in masked.left_out]


def _exclusion(left_out: LeftOutRegion, paths: Sequence[Path]) -> Exclusion:
    """Return a row under the region's number; of several files, with the file's number."""
    region = left_out.region
    number = [printable(path.name) for path in paths].index(region.file) + 1
    file = f"mask {number}" if len(paths) > 1 else "the mask"
    named = region if names_nobody(region.name) else replace(region, name="")
    place = f"{named.title} of {file}" if region.label else file
    message = left_out.message.replace(region.place, place[0].upper() + place[1:])
    private = [word for path in paths for word in (path.name, image_stem(path), path.stem)]
    if region.name and not named.name:
        private.append(f"'{region.name}'")
    names = [region.label] if region.label else []
    if len(paths) > 1:
        names.append(f"mask_{number}")
    return Exclusion(
        "",
        "",
        re.sub(r"\W+", "_", "_of_".join(names)),
        left_out.reason,
        without_identity(message, private),
    )


def image_uids(files: Iterable[DicomFile], wanted: Collection[str]) -> frozenset[str]:
    """Return those of some images' SOPInstanceUIDs that a series' files have."""
    return frozenset(_texts(files, "SOPInstanceUID")) & frozenset(wanted)


def frame_uid(files: Iterable[DicomFile]) -> str:
    """Return the FrameOfReferenceUID of the first file of a series that can be read."""
    return next(iter(_texts(files, "FrameOfReferenceUID")), "")


def _texts(files: Iterable[DicomFile], keyword: str) -> Iterable[str]:
    for file in files:
        try:
            header = read_header(file)
        except SeriesError:
            continue  # told where the series is read
        if header is not None:
            yield header.text(keyword)
