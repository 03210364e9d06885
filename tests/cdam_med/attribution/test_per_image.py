"""A target of its own for each image: the maps are those of one call for each image alone."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cdam_med.attribution.cdam import cdam_scores
from cdam_med.attribution.class_token import ClassTokenModel, class_token_model
from cdam_med.attribution.combinations import PerImage, difference
from cdam_med.attribution.registry import METHODS, estimator
from cdam_med.attribution.subject import predicted_class
from cdam_med.errors import TargetError

FEW = {"samples": 2, "steps": 2}


def small_estimator(name):
    fields = {field.name for field in dataclasses.fields(METHODS[name])}
    return estimator(name, **{key: value for key, value in FEW.items() if key in fields})


@pytest.fixture
def images():
    return torch.randn(
        3, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["closed form", "autograd"])
def test_every_estimator_gives_each_image_its_own(toy_vit, images, name, options):
    model, method = toy_vit(**options), small_estimator(name)
    own = (2, difference(0, 1), 2)
    found = method(model, images, [1, PerImage(own, "own"), 2])
    assert found.targets == (1, "own", 2)
    for index, target in enumerate(own):
        alone = method(model, images[[index]], [1, target, 2])
        assert_close(found.scores[[index]], alone.scores, rtol=1e-9, atol=1e-11)
        assert_close(found.outputs[[index]], alone.outputs, rtol=1e-9, atol=1e-11)
        if alone.prefix_scores is not None:
            assert_close(found.prefix_scores[[index]], alone.prefix_scores, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("own", [[2, 0, 1], np.array([2, 0, 1]), torch.tensor([2, 0, 1])])
def test_own_columns_in_any_form(toy_vit, images, own):
    model = toy_vit()
    every = cdam_scores(model, images)
    found = cdam_scores(model, images, PerImage(own))
    assert found.targets == ("each image's own",)
    assert found.scores.shape == (3, 1, 4, 6)
    for index, column in enumerate((2, 0, 1)):
        assert torch.equal(found.outputs[index, 0], every.outputs[index, column])
        assert_close(found.scores[index, 0], every.scores[index, column], rtol=1e-12, atol=1e-14)
        assert torch.equal(found.prefix_scores[index, 0], every.prefix_scores[index, column])


def test_predicted_class_is_the_highest_output_of_each_image(toy_vit, images):
    plain = class_token_model(toy_vit())
    with torch.no_grad():
        outputs = plain.vit(images)
        mean = outputs.mean(0)
        highest = (outputs - mean).argmax(1).tolist()
    assert len(set(highest)) > 1
    names = ("cat", "dog", "bird")
    for names_of_model in (None, names):
        model = ClassTokenModel(
            plain.vit, plain.prepare, lambda token: plain.readout(token) - mean, names_of_model
        )
        own = predicted_class(model, images)
        labels = names_of_model or range(3)
        assert own.targets == tuple(labels[column] for column in highest)
        found = cdam_scores(model, images, own)
        assert found.targets == ("predicted class",)
        assert_close(found.outputs[:, 0], (outputs - mean).amax(1), rtol=0, atol=1e-12)


def test_what_does_not_fit_is_refused(toy_vit, images):
    with pytest.raises(TargetError, match=r"2 target\(s\) for 3 image\(s\): give one for each"):
        cdam_scores(toy_vit(), images, PerImage([0, 1]))
    with pytest.raises(TargetError, match="no target 3: choose from 0 to 2"):
        cdam_scores(toy_vit(), images, PerImage([0, 1, 3]))
