"""A cohort folder: its record, tables and images (see ``docs/reference/cohort_folder.md``)."""

import gzip
import json
import stat
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float64
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from pydantic import TypeAdapter, ValidationError

from data_prep.cohort.schema import (
    CohortNodule,
    Exclusion,
    exclusions_from_csv,
    file_places,
    input_error,
    nodules_from_csv,
)
from data_prep.cohort.select import Protocol
from data_prep.crop import Crop
from data_prep.disk import file_sha256, json_bytes
from data_prep.errors import InputError, NamedError
from data_prep.geometry import apply_affine, spacing_mm
from data_prep.nifti import write_nifti
from data_prep.statements import RATINGS_NOTE, RESEARCH_ONLY
from data_prep.text import printable

COHORT_FORMAT = "cdam-med cohort"
"""Marks a folder as a cohort."""

SCHEMA_VERSION = 1
"""Raised when a column or key changes its name or meaning."""

RECORD_NAME = "cohort.json"
MANIFEST_NAME = "manifest.csv"
EXCLUSIONS_NAME = "exclusions.csv"
OVERVIEW_FOLDER = "overview"

MOST_TABLE_BYTES = 2**28
"""Longest table that is read: a million nodules."""

GEOMETRY_TOLERANCE_MM = 1e-3
"""How far a file's grid may be from the manifest's: NIfTI holds the affine as float32."""

_MOST_RECORD_BYTES = 2**24
_SHOWN_LENGTH = 200
_HEADER_BYTES = 352
_DTYPES: dict[str, np.dtype[Any]]
_DTYPES = {"crop": np.dtype("<i2"), "mask": np.dtype("u1"), "readers": np.dtype("<i2")}
_UNREADABLE = (OSError, EOFError, ValueError, OverflowError, zlib.error)
_DESCRIPTIONS = {
    "crop": "cdam-med cohort CT in HU",
    "mask": "cdam-med cohort consensus mask",
    "readers": "cdam-med cohort count of readers",
}


@dataclass(frozen=True)
class CohortRecord:
    """What ``cohort.json`` says about a cohort as a whole, see ``docs/reference/cohort_folder.md``.

    `files` are the SHA-256 of what isn't in the manifest, by place; `plan` is that of what was
    asked for: the series, the protocol, the versions.
    """

    protocol: Protocol
    versions: Mapping[str, str]
    notes: tuple[str, ...]
    sources: tuple[str, ...]
    counts: Mapping[str, Any]
    files: Mapping[str, str]
    plan: str


@dataclass(frozen=True, eq=False)
class CohortImages:
    """The images of one nodule, all on the same grid.

    Parameters
    ----------
    hu
        Hounsfield units rounded to whole numbers, int16 (i, j, k); the axes run closest to R+, A+
        and S+. Air where the scan doesn't reach.
    affine
        (4, 4) float64: voxel index to RAS millimetres.
    mask
        Consensus of the readers, boolean; None where there is none.
    reader_count
        How many readers outlined a voxel, int16; None where there is none.
    """

    hu: np.ndarray
    affine: np.ndarray
    mask: np.ndarray | None
    reader_count: np.ndarray | None

    @property
    def crop(self) -> Crop:
        """The same as a crop, HU as float32; which voxels lie outside the scan isn't kept."""
        return Crop(self.hu.astype(np.float32), self.affine, self.mask, padding=None)


@dataclass(frozen=True)
class Cohort:
    """A prepared cohort. The tables are in memory; images are read when asked for.

    Parameters
    ----------
    path
        The folder.
    record
        What holds for the whole cohort.
    nodules
        By patient, series and number.
    exclusions
        What was left out.
    """

    path: Path
    record: CohortRecord
    nodules: tuple[CohortNodule, ...]
    exclusions: tuple[Exclusion, ...]

    @property
    def protocol(self) -> Protocol:
        """The settings the cohort was made with."""
        return self.record.protocol

    @cached_property
    def _by_id(self) -> dict[str, CohortNodule]:
        return {nodule.nodule_id: nodule for nodule in self.nodules}

    def nodule(self, nodule_id: str) -> CohortNodule:
        """Return a nodule by its name.

        Raises
        ------
        InputError
            If the cohort has no nodule of that name.
        """
        if nodule_id not in self._by_id:
            raise InputError(
                f"The cohort {self.path} has no nodule {printable(nodule_id)[:_SHOWN_LENGTH]!r}; "
                f"manifest.csv lists its nodules."
            )
        return self._by_id[nodule_id]

    def read_images(self, nodule: CohortNodule) -> CohortImages:
        """Read the images of a nodule.

        Raises
        ------
        InputError
            If a file is missing or isn't what the manifest says.
        """
        arrays: dict[str, np.ndarray] = {}
        affine = np.eye(4)
        for kind, place in file_places(nodule.nodule_id).items():
            if place in nodule.files:
                arrays[kind], affine = read_image_file(
                    self.path / place, kind=kind, nodule=nodule, protocol=self.protocol
                )
        mask = arrays["mask"].astype(np.bool_) if "mask" in arrays else None
        return CohortImages(arrays["crop"], affine, mask, arrays.get("readers"))


_RECORD = TypeAdapter(CohortRecord)


def read_cohort(path: str | PathLike[str]) -> Cohort:
    """Read a cohort folder's record and tables; `Cohort.read_images` reads the images.

    Parameters
    ----------
    path
        The folder.

    Returns
    -------
    Cohort
        Hashes aren't checked: `data_prep.cohort.check.check_cohort` does that.

    Raises
    ------
    InputError
        If it is no cohort folder, or one of a newer schema, or a table is damaged.
    """
    folder = Path(path)
    record = read_record(folder)
    nodules, problems = nodules_from_csv(read_bounded(folder / MANIFEST_NAME, MOST_TABLE_BYTES))
    exclusions, more = exclusions_from_csv(read_bounded(folder / EXCLUSIONS_NAME, MOST_TABLE_BYTES))
    for problem in (*problems, *more):
        raise InputError(
            f"The cohort {folder} can't be read: {problem.message} 'cdam-med check {folder}' "
            f"lists everything that is wrong."
        )
    ids = Counter(nodule.nodule_id.casefold() for nodule in nodules)
    if len(ids) < len(nodules):
        twice = next(name for name, count in ids.items() if count > 1)
        raise InputError(f"The cohort {folder} holds nodule {twice} twice; prepare it again.")
    return Cohort(folder, record, tuple(nodules), tuple(exclusions))


def read_record(folder: Path) -> CohortRecord:
    """Read ``cohort.json``.

    Raises
    ------
    NamedError
        ``not_a_cohort``, ``bad_record`` or ``newer_schema``.
    """
    path = folder / RECORD_NAME
    if not path.exists():
        raise NamedError("not_a_cohort", f"{folder} is no cohort folder: it has no {RECORD_NAME}.")
    try:
        data = read_bounded(path, _MOST_RECORD_BYTES)
        values = json.loads(data)
    except InputError as error:
        raise NamedError("bad_record", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise NamedError("bad_record", f"{path} is no JSON; prepare the cohort again.") from error
    if not isinstance(values, dict) or values.get("format") != COHORT_FORMAT:
        message = f"{path} is no record of a cohort: its format isn't {COHORT_FORMAT!r}."
        raise NamedError("not_a_cohort", message)
    version = values.get("schema_version")
    if type(version) is not int or version < SCHEMA_VERSION:
        message = f"{path} has no schema version that is known; prepare the cohort again."
        raise NamedError("bad_record", message)
    if version > SCHEMA_VERSION:
        raise NamedError(
            "newer_schema",
            f"The cohort {folder} has schema version {version}, but this version of cdam-med "
            f"reads up to {SCHEMA_VERSION}; update it with 'pip install --upgrade cdam-med'.",
        )
    try:
        return _RECORD.validate_json(data)
    except ValidationError as error:
        raise NamedError("bad_record", f"{path} is damaged: {input_error(error)}") from error


def record_json(record: CohortRecord) -> bytes:
    """Return ``cohort.json``; the same record gives the same bytes."""
    values = {
        "format": COHORT_FORMAT,
        "schema_version": SCHEMA_VERSION,
        "statement": RESEARCH_ONLY,
        "ratings_note": RATINGS_NOTE,
        "sources": list(record.sources),
        "notes": list(record.notes),
        "protocol": asdict(record.protocol),
        "counts": dict(record.counts),
        "versions": dict(record.versions),
        "files": dict(sorted(record.files.items())),
        "plan": record.plan,
    }
    return json_bytes(values)


def counts_of(nodules: Sequence[CohortNodule], exclusions: Sequence[Exclusion]) -> dict[str, Any]:
    """Return what ``cohort.json`` counts."""
    labels = Counter(nodule.label or "unrated" for nodule in nodules)
    folds = Counter(nodule.fold for nodule in nodules if nodule.fold is not None)
    return {
        "nodules": len(nodules),
        "patients": len({nodule.patient_id for nodule in nodules}),
        "series": len({nodule.series_id for nodule in nodules}),
        "exclusions": len(exclusions),
        "labels": {
            label: labels[label] for label in ("benign", "malignant", "indeterminate", "unrated")
        },
        "folds": {str(fold): folds[fold] for fold in sorted(folds)},
    }


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """Read a small file; refuse one that is missing, a link or too large (InputError)."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is no regular file.")
        if status.st_size > most_bytes:
            raise InputError(f"{path} has {status.st_size} bytes, more than {most_bytes}.")
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise InputError(f"{path} can't be read: {reason}.") from error


def write_images(folder: Path, nodule_id: str, images: CohortImages) -> dict[str, str]:
    """Write the images of a nodule; return their SHA-256 by kind, ``""`` for one that isn't there.

    The cohort's folders for crops and masks exist.
    """
    arrays = {"crop": images.hu, "mask": images.mask, "readers": images.reader_count}
    hashes = {}
    for kind, place in file_places(nodule_id).items():
        array = arrays[kind]
        hashes[kind] = ""
        if array is not None:
            write_nifti(folder / place, array, images.affine, description=_DESCRIPTIONS[kind])
            hashes[kind] = file_sha256(folder / place)
    return hashes


def most_image_bytes(protocol: Protocol) -> int:
    """Return more bytes than any image of a cohort has, also if it can't be compressed."""
    n_bytes = _HEADER_BYTES + protocol.n_voxels**3 * 2
    return n_bytes + n_bytes // 100 + 2**20


def read_image_file(
    path: Path, *, kind: str, nodule: CohortNodule, protocol: Protocol
) -> tuple[np.ndarray, Float64[np.ndarray, "4 4"]]:
    """Read the crop, mask or readers of a nodule, if it is what manifest and protocol say.

    No more memory is taken than the protocol's cube needs.

    Returns
    -------
    tuple of ndarray
        Voxels (i, j, k), int16 or (mask) uint8, and the affine to RAS millimetres.

    Raises
    ------
    InputError
        If the file is missing, no NIfTI file, or has another grid, type or place.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise InputError(f"{path} is no regular file.")
        n_bytes = _HEADER_BYTES + protocol.n_voxels**3 * _DTYPES[kind].itemsize
        with gzip.open(path) as file:
            # a few compressed bytes may claim to be a terabyte
            data = file.read(n_bytes + 1)
        if len(data) != n_bytes:
            raise InputError(
                f"{path} doesn't hold the {n_bytes} bytes of a cube of {protocol.n_voxels} voxels "
                f"along each edge."
            )
        image: Any = nib.Nifti1Image.from_bytes(data)
        _check_header(path, image, kind, nodule, protocol)
        array = np.asarray(image.dataobj)
    except InputError:
        raise
    except (*_UNREADABLE, ImageFileError, HeaderDataError) as error:
        raise InputError(f"{path} can't be read as NIfTI: {type(error).__name__}.") from error
    most = {"crop": None, "mask": 1, "readers": nodule.n_readers}[kind]
    if most is not None and array.size and not 0 <= array.min() <= array.max() <= most:
        raise InputError(f"{path} holds values that aren't between 0 and {most}.")
    return array, np.asarray(image.affine, dtype=np.float64)


def _check_header(
    path: Path, image: Any, kind: str, nodule: CohortNodule, protocol: Protocol
) -> None:
    """Refuse an image of another size, type or place before its voxels are read."""
    header, n = image.header, protocol.n_voxels
    if image.shape != (n, n, n):
        raise InputError(f"{path} has {image.shape} voxels, not {(n, n, n)}.")
    if header.get_data_dtype() != _DTYPES[kind]:
        raise InputError(f"{path} holds {header.get_data_dtype()}, not {_DTYPES[kind]}.")
    slope, intercept = header.get_slope_inter()
    if slope not in (None, 1) or intercept not in (None, 0):
        raise InputError(f"{path} scales its values.")
    qform, sform = header.get_qform(coded=True), header.get_sform(coded=True)
    if qform[1] != 1 or sform[1] != 1 or not np.isfinite([qform[0], sform[0]]).all():
        raise InputError(f"{path} doesn't say where it lies: its forms don't have code 1.")
    corners = np.array(list(np.ndindex(2, 2, 2))) * (n - 1.0)
    q_corners, s_corners = apply_affine(qform[0], corners), apply_affine(sform[0], corners)
    if np.abs(q_corners - s_corners).max() > GEOMETRY_TOLERANCE_MM * n:
        raise InputError(f"{path} has two forms that differ.")
    middle_mm = s_corners.mean(axis=0)
    if np.abs(middle_mm - nodule.center_xyz_mm).max() > GEOMETRY_TOLERANCE_MM:
        raise InputError(
            f"{path} lies around {np.round(middle_mm, 3).tolist()} mm, not around "
            f"{list(nodule.center_xyz_mm)} mm (RAS)."
        )
    if np.abs(spacing_mm(sform[0]) - protocol.spacing_mm).max() > GEOMETRY_TOLERANCE_MM:
        raise InputError(f"{path} has other voxels than {protocol.spacing_mm:g} mm.")
