"""Concepts: made of examples, explained like outputs, stored, and refused by other models."""

import contextlib
import copy
import json
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.models.deit import VisionTransformerDistilled
from torch.testing import assert_close

from cdam_med.attribution.averaged import SmoothCdam
from cdam_med.attribution.cdam import cdam_scores
from cdam_med.attribution.concept import Concept, concept_from_images
from cdam_med.attribution.integrated import IntegratedCdam
from cdam_med.attribution.verification import headless_sha256
from cdam_med.data.rating_query import parse_query
from cdam_med.errors import CdamError, TargetError
from cdam_med.models.store import load_concept, save_concept

SLOW = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).resolve().parents[2] / "oracles" / "slow_concept.py"))
)

SIMILARITIES = ("dot", "cosine", "negative_l2")


@pytest.fixture(scope="module")
def examples():
    generator = torch.Generator().manual_seed(8)
    return torch.randn(5, 3, 16, 24, dtype=torch.float64, generator=generator)


def all_tokens(found):
    return torch.cat((found.prefix_scores, found.scores.flatten(2)), dim=-1)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(
    "options",
    [{"reg_tokens": 2}, {"fc_norm": True}, {"qk_norm": True}],
    ids=["final norm", "norm after pooling", "autograd"],
)
def test_equals_a_full_backward_pass(toy_vit, toy_images, examples, similarity, options):
    model = toy_vit(**options)
    concept = concept_from_images(model, examples, label="like these", similarity=similarity)
    mean = torch.stack([SLOW.latent(model, image) for image in examples]).mean(0)
    assert_close(concept.vector, mean, atol=1e-12, rtol=0)
    found = cdam_scores(model, toy_images, concept)
    expected = SLOW.by_full_backward(model, toy_images, mean, similarity)
    assert found.targets == ("like these",)
    assert_close(all_tokens(found)[:, 0], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"num_classes": 3, "qk_norm": True}])
def test_row_of_the_head_as_concept_is_the_class(toy_vit, toy_images, options):
    model = toy_vit(**options)
    rows = [
        Concept(f"row {c}", model.head.weight[c].detach(), "toy", headless_sha256(model))
        for c in range(3)
    ]
    found, expected = cdam_scores(model, toy_images, rows), cdam_scores(model, toy_images)
    assert_close(all_tokens(found), all_tokens(expected), atol=1e-13, rtol=0)
    without_bias = expected.outputs - model.head.bias.detach()
    assert_close(found.outputs, without_bias, atol=1e-12, rtol=0)


def test_several_concepts_beside_outputs_from_one_pass(toy_vit, toy_images, examples):
    model = toy_vit()
    concepts = [
        concept_from_images(model, examples[:2], label="a"),
        concept_from_images(model, examples[2:], label="b", similarity="cosine"),
    ]
    together = cdam_scores(model, toy_images, [concepts[0], 1, concepts[1]])
    assert together.targets == ("a", 1, "b")
    for index, target in enumerate((concepts[0], 1, concepts[1])):
        alone = cdam_scores(model, toy_images, target)
        assert_close(together.scores[:, index], alone.scores[:, 0], atol=1e-13, rtol=0)
    for estimator in (SmoothCdam(samples=2), IntegratedCdam(steps=2)):
        assert estimator(model, toy_images, concepts).targets == ("a", "b")


def test_class_token_of_a_distilled_model_is_its_first(toy_vit, toy_images, examples):
    model = toy_vit(model_class=VisionTransformerDistilled)
    concept = concept_from_images(model, examples, label="these")
    with torch.no_grad():
        expected = model.forward_features(examples)[:, 0].mean(0)
        similar = model.forward_features(toy_images)[:, 0] @ expected
    assert_close(concept.vector, expected, atol=1e-12, rtol=0)
    assert_close(cdam_scores(model, toy_images, concept).outputs[:, 0], similar)


def test_batches_of_examples_and_where_they_come_from(toy_vit, examples):
    model = toy_vit().train()
    model.blocks[0].eval()
    modes = [part.training for part in model.modules()]
    whole = concept_from_images(model, examples, label="spiculated")
    parts = concept_from_images(
        model,
        (part for part in examples.split(2)),
        label="spiculated",
        examples=["n1", "n2", "n3", "n4", "n5"],
        source="spiculation >= 4",
    )
    assert_close(parts.vector, whole.vector, atol=1e-13, rtol=0)
    assert whole.examples == ("0", "1", "2", "3", "4")
    assert parts.examples == ("n1", "n2", "n3", "n4", "n5")
    assert (parts.source, parts.model) == ("spiculation >= 4", "VisionTransformer")
    assert [part.training for part in model.modules()] == modes
    assert not parts.vector.requires_grad


def test_examples_that_are_none_or_do_not_match_are_refused(toy_vit, examples):
    with pytest.raises(TargetError, match="0 example images"):
        concept_from_images(toy_vit(), [], label="nothing")
    with pytest.raises(TargetError, match="5 example images and 2 identifiers"):
        concept_from_images(toy_vit(), examples, label="some", examples=["a", "b"])
    with pytest.raises(CdamError, match="16 x 24"):
        concept_from_images(toy_vit(), examples[..., :8], label="small")


def test_saved_and_loaded(toy_vit, toy_images, examples, tmp_path):
    model = toy_vit()
    concept = concept_from_images(
        model, examples, label="like thése", similarity="cosine", source="x > 1"
    )
    save_concept(concept, tmp_path / "concept.safetensors")
    loaded = load_concept(tmp_path / "concept.safetensors")
    assert torch.equal(loaded.vector, concept.vector)
    for field in ("label", "model", "weights_sha256", "examples", "similarity", "source"):
        assert getattr(loaded, field) == getattr(concept, field)
    one, other = (cdam_scores(model, toy_images, each) for each in (concept, loaded))
    assert torch.equal(one.scores, other.scores)


def test_made_or_loaded_in_inference_mode(toy_vit, toy_images, examples, tmp_path):
    model = toy_vit()
    concept = concept_from_images(model, examples, label="these")
    expected = cdam_scores(model, toy_images, concept).scores
    save_concept(concept, tmp_path / "concept.safetensors")
    with torch.inference_mode():
        loaded = load_concept(tmp_path / "concept.safetensors")
        made = Concept("these", concept.vector.clone(), concept.model, concept.weights_sha256)
        assert torch.equal(cdam_scores(model, toy_images, loaded).scores, expected)
    for each in (loaded, made):
        assert torch.equal(cdam_scores(model, toy_images, each).scores, expected)


def test_threads_that_make_concepts_of_one_model(toy_vit, examples):
    model = toy_vit(depth=4, drop_path_rate=0.5)
    expected = concept_from_images(model, examples, label="these").vector
    model.train()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that threads take turns amidst a pass
    try:
        with ThreadPoolExecutor(4) as threads:
            parts = [
                threads.submit(concept_from_images, model, examples, label="these")
                for _ in range(24)
            ]
    finally:
        sys.setswitchinterval(interval)
    for part in parts:
        assert_close(part.result().vector, expected, atol=1e-12, rtol=0)
    assert all(part.training for part in model.modules())


def test_examples_that_are_no_tensors_are_named(toy_vit, examples):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(CdamError, match=r"not NoneType: .*torch\.as_tensor"):
            concept_from_images(toy_vit(), None, label="these")
        with pytest.raises(CdamError, match=r"not ndarray: .*torch\.as_tensor"):
            concept_from_images(toy_vit(), [examples.numpy()], label="these")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_files_that_hold_no_concept_are_refused(tmp_path):
    path = tmp_path / "concept.safetensors"
    with pytest.raises(TargetError, match="can't be read as a concept"):
        load_concept(path)
    path.write_bytes(b"\x80\x04]\x94.")  # a pickle
    with pytest.raises(TargetError, match="can't be read as a concept"):
        load_concept(path)
    save_file({"vector": torch.ones(3)}, path)
    with pytest.raises(TargetError, match="holds no concept"):
        load_concept(path)
    record = {"label": "a", "model": "m", "weights_sha256": "0", "examples": [], "source": ""}
    for changed in ({}, {"similarity": "angle"}, {"similarity": "dot", "code": "1"}):
        save_file(
            {"vector": torch.ones(3)}, path, {"cdam_med.concept.1": json.dumps(record | changed)}
        )
        with pytest.raises(TargetError, match="header"):
            load_concept(path)
    header = {"cdam_med.concept.1": json.dumps(record | {"similarity": "dot"})}
    for tensor in (torch.ones(2, 2), torch.ones(3, dtype=torch.int64)):
        save_file({"vector": tensor}, path, header)
        with pytest.raises(TargetError, match="holds no concept"):
            load_concept(path)
    save_file({"vector": torch.tensor([1.0, float("nan")])}, path, header)
    with pytest.raises(TargetError, match="NaN"):
        load_concept(path)


def test_concept_of_another_model_is_refused_by_name(toy_vit, toy_images, examples):
    model = toy_vit()
    concept = concept_from_images(model, examples, label="these")
    with pytest.raises(TargetError, match=r"'these' .* VisionTransformer.* 24 numbers, not 48"):
        cdam_scores(toy_vit(embed_dim=48), toy_images, concept)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.blocks[0].mlp.fc1.weight[0, 0] += 1e-3
    with pytest.raises(TargetError, match="'these' was made with other weights"):
        cdam_scores(other, toy_images, concept)


def test_a_rounded_copy_of_the_model_is_another_model(toy_vit, toy_images, examples):
    model = toy_vit().float()
    concept = concept_from_images(model, examples, label="these")
    rounded = copy.deepcopy(model).bfloat16()
    with pytest.raises(TargetError, match=r"'these' .*in torch.bfloat16 .*rounded.*make it anew"):
        cdam_scores(rounded, toy_images, concept)
    own = concept_from_images(rounded, examples, label="these")
    assert own.vector.dtype == torch.float32
    assert cdam_scores(rounded, toy_images, own).scores.isfinite().all()
    with pytest.raises(TargetError, match=r"in torch.float32 .*rounded"):
        cdam_scores(model, toy_images, own)
    wider = cdam_scores(copy.deepcopy(model).double(), toy_images, concept)
    assert_close(wider.scores.float(), cdam_scores(model, toy_images, concept).scores)


def test_an_unknown_similarity_is_refused_where_nobody_checks_types(toy_vit, examples):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(TargetError, match=r"no similarity 'angle' .*from dot, cosine"):
            concept_from_images(toy_vit(), examples, label="these", similarity="angle")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_a_model_that_was_trained_on_is_another_model(toy_vit, toy_images, examples):
    model = toy_vit()
    concept = concept_from_images(model, examples, label="these")
    cdam_scores(model, toy_images, concept)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight.mul_(1.01)
    with pytest.raises(TargetError, match="other weights"):
        cdam_scores(model, toy_images, concept)


def test_a_new_head_leaves_the_class_token_as_it_was(toy_vit, toy_images, examples):
    model = toy_vit()
    concept = concept_from_images(model, examples, label="these")
    expected = cdam_scores(model, toy_images, concept)
    model.reset_classifier(7)
    model.double()
    assert_close(cdam_scores(model, toy_images, concept).scores, expected.scores)


def test_model_made_in_inference_mode(toy_vit, toy_images, examples):
    with torch.inference_mode():
        model = copy.deepcopy(toy_vit())
        concept = concept_from_images(model, examples.clone(), label="these")
    expected = concept_from_images(toy_vit(), examples, label="these")
    assert concept.weights_sha256 == expected.weights_sha256
    assert_close(concept.vector, expected.vector)


def test_query_over_ratings():
    query = parse_query("spiculation >= 4 AND diameter<10.5 and texture != 3")
    nodule = {"spiculation": 4, "diameter": 10, "texture": 5.0}
    assert query(nodule)
    assert query.text == "spiculation >= 4 AND diameter<10.5 and texture != 3"
    for change in ({"spiculation": 3.9}, {"diameter": 10.5}, {"texture": 3}, {"texture": None}):
        assert not query(nodule | change)
    assert not query(nodule | {"diameter": float("nan")})
    assert parse_query("margin = -1")({"margin": -1.0})
    assert parse_query("android == 2 and band > 1")({"android": 2, "band": 2})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiculation",
        "spiculation >= ",
        "spiculation >= high",
        "spiculation >= 4 or texture > 3",
        "spiculation >= 4 and",
        "4 <= spiculation",
        "1 < spiculation < 3",
        "spiculation => 4",
        "__import__('os').system('true') > 1",
        "spiculation >= 4; texture > 3",
        "spiculation >= nan",
        "spiculation >= ٤",
        "(spiculation >= 4)",
    ],
)
def test_what_is_no_query_is_refused(text):
    with pytest.raises(TargetError, match="is no comparison"):
        parse_query(text)


def test_unknown_ratings_are_named():
    with pytest.raises(TargetError, match="no rating 'spiculaton': there are margin, spiculation"):
        parse_query("spiculaton > 3", names=("spiculation", "margin"))
    with pytest.raises(TargetError, match="no rating 'margin': there are texture"):
        parse_query("texture > 3 and margin > 3")({"texture": 1})


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text):
    with contextlib.suppress(TargetError):
        assert parse_query(text).comparisons
