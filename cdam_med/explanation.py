"""What is known of one explained nodule: its CT, what a model says of it, and signed maps.

A map has the crop's grid and affine. It keeps the model's patches visible (each voxel carries the
score of the patch it lies in, nothing is interpolated), it is signed, and it is never rescaled.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Shaped

from cdam_med.attribution.method import Method
from cdam_med.data.views import (
    AXIAL,
    CORONAL,
    View,
    check_views,
    get_view,
    slices_to_volume,
    volume_to_slices,
)
from cdam_med.errors import TargetError, ViewError
from cdam_med.targets import MALIGNANCY_PROBABILITY, Target
from data_prep import geometry
from data_prep.crop import CROP_AXCODES, Crop
from data_prep.errors import OutputError
from data_prep.nodules import Nodule
from data_prep.problems import Problem
from data_prep.statements import RATINGS_NOTE_SHORT, RESEARCH_ONLY
from data_prep.text import printable
from data_prep.volume import CTVolume

DISPLAY_QUANTILE = 0.995
"""Share of a target's voxels whose absolute score the colour scale reaches."""

NO_MODEL = "no model"
"""The path of controls, maps that are made without the model."""


@dataclass(frozen=True, eq=False)
class ViewScores:
    """Scores of every slice of one view.

    Parameters
    ----------
    scores : ndarray
        Score per patch of each slice in display orientation, in the target's unit; of a method
        with a score per pixel the mean over the pixels of each voxel.
    prefix_scores : ndarray
        Score per class or register token of each slice, in the target's unit; without any where
        the method gives these tokens nothing.
    path : str
        How the scores were computed, e.g. by the closed form.
    patch_size_mm : tuple of float
        Height and width of what has one score: a patch, or a voxel.
    """

    scores: Float32[np.ndarray, "slice target rows columns"]
    prefix_scores: Float32[np.ndarray, "slice target prefix"]
    path: str
    patch_size_mm: tuple[float, float]


@dataclass(frozen=True, eq=False)
class AttributionVolumes:
    """Signed maps of a crop per target and view, kept as token grids until asked for.

    Parameters
    ----------
    targets : tuple of str
        Names of the targets, in the order of the scores' target axis.
    views : mapping of str to ViewScores
        Scores by view, the model's first.
    model_views : tuple of str
        Those of the views that the model predicts from: what it was trained on.
    affine : ndarray
        Voxel index to RAS mm: the crop's.
    shape : tuple of int
        Shape (i, j, k) of the maps: the crop's.
    padding : ndarray or None
        Voxels of the crop outside the scan; maps are exactly zero there.
    """

    targets: tuple[str, ...]
    views: Mapping[str, ViewScores]
    model_views: tuple[str, ...]
    affine: Float64[np.ndarray, "4 4"]
    shape: tuple[int, int, int]
    padding: Bool[np.ndarray, "i j k"] | None

    def map(
        self, target: str, view: str | Sequence[str] | None = None
    ) -> Float32[np.ndarray, "i j k"]:
        """Return the map of a target on the crop's voxels; see `ExplainedNodule.map`."""
        if target not in self.targets:
            raise TargetError(
                f"No map of {target!r} was computed; there are {', '.join(self.targets)}."
            )
        names = self.model_views if view is None else check_views(view)
        if missing := set(names) - set(self.views):
            raise ViewError(
                f"No map of the {' or '.join(sorted(missing))} view was computed; there are "
                f"{', '.join(self.views)}."
            )
        index = self.targets.index(target)
        total = np.zeros(self.shape, dtype=np.float64)
        for name in names:
            total += grids_to_volume(self.views[name].scores[:, index], self.shape, name)
        mean = (total / len(names)).astype(np.float32)
        if self.padding is not None:
            mean[self.padding] = 0.0
        return mean

    def prefix_share(self, target: str) -> float:
        """Return the share, 0 to 1, of the scores' magnitude that fell on tokens without a place.

        Over all slices of `model_views`; 0 where every score is zero.
        """
        index = self.targets.index(target)
        views = [self.views[name] for name in self.model_views]
        prefix = sum(float(np.abs(view.prefix_scores[:, index]).sum()) for view in views)
        patches = sum(float(np.abs(view.scores[:, index]).sum()) for view in views)
        return prefix / (prefix + patches) if prefix + patches > 0 else 0.0


def grids_to_volume(
    grids: Float32[np.ndarray, "slice rows columns"], shape: tuple[int, int, int], view: str
) -> Float32[np.ndarray, "i j k"]:
    """Lay one token grid per slice, in display orientation, on a crop's voxels.

    Of ``n`` voxels along an axis of ``g`` patches, voxel ``v`` (its centre at ``v + 1/2``) lies in
    patch ``floor((v + 1/2) * g / n)``.
    """
    plane = get_view(view)
    _, rows, columns = grids.shape
    row = _patch_of_voxel(shape[plane.row_axis], rows)
    column = _patch_of_voxel(shape[plane.column_axis], columns)
    return slices_to_volume(grids[:, row[:, None], column[None, :]], plane)


def _patch_of_voxel(voxels: int, patches: int) -> Int[np.ndarray, " voxel"]:
    # floor((v + 1/2) * patches / voxels) in whole numbers, so that no rounding moves an edge
    return (2 * np.arange(voxels) + 1) * patches // (2 * voxels)


@dataclass(frozen=True, eq=False)
class TargetMap:
    """The map of a target that is handed over first, and the scale that it is shown on.

    Parameters
    ----------
    target : Target
        What is predicted.
    scores : ndarray
        Signed scores on the crop's voxels.
    unit : str or None
        Unit of the scores: that of the prediction, as a difference. None where they aren't parts
        of the output.
    prefix_share : float
        See `AttributionVolumes.prefix_share`.
    largest : float
        The score that is furthest from zero, with its sign.
    limit : float
        End of the colour scale. A few patches far above the rest, most of them in slices beside
        the nodule, would leave all others pale, so it is a quantile of the absolute scores; the
        map isn't clipped.
    voxels_beyond : int
        How many voxels are beyond it.
    """

    target: Target
    scores: Float32[np.ndarray, "i j k"]
    unit: str | None
    prefix_share: float
    largest: float
    limit: float
    voxels_beyond: int


@dataclass(frozen=True)
class ModelRecord:
    """The model that was explained: its name, the hash of its weights, and its settings."""

    name: str
    weights_sha256: str
    config: Mapping[str, object]


@dataclass(frozen=True)
class SourceRecord:
    """The CT: its hash and name, what was repaired or noted, and slices without an image."""

    volume_sha256: str
    series_uid: str
    problems: tuple[Problem, ...] = ()
    interpolated_slices: tuple[int, ...] = ()

    @property
    def series_uid_sha256(self) -> str:
        """What is written of the series: who has it can confirm it, nobody else can name it."""
        return hashlib.sha256(self.series_uid.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class ChestSlice:
    """One slice of the whole CT as it is displayed, and where on it the crop lies.

    Parameters
    ----------
    view : View
        Its plane; a scan with oblique axes stays oblique, as its crop does.
    hu : ndarray
        Hounsfield units.
    pixel_mm : tuple of float
        Height and width of a pixel.
    box_mm : tuple of float
        Left, top, width and height of the crop, from the slice's top left corner.
    """

    view: View
    hu: Shaped[np.ndarray, "rows columns"]
    pixel_mm: tuple[float, float]
    box_mm: tuple[float, float, float, float]


def chest_slices(volume: CTVolume, crop: Crop) -> tuple[ChestSlice, ...]:
    """Return the axial and the coronal slice of the whole CT through the middle of a crop."""
    axis_order = geometry.closest_canonical_axes(volume.affine)
    affine = geometry.reorder_affine(volume.affine, volume.shape, axis_order)
    hu = geometry.reorder_array(volume.hu, axis_order)
    to_voxels = geometry.inverse_affine(affine) @ crop.affine
    corners = np.array([[-0.5] * 3, np.array(crop.hu.shape) - 0.5])
    first, last = geometry.apply_affine(to_voxels, corners)
    spacing_mm = geometry.spacing_mm(affine)
    # rows and columns run against their axes
    first_mm = (np.array(hu.shape) - 0.5 - last) * spacing_mm
    size_mm = (last - first) * spacing_mm
    found = []
    for view in (AXIAL, CORONAL):
        axis, sides = view.slice_axis, [view.row_axis, view.column_axis]
        middle = int(np.rint((first[axis] + last[axis]) / 2))
        index = min(max(middle, 0), hu.shape[axis] - 1)
        shown = volume_to_slices(hu, view)[index].copy()  # a copy, so that the volume can go
        height, width = spacing_mm[sides].tolist()
        top, left = first_mm[sides].tolist()
        box_height, box_width = size_mm[sides].tolist()
        found.append(ChestSlice(view, shown, (height, width), (left, top, box_width, box_height)))
    return tuple(found)


@dataclass(frozen=True, eq=False, repr=False)
class ExplainedNodule:
    """What a model says of a nodule, and which parts of the CT that rests on.

    Parameters
    ----------
    nodule : Nodule
        The nodule.
    crop : Crop
        The part of the CT that the model saw; its axes run closest to R+, A+, S+.
    predictions : mapping of str to float
        What `cdam_med.predict` gives: every output of the model in its own unit (malignancy as a
        logit), ``malignancy_probability`` where malignancy is one of them, and of a concept the
        similarity to it.
    attribution : AttributionVolumes
        Signed scores of the targets asked for.
    method : Method
        The attribution method.
    model : ModelRecord
        The model.
    source : SourceRecord
        The CT.
    targets : tuple of Target
        What was explained: outputs, concepts, combinations.
    chest : tuple of ChestSlice
        Whole slices of the CT, which show where the nodule lies.
    """

    nodule: Nodule
    crop: Crop
    predictions: Mapping[str, float]
    attribution: AttributionVolumes
    method: Method
    model: ModelRecord
    source: SourceRecord
    targets: tuple[Target, ...]
    chest: tuple[ChestSlice, ...] = ()

    def __post_init__(self) -> None:
        if (axcodes := geometry.axcodes(self.crop.affine)) != CROP_AXCODES:
            raise ValueError(f"the crop's axes must run closest to {CROP_AXCODES}, not {axcodes}")
        for name, prediction in self.predictions.items():
            if not math.isfinite(prediction):
                raise OutputError(
                    f"The model's {name} is {prediction}, not a number; check its weights and the "
                    "scan."
                )

    def __repr__(self) -> str:
        """Nodule, predictions, and what was explained how."""
        said = [f"{name} {value:.3g}" for name, value in self.predictions.items()]
        shown = ", ".join(said[:3]) + (", ..." if len(said) > 3 else "")
        maps, views = len(self.attribution.targets), " and ".join(self.attribution.views)
        return printable(
            f"Explanation({self.nodule.nodule_id}: {shown}; {maps} maps of {views} slices by "
            f"{self.method.name}, model {self.model.name})"
        )

    def map(
        self, target: str, view: str | Sequence[str] | None = None
    ) -> tuple[Float32[np.ndarray, "i j k"], Float64[np.ndarray, "4 4"]]:
        """Return the attribution map of a target, and the affine that places it in the patient.

        Parameters
        ----------
        target : str
            Name of a target.
        view : str or sequence of str, optional
            Name of a view whose slices were explained, or names: the mean of their maps. Unless
            given, what the model was trained on and predicts from.

        Returns
        -------
        scores : ndarray
            Signed scores on the crop's voxels in the unit of the target's output (malignancy:
            logit), never rescaled; exactly zero outside the scan.
        affine : ndarray
            Voxel index to RAS mm.

        Raises
        ------
        TargetError, ViewError
            The target or the view is unknown or was not asked for.
        """
        return self.attribution.map(target, view), self.attribution.affine.copy()

    @cached_property
    def maps(self) -> tuple[TargetMap, ...]:
        """The map of each target that is handed over first, with its scale."""
        return tuple(self._target_map(target) for target in self.targets)

    def _target_map(self, target: Target) -> TargetMap:
        scores = self.attribution.map(target.name)
        sizes = np.abs(scores)
        largest = float(scores.flat[sizes.argmax()])
        limit = float(np.quantile(sizes, DISPLAY_QUANTILE)) or abs(largest)
        unit = "rating points" if target.unit.startswith("rating") else target.unit
        return TargetMap(
            target=target,
            scores=scores,
            unit=unit if self.method.is_signed and not self.is_control else None,
            prefix_share=self.attribution.prefix_share(target.name),
            largest=largest,
            limit=limit,
            voxels_beyond=int((sizes > limit).sum()),
        )

    @property
    def path(self) -> str:
        """How the scores were computed, e.g. ``"closed form"``."""
        return " and ".join(sorted({view.path for view in self.attribution.views.values()}))

    @property
    def is_control(self) -> bool:
        """Whether maps were made without asking the model."""
        return self.path == NO_MODEL

    @property
    def prediction_rule(self) -> str:
        """How slices became one prediction, in words for people."""
        trained = " and ".join(self.attribution.model_views)
        rule = (
            f"mean of the outputs over the central slices of the {trained} view (trained on no "
            "other)"
        )
        if MALIGNANCY_PROBABILITY in self.predictions:
            rule += f"; {MALIGNANCY_PROBABILITY} is the logistic function of the mean logit"
        return rule

    @property
    def ratings_note(self) -> str | None:
        """What must be said of ratings, where they or a model of them are shown."""
        is_rated = self.nodule.ratings or MALIGNANCY_PROBABILITY in self.predictions
        return RATINGS_NOTE_SHORT if is_rated else None

    @property
    def statement(self) -> str:
        """What must be said of every case, on one line."""
        return " ".join(filter(None, (RESEARCH_ONLY, self.ratings_note)))
