"""What measures are taken of: the examples, the model, and the maps of one estimator."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cdam_med.attribution.class_token import class_token_model
from cdam_med.attribution.combinations import PerImage
from cdam_med.attribution.estimator import Estimator, Resolution
from cdam_med.attribution.methods.token_ablation import TokenAblation
from cdam_med.data.image_folder import data_config
from cdam_med.evaluation.examples import Examples
from cdam_med.evaluation.map_making import (
    ExplainedImages,
    explain_each,
    explain_several,
    raw_outputs,
)
from cdam_med.evaluation.metrics.box_sensitivity import BoxDrops, box_drops
from cdam_med.evaluation.metrics.class_sensitivity import correlations_of_targets
from cdam_med.evaluation.metrics.faithfulness import (
    PerturbationCurves,
    Ranking,
    perturbation_curves,
)
from cdam_med.evaluation.metrics.grid_pointing import PointingTasks, mosaics
from cdam_med.evaluation.metrics.map_pooling import PatchGrid, patch_grid
from cdam_med.evaluation.metrics.perturbation import Perturbable, perturbing
from cdam_med.evaluation.metrics.replacement import (
    PUBLISHED_BLUR,
    Blur,
    Constant,
    MeanColour,
    Replacement,
)
from cdam_med.evaluation.metrics.sensitivity_n import SubsetDrops, subset_drops
from cdam_med.targets import MALIGNANCY
from data_prep.errors import InputError

BOX_SHARES = {"eighth": 1 / 8, "quarter": 1 / 4}
"""Sides of the boxes of box sensitivity, as shares of the image's shorter side."""

SUBSET_SHARES = {"5 %": 0.05, "20 %": 0.2, "50 %": 0.5}
"""Sizes of the subsets of Sensitivity-n, as shares of the patches."""

STEPS = 20
"""Steps of the perturbation curves: half of the published 40, for half of the time."""

PUBLISHED_EDGE = 224
"""Edge in pixels of the images that the published blur is for."""

MALIGNANT, BENIGN = "malignant", "benign"
"""Labels of nodules, of which the first is what a model's malignancy stands for."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A model and examples, and what is known of them before any estimator is asked.

    What is made once for all estimators is kept: outputs, boxes, subsets, ablations, mosaics.

    Parameters
    ----------
    model : VisionTransformer or object with `class_token_model`
        What is explained.
    examples : Examples
        What it is explained on.
    shifted : Examples or None
        The same images with the object out of the centre.
    neighbours : Examples or None
        Images that should be explained alike, such as the next slices; matched by id.
    seed : int
        Of everything random.
    """

    model: object
    examples: Examples
    shifted: Examples | None
    neighbours: Examples | None
    seed: int

    @cached_property
    def _all(self) -> tuple[Float[Tensor, "image output"], tuple[str | int, ...]]:
        return raw_outputs(self.model, self.examples.images)

    @property
    def outputs(self) -> Float[Tensor, "image output"]:
        """Every raw output for each image."""
        return self._all[0]

    @property
    def output_names(self) -> tuple[str | int, ...]:
        """Name or column of each output."""
        return self._all[1]

    @cached_property
    def has_names(self) -> bool:
        """Whether outputs are different quantities with names, rather than classes."""
        return class_token_model(self.model).target_names is not None

    @cached_property
    def targets(self) -> tuple[str | int, ...]:
        """The target of each image: the examples', or the output that is highest."""
        if self.examples.targets is not None:
            return self.examples.targets
        return tuple(self.output_names[column] for column in self.outputs.argmax(1).tolist())

    def targets_of(self, other: Examples) -> tuple[str | int, ...]:
        """Return the targets of other images of the same ids, those of these examples.

        Parameters
        ----------
        other : Examples
            Images whose ids are among those of `examples`.
        """
        by_id = dict(zip(self.examples.ids, self.targets, strict=True))
        return tuple(by_id[name] for name in other.ids)

    @cached_property
    def grid(self) -> PatchGrid:
        """Where the patches lie."""
        return patch_grid(self.model, self.examples.images[:1])

    def perturbing(self) -> AbstractContextManager[Perturbable]:
        """Open the model to see the examples with parts taken away, each for its own target."""
        return perturbing(self.model, self.examples.images, targets=PerImage(self.targets))

    @cached_property
    def boxes(self) -> dict[str, BoxDrops]:
        """Falls of the output without boxes, by their size."""
        short = min(self.grid.image_size)
        with self.perturbing() as perturbable:
            return {
                name: box_drops(perturbable, side=max(1, round(share * short)), seed=self.seed)
                for name, share in BOX_SHARES.items()
            }

    @cached_property
    def subsets(self) -> dict[str, SubsetDrops]:
        """Falls of the output without subsets of the patches, by their size."""
        patches = self.grid.size[0] * self.grid.size[1]
        with self.perturbing() as perturbable:
            return {
                name: subset_drops(perturbable, n=max(1, round(share * patches)), seed=self.seed)
                for name, share in SUBSET_SHARES.items()
            }

    @cached_property
    def ablation(self) -> Float[Tensor, "image rows columns"]:
        """Token ablation maps."""
        return explain_each(
            TokenAblation(), self.model, self.examples.images, self.targets, seed=self.seed
        ).maps

    @cached_property
    def black(self) -> tuple[float, ...]:
        """What black is in each channel of an image as the ViT takes it."""
        if isinstance(self.model, VisionTransformer | Eva | Beit):
            config = data_config(self.model)
            return tuple(-m / s for m, s in zip(config["mean"], config["std"], strict=True))
        dark = class_token_model(self.model).check_images(
            torch.zeros_like(self.examples.images[:1])
        )
        return tuple(dark[0, :, 0, 0].tolist())

    @cached_property
    def replacements(self) -> dict[str, Replacement]:
        """What takes the place of parts, by name: the published choices for this image size."""
        radius = PUBLISHED_BLUR.radius * min(self.grid.image_size) / PUBLISHED_EDGE
        return {
            "blur": Blur(radius),
            "constant": Constant(self.black),
            "mean": MeanColour(),
        }

    @cached_property
    def pointing_tasks(self) -> PointingTasks:
        """Mosaics to be explained, and which quadrants each map should lie in.

        Where all images have malignancy as target, mosaics are of malignant and benign nodules,
        each explained once; else of images with two or four targets, each explained for all of
        them.

        Raises
        ------
        InputError
            If there aren't enough images of two labels, or of four targets.
        """
        images = self.examples.images
        if set(self.targets) == {MALIGNANCY.name}:
            labels = np.array(self.examples.labels)
            usable = np.flatnonzero(np.isin(labels, (MALIGNANT, BENIGN)))
            made = mosaics(images[usable], labels[usable].tolist(), seed=self.seed)
            return PointingTasks(
                images=made.images,
                targets=self.targets[: len(made.images)],
                right=labels[usable][made.members] == MALIGNANT,
                mosaic_ids=tuple(f"mosaic {number + 1}" for number in range(len(made.images))),
            )
        made = mosaics(images, self.targets, seed=self.seed)
        tasks = [
            (number, target, [self.targets[member] == target for member in members])
            for number, members in enumerate(made.members.tolist())
            for target in dict.fromkeys(self.targets[member] for member in members)
        ]
        numbers, targets, right = zip(*tasks, strict=True)
        return PointingTasks(
            images=made.images[list(numbers)],
            targets=targets,
            right=np.array(right),
            mosaic_ids=tuple(f"mosaic {number + 1}" for number in numbers),
        )


@dataclass(frozen=True, eq=False)
class Judged:
    """The maps of one estimator, to be measured.

    Parameters
    ----------
    trial : Trial
        Model and examples.
    estimator : Estimator
        Whose maps they are.
    explained : ExplainedImages
        The map of each image for its target.
    """

    trial: Trial
    estimator: Estimator
    explained: ExplainedImages

    @property
    def maps(self) -> Float[Tensor, "image rows columns"]:
        """Maps at the estimator's own resolution."""
        return self.explained.maps

    @cached_property
    def patches(self) -> Float[Tensor, "image rows columns"]:
        """Maps at the patch grid, pixel maps pooled."""
        return self.trial.grid.pooled(self.maps)

    @cached_property
    def pixels(self) -> Float[Tensor, "image height width"]:
        """Maps at the pixels, patch maps spread."""
        return self.trial.grid.spread(self.maps)

    def own(self) -> Sequence[tuple[Resolution, Float[Tensor, "image rows columns"]]]:
        """Return maps at the patch grid, and at the pixels if that is where they were made."""
        return self.at_resolutions(self.maps)

    def at_resolutions(
        self, maps: Float[Tensor, "image rows columns"]
    ) -> Sequence[tuple[Resolution, Float[Tensor, "image _rows _columns"]]]:
        """Return the estimator's maps of any images at each resolution that they have.

        Parameters
        ----------
        maps : Tensor
            Maps as the estimator made them.
        """
        pooled = self.trial.grid.pooled(maps)
        if self.estimator.resolution == "patch":
            return (("patch", pooled),)
        return (("patch", pooled), ("pixel", maps))

    def curves(
        self, resolution: Resolution, ranking: Ranking, replacement: str
    ) -> PerturbationCurves:
        """Return perturbation curves, made once: rankings of an unsigned map are all the same.

        Parameters
        ----------
        resolution : {"patch", "pixel"}
            Resolution of the maps that are ranked.
        ranking : {"signed", "absolute", "positive"}
            What scores are ranked by.
        replacement : {"blur", "constant", "mean"}
            What takes the place of parts.
        """
        maps = dict(self.own())[resolution]
        key = (resolution, "signed" if bool((maps >= 0).all()) else ranking, replacement)
        if key not in self._curves:
            trial = self.trial
            with trial.perturbing() as opened:
                self._curves[key] = perturbation_curves(
                    opened,
                    maps,
                    ranking=ranking,
                    replacement=trial.replacements[replacement],
                    steps=STEPS,
                    seed=trial.seed,
                )
        return self._curves[key]

    @cached_property
    def _curves(self) -> dict[tuple[str, str, str], PerturbationCurves]:
        return {}

    @cached_property
    def target_correlations(self) -> Float[np.ndarray, "image target target"]:
        """Correlations between maps of all outputs of each image, at the patch grid."""
        trial = self.trial
        scores = explain_several(
            self.estimator,
            trial.model,
            trial.examples.images,
            trial.output_names,
            grid=trial.grid,
            seed=trial.seed,
        )
        return correlations_of_targets(scores)

    def patches_of(
        self,
        images: Float[Tensor, "image channel height width"],
        targets: Sequence[str | int],
        *,
        model: object = None,
        seed: int | None = None,
    ) -> Float[Tensor, "image rows columns"]:
        """Return maps of other images, by another model or seed if given, at the patch grid.

        Parameters
        ----------
        images : Tensor
            The images.
        targets : sequence of str or int
            Target of each.
        model : object, optional
            Instead of the trial's.
        seed : int, optional
            Instead of the trial's.
        """
        asked = self.trial.model if model is None else model
        used = self.trial.seed if seed is None else seed
        made = explain_each(self.estimator, asked, images, targets, seed=used)
        return self.trial.grid.pooled(made.maps)

    @cached_property
    def shifted(self) -> Float[Tensor, "image rows columns"]:
        """Maps of the shifted examples at the estimator's own resolution.

        Raises
        ------
        InputError
            If there are none.
        """
        if self.trial.shifted is None:
            raise InputError(
                "No object was moved out of the centre: that takes image around it, such as a "
                "cohort with cubes larger than what the model sees."
            )
        other = self.trial.shifted
        targets = self.trial.targets_of(other)
        return explain_each(
            self.estimator, self.trial.model, other.images, targets, seed=self.trial.seed
        ).maps
