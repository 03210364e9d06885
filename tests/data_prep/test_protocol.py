"""Protocols: the two that are shipped, what is refused, and the way through JSON."""

import json
from dataclasses import asdict, replace

import pytest
from pydantic import TypeAdapter, ValidationError

from data_prep.cohort.select import CLINICAL, PAPER, PROTOCOLS, Protocol
from data_prep.errors import InputError


def test_the_default_keeps_patients_together_and_the_published_one_is_as_published() -> None:
    assert list(PROTOCOLS) == ["clinical", "paper"]
    assert (CLINICAL.group_folds_by, CLINICAL.size_mm, CLINICAL.rim) == ("patient", 64, "pad")
    assert (CLINICAL.indeterminate, CLINICAL.scans) == ("keep", "all")
    assert (PAPER.min_readers, PAPER.max_readers, PAPER.indeterminate) == (3, 4, "drop")
    assert (PAPER.size_mm, PAPER.spacing_mm, PAPER.n_voxels) == (32, 1, 32)
    assert (PAPER.group_folds_by, PAPER.n_folds, PAPER.seed) == ("nodule", 5, 44)


def from_json(values: dict) -> Protocol:
    return TypeAdapter(Protocol).validate_json(json.dumps(values))


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=str)
def test_a_protocol_survives_json(protocol) -> None:
    assert from_json(asdict(protocol)) == protocol


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_readers": -1}, "min_readers -1 and max_readers 4"),
        ({"min_readers": 5}, "min_readers 5 and max_readers 4"),
        ({"size_mm": 10.5}, "no whole number of voxels"),
        ({"size_mm": float("nan")}, "isn't possible"),
        ({"size_mm": 1e9}, "more than 512 voxels"),
        ({"spacing_mm": 0.0}, "isn't possible"),
        ({"n_folds": 1}, "n_folds is 1; give 2 or more"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(CLINICAL, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"scans": "last"},
        {"seed": "0"},
        {"n_folds": True},
        {"n_folds": 5.0},
        {"size_mm": None},
        {"name": 1},
        {"x": 1},
    ],
)
def test_settings_of_another_type_are_refused(change: dict) -> None:
    (name,) = change
    with pytest.raises(ValidationError, match=rf"\n{name}\n"):
        from_json({**asdict(CLINICAL), **change})


def test_a_missing_setting_is_refused() -> None:
    values = asdict(CLINICAL)
    del values["seed"]
    with pytest.raises(ValidationError, match="seed"):
        from_json(values)
