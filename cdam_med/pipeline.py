"""The main job: a nodule of a CT volume in, predictions and signed attribution maps out."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64

from cdam_med.attribution.combinations import DerivedTarget, Targets
from cdam_med.attribution.estimator import Estimator
from cdam_med.attribution.registry import estimator
from cdam_med.attribution.subject import explaining
from cdam_med.attribution_volume import (
    AttributionVolumes,
    Progress,
    all_views,
    attribute_volume,
    crop_slices,
)
from cdam_med.case_targets import case_targets
from cdam_med.data.transforms import InputSpec, slices_to_images
from cdam_med.data.views import central_slices
from cdam_med.export.case import write_case
from cdam_med.export.chest_slice import ChestSlice, chest_slices
from cdam_med.export.content import (
    CaseContent,
    MethodRecord,
    ModelRecord,
    NoduleRecord,
    SourceRecord,
    TargetResult,
    check_file_names,
)
from cdam_med.models.slice_model import SliceModel, slice_model
from cdam_med.targets import MALIGNANCY, MALIGNANCY_PROBABILITY, Target
from data_prep.cohort.images import CohortImages
from data_prep.crop import Crop, crop_nodule, cut_crop
from data_prep.lidc import LeftOutFinding
from data_prep.nodules import Nodule
from data_prep.text import printable
from data_prep.volume import CTVolume


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a model says of a nodule, and which parts of the CT that rests on.

    Parameters
    ----------
    nodule : Nodule
        The nodule.
    crop : Crop
        The part of the CT that the model saw.
    predictions : mapping of str to float
        What `predict` gives: every output of the model in its own unit (malignancy as a logit),
        ``malignancy_probability`` where malignancy is one of them, and of a concept the similarity
        to it.
    attribution : AttributionVolumes
        Signed scores of the targets asked for.
    method : MethodRecord
        How maps and predictions were computed.
    model : ModelRecord
        The model.
    source : SourceRecord
        The CT.
    targets : tuple of Target
        What was explained: outputs, concepts, combinations.
    chest : tuple of ChestSlice
        Whole slices of the CT, for the overview to show where the nodule lies.
    """

    nodule: Nodule
    crop: Crop
    predictions: Mapping[str, float]
    attribution: AttributionVolumes
    method: MethodRecord
    model: ModelRecord
    source: SourceRecord
    targets: tuple[Target, ...]
    chest: tuple[ChestSlice, ...] = ()

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
        InputError
            The place is taken or can't be written to.
        """
        results = tuple(
            TargetResult(
                target=target,
                maps={
                    view: self.attribution.map(target.name, view) for view in self.attribution.views
                },
                main_map=self.attribution.map(target.name),
                prefix_share=self.attribution.prefix_share(target.name),
            )
            for target in self.targets
        )
        outline = self.nodule.outline
        nodule = NoduleRecord(
            nodule_id=self.nodule.nodule_id,
            center_xyz_mm=self.nodule.center_xyz_mm,
            ratings=self.nodule.ratings,
            readers=tuple(
                {name: float(value) for name, value in reader.ratings.items()}
                for reader in self.nodule.readers
            ),
            interpolated_slices=() if outline is None else outline.interpolated_slices,
            flags=self.nodule.flags,
        )
        source = dataclasses.replace(
            self.source, annotation_sha256=annotation_sha256, left_out=tuple(left_out)
        )
        content = CaseContent(
            crop=self.crop,
            nodule=nodule,
            predictions=self.predictions,
            results=results,
            method=self.method,
            model=self.model,
            source=source,
            chest=self.chest,
        )
        return write_case(folder, content, overwrite=overwrite)


def explain(  # noqa: PLR0913  of the last two only models of other people have need
    volume: CTVolume,
    nodule: Nodule,
    model: object,
    *,
    targets: Targets = "all",
    method: str | Estimator = "cdam",
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
    method : str or Estimator
        Name of an attribution method (`cdam_med.estimator`), or one with settings.
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
    chosen = estimator(method) if isinstance(method, str) else method
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
        method=_method_record(chosen, attribution, seen),
        model=ModelRecord(seen.name, seen.weights_sha256, seen.config),
        source=SourceRecord(
            volume.sha256,
            volume.series_uid,
            problems=volume.problems,
            interpolated_slices=volume.interpolated_slices,
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


def _method_record(
    method: Estimator, attribution: AttributionVolumes, model: SliceModel
) -> MethodRecord:
    views = attribution.views.values()
    probability = f"; {MALIGNANCY_PROBABILITY} is the logistic function of the mean logit"
    trained = " and ".join(attribution.model_views)
    return MethodRecord(
        name=method.name,
        title=method.title,
        reference=method.reference,
        settings=dataclasses.asdict(method) if dataclasses.is_dataclass(method) else {},
        meaning=method.meaning,
        is_signed=method.is_signed,
        resolution=method.resolution,
        path=" and ".join(sorted({scores.path for scores in views})),
        model_views=attribution.model_views,
        patch_size_mm={view: scores.patch_size_mm for view, scores in attribution.views.items()},
        prediction_rule=(
            f"mean of the outputs over the central slices of the {trained} view (trained on no "
            "other)" + probability * (MALIGNANCY in model.targets)
        ),
    )
