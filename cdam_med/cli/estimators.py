"""``cdam-med estimators``: every way to make a map, by name."""

import dataclasses

from cdam_med.cli.command import JsonOption, as_command
from cdam_med.cli.terminal import print_json, print_result, working


@as_command
def estimators(as_json: JsonOption = False) -> None:
    """List the estimators: name, resolution, sign, cost, settings and reference.

    Commands use the settings as listed; others are given in Python.
    """
    with working("Loading the estimators"):
        from cdam_med.attribution.registry import ESTIMATORS

    rows = [
        {
            "name": kind.name,
            "title": kind.title,
            "resolution": kind.resolution,
            "is_signed": kind.is_signed,
            "cost": kind.cost,
            "settings": dataclasses.asdict(kind()),  # type: ignore[call-overload]
            "reference": kind.reference,
        }
        for kind in ESTIMATORS.values()
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        sign = "signed" if row["is_signed"] else "unsigned"
        settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
        print_result(f"{row['name']:28s}{row['title']}; {row['resolution']}, {sign}; {row['cost']}")
        print_result(f"{'':28s}{row['reference']}{f'; {settings}' if settings else ''}")
    print_result(
        "Commands use these settings; others are given in Python, e.g. "
        "estimator('smooth_cdam', samples=20)."
    )
