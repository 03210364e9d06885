"""Any CT series below a folder, with nodules from a table of points or from masks, as tasks."""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_prep.cohort.rows import Exclusion
from data_prep.dicom.files import DicomFile
from data_prep.dicom.gate import read_files
from data_prep.dicom.headers import FileIndex, index_files
from data_prep.errors import InputError
from data_prep.formats import find_images, image_stem, read_image
from data_prep.masks import MaskIndex, masks_of_series, nodules_from_masks
from data_prep.nodule_table import NoduleTable, read_nodule_table
from data_prep.prepare.pseudonyms import Pseudonyms, pseudonyms_for, without_identity
from data_prep.prepare.tasks import LoadedSeries
from data_prep.problems import Policy
from data_prep.volume import CTVolume

_DEFAULT_POLICY = Policy()


class FoundSeries(NamedTuple):
    """A CT series below a folder: DICOM files, or an image file.

    Parameters
    ----------
    series_uid
        SeriesInstanceUID; of an image file its name without the ending, or, where several below
        the folder have that name, its place below it without the ending (``P01/ct``).
    patient_id
        PatientID; empty for an image file.
    files
        DICOM files; empty for an image file.
    image
        The image file; None for DICOM.
    """

    series_uid: str
    patient_id: str
    files: tuple[DicomFile, ...]
    image: Path | None

    @property
    def patient(self) -> str:
        """The patient; where the files don't say, each series counts as a patient of its own."""
        return self.patient_id or f"\n{self.series_uid}"  # no PatientID holds a line break


@dataclass(frozen=True)
class CTTask:
    """A CT series and where its nodules are told; small, and can be pickled.

    Parameters
    ----------
    series_id, patient_id
        Pseudonyms.
    series
        The files and their own names.
    table
        Its rows; None where the nodules are in masks.
    is_only_series
        Whether the patient has no other series.
    masks
        Mask files of the series.
    policy
        What is repaired in the series and what refused.
    """

    series_id: str
    patient_id: str
    series: FoundSeries = field(repr=False)
    table: NoduleTable | None = field(repr=False)
    is_only_series: bool
    masks: tuple[Path, ...] = field(repr=False)
    policy: Policy

    @property
    def settings(self) -> str:
        """What the result depends on besides the files."""
        rows = "" if self.table is None else repr(self.table.rows)
        repairs, refusals = sorted(self.policy.repair), sorted(self.policy.refuse)
        return (
            f"nodules={hashlib.sha256(rows.encode()).hexdigest()} masks={len(self.masks)} "
            f"repair={','.join(repairs)} refuse={','.join(refusals)}"
        )

    @property
    def has_nodules(self) -> bool:
        """Whether a row or a mask is on the series."""
        return bool(self.masks) or (self.table is not None and bool(self.table.rows))

    def load(self) -> LoadedSeries:
        """Read the series and its nodules.

        Raises
        ------
        InputError
            If the series or its nodules can't be used.
        """
        volume = self._read_volume()
        if self.table is None:
            return LoadedSeries(volume, nodules_from_masks(self.masks, volume))
        nodules = self.table.for_series(
            self.series.series_uid,
            self.series.patient_id,
            volume,
            patient_has_one_series=self.is_only_series,
        )
        return LoadedSeries(volume, nodules)

    def _read_volume(self) -> CTVolume:
        if self.series.image is not None:
            return read_image(self.series.image)
        return read_files(self.series.files, series_uid=self.series.series_uid, policy=self.policy)


class SeriesTasks(NamedTuple):
    """What is to be prepared of a folder, and what isn't.

    Parameters
    ----------
    tasks
        One for each series with nodules.
    exclusions
        Series without nodules, nodules and masks without a series, files that can't be read.
    pseudonyms
        Of all series that were found.
    """

    tasks: tuple[CTTask, ...]
    exclusions: tuple[Exclusion, ...]
    pseudonyms: Pseudonyms


def series_tasks(
    root: str | os.PathLike[str],
    *,
    nodules: str | os.PathLike[str] | None = None,
    frame: str | None = None,
    masks: str | os.PathLike[str] | None = None,
    policy: Policy = _DEFAULT_POLICY,
) -> SeriesTasks:
    """Find the CT series below a folder and their nodules.

    Parameters
    ----------
    root
        Folder below which the series lie: DICOM in any structure, NIfTI, NRRD, MetaImage.
    nodules
        CSV of points, see `data_prep.nodule_table.read_nodule_table`.
    frame
        Frame of the points where the table doesn't state it.
    masks
        Folder or file of masks, see `data_prep.masks.masks_of_series`; the alternative.
    policy
        What is repaired in the series and what refused.

    Raises
    ------
    InputError
        If not exactly one of `nodules` and `masks` is given, or one of them can't be used.
    SeriesError
        ``not_found`` if there is nothing at `root`.
    """
    if (nodules is None) == (masks is None):
        raise InputError(
            "Say where the nodules are: either in a table by --nodules, or in masks by --masks."
        )
    table = None if nodules is None else read_nodule_table(nodules, frame=frame)
    mask_index = None if masks is None else masks_of_series(masks)
    file_index = index_files(Path(root))
    found = list(_find_series(Path(root), file_index, mask_index))
    names = pseudonyms_for(
        (series.patient for series in found), (series.series_uid for series in found)
    )
    n_series = Counter(series.patient for series in found)
    every = [
        CTTask(
            names.series[series.series_uid],
            names.patients[series.patient],
            series,
            None if table is None else _rows_of(table, series),
            n_series[series.patient] == 1,
            _masks_of(mask_index, series),
            policy,
        )
        for series in found
    ]
    tasks = [task for task in every if task.has_nodules]
    exclusions = [
        *(
            Exclusion("", "", "", problem.name, without_identity(problem.message, problem.files))
            for problem in file_index.problems
        ),
        *(
            Exclusion(task.patient_id, task.series_id, "", "no_nodules", "No nodule is on it.")
            for task in every
            if not task.has_nodules
        ),
        *_without_series(table, mask_index, tasks),
    ]
    return SeriesTasks(tuple(tasks), tuple(exclusions), names)


def _find_series(root: Path, index: FileIndex, masks: MaskIndex | None) -> Iterable[FoundSeries]:
    """Yield the CT series; image files that are masks are none."""
    for series in index.series:
        if series.modality == "CT":
            yield FoundSeries(series.series_uid, series.patient_id, series.files, None)
    mask_paths = {path.resolve() for path in masks.paths} if masks else set()
    images = [
        path
        for path in (find_images(root) if root.is_dir() else [])
        if path.resolve() not in mask_paths
    ]
    uses = Counter([*map(image_stem, images), *(series.series_uid for series in index.series)])
    for path in images:
        stem = image_stem(path)
        ending = path.name.removeprefix(stem)
        place = path.relative_to(root).as_posix().removesuffix(ending)
        yield FoundSeries(stem if uses[stem] == 1 else place, "", (), path)


def _rows_of(table: NoduleTable, series: FoundSeries) -> NoduleTable:
    """Return the table with the rows that may be on a series, so that a task stays small."""
    rows = tuple(
        row
        for row in table.rows
        if row.series_uid == series.series_uid
        or (not row.series_uid and series.patient_id and row.patient_id == series.patient_id)
    )
    return dataclasses.replace(table, rows=rows)


def _masks_of(index: MaskIndex | None, series: FoundSeries) -> tuple[Path, ...]:
    if index is None:
        return ()
    return tuple(index.for_series(series.series_uid, series.patient_id))


def _without_series(
    table: NoduleTable | None, masks: MaskIndex | None, tasks: Sequence[CTTask]
) -> list[Exclusion]:
    """Name the rows and masks that belong to no series, without naming the patient."""
    exclusions = []
    if table is not None:
        used_rows = {row.row for task in tasks if task.table for row in task.table.rows}
        exclusions += [
            Exclusion(
                "",
                "",
                "",
                "no_series",
                f"Row {row.row} of the table of nodules names no series that is there.",
            )
            for row in table.rows
            if row.row not in used_rows
        ]
    if masks is not None:
        used_masks = {path for task in tasks for path in task.masks}
        n_unused = len(set(masks.paths) - used_masks)
        if n_unused:
            exclusions.append(
                Exclusion(
                    "",
                    "",
                    "",
                    "no_series",
                    f"{n_unused} of {len(masks.paths)} masks belong to no series that is there.",
                )
            )
    return exclusions
