"""An explanation as a table that is readable on a terminal of 80 columns."""

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from cdam_med.pipeline import Explanation
from cdam_med.targets import MALIGNANCY, TARGETS
from data_prep.nodules import Nodule
from data_prep.ratings import RATING_RANGES
from data_prep.text import printable

UNKNOWN = "-"
"""Stands for a rating that wasn't given."""


def nodule_table(explanation: Explanation) -> Table:
    """Lay out the predictions for a nodule, beside its readers' ratings where it has any.

    Parameters
    ----------
    explanation : Explanation
        The nodule, its readers and the model's predictions.
    """
    nodule = explanation.nodule
    table = Table(
        title=Text(f"{printable(nodule_title(nodule))}\n"),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("Target", no_wrap=True)
    table.add_column("Model", justify="right", no_wrap=True)
    if nodule.readers:
        table.add_column("Readers", justify="right", no_wrap=True)
        table.add_column("Each reader")
    table.add_column("Scale")
    for target in TARGETS:
        name = target.name
        row = [name, _prediction(name, explanation.predictions[name])]
        if nodule.readers:
            each = " ".join(_rating(name, reader.ratings, 0) for reader in nodule.readers)
            row += [_rating(name, nodule.ratings, 1), each]
        table.add_row(*row, _scale(name))
    return table


def nodule_title(nodule: Nodule) -> str:
    """Say which nodule it is and where.

    Parameters
    ----------
    nodule : Nodule
        A nodule, or a bare point.
    """
    letters = zip("RAS", "LPI", nodule.center_xyz_mm, strict=True)
    place = " ".join(f"{plus if mm >= 0 else minus} {abs(mm):.1f}" for plus, minus, mm in letters)
    count = len(nodule.readers)
    readers = f", {count} reader{'s' if count > 1 else ''}" if count else ""
    return f"{nodule.nodule_id}: centre at {place} mm{readers}"


def _prediction(name: str, value: float) -> str:
    return f"{value:+.2f}" if name == MALIGNANCY.name else f"{value:z.1f}"


def _rating(name: str, ratings: Mapping[str, int | float], decimals: int) -> str:
    if name not in ratings:
        return UNKNOWN
    # a reader's diameter is measured on the outline, so it isn't whole as the ratings are
    return f"{ratings[name]:.{1 if name == 'diameter' else decimals}f}"


def _scale(name: str) -> str:
    if name not in RATING_RANGES:
        return "mm"
    target = next(target for target in TARGETS if target.name == name)
    low, high = RATING_RANGES[name]
    return f"{low} {target.low} - {high} {target.high}"
