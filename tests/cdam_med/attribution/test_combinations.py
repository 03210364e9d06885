"""Targets made of outputs: what they equal, and that every path takes them."""

import jaxtyping
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cdam_med.attribution.cdam import cdam_scores
from cdam_med.attribution.class_token import ClassTokenModel, class_token_model
from cdam_med.attribution.combinations import (
    Combination,
    OutputFunction,
    PerImage,
    difference,
    opposite,
)
from cdam_med.attribution.registry import estimator
from cdam_med.errors import TargetError

NAMES = ("malignancy", "spiculation", "texture")


@pytest.fixture
def model(toy_vit):
    """A model whose outputs have names."""
    plain = class_token_model(toy_vit(reg_tokens=1))
    return ClassTokenModel(plain.vit, plain.prepare, plain.readout, NAMES)


def all_tokens(found):
    return torch.cat((found.prefix_scores, found.scores.flatten(2)), dim=-1)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["closed form", "autograd"])
def test_map_of_a_combination_is_the_combination_of_maps(toy_vit, toy_images, options):
    model = toy_vit(**options)
    maps = all_tokens(cdam_scores(model, toy_images))
    weights = {0: 0.7, 2: -1.3, 1: 2.0}
    found = cdam_scores(model, toy_images, Combination(weights, "mix"))
    assert found.targets == ("mix",)
    expected = sum(weight * maps[:, column] for column, weight in weights.items())
    assert_close(all_tokens(found)[:, 0], expected, atol=1e-12, rtol=0)
    plain = cdam_scores(model, toy_images).outputs
    expected = sum(weight * plain[:, column] for column, weight in weights.items())
    assert_close(found.outputs[:, 0], expected, atol=1e-12, rtol=0)


def test_difference_and_opposite_by_name(model, toy_images):
    maps = all_tokens(cdam_scores(model, toy_images))
    targets = [difference("malignancy", "spiculation"), opposite("malignancy", label="benign")]
    found = cdam_scores(model, toy_images, targets)
    assert found.targets == ("malignancy - spiculation", "benign")
    assert_close(all_tokens(found)[:, 0], maps[:, 0] - maps[:, 1], atol=1e-12, rtol=0)
    assert_close(all_tokens(found)[:, 1], -maps[:, 0], atol=1e-13, rtol=0)
    assert difference(0, 1).label == "0 - 1"
    assert opposite(2).label == "-2"


def test_combinations_and_outputs_in_any_order(model, toy_images):
    maps = all_tokens(cdam_scores(model, toy_images))
    asked = [2, opposite("texture"), "malignancy", difference(1, 0), 2]
    found = cdam_scores(model, toy_images, asked)
    assert found.targets == ("texture", "-texture", "malignancy", "1 - 0", "texture")
    expected = [maps[:, 2], -maps[:, 2], maps[:, 0], maps[:, 1] - maps[:, 0], maps[:, 2]]
    assert_close(all_tokens(found), torch.stack(expected, dim=1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("target", [np.int64(1), torch.tensor(1), [np.int64(1)]])
def test_columns_of_numpy_and_torch_are_columns(model, toy_images, target):
    found = cdam_scores(model, toy_images, target)
    assert found.targets == ("spiculation",)
    assert_close(found.scores, cdam_scores(model, toy_images, 1).scores, atol=0, rtol=0)


@pytest.mark.parametrize("target", [torch.tensor(0.5), [torch.tensor([0, 1])]])
def test_what_is_no_target_is_refused(model, toy_images, target):
    with pytest.raises(TargetError, match="A target is a name, a column"):
        cdam_scores(model, toy_images, target)


MASK = [True, False, True]
COLUMNS = [(0, 2), range(0, 3, 2), np.array([0, 2]), torch.tensor([0, 2])]


@pytest.mark.parametrize(
    "target",
    [
        1.5,
        object(),
        b"\x01",
        np.array([0.0, 1.0]),
        lambda outputs: outputs[:, 0],
        [0, lambda outputs: outputs[:, 0]],
        MASK,
        np.array(MASK),
        torch.tensor(MASK),
        True,
        [0, [1]],
        {"malignancy": 1.0},
        {"malignancy"},
        (column for column in range(2)),
        torch.tensor([[0], [2]]),
        [np.array([0])],
    ],
    ids=lambda each: type(each).__name__,  # the same in every process
)
def test_what_is_no_target_is_refused_where_nobody_checks_types(model, toy_images, target):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for ask in (
            lambda: cdam_scores(model, toy_images, target),
            lambda: class_token_model(model).target_columns(target),
            lambda: PerImage(target),
        ):
            with pytest.raises(TargetError, match=r"(A target is|Targets are) a name, a column"):
                ask()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("weight", ["much", None, float("nan")])
def test_weights_are_finite_numbers(weight):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(TargetError, match=r"'mix' has weights \[.*\]: give finite numbers"):
            Combination({0: weight}, "mix")
        with pytest.raises(TargetError, match="not True: give the columns of a mask"):
            Combination({True: 1.0}, "mix")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    "several", [(0, 2), range(0, 3, 2), np.array([0, 2]), torch.tensor([0, 2])]
)
def test_several_columns(model, toy_images, several):
    found = cdam_scores(model, toy_images, several)
    assert found.targets == ("malignancy", "texture")


@pytest.mark.parametrize("number", [np.int64, np.uint8, torch.tensor])
def test_combinations_of_columns_of_numpy_and_torch(model, toy_images, number):
    asked = [difference(number(0), number(1)), opposite(number(2))]
    found = cdam_scores(model, toy_images, asked)
    expected = cdam_scores(model, toy_images, [difference(0, 1), opposite(2)])
    assert found.targets == expected.targets == ("0 - 1", "-2")
    assert torch.equal(found.scores, expected.scores)
    with pytest.raises(TargetError, match="1 minus itself"):
        difference(1, number(1))
    twice = Combination({0: 1.0, torch.tensor(0): 2.0}, "three times")
    found = cdam_scores(model, toy_images, [twice, 0])
    assert_close(found.scores[:, 0], 3 * found.scores[:, 1], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["closed form", "autograd"])
def test_function_of_the_outputs_follows_the_chain_rule(toy_vit, toy_images, options):
    model = toy_vit(**options)
    plain = cdam_scores(model, toy_images)
    target = OutputFunction(lambda outputs: outputs.softmax(-1)[:, 1], "probability of 1")
    found = cdam_scores(model, toy_images, [target])
    p = plain.outputs.softmax(-1)
    by_output = p[:, 1:2] * (torch.eye(3, dtype=p.dtype)[1] - p)  # d p_1 / d output
    expected = torch.einsum("bc,bci->bi", by_output, all_tokens(plain))
    assert found.targets == ("probability of 1",)
    assert_close(found.outputs[:, 0], p[:, 1], atol=1e-12, rtol=0)
    assert_close(all_tokens(found)[:, 0], expected, atol=1e-12, rtol=0)


def test_combination_of_a_half_precision_model(toy_vit, toy_images):
    found = cdam_scores(toy_vit().to(torch.bfloat16), toy_images, difference(0, 1))
    assert found.outputs.dtype == torch.bfloat16


def test_a_function_without_a_gradient_is_refused_where_one_is_wanted(model, toy_images):
    target = OutputFunction(lambda outputs: (outputs[:, 0] > 0).to(outputs), "malignant or not")
    with pytest.raises(TargetError, match="'malignant or not' can't be differentiated"):
        cdam_scores(model, toy_images, target)
    found = estimator("token_ablation")(model, toy_images, target)
    assert found.scores.shape == (2, 1, 4, 6)


def test_what_makes_no_sense_is_refused(model, toy_images):
    with pytest.raises(TargetError, match="no outputs"):
        Combination({}, "nothing")
    with pytest.raises(TargetError, match=r"'much' has weights \[1.0, inf\]"):
        Combination({0: 1.0, 1: float("inf")}, "much")
    with pytest.raises(TargetError, match="minus itself"):
        difference("texture", "texture")
    with pytest.raises(TargetError, match="'malignancy - 0' is zero everywhere"):
        cdam_scores(model, toy_images, difference("malignancy", 0))
    with pytest.raises(TargetError, match="no target 'margin': choose from 0 to 2 or malignancy"):
        cdam_scores(model, toy_images, difference("texture", "margin"))
    with pytest.raises(TargetError, match="No target is asked for"):
        cdam_scores(model, toy_images, [])
    with pytest.raises(TargetError, match=r"'everything' must turn .* not \(1, 3\)"):
        cdam_scores(model, toy_images, OutputFunction(lambda outputs: outputs, "everything"))
    with pytest.raises(TargetError, match="not float"):
        cdam_scores(model, toy_images, OutputFunction(lambda outputs: 1.0, "one"))
