"""Any CT series below a folder, with nodules from a table of points or from masks, as tasks."""

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from data_prep.cohort.rows import Exclusion
from data_prep.dicom.character_sets import comparable, is_decoded
from data_prep.dicom.files import DicomFile
from data_prep.dicom.gate import read_files
from data_prep.dicom.headers import FileIndex, index_files
from data_prep.errors import InputError
from data_prep.formats import find_images, image_stem, read_image
from data_prep.masks import MaskIndex, masks_of_series
from data_prep.masks.meant_grid import check_mask_grid
from data_prep.nodule_rows import LeftOutRow
from data_prep.nodule_table import NoduleTable, read_nodule_table
from data_prep.prepare.masked_series import (
    MaskOptions,
    frame_uid,
    image_uids,
    nodules_of_masks,
)
from data_prep.prepare.prepared_series import cohort_nodule_id
from data_prep.prepare.pseudonyms import Pseudonyms, pseudonyms_for, without_identity
from data_prep.prepare.tasks import LoadedSeries
from data_prep.problems import Policy
from data_prep.text import printable
from data_prep.volume import CTVolume

_DEFAULT_POLICY = Policy()
_UNREAD_PATIENT = (
    "Its PatientID isn't in the character set that the files state (SpecificCharacterSet), so no "
    "patient_id can be it: name the series by its series_uid."
)


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
    mask_options
        How the masks are taken.
    """

    series_id: str
    patient_id: str
    series: FoundSeries = field(repr=False)
    table: NoduleTable | None = field(repr=False)
    is_only_series: bool
    masks: tuple[Path, ...] = field(repr=False)
    policy: Policy
    mask_options: MaskOptions

    @property
    def settings(self) -> str:
        """What the result depends on besides the files."""
        rows = "" if self.table is None else repr((self.table.rows, self.table.left_out))
        repairs, refusals = sorted(self.policy.repair), sorted(self.policy.refuse)
        return (
            f"nodules={hashlib.sha256(rows.encode()).hexdigest()} masks={len(self.masks)} "
            f"repair={','.join(repairs)} refuse={','.join(refusals)} {self.mask_options}"
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
            return LoadedSeries(volume, *nodules_of_masks(self.masks, volume, self.mask_options))
        placed = self.table.place(
            self.series.series_uid,
            self.series.patient_id,
            volume,
            patient_has_one_series=self.is_only_series,
        )
        names = {nodule.nodule_id for nodule in placed.nodules}
        rows = [self._exclusion(row, names) for row in placed.left_out]
        return LoadedSeries(volume, placed.nodules, [*rows, *self._not_nodules()])

    def without_volume(self) -> list[Exclusion]:
        """Return why a series without nodules has none, by the cohort's names."""
        rows = () if self.table is None else self.table.left_out
        found = [*(self._exclusion(row, ()) for row in rows), *self._not_nodules()]
        if found:
            return [
                replace(each, nodule_id=cohort_nodule_id(self.series_id, each.nodule_id))
                if each.nodule_id
                else each
                for each in found
            ]
        unread = "" if is_decoded(self.series.patient_id) else f" {_UNREAD_PATIENT}"
        message = f"No nodule is on it.{unread}"
        return [Exclusion(self.patient_id, self.series_id, "", "no_nodules", message)]

    def _exclusion(self, row: LeftOutRow, names: Collection[str]) -> Exclusion:
        """Return a row that is left out; a nodule's name that another row has is left away."""
        name = "" if row.nodule_id in names else row.nodule_id
        return Exclusion(self.patient_id, self.series_id, name, row.reason, row.anonymous_message)

    def _not_nodules(self) -> list[Exclusion]:
        count = 0 if self.table is None else sum(self.table.not_nodules.values())
        if not count:
            return []
        message = f"{count} rows of the table of nodules say that they are no nodule."
        return [Exclusion(self.patient_id, self.series_id, "", "not_a_nodule", message)]

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
    regions: str | Sequence[str] = (),
    mask_grid: str | None = None,
    same_frame: bool = False,
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
    regions, mask_grid, same_frame
        How masks are taken, see `data_prep.nodules_from_masks`. A mask whose own series is there
        is only taken for that one, also with `same_frame`.
    policy
        What is repaired in the series and what refused.

    Raises
    ------
    InputError
        If not exactly one of `nodules` and `masks` is given, one of them can't be used, one of
        `regions` fits no region of any mask, or there is no CT series.
    SeriesError
        ``not_found`` if there is nothing at `root`.
    """
    if (nodules is None) == (masks is None):
        raise InputError(
            "Say where the nodules are: either in a table by --nodules, or in masks by --masks."
        )
    check_mask_grid(mask_grid)
    patterns = (regions,) if isinstance(regions, str) else tuple(regions)
    if masks is None and (patterns or mask_grid or same_frame):
        raise InputError(
            "Regions, the grid or the frame of masks are asked for (regions=, mask_grid=, "
            "same_frame=), but no masks are given: give them by masks=."
        )
    table = None if nodules is None else read_nodule_table(nodules, frame=frame)
    mask_index = None if masks is None else masks_of_series(masks)
    if mask_index is not None:
        mask_index.check_choice(patterns)
    file_index = index_files(Path(root))
    found = list(_find_series(Path(root), file_index, mask_index))
    if not found:
        raise _no_series(Path(root), file_index)
    masks_of = _masks_by_series(mask_index, found, same_frame=same_frame)
    names = pseudonyms_for(
        (series.patient for series in found), (series.series_uid for series in found)
    )
    n_series = Counter(series.patient for series in found)
    every = [
        CTTask(
            names.series[series.series_uid],
            names.patients[series.patient],
            series,
            None if table is None else table.of_series(series.series_uid, series.patient_id),
            n_series[series.patient] == 1,
            masks_of[series.series_uid],
            policy,
            MaskOptions(patterns, mask_grid, same_frame),
        )
        for series in found
    ]
    tasks = [task for task in every if task.has_nodules]
    exclusions = [
        *(
            Exclusion("", "", "", problem.name, without_identity(problem.message, problem.files))
            for problem in file_index.problems
        ),
        *(each for task in every if not task.has_nodules for each in task.without_volume()),
        *_without_series(table, mask_index, every),
    ]
    return SeriesTasks(tuple(tasks), tuple(exclusions), names)


def _no_series(root: Path, index: FileIndex) -> InputError:
    kinds = Counter(series.description or series.modality for series in index.series)
    others = ", ".join(f"{count} series of {kind}" for kind, count in sorted(kinds.items()))
    problem = f" {index.problems[0].message}" if index.problems else ""
    return InputError(
        f"No CT series lies below {printable(str(root))} ({index.n_files} files; "
        f"{others or 'no DICOM series'}); expected are DICOM files of a CT, or NIfTI, NRRD or "
        f"MetaImage files that are no masks.{problem}"
    )


def _find_series(root: Path, index: FileIndex, masks: MaskIndex | None) -> Iterable[FoundSeries]:
    """Yield the CT series; image files that are masks are none."""
    for series in index.series:
        if series.modality == "CT":
            yield FoundSeries(series.series_uid, series.patient_id, series.files, None)
    mask_paths = {path.resolve() for path in masks.paths} if masks else set()
    images = [path for path in find_images(root) if path.resolve() not in mask_paths]
    uses = Counter([*map(image_stem, images), *(series.series_uid for series in index.series)])
    for path in images:
        stem = image_stem(path)
        ending = path.name.removeprefix(stem)
        place = path.relative_to(root).as_posix().removesuffix(ending)
        yield FoundSeries(comparable(stem if uses[stem] == 1 else place), "", (), path)


def _masks_by_series(
    index: MaskIndex | None, found: Sequence[FoundSeries], *, same_frame: bool
) -> dict[str, tuple[Path, ...]]:
    """Return the masks of each series; those of no series by their frame of reference, if asked."""
    if index is None:
        return {series.series_uid: () for series in found}
    wanted = index.image_uids
    masks = {
        series.series_uid: index.for_series(
            series.series_uid,
            series.patient_id,
            image_uids=image_uids(series.files, wanted) if wanted else (),
        )
        for series in found
    }
    others = _unused(index, masks.values())
    if same_frame and others:
        for series in found:
            frame = frame_uid(series.files)
            masks[series.series_uid] += [path for path in others if index.has_frame(path, frame)]
    return {series_uid: tuple(paths) for series_uid, paths in masks.items()}


def _unused(index: MaskIndex, used: Iterable[Sequence[Path]]) -> list[Path]:
    return sorted(set(index.paths).difference(*used))


def _without_series(
    table: NoduleTable | None, masks: MaskIndex | None, tasks: Sequence[CTTask]
) -> list[Exclusion]:
    """Name the rows and masks that belong to no series, without naming the patient."""
    exclusions = []
    if table is not None:
        exclusions += _rows_without_series(table, [task.table for task in tasks if task.table])
    if masks is not None:
        exclusions += _masks_without_series(masks, tasks)
    return exclusions


def _masks_without_series(masks: MaskIndex, tasks: Sequence[CTTask]) -> list[Exclusion]:
    unused = _unused(masks, (task.masks for task in tasks))
    if not unused:
        return []
    message = f"{len(unused)} of {len(masks.paths)} masks belong to no series that is there."
    frames = {frame_uid(task.series.files) for task in tasks}
    n_of_frame = sum(any(masks.has_frame(path, frame) for frame in frames) for path in unused)
    if n_of_frame:
        message += (
            f" {n_of_frame} of them were drawn on another series of the same frame of reference "
            "as one that is there: same_frame=True takes them."
        )
    return [Exclusion("", "", "", "no_series", message)]


def _rows_without_series(table: NoduleTable, of_series: Sequence[NoduleTable]) -> list[Exclusion]:
    used = {row.row for one in of_series for row in one.rows}
    used |= {row.row for one in of_series for row in one.left_out}
    exclusions = [
        Exclusion(
            "",
            "",
            "",
            "no_series",
            f"Row {row.row} of the table of nodules names no series that is there.",
        )
        for row in table.rows
        if row.row not in used
    ]
    exclusions += [
        Exclusion("", "", "", row.reason, row.anonymous_message)
        for row in table.left_out
        if row.row not in used
    ]
    counted = {key for one in of_series for key in one.not_nodules}
    n_others = sum(count for key, count in table.not_nodules.items() if key not in counted)
    if n_others:
        message = (
            f"{n_others} rows of the table of nodules say that they are no nodule, of series that "
            "aren't there."
        )
        exclusions.append(Exclusion("", "", "", "not_a_nodule", message))
    return exclusions
