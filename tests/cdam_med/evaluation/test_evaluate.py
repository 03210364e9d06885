"""Evaluating methods: every metric, the long table, its summary, and what is left out."""

import copy
import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import timm
import torch
from numpy.testing import assert_allclose

from cdam_med.attribution.cdam import Cdam
from cdam_med.attribution.registry import METHODS, estimator
from cdam_med.errors import MethodError, ModelError
from cdam_med.evaluation.evaluate import evaluate
from cdam_med.evaluation.examples import Examples
from cdam_med.evaluation.experiment import Experiment
from cdam_med.evaluation.intervals import mean_intervals, paired_differences
from cdam_med.evaluation.maps import patch_grid
from cdam_med.evaluation.metrics import GROUPS, METRICS, metric_of
from cdam_med.evaluation.metrics.compactness import gini
from cdam_med.evaluation.metrics.localisation import positive_share
from cdam_med.evaluation.metrics.perturbation import black_of
from cdam_med.evaluation.metrics.sanity import correlation_with_others
from data_prep.errors import InputError

CHEAP = ("cost", "compactness", "localisation")


@dataclass(frozen=True)
class Refusing(Cdam):
    """Refuses every model."""

    name: ClassVar[str] = "refusing"

    def __call__(self, model, images, targets=None, *, seed=0):
        raise ModelError("This ViT isn't to its taste.")


@dataclass(frozen=True)
class Broken(Cdam):
    """Gives maps that aren't finite."""

    name: ClassVar[str] = "broken"

    def __call__(self, model, images, targets=None, *, seed=0):
        found = super().__call__(model, images, targets, seed=seed)
        return dataclasses.replace(found, scores=found.scores * torch.nan)


def values(results, name, metric, resolution="patch"):
    return {
        row.image: row.value
        for row in results.rows
        if (row.method, row.metric, row.resolution) == (name, metric, resolution)
    }


@pytest.fixture(scope="module")
def results(nodule_model, nodules, moved_nodules):
    """Every measure of a patch map, a pixel map, a random one and a control."""
    return evaluate(
        nodule_model,
        nodules,
        ["cdam", "input_x_gradient", "random", "centre_prior", Refusing()],
        shifted=moved_nodules,
        neighbours=moved_nodules.select(range(5)),
    )


def test_every_metric_of_every_method(results, nodules):
    found = {(row.method, row.metric) for row in results.rows}
    metrics = {metric for _, metric in found}
    assert {metric.split("/")[0] for metric in metrics} == METRICS.keys() - {"class_correlation"}
    assert {name for name, _ in found} == {"cdam", "input_x_gradient", "random", "centre_prior"}
    for name in ("cdam", "input_x_gradient"):
        for metric in metrics - {"same_with_seed"}:
            assert (name, metric) in found, (name, metric)
    assert all(not math.isinf(row.value) for row in results.rows)
    assert {row.label for row in results.rows} == {"malignant", "benign", ""}
    images = {row.image for row in results.rows if not row.image.startswith("mosaic")}
    assert images == set(nodules.ids)


def test_a_method_that_refuses_is_named(results):
    (left_out,) = results.left_out
    assert left_out == ("refusing", "", "This ViT isn't to its taste.")
    assert [each.name for each in results.methods] == [
        "cdam",
        "input_x_gradient",
        "random",
        "centre_prior",
    ]


def test_values_are_those_of_the_metrics(results, nodule_model, nodules):
    maps = Cdam()(nodule_model, nodules.images, "malignancy").scores[:, 0]
    grid = patch_grid(nodule_model, nodules.images)
    coverage = grid.pooled(nodules.masks.float())
    found = values(results, "cdam", "positive_share")
    assert tuple(found) == nodules.ids
    assert_allclose(list(found.values()), positive_share(maps, coverage), rtol=1e-4)
    assert_allclose(list(values(results, "cdam", "gini").values()), gini(maps), rtol=1e-4)
    pooled = estimator("input_x_gradient")(nodule_model, nodules.images, "malignancy").scores[:, 0]
    expected = gini(grid.pooled(pooled))
    assert_allclose(list(values(results, "input_x_gradient", "gini").values()), expected, rtol=1e-3)


def test_resolutions_are_kept_apart(results):
    assert not values(results, "cdam", "gini", "pixel")
    assert values(results, "input_x_gradient", "gini", "pixel")
    assert values(results, "cdam", "auroc", "pixel")
    assert values(results, "cdam", "seconds", "patch")
    assert values(results, "input_x_gradient", "seconds", "pixel")


def test_what_is_known_of_the_controls(results):
    """A control knows no target, no weights and no image; a random map knows nothing at all."""

    def mean(name, metric):
        return np.nanmean(list(values(results, name, metric).values()))

    for stage in ("head", "block 2", "block 1", "embedding"):
        assert mean("centre_prior", f"randomised_absolute/{stage}") == pytest.approx(1)
        assert mean("random", f"randomised_signed/{stage}") == pytest.approx(1)
    assert mean("random", "target_correlation") == pytest.approx(1)
    assert mean("input_x_gradient", "target_correlation") < 0.95
    assert mean("input_x_gradient", "randomised_signed/embedding") < 0.9
    assert abs(mean("random", "same_when_flipped")) < 0.9
    assert not values(results, "cdam", "same_with_seed")
    assert values(results, "random", "same_with_seed")


def test_shifted_and_neighbouring_images_are_matched(results, moved_nodules):
    assert tuple(values(results, "cdam", "auroc/shifted")) == moved_nodules.ids
    assert tuple(values(results, "cdam", "same_in_neighbour")) == moved_nodules.ids[:5]


def test_other_images_are_told_of_as_pairs(results, nodule_model, nodules):
    found = values(results, "cdam", "other_images")
    maps = Cdam()(nodule_model, nodules.images, "malignancy").scores[:, 0]
    own = correlation_with_others(maps, nodules.groups)
    assert_allclose(list(found.values()), 2 * own - own.mean(), rtol=1e-3, atol=1e-5)
    assert {row.label for row in results.rows if row.metric == "other_images"} == {""}
    assert_allclose(list(values(results, "centre_prior", "other_images").values()), 1)


def test_differences_of_every_two_methods(results, nodules):
    found = {
        (pair.one, pair.other): pair.difference
        for pair in results.differences()
        if (pair.metric, pair.resolution) == ("gini", "patch")
    }
    names = [each.name for each in results.methods]
    assert list(found) == list(itertools.combinations(names, 2))
    one, other = (
        np.array(list(values(results, name, "gini").values()))
        for name in ("input_x_gradient", "random")
    )
    (expected,) = paired_differences(np.stack((one, other), axis=1), nodules.groups)
    assert found["input_x_gradient", "random"] == expected
    at_pixels = {pair.one for pair in results.differences() if pair.resolution == "pixel"}
    assert "cdam" in at_pixels  # localisation, where all maps are brought to pixels
    assert not [p for p in results.differences() if (p.metric, p.resolution) == ("gini", "pixel")]


def test_mosaics_are_judged_at_patches_too(results):
    assert len(values(results, "input_x_gradient", "grid_pointing")) == 2
    assert len(values(results, "input_x_gradient", "grid_pointing", "pixel")) == 2
    assert not values(results, "cdam", "grid_pointing", "pixel")


def test_nodules_meet_in_mosaics_of_two_kinds(results):
    found = values(results, "cdam", "grid_pointing")
    assert set(found) == {"mosaic 1, malignancy", "mosaic 2, malignancy"}
    assert all(0 <= value <= 1 for value in found.values())


def test_summary_is_of_patients_and_by_label(results, nodules):
    summary = results.summary()
    named = {(r.method, r.metric, r.resolution, r.label): r for r in summary}
    row = named["random", "positive_share", "patch", ""]
    mine = np.array(list(values(results, "random", "positive_share").values()))
    base = np.array(list(values(results, "cdam", "positive_share").values()))
    (expected,) = mean_intervals(mine[:, None], nodules.groups)
    assert row.interval == expected
    assert expected.groups == 4
    assert (row.difference,) == paired_differences(np.stack((mine, base), 1), nodules.groups)
    assert named["cdam", "positive_share", "patch", ""].difference is None
    malignant = [index for index, label in enumerate(nodules.labels) if label == "malignant"]
    part = named["random", "positive_share", "patch", "malignant"].interval
    assert part.value == pytest.approx(np.nanmean(mine[malignant]))
    assert part.images <= 4
    assert all(r.difference is None for r in results.summary(reference="nobody"))
    other = {(r.method, r.metric): r.difference for r in results.summary(reference="random")}
    assert other["random", "gini"] is None
    assert other["cdam", "gini"] is not None


def test_curves_matrices_and_pooled_correlations(results):
    assert set(results.curves) == set(results.matrices) == {e.name for e in results.methods}
    curves = results.curves["cdam"]
    assert curves["shares"][0] == 0
    assert curves["shares"][-1] == 1
    assert curves["most_first"][0] == pytest.approx(curves["least_first"][0])
    for first in ("most_first", "least_first"):
        mean, low, high = (curves[f"{first}{end}"] for end in ("", "_low", "_high"))
        assert ((low < mean) & (mean < high)).all()
    assert results.matrices["cdam"]["mean"].shape == (9, 9)
    assert results.output_names[0] == "malignancy"
    assert len(results.pooled_correlations()) == 6
    assert results.shown["input_x_gradient"].shape == (6, 32, 32)
    assert len(results.examples) == 6


def test_shown_images_are_of_every_label(nodule_model, nodules):
    labels = ("a",) * 7 + ("b",)
    few = dataclasses.replace(nodules.select(range(8)), labels=labels)
    results = evaluate(nodule_model, few, ["cdam"], metrics=["cost"])
    assert results.examples.ids == tuple(few.ids[index] for index in (0, 1, 2, 3, 4, 7))
    assert_allclose(results.examples.images, few.images[[0, 1, 2, 3, 4, 7]])
    again = Cdam()(nodule_model, few.images[7:], "malignancy").scores[0, 0]
    assert_allclose(results.shown["cdam"][-1], again, atol=1e-5)


def test_a_classifier_is_explained_for_its_highest_output(classifier, pictures):
    results = evaluate(
        classifier,
        pictures,
        ["cdam", "attention_map"],
        metrics=["class_sensitivity", "ablation_agreement", "grid_pointing", "mif_lif_constant"],
    )
    with torch.no_grad():
        highest = classifier(pictures.images).argmax(1).tolist()
    by_id = dict(zip(pictures.ids, highest, strict=True))
    assert list(results.examples.targets) == [by_id[name] for name in results.examples.ids]
    pairs = values(results, "attention_map", "class_correlation/top and bottom")
    assert_allclose(list(pairs.values()), 1)
    assert np.mean(list(values(results, "cdam", "class_correlation/top and bottom").values())) < 0.9
    assert values(results, "cdam", "ablation_pearson")
    assert values(results, "cdam", "mif_lif/signed, constant")
    if len(set(highest)) < 4:
        reasons = {entry.reason for entry in results.left_out if entry.metric == "grid_pointing"}
        assert all("No mosaic can be made" in reason for reason in reasons)


def test_four_classes_meet_in_one_mosaic(classifier, pictures):
    named = dataclasses.replace(pictures, targets=(0, 1, 2, 3, 0, 1, 2, 3))
    results = evaluate(classifier, named, ["cdam", "centre_prior"], metrics=["grid_pointing"])
    assert len(values(results, "cdam", "grid_pointing")) == 8
    groups = {row.group for row in results.rows}
    assert groups == {"mosaic 1", "mosaic 2"}
    found = values(results, "centre_prior", "grid_pointing")
    assert_allclose(list(found.values()), 0.25, rtol=1e-5)


def test_two_classes_meet_twice_in_one_mosaic(classifier, pictures):
    """A map of each class, and two quadrants that are right for it."""
    named = dataclasses.replace(pictures, targets=(0, 1) * 4)
    results = evaluate(
        classifier, named, ["cdam", "centre_prior", "intensity"], metrics=["grid_pointing"]
    )
    found = values(results, "centre_prior", "grid_pointing")
    assert sorted(found) == [f"mosaic {n}, {target}" for n in (1, 2) for target in (0, 1)]
    assert_allclose(list(found.values()), 0.5, rtol=1e-5)
    bright = values(results, "intensity", "grid_pointing", "pixel")
    for mosaic in ("mosaic 1", "mosaic 2"):  # the same map: what isn't of one is of the other
        assert bright[f"{mosaic}, 0"] + bright[f"{mosaic}, 1"] == pytest.approx(1)


def test_one_image_has_one_value_of_a_metric(results):
    twice = dataclasses.replace(results, rows=results.rows[:1] * 2)
    with pytest.raises(ValueError, match="has two values of"):
        twice.summary()


def test_curves_are_drawn_where_they_were_asked_for(nodule_model, nodules):
    few = nodules.select(range(2))
    for measure in ("mif_lif_absolute", "mif_lif"):
        results = evaluate(nodule_model, few, ["cdam", "attention_map"], metrics=[measure])
        assert set(results.curves) == ({"cdam", "attention_map"} if measure == "mif_lif" else set())


def test_black_is_black_for_every_family(pictures):
    for name in ("vit_tiny_patch16_224", "beit_base_patch16_224"):
        sizes = {"img_size": 32, "embed_dim": 12, "depth": 1, "num_heads": 2}
        model = timm.create_model(name, pretrained=False, num_classes=2, **sizes).eval()
        images = torch.zeros(1, 3, 32, 32)
        examples = Examples(("a",), ("a",), images, (0,), ("",), None)
        black = black_of(Experiment(model, examples))
        config = model.pretrained_cfg
        as_seen = [b * s + m for b, s, m in zip(black, config["std"], config["mean"], strict=True)]
        assert_allclose(as_seen, 0, atol=1e-6)


def test_seeds_say_all_and_the_model_stays_as_it_is(nodule_model, nodules):
    before = copy.deepcopy(nodule_model.state_dict())
    few = nodules.select(range(4))

    def run(seed):
        return evaluate(
            nodule_model,
            few,
            [estimator("smooth_cdam", samples=3), "random"],
            metrics=["compactness", "mif_lif", "box_sensitivity", "randomisation"],
            seed=seed,
        )

    first, same, other = run(0), run(0), run(1)
    assert first.rows == same.rows
    assert first.rows != other.rows
    assert all(torch.equal(before[k], v) for k, v in nodule_model.state_dict().items())
    assert not nodule_model.training
    assert not any(parameter.grad is not None for parameter in nodule_model.parameters())
    assert not any(module._forward_hooks for module in nodule_model.modules())


def test_metrics_that_examples_do_not_allow_are_named(nodule_model, nodules):
    bare = dataclasses.replace(nodules, masks=None, labels=("",) * len(nodules))
    results = evaluate(
        nodule_model,
        bare,
        ["cdam", Broken()],
        metrics=[*CHEAP, "localisation_shifted", "grid_pointing"],
    )
    reasons = {(entry.method, entry.metric): entry.reason for entry in results.left_out}
    assert "aren't finite" in reasons["broken", ""]
    assert "have no masks" in reasons["cdam", "localisation"]
    assert "No object was moved" in reasons["cdam", "localisation_shifted"]
    assert "No mosaic can be made" in reasons["cdam", "grid_pointing"]
    assert values(results, "cdam", "gini")


def test_progress_is_told_to_the_end(nodule_model, nodules):
    told = []
    evaluate(
        nodule_model,
        nodules,
        ["cdam", Refusing()],
        metrics=CHEAP,
        progress=lambda done, total, what: told.append((done, total, what)),
    )
    assert [done for done, _, _ in told] == [0, 1, 2, 3, 4, 8]
    assert {total for _, total, _ in told} == {8}
    assert told[0][2] == "CDAM: maps"


def test_all_methods_unless_some_are_named(nodule_model, nodules):
    few = nodules.select(range(2))
    results = evaluate(nodule_model, few, metrics=["compactness"])
    assert {each.name for each in results.methods} == set(METHODS)
    assert not results.left_out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["cdam", Cdam()]}, "cdam is given twice"),
        ({"methods": ["cdma"]}, "did you mean 'cdam'"),
        ({"methods": []}, "No method is asked for"),
        ({"metrics": ["localization"]}, "did you mean 'localisation'"),
    ],
)
def test_unknown_names_are_refused(nodule_model, nodules, arguments, message):
    with pytest.raises(MethodError, match=message):
        evaluate(nodule_model, nodules, **arguments)


def test_a_model_that_cannot_be_explained_ends_at_once(nodule_model, nodules):
    with pytest.raises(ModelError):
        evaluate(torch.nn.Linear(2, 2), nodules, ["cdam"])
    other = dataclasses.replace(nodules, ids=tuple(f"other {n}" for n in range(8)))
    with pytest.raises(InputError, match="ids of the examples"):
        evaluate(nodule_model, nodules, ["cdam"], shifted=other)


def test_every_metric_is_described():
    assert {metric.section for metric in METRICS.values()} == {
        "Correctness",
        "Compactness",
        "Class sensitivity",
        "Localisation",
        "Sanity",
        "Cost",
    }
    assert metric_of("auroc/shifted") is METRICS["auroc"]
    assert all(metric.meaning.endswith(".") for metric in METRICS.values())
    rankings = {name for name in GROUPS if name.startswith("mif_lif")}
    for replacement in ("", "_constant", "_mean"):
        assert {f"mif_lif{replacement}", f"mif_lif{replacement}_absolute"} <= rankings


def test_masks_of_another_size_leave_localisation_out(nodule_model, nodules):
    class Enlarging(torch.nn.Module):
        """Takes images of half the size."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        def class_token_model(self):
            inner = self.model.class_token_model()

            def prepare(images):
                return inner.prepare(torch.nn.functional.interpolate(images, scale_factor=2))

            return dataclasses.replace(inner, prepare=prepare)

    small = Examples(
        nodules.ids,
        nodules.groups,
        nodules.images[:, :, ::2, ::2],
        nodules.targets,
        nodules.labels,
        nodules.masks[:, ::2, ::2],
    )
    results = evaluate(
        Enlarging(nodule_model), small, ["cdam"], metrics=["localisation", "mif_lif_constant"]
    )
    (left_out,) = results.left_out
    assert "don't lie on images that the ViT takes" in left_out.reason
    assert values(results, "cdam", "mif_lif/signed, constant")
