"""The list of measures: names for the API, the command line and the docs."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from cdam_med.errors import MethodError
from cdam_med.evaluation import map_measures, model_measures
from cdam_med.evaluation.measured import Measure

MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "cost": map_measures.seconds,
        "mif_lif": map_measures.mif_lif("signed", "blur"),
        "mif_lif_absolute": map_measures.mif_lif("absolute", "blur"),
        "mif_lif_positive": map_measures.mif_lif("positive", "blur"),
        "mif_lif_constant": map_measures.mif_lif("signed", "constant"),
        "mif_lif_constant_absolute": map_measures.mif_lif("absolute", "constant"),
        "mif_lif_mean": map_measures.mif_lif("signed", "mean"),
        "mif_lif_mean_absolute": map_measures.mif_lif("absolute", "mean"),
        "box_sensitivity": map_measures.box_sensitivity,
        "sensitivity_n": map_measures.sensitivity_n,
        "ablation_agreement": map_measures.ablation_agreement,
        "compactness": map_measures.compactness,
        "class_sensitivity": model_measures.class_sensitivity,
        "localisation": map_measures.localisation,
        "localisation_shifted": map_measures.localisation_shifted,
        "grid_pointing": model_measures.grid_pointing,
        "randomisation": model_measures.randomisation,
        "input_independence": model_measures.input_independence,
        "consistency": model_measures.consistency,
    }
)
"""Every measure by its name; each gives one metric or several."""


@dataclass(frozen=True)
class Metric:
    """What a metric says.

    Parameters
    ----------
    title : str
        Name for people.
    section : str
        Part of the report.
    better : {"higher", "lower", "zero"}
        What speaks for an estimator: a higher or a lower figure, or one near 0.
    meaning : str
        One sentence.
    """

    title: str
    section: str
    better: Literal["higher", "lower", "zero"]
    meaning: str


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "mif_lif": Metric(
            "MIF/LIF area",
            "Correctness",
            "higher",
            "Raw output with the least important parts replaced first minus that with the most "
            "important first, mean over the shares replaced.",
        ),
        "mif_lif_change": Metric(
            "MIF/LIF change",
            "Correctness",
            "higher",
            "How much more the output moves, either way, when large scores of either sign go "
            "first.",
        ),
        "box_sensitivity": Metric(
            "Box sensitivity",
            "Correctness",
            "higher",
            "Correlation, over 100 boxes, of the sum of scores in the box and the fall of the "
            "output without it.",
        ),
        "sensitivity_n": Metric(
            "Sensitivity-n",
            "Correctness",
            "higher",
            "Correlation, over 100 random subsets of the patches, of the sum of their scores and "
            "the fall of the output without them.",
        ),
        "ablation_pearson": Metric(
            "Correlation with token ablation",
            "Correctness",
            "higher",
            "Pearson's correlation, image by image, with how far the output falls without each "
            "token; 1 by definition for token ablation itself.",
        ),
        "ablation_spearman": Metric(
            "Rank correlation with token ablation",
            "Correctness",
            "higher",
            "Spearman's, image by image, with how far the output falls without each token.",
        ),
        "small_share": Metric(
            "Small scores",
            "Compactness",
            "higher",
            "Share of scores of at most 5 % of the largest size.",
        ),
        "small_share_v1": Metric(
            "Small scores, first paper",
            "Compactness",
            "higher",
            "Share of scores whose size is under 5 % of the highest score.",
        ),
        "gini": Metric(
            "Gini's index", "Compactness", "higher", "0 where all scores have one size, up to 1."
        ),
        "entropy": Metric(
            "Entropy", "Compactness", "lower", "1 where all scores have one size, 0 for a spike."
        ),
        "target_correlation": Metric(
            "Correlation between targets",
            "Class sensitivity",
            "lower",
            "Correlation of maps of the same image for different outputs; 1 for maps that know no "
            "target.",
        ),
        "class_correlation": Metric(
            "Correlation between classes",
            "Class sensitivity",
            "lower",
            "Correlation of an image's maps for the two classes named.",
        ),
        "grid_pointing": Metric(
            "Grid pointing game",
            "Class sensitivity",
            "higher",
            "Share of positive relevance in the right quadrants of a mosaic; by chance 0.5 with "
            "two right of four, 0.25 with one. Intervals are over mosaics, and two may share a "
            "patient.",
        ),
        "pointing_game": Metric(
            "Pointing game",
            "Localisation",
            "higher",
            "The highest score lies in the object; of a patch that the object covers in part, that "
            "part counts.",
        ),
        "positive_share": Metric(
            "Positive relevance inside",
            "Localisation",
            "higher",
            "Share of the positive relevance in the object.",
        ),
        "auroc": Metric(
            "AUROC",
            "Localisation",
            "higher",
            "How often a cell of the object scores higher than one beside it; a patch is of the "
            "object if that covers half of it.",
        ),
        "best_dice": Metric(
            "Best Dice",
            "Localisation",
            "higher",
            "Overlap of the object (in whole patches, where maps are at patches) with the cells "
            "above a threshold, the best of all.",
        ),
        "relevance_share": Metric(
            "Relevance inside, either sign",
            "Localisation",
            "higher",
            "Share of the sizes of scores in the object: what speaks against malignancy in a "
            "benign nodule counts too.",
        ),
        "auroc_of_sizes": Metric(
            "AUROC, either sign", "Localisation", "higher", "AUROC of the sizes of scores."
        ),
        "randomised_signed": Metric(
            "Randomised weights",
            "Sanity",
            "zero",
            "Rank correlation with the map of a model whose weights are randomised from the head "
            "down to the part named; 1 for maps that don't depend on what was learnt. Each of "
            "20 images has a random network of its own.",
        ),
        "randomised_absolute": Metric(
            "Randomised weights, absolute",
            "Sanity",
            "zero",
            "Rank correlation of the sizes of scores with those of such a model.",
        ),
        "other_images": Metric(
            "Other images",
            "Sanity",
            "zero",
            "Mean rank correlation with the maps of other images; 1 for maps that don't look at "
            "the image. An image's own value is twice the mean of its pairs less that of all "
            "pairs, so that intervals hold for both images of a pair.",
        ),
        "same_when_flipped": Metric(
            "Mirrored image",
            "Sanity",
            "higher",
            "Rank correlation with the map of the mirrored image, mirrored back.",
        ),
        "same_in_neighbour": Metric(
            "Next slice", "Sanity", "higher", "Rank correlation with the map of the next slice."
        ),
        "same_with_seed": Metric(
            "Other seed", "Sanity", "higher", "Rank correlation with the map of another seed."
        ),
        "seconds": Metric(
            "Seconds a map",
            "Cost",
            "lower",
            "Wall-clock time of a map, taken once; images of a batch share its time evenly, so "
            "that the interval is too narrow.",
        ),
    }
)
"""What each metric says, by its name before ``"/"``."""


def metric_of(name: str) -> Metric:
    """Return what a metric says, whichever variant of it.

    Parameters
    ----------
    name : str
        Name in the table.
    """
    return METRICS[name.split("/")[0]]


def choose_measures(names: Sequence[str] | None) -> dict[str, Measure]:
    """Return measures by their names.

    Parameters
    ----------
    names : sequence of str or None
        Names in `MEASURES`; None for all.

    Raises
    ------
    MethodError
        If there is no such measure.
    """
    asked = list(MEASURES if names is None else dict.fromkeys(names))
    for name in asked:
        if name not in MEASURES:
            close = difflib.get_close_matches(name, MEASURES, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise MethodError(
                f"There is no measure {name!r}: {hint}The measures are {', '.join(MEASURES)}."
            )
    return {name: MEASURES[name] for name in asked}
