"""What an evaluation makes of a model: random networks, and the first paper's figures."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from cdam_med.attribution.cdam import Cdam
from cdam_med.attribution.registry import estimator
from cdam_med.evaluation.evaluate import evaluate


def values(results, name, metric):
    return [row.value for row in results.rows if (row.method, row.metric) == (name, metric)]


def test_each_image_has_a_random_network_of_its_own(nodule_model, nodules):
    """Else the images would share the chance that a single network is."""
    seen = []

    class Watching(Cdam):
        name: ClassVar[str] = "watching"

        def __call__(self, model, images, targets=None, *, seed=0):
            weights = model.heads.malignancy.weight.flatten().tolist()
            seen.append((tuple(weights), len(images)))
            return super().__call__(model, images, targets, seed=seed)

    few = nodules.select(range(4))
    results = evaluate(nodule_model, few, [Watching()], metrics=["randomisation"])
    own = tuple(nodule_model.heads.malignancy.weight.flatten().tolist())
    networks = [each for each in seen if each[0] != own]
    assert all(count == 1 for _, count in networks)
    assert len({weights for weights, _ in networks}) == 4
    stages = {row.metric.split("/")[1] for row in results.rows}
    assert len(networks) == 4 * len(stages)
    assert len(values(results, "watching", "randomised_signed/head")) == 4


def test_the_first_papers_figures_come_from_a_folder_of_images(classifier, pictures):
    """Share of patches under 5 % of the highest score, and correlations of all patches at once."""
    names = ["token_ablation", "cdam", "relevance_propagation", "attention_map"]
    results = evaluate(classifier, pictures, names, metrics=["compactness"])
    with torch.no_grad():
        highest = classifier(pictures.images).argmax(1).tolist()
    maps = {}
    for name in names:
        every = estimator(name)(classifier, pictures.images, tuple(range(5))).scores
        maps[name] = np.stack([every[n, target].numpy() for n, target in enumerate(highest)])
        small = [np.mean(np.abs(m) < 0.05 * m.max()) for m in maps[name]]
        assert_allclose(values(results, name, "small_share_v1"), small)
    for (one, other), interval in results.pooled_correlations().items():
        expected = np.corrcoef(maps[one].ravel(), maps[other].ravel())[0, 1]
        assert interval.value == pytest.approx(expected, abs=1e-4)
        assert interval.low < expected < interval.high
    assert len(results.pooled_correlations()) == 6
