"""Attribution volumes: every slice of a crop through the model, token grids back on its voxels.

A map has the crop's grid and affine. It keeps the model's patches visible (each voxel carries the
score of the patch it lies in, nothing is interpolated), it is signed, and it is never rescaled.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from cdam_med.attribution.cdam import Cdam
from cdam_med.attribution.combinations import Targets
from cdam_med.attribution.estimator import Attribution
from cdam_med.data.transforms import slices_to_images
from cdam_med.data.views import (
    check_views,
    get_view,
    slices_to_volume,
    volume_to_slices,
)
from cdam_med.errors import CdamError, TargetError, ViewError
from cdam_med.models.slice_model import SliceModel, slice_model
from data_prep import geometry
from data_prep.crop import Crop, cut_crop

Progress = Callable[[int, int], None]
"""Called with the number of slices done and the number of all slices."""

ScoreFunction = Callable[[object, Tensor, Targets], Attribution]
"""An attribution method: a model, images and target names in, scores of patches or pixels out."""


_CDAM = Cdam()


@dataclass(frozen=True, eq=False)
class ViewScores:
    """What the model says of every slice of one view.

    Parameters
    ----------
    scores : ndarray
        Score per patch of each slice in display orientation, in the target's unit; of a method
        with a score per pixel the mean over the pixels of each voxel.
    prefix_scores : ndarray
        Score per class or register token of each slice, in the target's unit; without any where
        the method gives these tokens nothing.
    outputs : ndarray
        The model's output per slice and target, in the target's unit.
    path : str
        How the scores were computed, e.g. by the closed form.
    patch_size_mm : tuple of float
        Height and width of what has one score: a patch, or a voxel.
    """

    scores: Float32[np.ndarray, "slice target rows columns"]
    prefix_scores: Float32[np.ndarray, "slice target prefix"]
    outputs: Float32[np.ndarray, "slice target"]
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
        Scores by view.
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
        """Lay the scores of one target back on the crop's voxels.

        Parameters
        ----------
        target : str
            Name of a target.
        view : str or sequence of str, optional
            Name of a view, or names: their mean; `model_views` unless given.

        Returns
        -------
        ndarray
            Signed scores in the target's unit; exactly zero outside the scan.

        Raises
        ------
        TargetError, ViewError
            The target or a view is unknown or was not computed.
        """
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
        """Share of the scores' magnitude that fell on the class and register tokens.

        Parameters
        ----------
        target : str
            Name of a target.

        Returns
        -------
        float
            Between 0 and 1, over all slices of `model_views`; 0 where every score is zero.
        """
        index = self.targets.index(target)
        views = [self.views[name] for name in self.model_views]
        prefix = sum(float(np.abs(view.prefix_scores[:, index]).sum()) for view in views)
        patches = sum(float(np.abs(view.scores[:, index]).sum()) for view in views)
        return prefix / (prefix + patches) if prefix + patches > 0 else 0.0


def attribute_volume(
    model: object,
    crop: Crop,
    *,
    targets: Targets,
    views: str | Sequence[str] = (),
    method: ScoreFunction = _CDAM,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> AttributionVolumes:
    """Explain a crop: scores of every slice, view by view, ready to be laid on its voxels.

    The views that the model predicts from come first. Runs on the device that the model is on.

    Parameters
    ----------
    model : NoduleViT, SliceModel, ViT or object with `class_token_model`
        The model to explain; see `cdam_med.models.slice_model.slice_model`.
    crop : Crop
        A nodule-centred crop; cut to the model's field of view, as `cdam_med.predict` does.
    targets : target, sequence of targets, or None
        Names or columns of outputs, concepts, combinations; their labels name the maps.
    views : str or sequence of str
        Further views.
    method : callable
        Attribution method; an `Estimator` is one.
    batch_size : int
        Slices per forward pass.
    progress : callable, optional
        Called after each batch.

    Raises
    ------
    TargetError, ViewError
        An unknown target or view.
    CropError
        The crop can't be cut to the model's field of view.
    CdamError
        The batch size is below 1.
    """
    if batch_size < 1:
        raise CdamError(f"The batch size must be at least 1, not {batch_size}.")
    seen = slice_model(model)
    names = all_views(seen, views)
    field = seen.input
    crop = cut_crop(crop, size_mm=field.field_of_view_mm, spacing_mm=field.spacing_mm)
    slices = {name: crop_slices(crop, name) for name in names}
    total = sum(len(stack) for stack in slices.values())
    done = 0
    scores = {}
    for name in names:
        parts = []
        for batch in torch.split(slices[name], batch_size):
            parts.append(method(seen.model, slices_to_images(batch, field), targets))
            done += len(batch)
            if progress is not None:
                progress(done, total)
        scores[name] = _view_scores(parts, crop, name)
    return AttributionVolumes(
        targets=tuple(map(str, parts[0].targets)),
        views=scores,
        model_views=seen.views,
        affine=crop.affine,
        shape=crop.hu.shape,
        padding=crop.padding,
    )


def all_views(model: SliceModel, further: str | Sequence[str] = ()) -> tuple[str, ...]:
    """Return the views that are explained: those the model predicts from, then further ones.

    Parameters
    ----------
    model : SliceModel
        The model.
    further : str or sequence of str
        Names of views; those of the model may be among them.

    Raises
    ------
    ViewError
        An unknown view, or one that is given twice.
    """
    asked = check_views(further) if further else ()
    return tuple(dict.fromkeys((*model.views, *asked)))


def grids_to_volume(
    grids: Float32[np.ndarray, "slice rows columns"], shape: tuple[int, int, int], view: str
) -> Float32[np.ndarray, "i j k"]:
    """Lay one token grid per slice on the crop's voxels, by nearest neighbour.

    Of ``n`` voxels along an axis of ``g`` patches, voxel ``v`` (its centre at ``v + 1/2``) lies in
    patch ``floor((v + 1/2) * g / n)``.

    Parameters
    ----------
    grids : ndarray
        Scores per patch of each slice, in display orientation.
    shape : tuple of int
        Shape (i, j, k) of the crop.
    view : str
        Name of the view the slices were cut in.
    """
    plane = get_view(view)
    _, rows, columns = grids.shape
    row = _patch_of_voxel(shape[plane.row_axis], rows)
    column = _patch_of_voxel(shape[plane.column_axis], columns)
    return slices_to_volume(grids[:, row[:, None], column[None, :]], plane)


def _patch_of_voxel(voxels: int, patches: int) -> Int[np.ndarray, " voxel"]:
    # floor((v + 1/2) * patches / voxels) in whole numbers, so that no rounding moves an edge
    return (2 * np.arange(voxels) + 1) * patches // (2 * voxels)


def crop_slices(crop: Crop, view: str) -> Float[Tensor, "slice rows columns"]:
    """Cut a crop into slices of HU as they are displayed and as models are shown them.

    Parameters
    ----------
    crop : Crop
        A nodule-centred crop.
    view : str
        Name of the view.
    """
    return torch.from_numpy(np.ascontiguousarray(volume_to_slices(crop.hu, get_view(view))))


def _view_scores(parts: Sequence[Attribution], crop: Crop, view: str) -> ViewScores:
    plane = get_view(view)
    voxels = (crop.hu.shape[plane.row_axis], crop.hu.shape[plane.column_axis])
    scores = _stack(
        [
            adaptive_avg_pool2d(part.scores, voxels) if part.resolution == "pixel" else part.scores
            for part in parts
        ]
    )
    sides_mm = np.array(crop.hu.shape) * geometry.spacing_mm(crop.affine)
    return ViewScores(
        scores=scores,
        prefix_scores=_stack(
            [
                part.scores.new_zeros((*part.outputs.shape, 0))
                if part.prefix_scores is None
                else part.prefix_scores
                for part in parts
            ]
        ),
        outputs=_stack([part.outputs for part in parts]),
        path=parts[0].path,
        patch_size_mm=(
            float(sides_mm[plane.row_axis] / scores.shape[2]),
            float(sides_mm[plane.column_axis] / scores.shape[3]),
        ),
    )


def _stack(parts: Sequence[Tensor]) -> Float32[np.ndarray, "slice ..."]:
    return torch.cat([part.detach().float().cpu() for part in parts]).numpy()
