"""What a case folder is made of: arrays with their place, numbers, and where they came from.

Nothing here knows a file. Strings that end up in file names are checked here; identifiers that
could lead back to a patient leave only as hashes (see `cdam_med.export.case`).
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from cdam_med.attribution.estimator import Resolution
from cdam_med.data.views import check_views
from cdam_med.export.chest_slice import ChestSlice
from cdam_med.targets import MALIGNANCY_PROBABILITY, Target
from data_prep import geometry
from data_prep.crop import CROP_AXCODES, Crop
from data_prep.errors import OutputError
from data_prep.lidc import LeftOutFinding
from data_prep.problems import Problem

STATEMENT = "Research only, not for diagnosis."
RATINGS_NOTE = "LIDC malignancy ratings are radiologists' opinions."
"""Of the likelihood of malignancy; not a cancer outcome."""

DISPLAY_QUANTILE = 0.995
"""Share of a target's voxels whose absolute score the colour scale reaches."""

_LONGEST_PART = 60
_FILE_NAME_PART = re.compile(r"[A-Za-z0-9_-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SourceRecord:
    """The input files of a case.

    Parameters
    ----------
    volume_sha256 : str
        Hash of the CT volume (`data_prep.CTVolume.sha256`).
    series_uid : str
        SeriesInstanceUID, or another name of the series. Only its SHA-256 is written: whoever
        has the series can confirm that it is the one, the folder alone doesn't name it.
    annotation_sha256 : str or None
        Hash of the annotation file; None for a bare point.
    problems : tuple of Problem
        What was repaired or noted when the CT was read; only the names are written.
    interpolated_slices : tuple of int
        Slices of the CT that no image stands behind.
    left_out : tuple of LeftOutFinding
        What else the annotation file marks; only names, reasons and counts are written.
    """

    volume_sha256: str
    series_uid: str
    annotation_sha256: str | None = None
    problems: tuple[Problem, ...] = ()
    interpolated_slices: tuple[int, ...] = ()
    left_out: tuple[LeftOutFinding, ...] = ()

    @property
    def series_uid_sha256(self) -> str:
        """Hash of the name of the series, which doesn't tell it."""
        return hashlib.sha256(self.series_uid.encode()).hexdigest()

    def __post_init__(self) -> None:
        _check_sha256("volume_sha256", self.volume_sha256)
        if self.annotation_sha256 is not None:
            _check_sha256("annotation_sha256", self.annotation_sha256)


@dataclass(frozen=True, eq=False)
class NoduleRecord:
    """The nodule of a case and what its readers said.

    Parameters
    ----------
    nodule_id : str
        Letters, digits, ``_`` and ``-``.
    center_xyz_mm : ndarray
        Centre in RAS.
    ratings : mapping of str to float
        Consensus of the readers by target name (malignancy: median, 1 to 5; biomarkers: mean);
        empty for a bare point.
    readers : tuple of mappings of str to number
        Each reader's ratings by name; empty for a bare point.
    interpolated_slices : tuple of int
        Slices of its mask that nobody drew.
    flags : tuple of str
        Names of what else to know of its mask.
    """

    nodule_id: str
    center_xyz_mm: Float64[np.ndarray, "3"]
    ratings: Mapping[str, float]
    readers: tuple[Mapping[str, int | float], ...]
    interpolated_slices: tuple[int, ...] = ()
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_file_name_part("nodule_id", self.nodule_id)
        numbers = [*self.center_xyz_mm, *self.ratings.values()]
        numbers += [value for reader in self.readers for value in reader.values()]
        if not np.isfinite(numbers).all():
            raise ValueError(f"centre and ratings of nodule {self.nodule_id} must be finite")

    def rating_range(self, name: str) -> tuple[float, float] | None:
        """Lowest and highest rating that a reader gave, None where none did."""
        values = [reader[name] for reader in self.readers if name in reader]
        return (min(values), max(values)) if values else None


@dataclass(frozen=True)
class ModelRecord:
    """The model that was explained.

    Parameters
    ----------
    name : str
        Its name as the user gave it.
    weights_sha256 : str
        Hash of the weights' file.
    config : mapping
        Its settings; must fit into JSON.
    """

    name: str
    weights_sha256: str
    config: Mapping[str, object]

    def __post_init__(self) -> None:
        _check_sha256("weights_sha256", self.weights_sha256)


@dataclass(frozen=True)
class MethodRecord:
    """How the maps and predictions were computed.

    Parameters
    ----------
    name : str
        Name of the attribution method, e.g. ``"cdam"``.
    title, reference : str
        Its name for people, and where it comes from.
    settings : mapping
        Its settings by name; must fit into JSON.
    meaning : str
        What a score is, for people.
    is_signed : bool
        Whether its scores can be negative.
    resolution : {"patch", "pixel"}
        Whether a score is that of a patch of the model, or of a voxel of the crop.
    path : str
        Which computation gave the scores, e.g. ``"closed form"`` or ``"autograd"``.
    model_views : tuple of str
        Views that the model predicts from: the map handed over is the mean of theirs.
    patch_size_mm : mapping of str to tuple of float
        Height and width of what has one score on the displayed slice, by view; its keys are the
        case's views, the model's first.
    prediction_rule : str
        How slices became one prediction, in words for people.
    """

    name: str
    title: str
    reference: str
    settings: Mapping[str, object]
    meaning: str
    is_signed: bool
    resolution: Resolution
    path: str
    model_views: tuple[str, ...]
    patch_size_mm: Mapping[str, tuple[float, float]]
    prediction_rule: str

    def __post_init__(self) -> None:
        check_views(self.views)
        if not self.model_views or not set(self.model_views) <= set(self.views):
            raise ValueError(f"model_views must be some of {self.views}, not {self.model_views}")
        if not all(side > 0 for size in self.patch_size_mm.values() for side in size):
            raise ValueError(f"patch_size_mm must be positive, not {dict(self.patch_size_mm)}")

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views."""
        return tuple(self.patch_size_mm)


@dataclass(frozen=True, eq=False)
class TargetResult:
    """One target: which parts of the image the model's prediction of it rests on.

    Parameters
    ----------
    target : Target
        What is predicted; its unit is that of the prediction and of every map.
    maps : mapping of str to ndarray
        Attribution by view, on the crop's voxels, never rescaled.
    main_map : ndarray
        Mean of the maps of the views that the model predicts from: what is handed over first.
    prefix_share : float
        Share, 0 to 1, of these views' scores, by magnitude, that fell on class and register
        tokens, which have no place in the image.
    """

    target: Target
    maps: Mapping[str, Float32[np.ndarray, "i j k"]]
    main_map: Float32[np.ndarray, "i j k"]
    prefix_share: float

    def __post_init__(self) -> None:
        if not 0 <= self.prefix_share <= 1:
            raise ValueError(f"prefix_share must be between 0 and 1, not {self.prefix_share}")

    @property
    def largest_score(self) -> float:
        """The score of the main map whose size is largest, with its sign."""
        return float(self.main_map.flat[np.abs(self.main_map).argmax()])

    @property
    def symmetric_limit(self) -> float:
        """End of the colour scale: a quantile of the main map's absolute scores.

        A few patches far above the rest, most of them in slices beside the nodule, would leave
        all others pale. Maps are never clipped; `largest_score` and `voxels_beyond_limit` say how
        far, and where how often, they go beyond.
        """
        quantile = float(np.quantile(np.abs(self.main_map), DISPLAY_QUANTILE))
        return quantile if quantile > 0 else abs(self.largest_score)

    @property
    def voxels_beyond_limit(self) -> int:
        """Voxels of the main map that are larger than the colour scale shows."""
        return int((np.abs(self.main_map) > self.symmetric_limit).sum())

    @property
    def score_unit(self) -> str:
        """Unit of the attribution: that of the prediction, as a difference."""
        return "rating points" if self.target.unit.startswith("rating") else self.target.unit


@dataclass(frozen=True, eq=False)
class CaseContent:
    """Everything that goes into one case folder.

    Parameters
    ----------
    crop : Crop
        What the model saw: HU, mask and affine; its axes run closest to R+, A+, S+.
    nodule : NoduleRecord
        The nodule and its readers.
    predictions : mapping of str to float
        What the model says, by name: outputs in their own unit, malignancy as a logit, and
        ``malignancy_probability``.
    results : tuple of TargetResult
        Maps, of at least one target; each with a map for each of ``method.views``.
    method : MethodRecord
        How they were computed.
    model : ModelRecord
        The model.
    source : SourceRecord
        The input files.
    chest : tuple of ChestSlice
        Whole slices of the CT, which show where the crop lies; none where only the crop is known.
    """

    crop: Crop
    nodule: NoduleRecord
    predictions: Mapping[str, float]
    results: tuple[TargetResult, ...]
    method: MethodRecord
    model: ModelRecord
    source: SourceRecord
    chest: tuple[ChestSlice, ...] = ()

    @property
    def ratings_note(self) -> str | None:
        """What must be said of ratings, where they or a model of them are shown."""
        is_rated = self.nodule.ratings or MALIGNANCY_PROBABILITY in self.predictions
        return RATINGS_NOTE if is_rated else None

    @property
    def statement(self) -> str:
        """What must be said of every case, on one line."""
        return " ".join(filter(None, (STATEMENT, self.ratings_note)))

    def __post_init__(self) -> None:
        if geometry.axcodes(self.crop.affine) != CROP_AXCODES:
            raise ValueError(
                f"axes of the crop must run closest to {CROP_AXCODES}, not "
                f"{geometry.axcodes(self.crop.affine)}"
            )
        names = [result.target.name for result in self.results]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"results must hold different targets, at least one, not {names}")
        check_file_names(names)
        for name, prediction in self.predictions.items():
            if not math.isfinite(prediction):
                raise OutputError(
                    f"The model's {name} is {prediction}, not a number; check its weights and the "
                    f"scan."
                )
        for result in self.results:
            if result.target.name not in self.predictions:
                raise ValueError(f"there is no prediction of {result.target.name}")
            if set(result.maps) != set(self.method.views):
                raise ValueError(
                    f"maps of {result.target.name} must be of the views {self.method.views}, "
                    f"not {tuple(result.maps)}"
                )
            for scores in (result.main_map, *result.maps.values()):
                if scores.shape != self.crop.hu.shape:
                    raise ValueError(
                        f"maps of {result.target.name} must be shaped like the crop "
                        f"{self.crop.hu.shape}, not {scores.shape}"
                    )


def file_part(name: str) -> str:
    """Return what stands for a target's name in names of files, on any file system.

    The name itself where it is of ASCII letters, digits, ``_``, ``-`` and spaces, which become
    ``_``; else what is left of it with eight digits of its hash, so that two names don't meet.

    Parameters
    ----------
    name : str
        Any text.

    Examples
    --------
    >>> file_part("lung opacity")
    'lung_opacity'
    """
    plain = name.replace(" ", "_")
    if _FILE_NAME_PART.fullmatch(plain) and len(plain) <= _LONGEST_PART:
        return plain
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    rest = re.sub(r"[^A-Za-z0-9_-]+", "_", letters).strip("_")[:_LONGEST_PART]
    digits = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{rest}_{digits}" if rest else digits


def check_file_names(names: Sequence[str]) -> None:
    """Refuse targets that would have files of the same name, on any file system.

    Parameters
    ----------
    names : sequence of str
        Names of the targets of a case.

    Raises
    ------
    OutputError
        If two of them would.
    """
    if len({file_part(name).casefold() for name in names}) < len(names):
        raise OutputError(
            f"Two of the targets {', '.join(names)} would have files of the same name: let their "
            "names differ in more than capitals and spaces."
        )


def _check_file_name_part(what: str, text: str) -> None:
    if not _FILE_NAME_PART.fullmatch(text):
        raise ValueError(f"{what} must be of ASCII letters, digits, _ and -, not {text!r}")


def _check_sha256(what: str, text: str) -> None:
    if not _SHA256.fullmatch(text):
        raise ValueError(f"{what} must be 64 hexadecimal digits, not {text!r}")
