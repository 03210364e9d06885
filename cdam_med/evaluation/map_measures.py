"""Measures of the maps as they are: correctness, compactness, localisation, cost."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from cdam_med.attribution.estimator import Resolution
from cdam_med.evaluation.examples import Examples
from cdam_med.evaluation.judged import Judged
from cdam_med.evaluation.measured import Measure, Measured, measured
from cdam_med.evaluation.metrics.ablation_agreement import agreement
from cdam_med.evaluation.metrics.compactness import entropy, gini, small_share
from cdam_med.evaluation.metrics.faithfulness import Ranking
from cdam_med.evaluation.metrics.localisation import (
    auroc,
    best_dice,
    object_cells,
    pointing_game,
    positive_share,
)
from cdam_med.evaluation.metrics.map_pooling import PatchGrid
from data_prep.errors import InputError


def seconds(judged: Judged) -> Iterator[Measured]:
    """Yield the wall-clock time of each map."""
    yield measured(
        "seconds",
        judged.estimator.resolution,
        judged.explained.seconds,
        judged.trial.examples,
    )


def mif_lif(ranking: Ranking, replacement: str) -> Measure:
    """Return the measure of perturbation curves with a ranking and a replacement.

    Parameters
    ----------
    ranking : {"signed", "absolute", "positive"}
        What scores are ranked by.
    replacement : {"blur", "constant", "mean"}
        What takes the place of parts.
    """

    def measure(judged: Judged) -> Iterator[Measured]:
        for resolution, _ in judged.own():
            curves = judged.curves(resolution, ranking, replacement)
            examples = judged.trial.examples
            name = f"{ranking}, {replacement}"
            if (
                ranking == "absolute"
            ):  # large scores of either sign: their effects cancel in the area
                yield measured(f"mif_lif_change/{name}", resolution, curves.change_area, examples)
            else:
                yield measured(f"mif_lif/{name}", resolution, curves.area, examples)

    return measure


def box_sensitivity(judged: Judged) -> Iterator[Measured]:
    """Yield correlations of the importance inside boxes with the fall of the output."""
    for name, drops in judged.trial.boxes.items():
        for resolution, maps in judged.own():
            values = drops.correlation(maps)
            yield measured(f"box_sensitivity/{name}", resolution, values, judged.trial.examples)


def sensitivity_n(judged: Judged) -> Iterator[Measured]:
    """Yield correlations of the importance of subsets with the fall of the output."""
    for name, drops in judged.trial.subsets.items():
        values = drops.correlation(judged.patches)
        yield measured(f"sensitivity_n/{name}", "patch", values, judged.trial.examples)


def ablation_agreement(judged: Judged) -> Iterator[Measured]:
    """Yield correlations with token ablation."""
    maps, ablation = judged.patches, judged.trial.ablation
    examples = judged.trial.examples
    yield measured("ablation_pearson", "patch", agreement(maps, ablation), examples)
    ranked = agreement(maps, ablation, kind="spearman")
    yield measured("ablation_spearman", "patch", ranked, examples)


def compactness(judged: Judged) -> Iterator[Measured]:
    """Yield shares of small scores, Gini's index and the entropy."""
    for resolution, maps in judged.own():
        first = small_share(maps, rule="signed maximum")
        for metric, values in (
            ("small_share", small_share(maps)),
            ("small_share_v1", first),
            ("gini", gini(maps)),
            ("entropy", entropy(maps)),
        ):
            yield measured(metric, resolution, values, judged.trial.examples)


def localisation(judged: Judged) -> Iterator[Measured]:
    """Yield how well maps lie on the object."""
    yield from _localised(judged.maps, judged.trial.examples, judged.trial.grid, "")


def localisation_shifted(judged: Judged) -> Iterator[Measured]:
    """Yield the same of the shifted examples."""
    maps = judged.shifted  # says why if there are none
    if judged.trial.shifted is not None:
        yield from _localised(maps, judged.trial.shifted, judged.trial.grid, "/shifted")


def _localised(
    maps: Float[Tensor, "image rows columns"], examples: Examples, grid: PatchGrid, variant: str
) -> Iterator[Measured]:
    """Measure at the patch grid and at the pixels, where every map can be brought."""
    if examples.masks is None:
        raise InputError("The examples have no masks: nobody has said where the object is.")
    if tuple(examples.masks.shape[1:]) != grid.image_size:
        raise InputError(
            f"Masks of {tuple(examples.masks.shape[1:])} pixels don't lie on images that the ViT "
            f"takes as {grid.image_size}: give images of that size."
        )
    outlines = examples.masks.float()
    at: dict[Resolution, tuple[Tensor, Tensor]] = {
        "patch": (grid.pooled(maps), grid.pooled(outlines)),
        "pixel": (grid.spread(maps), outlines),
    }
    for resolution, (scores, coverage) in at.items():
        inside = object_cells(coverage)
        for metric, values in (
            ("pointing_game", pointing_game(scores, coverage)),
            ("positive_share", positive_share(scores, coverage)),
            ("auroc", auroc(scores, inside)),
            ("best_dice", best_dice(scores, inside)),
            ("relevance_share", positive_share(scores.abs(), coverage)),
            ("auroc_of_sizes", auroc(scores.abs(), inside)),
        ):
            yield measured(f"{metric}{variant}", resolution, values, examples)
