"""One series of a cohort: its nodules selected, cropped and written, or left out by name."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from data_prep.cohort.images import CohortImages, reader_count, whole_hu, write_images
from data_prep.cohort.protocol import Protocol
from data_prep.cohort.rows import (
    CONSENSUS_NAMES,
    READER_NAMES,
    CohortNodule,
    Exclusion,
    is_safe_id,
    label_of,
    slicer_safe_id,
    stored_number,
)
from data_prep.cohort.tables import check_exclusion, nodule_from_json, nodule_to_json
from data_prep.crop import Crop, box_center_xyz_mm, crop_nodule, needed_size_mm
from data_prep.errors import AnnotationError, CropError, InputError, NamedError
from data_prep.geometry import apply_affine, inverse_affine
from data_prep.nodules import Nodule
from data_prep.prepare.pseudonyms import without_identity
from data_prep.prepare.tasks import LoadedSeries, SeriesTask
from data_prep.problems import Action, SeriesError
from data_prep.volume import CTVolume

_NO_HASH = "0" * 64


@dataclass(frozen=True)
class PreparedSeries:
    """What became of a series.

    Parameters
    ----------
    nodules
        Rows of the manifest, without folds.
    exclusions
        Rows of the exclusions.
    sources
        Licence and citation.
    """

    nodules: tuple[CohortNodule, ...]
    exclusions: tuple[Exclusion, ...]
    sources: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """Return the series as it is recorded."""
        values = {
            "nodules": [nodule_to_json(nodule) for nodule in self.nodules],
            "exclusions": [asdict(exclusion) for exclusion in self.exclusions],
            "sources": list(self.sources),
        }
        return f"{json.dumps(values, indent=1)}\n".encode()

    @classmethod
    def from_json(cls, data: bytes) -> "PreparedSeries":
        """Return the series of a record.

        Raises
        ------
        InputError, ValueError, KeyError, TypeError
            If it isn't one.
        """
        values = json.loads(data)
        return cls(
            nodules=tuple(nodule_from_json(cells) for cells in values["nodules"]),
            exclusions=tuple(check_exclusion(Exclusion(**cells)) for cells in values["exclusions"]),
            sources=tuple(str(source) for source in values["sources"]),
        )


def prepare_series(
    task: SeriesTask, protocol: Protocol, folder: Path, *, reserved: Sequence[str] = ()
) -> PreparedSeries:
    """Load a series, and write the images of the nodules that the protocol takes.

    Parameters
    ----------
    task
        The series.
    protocol
        The settings.
    folder
        The cohort folder; its folders for crops and masks exist.
    reserved
        Beginnings of other series' nodule names, which a nodule's name must not have.

    Returns
    -------
    PreparedSeries
        Whatever is wrong with the series or a nodule is an exclusion in it.

    Raises
    ------
    OSError
        If an image can't be written.
    """
    try:
        loaded = task.load()
        ids = _cohort_ids(task, loaded)
        exclusions = [_of_cohort(task, exclusion) for exclusion in loaded.exclusions]
    except Exception as error:  # noqa: BLE001 - a series that fails must not end the others
        return PreparedSeries((), (failure(task, "", error),))
    nodules: list[CohortNodule] = []
    for nodule, nodule_id in zip(loaded.nodules, ids, strict=True):
        try:
            _check_name(nodule_id, nodules, reserved)
            row, images = _prepared_nodule(task, loaded, nodule, nodule_id, protocol)
        except Exception as error:  # noqa: BLE001 - nor a nodule
            exclusions.append(failure(task, nodule.nodule_id, error, loaded.volume.series_uid))
            continue
        hashes = write_images(folder, nodule_id, images)
        nodules.append(
            replace(
                row,
                crop_sha256=hashes["crop"],
                mask_sha256=hashes["mask"],
                readers_sha256=hashes["readers"],
            )
        )
    if not nodules and not exclusions:
        message = "No nodule of the series was selected."
        exclusions = [Exclusion(task.patient_id, task.series_id, "", "no_nodules", message)]
    return PreparedSeries(tuple(nodules), tuple(exclusions), tuple(loaded.sources))


def cohort_nodule_id(series_id: str, nodule_id: str) -> str:
    """Return the name of a nodule in a cohort, from its name within its series."""
    return slicer_safe_id(f"{series_id}_{nodule_id}")


def _cohort_ids(task: SeriesTask, loaded: LoadedSeries) -> list[str]:
    return [cohort_nodule_id(task.series_id, nodule.nodule_id) for nodule in loaded.nodules]


def _of_cohort(task: SeriesTask, exclusion: Exclusion) -> Exclusion:
    """Return a source's exclusion under the names of the cohort."""
    nodule_id = exclusion.nodule_id
    return check_exclusion(
        Exclusion(
            task.patient_id,
            task.series_id,
            cohort_nodule_id(task.series_id, nodule_id) if nodule_id else "",
            exclusion.reason,
            without_identity(exclusion.message),
        )
    )


def failure(task: SeriesTask, nodule_id: str, error: Exception, series_uid: str = "") -> Exclusion:
    """Say by name why a series or a nodule is left out."""
    private = [series_uid]
    if isinstance(error, SeriesError):
        for file in error.files:
            private += [str(file), file.name, *file.parts[1:-1]]
    if isinstance(error, NamedError):
        reason, message = error.reason, error.message
    elif isinstance(error, AnnotationError):
        reason, message = "annotation_error", str(error)
    elif isinstance(error, CropError):
        reason, message = "crop_error", str(error)
    elif isinstance(error, InputError):
        reason, message = "input_error", str(error)
    elif isinstance(error, MemoryError):
        reason, message = "out_of_memory", "There was not enough memory; use fewer jobs."
    elif isinstance(error, OSError):
        reason = "unexpected_error"
        message = f"{type(error).__name__}: {error.strerror or 'no reason given'}"
    else:
        reason, message = "unexpected_error", f"{type(error).__name__}: {error}"
    name = cohort_nodule_id(task.series_id, nodule_id) if nodule_id else ""
    message = without_identity(message, private)
    return Exclusion(
        task.patient_id, task.series_id, name if is_safe_id(name) else "", reason, message
    )


def _check_name(nodule_id: str, before: Sequence[CohortNodule], reserved: Sequence[str]) -> None:
    if not is_safe_id(nodule_id):
        raise NamedError("unsafe_id", "The nodule's name is too long for a file name.")
    folded = nodule_id.casefold()
    # masks/a_readers.nii.gz would be both the count of a and the mask of a_readers
    if folded.endswith("_readers") or folded.startswith(tuple(reserved)):
        raise NamedError("unsafe_id", f"The name {nodule_id} could be mistaken for another file's.")
    if folded in {row.nodule_id.casefold() for row in before}:
        raise NamedError("duplicate_id", f"There is another nodule {nodule_id} in the series.")


def _prepared_nodule(
    task: SeriesTask, loaded: LoadedSeries, nodule: Nodule, nodule_id: str, protocol: Protocol
) -> tuple[CohortNodule, CohortImages]:
    """Return a nodule's row, without hashes that hold, and its images."""
    volume = loaded.volume
    n_readers = _count_readers(nodule)
    _check_wanted(nodule, n_readers, protocol)
    crop = _cropped(volume, nodule, protocol)
    hu, is_clipped = whole_hu(crop)
    n_interpolated = _interpolated_within(volume, crop)
    has_mask = crop.mask is not None and bool(crop.mask.any())
    marks = {
        "cut_by_crop": crop.is_cut,
        "reaches_beyond_scan": crop.is_beyond_scan,
        "interpolated_slices": n_interpolated > 0,
        "interpolated_mask": nodule.outline is not None
        and bool(nodule.outline.interpolated_slices),
        "clipped_hu": is_clipped,
        "mask_smaller_than_voxel": crop.mask is not None and not has_mask,
    }
    flags = {*loaded.flags, *nodule.flags, *(name for name, holds in marks.items() if holds)}
    center_x, center_y, center_z = map(stored_number, _middle_xyz_mm(crop))
    spacing_i, spacing_j, spacing_k = map(stored_number, volume.spacing_mm)
    row = CohortNodule(
        nodule_id=nodule_id,
        patient_id=task.patient_id,
        series_id=task.series_id,
        fold=None,
        label=label_of(nodule.ratings.get("malignancy")),
        ratings=_consensus(nodule),
        reader_ratings=_reader_ratings(nodule),
        n_readers=n_readers,
        annotation_ids=_annotation_ids(nodule),
        center_xyz_mm=(center_x, center_y, center_z),
        padding_fraction=stored_number(crop.padding_fraction),
        source_spacing_mm=(spacing_i, spacing_j, spacing_k),
        source_axcodes="".join(volume.axcodes),
        interpolated_slices=n_interpolated,
        repairs=_problem_names(volume, Action.REPAIR),
        notes=_problem_names(volume, Action.NOTE),
        flags=tuple(sorted(flags)),
        crop_sha256=_NO_HASH,
        mask_sha256="",
        readers_sha256="",
        region=nodule.region,
    )
    images = CohortImages(
        hu, crop.affine, crop.mask if has_mask else None, reader_count(volume, nodule, crop)
    )
    # what can't be read back must not be written
    return nodule_from_json(nodule_to_json(row)), images


def _problem_names(volume: CTVolume, action: Action) -> tuple[str, ...]:
    return tuple(sorted({found.name for found in volume.problems if found.action is action}))


def _consensus(nodule: Nodule) -> dict[str, float]:
    return {
        name: stored_number(nodule.ratings[name])
        for name in CONSENSUS_NAMES
        if name in nodule.ratings
    }


def _check_wanted(nodule: Nodule, n_readers: int, protocol: Protocol) -> None:
    """Leave out a nodule that the protocol doesn't take, whatever its image."""
    if n_readers and n_readers < protocol.min_readers:
        raise NamedError(
            "too_few_readers",
            f"Readers: {n_readers}; the protocol takes {protocol.min_readers} or more.",
        )
    if n_readers > protocol.max_readers:
        raise NamedError(
            "too_many_readers",
            f"Readers: {n_readers}; the protocol takes {protocol.max_readers} or fewer.",
        )
    label = label_of(nodule.ratings.get("malignancy"))
    if label == "indeterminate" and protocol.indeterminate == "drop":
        raise NamedError("indeterminate", "Its median malignancy is exactly 3.")


def _cropped(volume: CTVolume, nodule: Nodule, protocol: Protocol) -> Crop:
    if protocol.center == "box" and nodule.outline is not None:
        # the shape of its grid is checked first: the middle would mean nothing
        needed_size_mm(volume, nodule)
        drawn = [reader.outline for reader in nodule.readers if reader.outline is not None]
        middle = box_center_xyz_mm(volume, drawn or [nodule.outline])
        nodule = replace(nodule, center_xyz_mm=middle)
    needed_mm = needed_size_mm(volume, nodule)
    try:
        crop = crop_nodule(
            volume,
            nodule,
            size_mm=protocol.size_mm,
            spacing_mm=protocol.spacing_mm,
            too_large="cut",
        )
    except CropError as error:
        raise NamedError("outside_scan", str(error)) from error
    if crop.is_cut and protocol.too_large == "drop":
        raise NamedError(
            "larger_than_crop",
            f"It needs a cube of {needed_mm:.1f} mm; the protocol's has {protocol.size_mm:g} mm.",
        )
    if crop.is_beyond_scan and protocol.rim == "drop":
        raise NamedError(
            "reaches_beyond_scan",
            f"{crop.padding_fraction:.1%} of its cube lies outside of the scan.",
        )
    return crop


def _count_readers(nodule: Nodule) -> int:
    """Count readers; where the source doesn't say who drew, every outline counts."""
    sessions = {reader.reading_session for reader in nodule.readers}
    return len(nodule.readers) if None in sessions else len(sessions)


def _annotation_ids(nodule: Nodule) -> tuple[int, ...]:
    numbers = [reader.annotation_id for reader in nodule.readers]
    known = tuple(number for number in numbers if number is not None)
    return known if len(known) == len(numbers) else ()


def _reader_ratings(nodule: Nodule) -> dict[str, tuple[float | None, ...]]:
    ratings = {}
    for name in READER_NAMES:
        values = tuple(
            stored_number(reader.ratings[name]) if name in reader.ratings else None
            for reader in nodule.readers
        )
        if any(value is not None for value in values):
            ratings[name] = values
    return ratings


def _middle_xyz_mm(crop: Crop) -> np.ndarray:
    middle: np.ndarray = apply_affine(crop.affine, (np.array(crop.hu.shape) - 1) / 2)
    return middle


def _interpolated_within(volume: CTVolume, crop: Crop) -> int:
    """Count the scan's interpolated slices that the cube is made from."""
    if not volume.interpolated_slices:
        return 0
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(crop.hu.shape) - 1)
    k = apply_affine(inverse_affine(volume.affine) @ crop.affine, corners)[:, 2]
    first, last = int(np.floor(k.min())), int(np.ceil(k.max()))
    return sum(first <= number <= last for number in volume.interpolated_slices)
