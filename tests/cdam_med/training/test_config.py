"""Settings: what makes no sense is refused, what is stored is read again."""

import pytest
from pydantic import ValidationError

from cdam_med.training.trainer import FitConfig, Recipe, demo_recipe


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", 0),
        ("learning_rate", float("inf")),
        ("layer_decay", 0),
        ("layer_decay", 1.01),
        ("weight_decay", -0.1),
        ("weight_decay", float("nan")),
        ("frozen_blocks", -1),
        ("momentum", 0.9),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        FitConfig.model_validate({"epochs": 1} | {field: value})


def test_a_recipe_is_read_as_it_was_stored() -> None:
    recipe = demo_recipe(fine_tuning_epochs=3)
    assert recipe.fine_tuning.epochs == 3
    assert Recipe.model_validate_json(recipe.model_dump_json(indent=2)) == recipe
    with pytest.raises(ValidationError, match="seed"):
        Recipe.model_validate(recipe.model_dump() | {"seed": -1})


def test_the_demo_has_a_patch_of_4_mm() -> None:
    model = demo_recipe().model
    assert model.backbone.architecture == "vit_small_patch14_dinov2"
    assert model.input.field_of_view_mm / (model.backbone.image_size / 14) == 4
    assert model.input.intensity == "slice_stretch"  # the stored slices have lost their HU
