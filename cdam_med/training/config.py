"""Settings of a training run; validated, and stored beside the model."""

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from cdam_med.models.nodule_vit import ModelConfig

DEMO_RANK = 72
"""Rank of the block matrices that makes a file of under 12 MB in half precision."""


class FitConfig(BaseModel):
    """One run of the optimiser over the training nodules.

    Parameters
    ----------
    epochs, batch_size
        Passes over the nodules (one slice of each) and nodules a step.
    learning_rate
        Peak of the one-cycle schedule, for the heads.
    layer_decay
        Each block's rate is this share of the block's behind it.
    weight_decay
        Of AdamW, for matrices.
    frozen_blocks
        The patch embedding and so many of the first blocks stay as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: PositiveInt
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 1e-4
    layer_decay: PositiveFloat = Field(0.75, le=1)
    weight_decay: float = Field(0.05, ge=0)
    frozen_blocks: int = Field(0, ge=0)


class Recipe(BaseModel):
    """How a model is made from a pretrained backbone.

    Parameters
    ----------
    model
        The model; if its backbone has a rank, the trained matrices are reduced to it.
    fine_tuning
        Training of the whole backbone.
    recovery
        Training of the factors after the reduction; not used without a rank.
    seed
        Of everything random.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    fine_tuning: FitConfig
    recovery: FitConfig
    seed: int = Field(0, ge=0)


def demo_recipe(*, fine_tuning_epochs: int = 7, rank: int | None = DEMO_RANK) -> Recipe:
    """Return the recipe of the model that ships with the package.

    A ViT-S/14 (DINOv2 layout) on a 48 mm field of view, 12 x 12 patches of 4 mm, with block
    matrices of low rank.

    Parameters
    ----------
    fine_tuning_epochs
        Passes over the nodules before the reduction.
    rank
        Of the block matrices; None leaves them whole.
    """
    return Recipe.model_validate(
        {
            "model": {
                "name": "demo" if rank else "fine-tuned ViT-S/14",
                "backbone": {
                    "architecture": "vit_small_patch14_dinov2",
                    "image_size": 168,
                    "rank": rank,
                },
                "input": {
                    "field_of_view_mm": 48,
                    "image_size": 168,
                    "intensity": "slice_stretch",
                },
                "views": ["axial"],
            },
            # the first half would hardly move at these rates, and costs a third of the time
            "fine_tuning": {"epochs": fine_tuning_epochs, "frozen_blocks": 6},
            "recovery": {"epochs": 1, "learning_rate": 5e-5, "layer_decay": 0.9},
        }
    )
