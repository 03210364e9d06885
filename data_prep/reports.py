"""What lies below a path: every series, mask and image file, and whether it can be used."""

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep import geometry
from data_prep.dicom.files import DicomFile
from data_prep.dicom.header import index_files
from data_prep.dicom.pixels import CTSlice, read_hu, with_default_rescale
from data_prep.dicom.placement import Placement
from data_prep.dicom.plausibility import describe_implausible, find_implausible, sample_hu
from data_prep.dicom.reader import PlacedStack, place_stacks
from data_prep.dicom.slices import SeriesContents, read_contents
from data_prep.errors import ImageError, NamedError
from data_prep.formats import find_images, read_stored
from data_prep.formats.stored import StoredImage, to_hu
from data_prep.masks import MaskRegion, regions_of_mask
from data_prep.masks.references import read_references
from data_prep.problems import Action, Finding, Policy, Problem, SeriesError
from data_prep.text import printable

SLICES_AT_ONCE = 32
"""So many slices are in memory while pixels are checked."""

Verdict = Literal["ok", "repaired", "refused", "mask", "other"]

_DEFAULT_POLICY = Policy()


@dataclass(frozen=True)
class RegionReport:
    """A region of a structure set, a segment or a label; its texts are printable.

    ``n_slices`` is 0 where nothing is drawn or pixels weren't read, ``size_mm`` the extent along
    (x, y, z), ``not_a_nodule`` a key of `data_prep.masks.regions.LEFT_OUT_REASONS`: why it isn't
    taken unless it is chosen by name; empty where it is.
    """

    number: str
    name: str
    kind: str
    n_slices: int
    size_mm: tuple[float, float, float] | None
    not_a_nodule: str


@dataclass(frozen=True)
class ImageReport:
    """An image file (NIfTI, NRRD, MetaImage), by its place below the path.

    The verdict is what it can be used as. Shape, spacing and axes are None where it can't be read;
    ``values`` are the lowest and the highest, NaN and infinity left out; ``remarks`` say why it
    isn't usable as a CT or as a mask, or looks odd: the problem's name and a sentence.
    """

    file: str
    verdict: Literal["ct", "mask", "refused"]
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    axcodes: tuple[str, str, str] | None = None
    values: tuple[float, float] | None = None
    regions: tuple[RegionReport, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class GridReport:
    """The regular grid of a stack; its extent is that of voxels' centres along RAS x, y and z."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    axcodes: tuple[str, str, str]
    extent_xyz_mm: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class MaskReport:
    """A DICOM segmentation or structure set, and the series that it names as drawn on.

    ``fault`` is the sentence why it can't be read; empty where it can.
    """

    file: str
    series_uids: tuple[str, ...]
    regions: tuple[RegionReport, ...]
    fault: str = ""


@dataclass(frozen=True)
class StackReport:
    """A stack of a CT series, or a series of another kind.

    Parameters
    ----------
    stack
        Number within the series, from 1; 0 where there is no slice.
    is_default
        Whether `data_prep.read_series` reads this stack of the series unless told otherwise.
    label
        What tells it from the series' other stacks.
    n_slices
        Images in the stack, without copies; files, where there is no slice.
    grid
        Where it lies, as it is read after repairs; None where that can't be told.
    verdict
        By the policy, without that a stack was asked for: a refusal for there being several goes
        away where ``stack=`` is given. ``other`` is what else is no CT slice.
    problems
        All that was found, also what is only noted.
    """

    series_uid: str
    modality: str
    kind: str
    stack: int
    is_default: bool
    label: str
    n_slices: int
    grid: GridReport | None
    verdict: Verdict
    problems: tuple[Problem, ...]
    masks: tuple[MaskReport, ...] = ()


@dataclass(frozen=True)
class PathReport:
    """Everything below a path; series are in the order in which their first files are found.

    ``problems`` are of no series: files that can't be read, links that lead nowhere. While one is
    refused, `data_prep.read_series` refuses the whole path: the file may belong to the series.
    """

    path: str
    stacks: tuple[StackReport, ...]
    problems: tuple[Problem, ...]
    n_files: int
    images: tuple[ImageReport, ...] = ()

    @property
    def has_usable(self) -> bool:
        """Whether there is a CT that can be read, or a mask."""
        return not {"ok", "repaired", "mask", "ct"}.isdisjoint(self.verdicts)

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Of every stack and image."""
        return tuple(
            [*(stack.verdict for stack in self.stacks), *(image.verdict for image in self.images)]
        )

    def to_json(self) -> str:
        """Return all of it as JSON, with the names of the attributes."""
        return json.dumps(asdict(self), indent=1)


def check_path(
    path: str | os.PathLike[str],
    *,
    policy: Policy = _DEFAULT_POLICY,
    read_pixels: bool = True,
) -> PathReport:
    """List every series and image file below a path, with the gate's verdict.

    No patient's name, id or date is in it, unless files or regions of masks are named so.

    Parameters
    ----------
    path
        Folder of any structure, zip archive, DICOMDIR or single file.
    policy
        What is repaired and refused.
    read_pixels
        Whether every pixel is decoded, and checked for plausible HU. Otherwise only headers are
        read, and the pixels of images at the same position.

    Raises
    ------
    SeriesError
        ``not_found``.
    """
    root = Path(path)
    # pydicom warns of any value that bends the standard; those that are used are checked here
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        index = index_files(root)
        stacks: list[StackReport] = []
        for files in index.series:
            contents, _ = read_contents(files.files, files.series_uid)
            series = contents.get(files.series_uid)
            if series is not None:  # else its files went away in between
                found = list(_report_series(series, policy, read_pixels=read_pixels))
                masks = tuple(_report_masks(files.files, read_pixels=read_pixels))
                if masks and [each.verdict for each in found] == ["other"]:
                    found = [replace(found[0], verdict="mask", masks=masks)]
                stacks += found
    problems = tuple(finding.decide(policy) for finding in index.findings)
    images = tuple(_report_images(root))
    return PathReport(printable(str(root)), tuple(stacks), problems, index.n_files, images)


def _report_series(
    series: SeriesContents, policy: Policy, *, read_pixels: bool
) -> Iterator[StackReport]:
    placed = place_stacks(series)
    if not placed:
        yield _without_slices(series, policy)
    for each in placed:
        findings = list(each.findings)
        if read_pixels:
            findings += _check_pixels(each, policy)
        yield _report_stack(series, each, tuple(finding.decide(policy) for finding in findings))


def _without_slices(series: SeriesContents, policy: Policy) -> StackReport:
    """Report a series of another kind, or one of whose files none is a slice."""
    problems = tuple(finding.decide(policy) for finding in series.findings)
    is_damaged = any(problem.action is Action.REFUSE for problem in problems)
    return StackReport(
        series_uid=printable(series.series_uid),
        modality=series.modality,
        kind=series.kind,
        stack=0,
        is_default=False,
        label="",
        n_slices=series.n_files,
        grid=None,
        verdict="refused" if series.is_ct and is_damaged else "other",
        problems=problems if series.is_ct else (),
    )


def _report_masks(files: Sequence[DicomFile], *, read_pixels: bool) -> Iterator[MaskReport]:
    """Report the segmentations and structure sets among files; those in archives aren't read."""
    for file in files:
        if file.member is not None:
            continue
        name = printable(file.path.name)
        try:
            references = read_references(file.path)
            if references is None:
                continue
        except NamedError as error:
            yield MaskReport(name, (), (), error.message)
            continue
        regions, fault = references.regions, ""
        if read_pixels:
            try:
                regions = regions_of_mask(file.path)
            except NamedError as error:
                fault = error.message
        series_uids = tuple(printable(uid) for uid in sorted(references.series_uids))
        yield MaskReport(name, series_uids, tuple(map(_report_region, regions)), fault)


def _check_pixels(placed: PlacedStack, policy: Policy) -> list[Finding]:
    """Decode every slice; find values that aren't HU."""
    slices = placed.stack.slices if placed.placement is None else placed.placement.slices
    lacks_rescale = any(one.pixels.rescale_is_missing for one in slices)
    if lacks_rescale and policy.action("no_rescale") is Action.REFUSE:
        return []
    slices = tuple(with_default_rescale(slices))
    try:
        values = _sample(slices)
    except SeriesError as error:
        known = {each.name for each in placed.findings}
        return [] if error.reason in known else [replace(error.finding, can_repair=False)]
    return find_implausible(values, slices, lacks_rescale=lacks_rescale)


def _sample(slices: Sequence[CTSlice]) -> np.ndarray:
    samples = []
    for start in range(0, len(slices), SLICES_AT_ONCE):
        samples.append(sample_hu(*read_hu(slices[start : start + SLICES_AT_ONCE])))
    return np.concatenate(samples)


def _report_stack(
    series: SeriesContents, placed: PlacedStack, problems: tuple[Problem, ...]
) -> StackReport:
    actions = {problem.action for problem in problems}
    verdict: Verdict = "repaired" if Action.REPAIR in actions else "ok"
    if Action.REFUSE in actions:
        verdict = "refused"
    return StackReport(
        series_uid=printable(series.series_uid),
        modality=series.modality,
        kind=series.kind,
        stack=placed.stack.number,
        is_default=placed.stack.is_default,
        label=placed.stack.label,
        n_slices=len(placed.stack.slices),
        grid=None if placed.placement is None else _report_grid(placed.placement),
        verdict=verdict,
        problems=problems,
    )


def _report_grid(placement: Placement) -> GridReport:
    affine = geometry.affine_lps_to_ras(placement.affine_lps)
    ends = np.array(list(product(*((0, size - 1) for size in placement.shape))))
    corners_xyz_mm = geometry.apply_affine(affine, ends)
    x, y, z = zip(
        corners_xyz_mm.min(axis=0).round(3).tolist(),
        corners_xyz_mm.max(axis=0).round(3).tolist(),
        strict=True,
    )
    spacing_mm = geometry.spacing_mm(affine).round(6).tolist()
    return GridReport(
        placement.shape,
        (spacing_mm[0], spacing_mm[1], spacing_mm[2]),
        geometry.axcodes(affine),
        (x, y, z),
    )


def _report_region(region: MaskRegion) -> RegionReport:
    what = (region.label, region.name, region.kind, region.n_slices, region.size_mm)
    return RegionReport(*what, region.why_no_nodule)


def _report_images(root: Path) -> Iterator[ImageReport]:
    """Report every image file below a folder, or one file."""
    for path in find_images(root):
        place = path.name if path == root else path.relative_to(root).as_posix()
        yield _report_image(path, printable(place))


def _report_image(path: Path, file: str) -> ImageReport:
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
            regions = tuple(map(_report_region, regions_of_mask(path)))
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
