"""One series of a cohort: its nodules selected, cropped and written, or left out by name."""

import json
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int16

from data_prep.cohort import schema
from data_prep.cohort.folder import CohortImages, write_images
from data_prep.cohort.schema import CohortNodule, Exclusion
from data_prep.cohort.select import Protocol, cube_refusal, nodule_refusal
from data_prep.crop import Crop, box_center_xyz_mm, crop_nodule, needed_size_mm, outline_on_crop
from data_prep.disk import json_bytes
from data_prep.errors import AnnotationError, CropError, InputError, NamedError
from data_prep.geometry import apply_affine, inverse_affine
from data_prep.nodules import Nodule
from data_prep.prepare.pseudonyms import without_identity
from data_prep.problems import Action, SeriesError
from data_prep.volume import CTVolume

_NO_HASH = "0" * 64
_REASONS = {
    AnnotationError: "annotation_error",
    CropError: "crop_error",
    InputError: "input_error",
    MemoryError: "out_of_memory",
    Exception: "unexpected_error",
}


@dataclass(frozen=True, eq=False)
class LoadedSeries:
    """A series with its nodules.

    Parameters
    ----------
    volume
        The scan.
    nodules
        Its nodules; their ids differ within the series.
    exclusions
        What the source left out of the series; nodules by their ids within the series.
    flags
        Names for the manifest that hold for the whole series, e.g. ``"initial_release_scales"``.
    sources
        Licence and citation, one line each, for ``cohort.json``.
    """

    volume: CTVolume
    nodules: Sequence[Nodule]
    exclusions: Sequence[Exclusion] = ()
    flags: Sequence[str] = ()
    sources: Sequence[str] = ()


@typing.runtime_checkable
class SeriesTask(typing.Protocol):
    """A series that is to be prepared: small enough to be sent to another process (pickled).

    A task may have a text `settings`: what its result depends on besides its files. A run that is
    resumed with other settings is refused instead of mixing both.
    """

    @property
    def series_id(self) -> str:
        """Name of the series: safe as a file name, different for each task."""

    @property
    def patient_id(self) -> str:
        """Name of the patient: safe as a file name."""

    def load(self) -> LoadedSeries:
        """Read the series and its nodules.

        Raises
        ------
        InputError
            If it can't be used: it becomes a row of the exclusions.
        """


@dataclass(frozen=True)
class PreparedSeries:
    """What became of a series: rows of both tables (without folds), licence and citation."""

    nodules: tuple[CohortNodule, ...]
    exclusions: tuple[Exclusion, ...]
    sources: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """Return the series as it is recorded."""
        values = {
            "nodules": [schema.cells_of_nodule(nodule) for nodule in self.nodules],
            "exclusions": [asdict(exclusion) for exclusion in self.exclusions],
            "sources": list(self.sources),
        }
        return json_bytes(values, indent=1)

    @classmethod
    def from_json(cls, data: bytes) -> "PreparedSeries | None":
        """Return the series of a record, or None if it isn't exactly what `to_json` gives."""
        try:
            values = json.loads(data)
            series = cls(
                tuple(map(schema.nodule_from_cells, values["nodules"])),
                tuple(map(schema.exclusion_from_cells, values["exclusions"])),
                tuple(map(str, values["sources"])),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return series if series.to_json() == data else None


def prepare_series(
    task: SeriesTask, protocol: Protocol, folder: Path, *, reserved: Sequence[str] = ()
) -> PreparedSeries:
    """Load a series, and write the images of the nodules that the protocol takes.

    Whatever is wrong with the series or a nodule is an exclusion; only a file that can't be
    written is an OSError. The cohort `folder` has its folders for crops and masks. The nodules'
    names must not begin as the names that are `reserved` for other series.
    """
    try:
        loaded = task.load()
        exclusions = [
            exclusion_of_cohort(
                replace(
                    row,
                    patient_id=task.patient_id,
                    series_id=task.series_id,
                    nodule_id=schema.cohort_nodule_id(task.series_id, row.nodule_id),
                )
            )
            for row in loaded.exclusions
        ]
    except Exception as error:  # noqa: BLE001 - a series that fails must not end the others
        return PreparedSeries((), (failure(task, "", error),))
    nodules: list[CohortNodule] = []
    for nodule in loaded.nodules:
        nodule_id = schema.cohort_nodule_id(task.series_id, nodule.nodule_id)
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


def exclusion_of_cohort(exclusion: Exclusion) -> Exclusion:
    """Return a source's exclusion with a message that names nobody; refuse unsafe names."""
    message = without_identity(exclusion.message)
    return schema.exclusion_from_cells({**vars(exclusion), "message": message})


def failure(task: SeriesTask, nodule_id: str, error: Exception, series_uid: str = "") -> Exclusion:
    """Say by name why a series or a nodule is left out."""
    private = [series_uid]
    if isinstance(error, SeriesError):
        for file in error.files:
            private += [str(file), file.name, *file.parts[1:-1]]
    message = str(error)
    if isinstance(error, NamedError):
        reason = error.reason
    else:
        reason = next(name for kind, name in _REASONS.items() if isinstance(error, kind))
    if isinstance(error, MemoryError):
        message = "There was not enough memory; use fewer jobs."
    elif isinstance(error, OSError):  # its text holds the path
        message = f"{type(error).__name__}: {error.strerror or 'no reason given'}"
    elif not isinstance(error, InputError):
        message = f"{type(error).__name__}: {message}"
    name = schema.cohort_nodule_id(task.series_id, nodule_id)
    name = name if schema.is_safe_id(name) else ""
    message = without_identity(message, private)
    return Exclusion(task.patient_id, task.series_id, name, reason, message)


def _check_name(nodule_id: str, before: Sequence[CohortNodule], reserved: Sequence[str]) -> None:
    if not schema.is_safe_id(nodule_id):
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
    volume, malignancy = loaded.volume, nodule.ratings.get("malignancy")
    sessions = {reader.reading_session for reader in nodule.readers}
    # where the source doesn't say who drew, every outline counts
    n_readers = len(nodule.readers) if None in sessions else len(sessions)
    refused = nodule_refusal(n_readers, malignancy, protocol)
    if refused is not None:
        raise refused
    crop = _cropped(volume, nodule, protocol)
    limits, rounded = np.iinfo(np.int16), np.rint(crop.hu)
    n_interpolated = _interpolated_within(volume, crop)
    has_mask = crop.mask is not None and bool(crop.mask.any())
    marks = {
        "cut_by_crop": crop.is_cut,
        "reaches_beyond_scan": crop.is_beyond_scan,
        "interpolated_slices": n_interpolated > 0,
        "interpolated_mask": nodule.outline is not None
        and bool(nodule.outline.interpolated_slices),
        "clipped_hu": bool((rounded < limits.min).any() or (rounded > limits.max).any()),
        "mask_smaller_than_voxel": crop.mask is not None and not has_mask,
    }
    flags = {*loaded.flags, *nodule.flags, *(name for name, holds in marks.items() if holds)}
    numbers = [reader.annotation_id for reader in nodule.readers]
    known = tuple(number for number in numbers if number is not None)
    row = CohortNodule(
        nodule_id=nodule_id,
        patient_id=task.patient_id,
        series_id=task.series_id,
        fold=None,
        label=schema.label_of(malignancy),
        ratings={
            n: float(nodule.ratings[n]) for n in schema.CONSENSUS_NAMES if n in nodule.ratings
        },
        reader_ratings=_reader_ratings(nodule),
        n_readers=n_readers,
        annotation_ids=known if len(known) == len(numbers) else (),
        center_xyz_mm=_three(apply_affine(crop.affine, (np.array(crop.hu.shape) - 1) / 2)),
        padding_fraction=crop.padding_fraction,
        source_spacing_mm=_three(volume.spacing_mm),
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
        np.clip(rounded, limits.min, limits.max).astype(np.int16),
        crop.affine,
        crop.mask if has_mask else None,
        _reader_count(volume, nodule, crop),
    )
    # rounded as the manifest does; what can't be read back must not be written
    return schema.nodule_from_cells(schema.cells_of_nodule(row)), images


def _three(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


def _problem_names(volume: CTVolume, action: Action) -> tuple[str, ...]:
    return tuple(sorted({found.name for found in volume.problems if found.action is action}))


def _reader_ratings(nodule: Nodule) -> dict[str, tuple[float | None, ...]]:
    return {
        name: tuple(
            float(reader.ratings[name]) if name in reader.ratings else None
            for reader in nodule.readers
        )
        for name in schema.READER_NAMES
        if any(name in reader.ratings for reader in nodule.readers)
    }


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
    refused = cube_refusal(
        protocol,
        is_cut=crop.is_cut,
        is_beyond_scan=crop.is_beyond_scan,
        detail=f"it needs a cube of {needed_mm:.1f} mm, the protocol has {protocol.size_mm:g} mm; "
        f"outside of the scan: {crop.padding_fraction:.1%}",
    )
    if refused is not None:
        raise refused
    return crop


def _reader_count(
    volume: CTVolume, nodule: Nodule, crop: Crop
) -> Int16[np.ndarray, "i j k"] | None:
    """Count, voxel by voxel of a crop, the readers who outlined it; None where nobody is known.

    A reader with two outlines in a nodule counts once where the source says who drew them.
    """
    by_reader: dict[int, Bool[np.ndarray, "i j k"]] = {}
    for number, reader in enumerate(nodule.readers):
        if reader.outline is None:
            continue
        # sessions count from 1: those who aren't named are counted down from 0
        key = -number if reader.reading_session is None else reader.reading_session
        mask = outline_on_crop(volume, reader.outline, crop)
        by_reader[key] = by_reader[key] | mask if key in by_reader else mask
    if not by_reader:
        return None
    count: np.ndarray = np.stack(list(by_reader.values())).sum(axis=0, dtype=np.int16)
    return count


def _interpolated_within(volume: CTVolume, crop: Crop) -> int:
    """Count the scan's interpolated slices that the cube is made from."""
    if not volume.interpolated_slices:
        return 0
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(crop.hu.shape) - 1)
    k = apply_affine(inverse_affine(volume.affine) @ crop.affine, corners)[:, 2]
    first, last = int(np.floor(k.min())), int(np.ceil(k.max()))
    return sum(first <= number <= last for number in volume.interpolated_slices)
