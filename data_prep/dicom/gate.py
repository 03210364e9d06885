"""One DICOM CT series below a folder -> a volume in patient space, or a named refusal."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from data_prep import geometry
from data_prep.dicom.headers import Header, file_name, find_files, printable, read_headers
from data_prep.dicom.pixels import read_hu
from data_prep.dicom.placement import place_slices
from data_prep.dicom.slices import describe_kind, is_ct_image, to_ct_slice
from data_prep.errors import SeriesError
from data_prep.volume import CTVolume

_MAX_LISTED = 8


def read_series(path: str | os.PathLike[str], *, series_uid: str | None = None) -> CTVolume:
    """Read one CT series from a folder.

    Files may be nested, carry any name or extension, and lie beside files of other kinds. Slices
    are sorted by position along the normal that ImageOrientationPatient gives; the rescale to HU
    is each slice's own. All headers are checked before a pixel is read.

    Parameters
    ----------
    path
        Folder that holds the series.
    series_uid
        SeriesInstanceUID of the series to read. Needed where the folder holds several CT series.

    Returns
    -------
    CTVolume
        ``hu`` is int16, or float32 where a rescale isn't integral or a value doesn't fit into
        int16. Voxels that hold a padding value are marked in ``outside``; their HU stays what the
        file says.

    Raises
    ------
    SeriesError
        If the series can't be placed and read without guessing. The reasons:

        - the folder: ``not_found``, ``not_a_folder``, ``no_dicom``, ``not_ct``,
          ``several_series``, ``unknown_series``
        - a file: ``unreadable_file``, ``bad_header``, ``no_uid``, ``secondary_capture``,
          ``localizer``, ``enhanced_multiframe``, ``colour``, ``not_hu``
        - its place: ``no_position``, ``no_pixel_spacing``, ``bad_orientation``
        - the stack: ``mixed_orientation``, ``mixed_matrix_size``, ``mixed_pixel_spacing``,
          ``mixed_frame_of_reference``, ``single_slice``, ``duplicate_slices``, ``gantry_tilt``,
          ``shifted_slices``, ``missing_slices``, ``variable_spacing``
        - the pixels: ``no_pixels``, ``size_mismatch``, ``too_large``, ``truncated_pixels``,
          ``unreadable_pixels``, ``unsupported_syntax``, ``unsupported_pixels``, ``no_rescale``,
          ``bad_rescale``

    Notes
    -----
    Slices missing at either end of a series leave no trace in its positions: not noticed.

    References
    ----------
    PS3.3 C.7.6.2.1.1 (position and orientation), C.11.1.1.2 (rescale), C.7.5.1.1.2 (padding).
    """
    folder = Path(path)
    _check_folder(folder)
    # pydicom warns of any value that bends the standard; those that are used are checked here
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        headers = _choose_series(folder, series_uid)
        slices, affine_lps = place_slices([to_ct_slice(header) for header in headers])
        hu, outside = read_hu(slices)
    return CTVolume(
        hu,
        geometry.affine_lps_to_ras(affine_lps),
        headers[0].text("SeriesInstanceUID"),
        tuple(one.sop_instance_uid for one in slices),
        outside,
    )


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise SeriesError(
            "not_a_folder",
            f"{printable(str(folder))} is a file: give the folder that holds the series.",
            (folder,),
        )
    if not folder.is_dir():
        raise SeriesError(
            "not_found",
            f"There is no folder {printable(str(folder))}: check the path.",
            (folder,),
        )


def _choose_series(folder: Path, series_uid: str | None) -> list[Header]:
    """Return the headers of the one series meant; all its files, whatever they turn out to be."""
    files = find_files(folder)
    by_uid: dict[str, list[Header]] = {}
    for header in read_headers(files):
        by_uid.setdefault(header.text("SeriesInstanceUID"), []).append(header)
    if not by_uid:
        raise SeriesError(
            "no_dicom",
            f"{printable(str(folder))} holds no DICOM file (files below it: {len(files)}): give "
            "the folder of a CT series.",
            (folder,),
        )
    ct_uids = [uid for uid, headers in by_uid.items() if any(map(is_ct_image, headers))]
    if series_uid is not None and series_uid not in by_uid:
        raise SeriesError(
            "unknown_series",
            f"{printable(str(folder))} holds no series {printable(series_uid)}; its CT series: "
            f"{_listed(ct_uids, by_uid)}.",
            (folder,),
        )
    chosen = ct_uids if series_uid is None else [uid for uid in ct_uids if uid == series_uid]
    if not chosen:
        other = by_uid[next(iter(by_uid)) if series_uid is None else series_uid][0]
        raise SeriesError(
            "not_ct",
            f"There is no CT image: {file_name(other.path)} is {describe_kind(other)}; give the "
            "folder of a CT series.",
            (other.path,),
        )
    if len(chosen) > 1:
        raise SeriesError(
            "several_series",
            f"{printable(str(folder))} holds {len(chosen)} CT series: choose one with series_uid= "
            f"out of {_listed(chosen, by_uid)}.",
            tuple(by_uid[uid][0].path for uid in chosen),
        )
    return by_uid[chosen[0]]


def _listed(uids: Sequence[str], by_uid: dict[str, list[Header]]) -> str:
    shown = [f"{printable(uid)} ({len(by_uid[uid])} files)" for uid in uids[:_MAX_LISTED]]
    if len(uids) > _MAX_LISTED:
        shown.append(f"{len(uids) - _MAX_LISTED} more")
    return ", ".join(shown) or "none"
