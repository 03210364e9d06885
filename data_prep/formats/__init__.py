"""CT volumes from image files: NIfTI, NRRD and MetaImage, beside DICOM.

The three headers are judged before any voxel is read: what they claim must fit the file, a known
frame and right angles. Nothing is guessed; what viewers place differently is refused by name.
"""

import os
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from data_prep.dicom import read_series
from data_prep.dicom.files import DicomFile, is_file, is_folder
from data_prep.dicom.plausibility import describe_implausible, sample_hu
from data_prep.errors import ImageError
from data_prep.formats.nifti_file import read_nifti
from data_prep.formats.stored import StoredImage, to_hu
from data_prep.formats.text_headers import read_meta, read_nrrd
from data_prep.problems import Action, Finding, Problem, SeriesError, SeriesWarning
from data_prep.text import printable
from data_prep.volume import CTVolume

__all__ = [
    "ENDINGS",
    "StoredImage",
    "find_images",
    "image_stem",
    "is_image",
    "read_image",
    "read_stored",
    "read_volume",
]

ENDINGS: Mapping[str, Callable[[Path], StoredImage]] = MappingProxyType(
    {
        ".nii.gz": read_nifti,
        ".nii": read_nifti,
        ".seg.nrrd": read_nrrd,  # 3D Slicer's segmentations
        ".nrrd": read_nrrd,
        ".nhdr": read_nrrd,
        ".mha": read_meta,
        ".mhd": read_meta,
    }
)
"""Ends of file names, in small letters, and what reads them."""


def read_image(path: str | os.PathLike[str]) -> CTVolume:
    """Read a CT from a NIfTI (``.nii``, ``.nii.gz``), NRRD or MetaImage file.

    Parameters
    ----------
    path
        The file; of a header with its values in a file beside it, the header.

    Returns
    -------
    CTVolume
        ``hu`` is int16 where every value is integral and fits, else float32. The array axes are
        the file's; ``series_uid`` is the file's name without the format's ending, as LUNA16
        names its files. ``problems`` holds ``implausible_hu`` where air, soft tissue or bone
        don't lie where they belong.

    Raises
    ------
    ImageError
        If the file can't be read without guessing. The reasons:

        - the file: ``not_found``, ``unsupported_format`` (by its name), ``unreadable_image``,
          ``unsupported_image`` (a form of the format that isn't read), ``data_elsewhere`` (a
          header that names a data file outside of its folder)
        - its size: ``not_3d`` (two or four dimensions, vectors, colours), ``single_slice``,
          ``too_large``, ``truncated_pixels``, ``size_mismatch``
        - its place: ``no_orientation``, ``conflicting_orientations`` (sform and qform of a
          NIfTI), ``sheared_axes``, ``bad_spacing``
        - its values: ``not_finite``, ``not_hu``

    Warns
    -----
    SeriesWarning
        Of ``implausible_hu``.
    """
    path = Path(path)
    stored = read_stored(path)
    hu = to_hu(stored)
    oddity = describe_implausible(sample_hu(hu, None))
    problems: tuple[Problem, ...] = ()
    if oddity:
        message = f"The values of {stored.name} don't look like Hounsfield units: {oddity}."
        warnings.warn(message, SeriesWarning, stacklevel=2)
        problems = (Problem("implausible_hu", message, Action.NOTE, (stored.name,)),)
    return CTVolume(hu, stored.affine, printable(image_stem(path)), problems=problems)


def read_volume(
    path: str | os.PathLike[str],
    *,
    series_uid: str | None = None,
    stack: int | None = None,
    repair: Collection[str] = (),
    refuse: Collection[str] = (),
) -> CTVolume:
    """Read a CT from DICOM (folder, file, zip, DICOMDIR) or from an image file.

    Parameters
    ----------
    path
        A file whose name ends as an image's is one; anything else is DICOM.
    series_uid, stack, repair, refuse
        Of DICOM, see `data_prep.read_series`; an image file has one series and no repairs.

    Raises
    ------
    ImageError, SeriesError
        See `read_image` and `data_prep.read_series`.
    """
    path = Path(path)
    if not (is_image(path) and is_file(path)):
        return read_series(path, series_uid=series_uid, stack=stack, repair=repair, refuse=refuse)
    volume = read_image(path)
    if series_uid not in (None, volume.series_uid) or stack not in (None, 1):
        what = (
            f"{printable(path.name)} is an image file: it holds one series, named "
            f"{volume.series_uid} after the file, in one stack"
        )
        raise SeriesError(Finding("unknown_series", what, files=(DicomFile(path),)))
    return volume


def read_stored(path: Path) -> StoredImage:
    """Read an image file's values as they are stored: of a CT or of a mask.

    Raises
    ------
    ImageError
        See `read_image`.
    """
    ending = _ending(path)
    if ending is None:
        raise ImageError(
            "unsupported_format",
            f"{printable(path.name)} is no image file by its name; expected one that ends in "
            f"{', '.join(ENDINGS)}.",
        )
    if not is_file(path):
        raise ImageError("not_found", f"There is no file {printable(str(path))}: check the path.")
    return ENDINGS[ending](path)


def is_image(path: Path) -> bool:
    """Tell by its name whether a file is NIfTI, NRRD or MetaImage."""
    return _ending(path) is not None


def image_stem(path: Path) -> str:
    """Return a file's own name without the format's ending.

    Examples
    --------
    >>> image_stem(Path("scans/1.2.840.1.mhd")), image_stem(Path("P01.nii.gz"))
    ('1.2.840.1', 'P01')
    """
    return path.name[: len(path.name) - len(_ending(path) or "")]


def find_images(root: str | os.PathLike[str]) -> list[Path]:
    """Return every image file below a folder, each once, in a fixed order.

    Links are followed; what is reached twice (a loop, a second link) counts once. Hidden files
    and folders, such as macOS leaves them beside each file, are passed over.

    Parameters
    ----------
    root
        A folder, or one file.

    Raises
    ------
    ImageError
        ``not_found`` if there is nothing at `root`, ``unreadable_image`` if a folder can't be
        listed.
    """
    root = Path(root)
    if is_file(root):
        return [root] if is_image(root) else []
    if not is_folder(root):
        raise ImageError("not_found", f"There is no {printable(str(root))}: check the path.")
    seen: set[tuple[int, int]] = set()

    def is_new(status: os.stat_result) -> bool:
        identity = (status.st_dev, status.st_ino)
        is_first = identity not in seen
        seen.add(identity)
        return is_first

    images = []
    for parent, folders, names in os.walk(root, onerror=_refuse_folder, followlinks=True):
        if not is_new(Path(parent).stat()):
            folders.clear()
            continue
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        for path in (Path(parent, name) for name in sorted(names)):
            if path.name.startswith(".") or not is_image(path):
                continue
            # a link that leads nowhere is listed, so that reading it tells so
            if not path.exists() or (is_file(path) and is_new(path.stat())):
                images.append(path)
    return images


def _refuse_folder(error: OSError) -> None:
    raise ImageError(
        "unreadable_image",
        f"The folder {printable(str(error.filename))} can't be listed ({error.strerror}): check "
        "its permissions.",
    ) from error


def _ending(path: Path) -> str | None:
    name = path.name.lower()
    # a name that is nothing but an ending is a hidden file
    return next((end for end in ENDINGS if name.endswith(end) and len(name) > len(end)), None)
