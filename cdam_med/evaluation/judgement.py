"""All that was found about the maps of one estimator."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from cdam_med.evaluation.metrics.class_sensitivity import TargetCorrelations
from cdam_med.evaluation.report.results import Curves, LeftOut, Row


@dataclass(frozen=True, eq=False)
class Judgement:
    """What the measures say of one estimator.

    Parameters
    ----------
    estimator : str
        Its name.
    rows : tuple of Row
        Values of images.
    left_out : tuple of LeftOut
        Measures that couldn't be taken, or the estimator itself.
    maps : Tensor or None
        Its maps at the patch grid; ``None`` where it made none.
    shown : Tensor or None
        Its maps of the images that are shown, at its own resolution.
    curves : Curves or None
        Mean perturbation curves, if a measure asked for them.
    matrix : TargetCorrelations or None
        Correlations between targets, if a measure asked for them.
    may_go_well : bool
        Whether something failed that another attempt may do, such as for want of memory.
    """

    estimator: str
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    maps: Float[Tensor, "image rows columns"] | None
    shown: Float[Tensor, "_image _rows _columns"] | None
    curves: Curves | None
    matrix: TargetCorrelations | None
    may_go_well: bool
