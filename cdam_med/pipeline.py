"""The main job: a nodule of a CT volume in, predictions and signed attribution maps out."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from cdam_med.attribution import registry
from cdam_med.attribution.asked_targets import each_target, name_or_column
from cdam_med.attribution.combinations import Combination, DerivedTarget, PerImage, Targets
from cdam_med.attribution.concept import Concept
from cdam_med.attribution.method import Attribution, Method
from cdam_med.attribution.subject import explaining
from cdam_med.data.transforms import InputSpec, slices_to_images
from cdam_med.data.views import central_slices, check_views, get_view, volume_to_slices
from cdam_med.errors import CdamError, TargetError
from cdam_med.explanation import (
    AttributionVolumes,
    ExplainedNodule,
    ModelRecord,
    SourceRecord,
    ViewScores,
    chest_slices,
)
from cdam_med.export.case import check_file_names, write_case
from cdam_med.models.slice_model import OUTPUT_UNIT, SliceModel, slice_model
from cdam_med.targets import MALIGNANCY, MALIGNANCY_PROBABILITY, Target, unknown_target
from data_prep import geometry
from data_prep.cohort.folder import CohortImages
from data_prep.crop import Crop, crop_nodule, cut_crop
from data_prep.lidc import LeftOutFinding
from data_prep.nodules import Nodule
from data_prep.volume import CTVolume

Progress = Callable[[int, int], None]
"""Called with the number of slices done and the number of all slices."""

ScoreFunction = Callable[[object, Tensor, Targets], Attribution]
"""An attribution method: a model, images and target names in, scores of patches or pixels out."""

MOST_TARGETS = 50
"""Outputs that ``all`` stands for at most: each makes several files and a row of the overview."""


class Explanation(ExplainedNodule):
    """What a model says of a nodule, and which parts of the CT that rests on; can be saved."""

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        annotation_sha256: str | None = None,
        left_out: Sequence[LeftOutFinding] = (),
    ) -> Path:
        """Write the case folder: CT, nodule mask, maps, record and overview, whole or not at all.

        Parameters
        ----------
        folder : path-like
            The place; nothing or an empty folder may be there.
        overwrite : bool
            Replace a case folder of an earlier run. One that holds anything else, or a file that
            was changed since, is refused.
        annotation_sha256 : str, optional
            Hash of the file that the nodule was read from, for the record.
        left_out : sequence of LeftOutFinding
            What else that file marks (`data_prep.lidc.read_xml_findings`), for the record.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        OutputError
            The place is taken or can't be written to.
        """
        return write_case(
            folder,
            self,
            overwrite=overwrite,
            annotation_sha256=annotation_sha256,
            left_out=left_out,
        )


def explain(  # noqa: PLR0913  of the last two only models of other people have need
    volume: CTVolume,
    nodule: Nodule,
    model: object,
    *,
    targets: Targets = "all",
    method: str | Method = "cdam",
    views: str | Sequence[str] = (),
    batch_size: int = 32,
    progress: Progress | None = None,
    input: InputSpec | None = None,
    target_names: Sequence[str] | Mapping[str, str] | None = None,
) -> Explanation:
    """Predict malignancy and biomarkers of a nodule, and explain each prediction.

    Or whatever else a model says of slices of a CT: any ViT that `cdam_med.cdam_scores` takes.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    nodule : Nodule
        A nodule of the CT, or a bare point in it.
    model : NoduleViT, ViT or object with `class_token_model`
        The model; it runs on the device that it is on.
    targets : target, or sequence of them
        ``"all"``, or what is to be explained: names (`cdam_med.TARGET_NAMES`) or columns of
        outputs, combinations of them, and concepts that were made with this model.
    method : str or Method
        Name of an attribution method (`cdam_med.method`), or one with settings.
    views : str or sequence of str
        Views whose slices are explained besides those that the model was trained on
        (`cdam_med.VIEW_NAMES`). Neither predictions nor the map handed over depend on them.
    batch_size : int
        Slices per forward pass.
    progress : callable, optional
        Called after each batch with the number of slices done and of all slices.
    input : InputSpec, optional
        How slices become images, for a model that doesn't say so itself; see
        `cdam_med.models.slice_model.slice_model`, also for what is assumed of what isn't given.
    target_names : sequence or mapping of str, optional
        Names of such a model's outputs in their order; as a mapping with the unit of each.

    Returns
    -------
    Explanation
        Predictions and maps.

    Raises
    ------
    TargetError, MethodError, ViewError
        There is no such target, method or view.
    ModelError
        The model can't be explained.
    CropError
        The nodule doesn't fit into the model's field of view.
    InputError
        The batch size is below 1, or `input` doesn't fit the model.
    """
    chosen = registry.method(method) if isinstance(method, str) else method
    seen = slice_model(model, input=input, target_names=target_names)
    asked, described = case_targets(seen, targets)
    check_file_names([target.name for target in described])
    all_views(seen, views)  # a wrong name is refused before any work is done
    field = seen.input
    crop = crop_nodule(volume, nodule, size_mm=field.field_of_view_mm, spacing_mm=field.spacing_mm)
    derived = [target for target in asked if isinstance(target, DerivedTarget)]
    predictions = predict(seen, crop, concepts=derived)
    attribution = attribute_volume(
        seen,
        crop,
        targets=asked,
        views=views,
        method=chosen,
        batch_size=batch_size,
        progress=progress,
    )
    return Explanation(
        nodule=nodule,
        crop=crop,
        predictions=predictions,
        attribution=attribution,
        method=chosen,
        model=ModelRecord(seen.name, seen.weights_sha256, seen.config),
        source=SourceRecord(
            volume.sha256, volume.series_uid, volume.problems, volume.interpolated_slices
        ),
        targets=described,
        chest=chest_slices(volume, crop),
    )


def predict(
    model: object, crop: Crop | CohortImages, *, concepts: Sequence[DerivedTarget] = ()
) -> dict[str, float]:
    """Predict every target from the slices of a crop that pass nearest to the nodule's centre.

    Parameters
    ----------
    model : NoduleViT, SliceModel, ViT or object with `class_token_model`
        The model; see `cdam_med.models.slice_model.slice_model` for one that isn't a `NoduleViT`.
    crop : Crop or CohortImages
        A nodule-centred crop, of a volume or of a cohort. A larger one than the model sees is cut
        to its field of view.
    concepts : sequence of Concept or other derived target
        Concepts made with this model, combinations of outputs.

    Returns
    -------
    dict of str to float
        Mean output per target over the central slices (one of an odd number of slices, two of an
        even one) of the views that the model was trained on, in the target's unit, so malignancy
        as a logit; ``malignancy_probability``, the logistic function of that mean logit, where
        malignancy is one of the outputs; for a concept, by its label, the mean similarity.

    Raises
    ------
    TargetError
        A concept was made with another model.
    CropError
        The crop can't be cut to the model's field of view, such as one of another spacing.
    """
    seen = slice_model(model)
    field = seen.input
    crop = crop.crop if isinstance(crop, CohortImages) else crop
    crop = cut_crop(crop, size_mm=field.field_of_view_mm, spacing_mm=field.spacing_mm)
    stacks = [crop_slices(crop, view) for view in seen.views]
    central = torch.cat([stack[list(central_slices(len(stack)))] for stack in stacks])
    images = slices_to_images(central, field)
    asked: tuple[str | DerivedTarget, ...] = (*seen.target_names, *concepts)
    with torch.inference_mode(), explaining(seen.model, images, asked) as subject:
        outputs = subject.model.outputs(subject.images)[:, list(subject.columns)]
    means = outputs.cpu().double().mean(dim=0)
    predictions = dict(zip(map(str, subject.targets), means.tolist(), strict=True))
    if MALIGNANCY not in seen.targets:
        return predictions
    logit = predictions.pop(MALIGNANCY.name)
    # the logistic function by tanh, for exp overflows
    probability = 0.5 * (1.0 + math.tanh(logit / 2.0))
    return {MALIGNANCY.name: logit, MALIGNANCY_PROBABILITY: probability, **predictions}


def attribute_volume(
    model: object,
    crop: Crop,
    *,
    method: ScoreFunction,
    targets: Targets = None,
    views: str | Sequence[str] = (),
    batch_size: int = 32,
    progress: Progress | None = None,
) -> AttributionVolumes:
    """Return scores of every slice of a crop by view: first those that the model predicts from.

    Takes what `explain` takes. A larger crop is cut to the model's field of view.
    """
    if batch_size < 1:
        raise CdamError(f"The batch size must be at least 1, not {batch_size}.")
    seen = slice_model(model)
    field = seen.input
    crop = cut_crop(crop, size_mm=field.field_of_view_mm, spacing_mm=field.spacing_mm)
    slices = {name: crop_slices(crop, name) for name in all_views(seen, views)}
    total = sum(len(stack) for stack in slices.values())
    done = 0
    scores = {}
    for name, stack in slices.items():
        parts = []
        for batch in torch.split(stack, batch_size):
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
    """Return the views that are explained: those the model predicts from, then further ones."""
    asked = check_views(further) if further else ()
    return tuple(dict.fromkeys((*model.views, *asked)))


def crop_slices(crop: Crop, view: str) -> Float[Tensor, "slice rows columns"]:
    """Cut a crop into slices of HU as they are displayed and as models are shown them."""
    return torch.from_numpy(np.ascontiguousarray(volume_to_slices(crop.hu, get_view(view))))


def _view_scores(parts: Sequence[Attribution], crop: Crop, view: str) -> ViewScores:
    sides = list(get_view(view).axes[1:])
    voxels = np.array(crop.hu.shape)[sides]
    scores = [part.scores for part in parts]
    if parts[0].resolution == "pixel":
        scores = [adaptive_avg_pool2d(each, voxels.tolist()) for each in scores]
    prefix = [
        part.scores.new_zeros((*part.outputs.shape, 0))
        if part.prefix_scores is None
        else part.prefix_scores
        for part in parts
    ]
    stacked = _stack(scores)
    height, width = voxels * geometry.spacing_mm(crop.affine)[sides] / stacked.shape[2:]
    return ViewScores(stacked, _stack(prefix), parts[0].path, (float(height), float(width)))


def _stack(parts: Sequence[Tensor]) -> Float32[np.ndarray, "slice ..."]:
    return torch.cat([part.detach().float().cpu() for part in parts]).numpy()


def case_targets(
    model: SliceModel, targets: object
) -> tuple[tuple[str | DerivedTarget, ...], tuple[Target, ...]]:
    """Return what is asked for as methods take it, and what each is.

    Raises
    ------
    TargetError
        A name or column is unknown, two are named alike, or there are too many outputs to take all.
    """
    if targets is None or (isinstance(targets, str) and targets == "all"):
        if len(model.targets) > MOST_TARGETS:
            raise TargetError(
                f"{model.name} has {len(model.targets)} outputs, and a case of all would hold as "
                "many maps: name those to explain, targets=['name', ...] or columns."
            )
        return model.target_names, model.targets
    asked = tuple(_target(model, target) for target in each_target(targets))
    described = tuple(_describe(model, target) for target in asked)
    names = [target.name for target in described]
    if len(set(names)) < len(names):
        raise TargetError(f"Targets must be named once each, not {', '.join(names)}.")
    taken = {*model.target_names, MALIGNANCY_PROBABILITY}
    for target, name in zip(asked, names, strict=True):
        if isinstance(target, DerivedTarget) and name in taken:
            raise TargetError(
                f"The label {name!r} is the name of an output: label the concept or combination "
                "otherwise."
            )
    return asked, described


def _target(model: SliceModel, target: object) -> str | DerivedTarget:
    """Return an output by its name, also where a column was asked for."""
    if isinstance(target, DerivedTarget):
        return target
    if isinstance(target, PerImage):
        raise TargetError(
            "PerImage is for batches of images, and the slices of a nodule are explained for the "
            "same targets: name one for all."
        )
    asked, names = name_or_column(target), model.target_names
    if isinstance(asked, str) and asked not in names:
        raise unknown_target(asked, names[:MOST_TARGETS])
    return names[model.description.target_columns(asked)[0]]


def _describe(model: SliceModel, target: str | DerivedTarget) -> Target:
    by_name = {each.name: each for each in model.targets}
    if isinstance(target, str):
        return by_name[target]
    if isinstance(target, Concept):
        parts = filter(None, (target.similarity.replace("_", " "), target.source))
        alike = f"how like the mean of {len(target.examples)} examples ({', '.join(parts)})"
        return Target(target.label, "similarity", alike, "unlike", "alike")
    described = Target(target.label, OUTPUT_UNIT, "a function of the outputs", "", "")
    if not isinstance(target, Combination):
        return described
    names = [str(_target(model, key)) for key in target.weights]
    units = {by_name[name].unit for name in names}
    terms = zip(target.weights.values(), names, strict=True)
    return replace(
        described,
        unit=units.pop() if len(units) == 1 else OUTPUT_UNIT,
        description=" ".join(f"{weight:+g} {name}" for weight, name in terms),
    )
