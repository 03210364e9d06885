"""Any CT series below a folder, with nodules from a table of points or from masks, as tasks."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from data_prep.cohort.schema import Exclusion, cohort_nodule_id
from data_prep.dicom.files import DicomFile
from data_prep.dicom.header import FileIndex, index_files, is_decoded, read_header
from data_prep.dicom.reader import read_files
from data_prep.errors import InputError, NamedError
from data_prep.formats import find_images, image_stem, read_image
from data_prep.masks import LeftOutRegion, MaskIndex, masks_of_series, read_masks
from data_prep.masks.images import check_mask_grid
from data_prep.masks.regions import names_nobody
from data_prep.nodule_rows import LeftOutRow
from data_prep.nodule_table import NoduleTable, read_nodule_table
from data_prep.nodules import Nodule
from data_prep.prepare.pseudonyms import Pseudonyms, pseudonyms_for, without_identity
from data_prep.prepare.series import LoadedSeries
from data_prep.problems import Policy, SeriesError
from data_prep.text import comparable, printable
from data_prep.volume import CTVolume

_DEFAULT_POLICY = Policy()
_UNREAD_PATIENT = (
    "Its PatientID isn't in the character set that the files state (SpecificCharacterSet), so no "
    "patient_id can be it: name the series by its series_uid."
)


class FoundSeries(NamedTuple):
    """A CT series below a folder: DICOM files, or an image file.

    The `series_uid` of an image file is its name without the ending, or, where several below the
    folder have that name, its place below it without the ending (``P01/ct``).
    """

    series_uid: str
    patient_id: str = ""
    files: tuple[DicomFile, ...] = ()
    image: Path | None = None

    @property
    def patient(self) -> str:
        """The patient; where the files don't say, each series counts as a patient of its own."""
        return self.patient_id or f"\n{self.series_uid}"  # no PatientID holds a line break


class MaskOptions(NamedTuple):
    """How masks are taken, see `data_prep.masks.nodules_from_masks`."""

    regions: tuple[str, ...] = ()
    mask_grid: str | None = None
    same_frame: bool = False


@dataclass(frozen=True)
class CTTask:
    """A CT series and where its nodules are told; small, and can be pickled.

    The ids are pseudonyms. `table` holds the rows on the series; None where the nodules are in
    `masks`.
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

    def load(self) -> LoadedSeries:
        """Read the series and its nodules.

        Raises
        ------
        InputError
            If the series or its nodules can't be used.
        """
        series = self.series
        if series.image is not None:
            volume = read_image(series.image)
        else:
            volume = read_files(series.files, series_uid=series.series_uid, policy=self.policy)
        if self.table is None:
            return LoadedSeries(volume, *_nodules_of_masks(self.masks, volume, self.mask_options))
        placed = self.table.place(
            series.series_uid,
            series.patient_id,
            volume,
            patient_has_one_series=self.is_only_series,
        )
        names = {nodule.nodule_id for nodule in placed.nodules}
        exclusions = self.exclusions(self.table, placed.left_out)
        # a nodule's name that another row has is left away
        return LoadedSeries(
            volume,
            placed.nodules,
            [replace(row, nodule_id="") if row.nodule_id in names else row for row in exclusions],
        )

    def exclusions(self, table: NoduleTable, rows: Iterable[LeftOutRow]) -> list[Exclusion]:
        """Return rows that are left out, by their names in the series, and what is no nodule."""
        ids = self.patient_id, self.series_id
        found = [Exclusion(*ids, row.nodule_id, row.reason, row.anonymous_message) for row in rows]
        count = sum(table.not_nodules.values())
        if count:
            message = f"{count} rows of the table of nodules say that they are no nodule."
            found.append(Exclusion(*ids, "", "not_a_nodule", message))
        return found

    def without_nodules(self) -> list[Exclusion]:
        """Return why a series without nodules has none, by the cohort's names."""
        rows = [] if self.table is None else self.exclusions(self.table, self.table.left_out)
        unread = "" if is_decoded(self.series.patient_id) else f" {_UNREAD_PATIENT}"
        message = f"No nodule is on it.{unread}"
        return [
            replace(row, nodule_id=cohort_nodule_id(self.series_id, row.nodule_id)) for row in rows
        ] or [Exclusion(self.patient_id, self.series_id, "", "no_nodules", message)]


class SeriesTasks(NamedTuple):
    """What is to be prepared of a folder, and what isn't.

    The exclusions are series without nodules, nodules and masks without a series, and files that
    can't be read. The pseudonyms are those of all series that were found.
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
    tasks = []
    exclusions = [
        Exclusion("", "", "", problem.name, without_identity(problem.message, problem.files))
        for problem in file_index.problems
    ]
    for task in every:
        if task.masks or (task.table is not None and task.table.rows):
            tasks.append(task)
        else:
            exclusions += task.without_nodules()
    if table is not None:
        exclusions += _rows_without_series(table, [task.table for task in every if task.table])
    if mask_index is not None:
        exclusions += _masks_without_series(mask_index, every)
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


def _find_series(root: Path, index: FileIndex, masks: MaskIndex | None) -> Iterator[FoundSeries]:
    """Yield the CT series; image files that are masks are none."""
    for series in index.series:
        if series.modality == "CT":
            yield FoundSeries(series.series_uid, series.patient_id, series.files)
    mask_paths = {path.resolve() for path in masks.paths} if masks else set()
    images = [path for path in find_images(root) if path.resolve() not in mask_paths]
    uses = Counter([*map(image_stem, images), *(series.series_uid for series in index.series)])
    for path in images:
        stem = image_stem(path)
        ending = path.name.removeprefix(stem)
        place = path.relative_to(root).as_posix().removesuffix(ending)
        yield FoundSeries(comparable(stem if uses[stem] == 1 else place), image=path)


def _masks_by_series(
    index: MaskIndex | None, found: Sequence[FoundSeries], *, same_frame: bool
) -> dict[str, tuple[Path, ...]]:
    """Return the masks of each series; those of no series by their frame of reference, if asked."""
    if index is None:
        return {series.series_uid: () for series in found}
    wanted = frozenset(index.image_uids)
    masks = {
        series.series_uid: index.for_series(
            series.series_uid,
            series.patient_id,
            image_uids=wanted.intersection(_texts(series.files, "SOPInstanceUID"))
            if wanted
            else (),
        )
        for series in found
    }
    others = _unused(index, masks.values())
    if same_frame and others:
        for series in found:
            frame = _frame_uid(series.files)
            masks[series.series_uid] += [path for path in others if index.has_frame(path, frame)]
    return {series_uid: tuple(paths) for series_uid, paths in masks.items()}


def _unused(index: MaskIndex, used: Iterable[Sequence[Path]]) -> list[Path]:
    return sorted(set(index.paths).difference(*used))


def _masks_without_series(masks: MaskIndex, tasks: Sequence[CTTask]) -> list[Exclusion]:
    unused = _unused(masks, (task.masks for task in tasks))
    if not unused:
        return []
    message = f"{len(unused)} of {len(masks.paths)} masks belong to no series that is there."
    frames = {_frame_uid(task.series.files) for task in tasks}
    n_of_frame = sum(any(masks.has_frame(path, frame) for frame in frames) for path in unused)
    if n_of_frame:
        message += (
            f" {n_of_frame} of them were drawn on another series of the same frame of reference "
            "as one that is there: same_frame=True takes them."
        )
    return [Exclusion("", "", "", "no_series", message)]


def _rows_without_series(
    table: NoduleTable, of_series: Sequence[NoduleTable]
) -> Iterator[Exclusion]:
    """Yield the rows that belong to no series, without naming the patient."""
    used = {row.row for one in of_series for row in one.rows}
    used |= {row.row for one in of_series for row in one.left_out}
    for number in (row.row for row in table.rows if row.row not in used):
        message = f"Row {number} of the table of nodules names no series that is there."
        yield Exclusion("", "", "", "no_series", message)
    for row in (row for row in table.left_out if row.row not in used):
        yield Exclusion("", "", "", row.reason, row.anonymous_message)
    counted = {key for one in of_series for key in one.not_nodules}
    n_others = sum(count for key, count in table.not_nodules.items() if key not in counted)
    if n_others:
        message = (
            f"{n_others} rows of the table of nodules say that they are no nodule, of series that "
            "aren't there."
        )
        yield Exclusion("", "", "", "not_a_nodule", message)


def _nodules_of_masks(
    paths: Sequence[Path], volume: CTVolume, options: MaskOptions
) -> tuple[list[Nodule], list[Exclusion]]:
    """Return the nodules in the masks of a series, and a row for each region and file left out.

    A nodule has the name of its region if that names nobody, else its number; nor does the error
    name anybody if no region is named as asked for.
    """
    try:
        masked = read_masks(paths, volume, **options._asdict())
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
    return nodules, [_excluded_region(each, paths) for each in masked.left_out]


def _excluded_region(left_out: LeftOutRegion, paths: Sequence[Path]) -> Exclusion:
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
    nodule_id = re.sub(r"\W+", "_", "_of_".join(names))
    return Exclusion("", "", nodule_id, left_out.reason, without_identity(message, private))


def _frame_uid(files: Iterable[DicomFile]) -> str:
    """Return the FrameOfReferenceUID of the first file of a series that can be read."""
    return next(iter(_texts(files, "FrameOfReferenceUID")), "")


def _texts(files: Iterable[DicomFile], keyword: str) -> Iterator[str]:
    for file in files:
        try:
            header = read_header(file)
        except SeriesError:
            continue  # told where the series is read
        if header is not None:
            yield header.text(keyword)
