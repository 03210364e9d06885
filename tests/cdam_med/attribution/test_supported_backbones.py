"""Every family of backbones: what works is right, what doesn't is refused, and the docs say so."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import slow_backbones
import slow_beit
import timm
import torch
from backbone_families import FAMILIES, SMALL, outputs, with_other_weights
from timm.models.beit import Beit
from timm.models.eva import Eva
from torch.testing import assert_close

from cdam_med.attribution.cdam import cdam_scores
from cdam_med.attribution.registry import METHODS, estimator
from cdam_med.errors import ModelError

TABLE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "backbones.md"
FEW = {"samples": 2, "steps": 2}
CDAMS = [name for name in METHODS if "cdam" in name]
PRE_NORM = [family for family in FAMILIES if "norm after" not in family.title]


def small_estimator(name):
    fields = {field.name for field in dataclasses.fields(METHODS[name])}
    return estimator(name, **{key: value for key, value in FEW.items() if key in fields})


def path_of(model, images):
    """How CDAM is computed, or None where it is refused."""
    try:
        return cdam_scores(model, images).path
    except ModelError:
        return None


def refuses(name, model, images):
    """Whether an estimator refuses a model; whatever it gives instead must be sound."""
    try:
        found = small_estimator(name)(model, images)
    except ModelError:
        return True
    assert torch.isfinite(found.scores).all(), name
    assert found.scores.shape[:2] == (2, 2), name
    with torch.no_grad():
        assert_close(found.outputs, outputs(model, images), rtol=0, atol=1e-9)
    return False


def row(family):
    """The family's line of the table, from a run of everything on it."""
    model, images = family.model(), family.images()
    path = path_of(model, images)
    words = {"closed form": "closed form", "autograd": "general", None: "refused"}[path]
    refusing = [name for name in METHODS if refuses(name, model, images)]
    if len(refusing) == len(METHODS):
        text = "all; `cdam_scores` alone" if path else "all"
    elif set(CDAMS) <= set(refusing):
        text = ", ".join(["all CDAM", *(f"`{n}`" for n in refusing if n not in CDAMS)])
    else:
        text = ", ".join(f"`{name}`" for name in refusing) or "none"
    return f"| {family.title} | {family.examples} | {words} | {text} |"


def state_of(model):
    """What an attribution has no business changing."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return {
        "training": [part.training for part in model.modules()],
        "hooks": [len(getattr(part, kind)) for part in model.modules() for kind in kinds],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "trainable": [parameter.requires_grad for parameter in model.parameters()],
    }


CORE = {
    "plain",
    "two prefix tokens that are read",
    "attention pooling",
    "BEiT, patches averaged",
    "EVA, class token",
    "DINOv3, class token",
    "relative positions, norm after attention",
    "MONAI, 2-D",
    "Hugging Face DINOv2 with registers",
    "torchvision",
    "a module around a ViT: Sequential with a head",
}
"""Families of which everything is tested each time; of the others CDAM alone is."""


def each(families, *, fast=CORE):
    """Run a test for each of some families; without those whose package isn't there."""
    params = []
    for family in families:
        there = family.needs is None or importlib.util.find_spec(family.needs) is not None
        marks = [pytest.mark.skipif(not there, reason=f"{family.title} needs {family.needs}")]
        if family.title not in fast:
            marks.append(pytest.mark.slow)
        params.append(pytest.param(family, id=family.title, marks=marks))
    return pytest.mark.parametrize("family", params)


@each(FAMILIES)
def test_the_table_says_what_happens(family):
    expected = row(family)
    listed = TABLE.read_text(encoding="utf-8").splitlines()
    assert expected in listed, f"docs/reference/backbones.md should have the line\n{expected}"


def test_the_table_lists_nothing_else():
    text = TABLE.read_text(encoding="utf-8").split("| --- | --- | --- | --- |\n")[1]
    titles = [
        line.split(" | ")[0].removeprefix("| ") for line in text.split("\n\n")[0].splitlines()
    ]
    assert titles == [family.title for family in FAMILIES]


@each(PRE_NORM, fast={family.title for family in PRE_NORM} - {"ViTamin"})
def test_cdam_equals_a_full_backward_pass(family):
    model, images = family.model(), family.images()
    found = cdam_scores(model, images)
    assert found.scores.shape == (2, 2, *family.grid)
    expected = slow_backbones.cdam(model, images, family.norms, outputs)
    everything = torch.cat((found.prefix_scores, found.scores.flatten(2)), dim=2)
    assert_close(everything, expected, rtol=1e-10, atol=1e-12 * expected.abs().max().item())
    assert (expected != 0).any()


@each([family for family in FAMILIES if family not in PRE_NORM])
@pytest.mark.parametrize("name", CDAMS)
def test_cdam_is_refused_without_a_norm_before_attention(family, name):
    with pytest.raises(ModelError, match=r"\(.*ends in a .*no norm before its attention"):
        small_estimator(name)(family.model(), family.images())


@each([family for family in PRE_NORM if len(family.norms) == 1 and len(family.grid) == 2])
def test_integrated_cdam_is_complete(family):
    model, images = family.model(), family.images()
    found = estimator("integrated_cdam", steps=40)(model, images)
    expected = slow_backbones.fall_to_nothing(model, images, family.norms[0], outputs)
    total = found.scores.sum((2, 3)) + found.prefix_scores.sum(2)
    assert_close(total, expected, rtol=1e-2, atol=1e-2)


@each([family for family in FAMILIES if len(family.grid) == 2 and family.ablates])
def test_token_ablation_takes_tokens_away(family):
    model, images = family.model(), family.images()
    if isinstance(model, Beit):
        expected = slow_beit.token_ablation(model, images)
    elif isinstance(model, Eva):
        expected = slow_backbones.token_ablation_by_masking(model, images)
    else:
        prefix = family.prefix or getattr(model, "num_prefix_tokens", 1)
        expected = slow_backbones.token_ablation(model, images, family.first_block, prefix, outputs)
    found = estimator("token_ablation")(model, images)
    assert_close(found.scores.flatten(2), expected, rtol=1e-9, atol=1e-11)


@each(PRE_NORM)
def test_a_family_is_left_as_it_was(family):
    model, images = family.model().train(), family.images()
    before = state_of(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    scores = cdam_scores(model, images).scores
    assert state_of(model) == before
    assert torch.equal(scores, cdam_scores(model.eval(), images).scores)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


NORMS = {
    "ParallelScalingBlock": ("blocks.1.in_norm",),
    "DiffParallelScalingBlock": ("blocks.1.in_norm",),
    "ParallelThingsBlock": ("blocks.1.attns.0.norm", "blocks.1.attns.1.norm"),
}
FILES = ("vision_transformer", "vision_transformer_hybrid", "deit", "beit", "eva")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for file in FILES for name in timm.list_models(module=file)])
def test_every_model_of_timms_files(name):
    options = SMALL | ({"num_kv_heads": (3, 3)} if "sapiens2" in name else {})
    if name == "vit_base_mci_224":  # its stem gives tokens of its own width
        options = {"depth": 2, "num_classes": 2}
    first = timm.create_model(name, device="meta", **options)
    side = max(first.patch_embed.feat_ratio(as_scalar=False))
    model = with_other_weights(
        lambda: timm.create_model(name, img_size=(2 * side, 3 * side), **options)
    )
    images = torch.randn(1, first.in_chans, 2 * side, 3 * side, dtype=torch.float64)
    block = type(model.blocks[-1]).__name__
    if block in ("ResPostBlock", "EvaBlockPostNorm"):
        with pytest.raises(ModelError, match="no norm before its attention"):
            cdam_scores(model, images)
        return
    found = cdam_scores(model, images)
    norms = NORMS.get(block, ("blocks.1.norm1",))
    expected = slow_backbones.cdam(model, images, norms, outputs)
    everything = torch.cat((found.prefix_scores, found.scores.flatten(2)), dim=2)
    assert_close(everything, expected, rtol=1e-9, atol=1e-11 * expected.abs().max().item())
