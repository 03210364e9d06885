"""Pseudonyms: stable, without collisions, safe as paths, and the key only where it is asked for."""

import csv
import random
import stat
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.cohort.schema import is_safe_id
from data_prep.errors import InputError, OutputError
from data_prep.prepare.pseudonyms import pseudonyms_for, without_identity


@settings(max_examples=40, deadline=None)
@given(originals=st.lists(st.text(max_size=20), max_size=30), seed=st.integers())
def test_pseudonyms_are_stable_different_and_safe(originals: list[str], seed: int) -> None:
    names = pseudonyms_for(originals, originals).patients
    assert set(names) == set(originals)
    assert len(set(names.values())) == len(names)
    assert all(is_safe_id(name) for name in names.values())
    shuffled = originals * 2
    random.Random(seed).shuffle(shuffled)
    assert pseudonyms_for(shuffled, []).patients == names


def test_the_numbers_do_not_follow_the_order_of_the_originals() -> None:
    originals = [f"{n:05d}" for n in range(200)]
    names = pseudonyms_for(originals, []).patients
    assert sorted(names.values()) == [f"patient_{n:04d}" for n in range(1, 201)]
    in_order = [names[original] for original in originals]
    neighbours = sum(a < b for a, b in pairwise(in_order))
    assert 70 < neighbours < 130
    assert pseudonyms_for(originals, [], key="ours").patients != names
    assert names[originals[0]] != pseudonyms_for([], originals).series[originals[0]]


def test_a_key_that_is_too_long_is_refused() -> None:
    with pytest.raises(InputError, match="has 65 bytes"):
        pseudonyms_for([], [], key="x" * 65)


def test_the_key_file_leads_back_and_is_private(tmp_path: Path) -> None:
    originals = ['Doe^John, "JD"', "Ré\u0301my\nX", "\udcff"]
    names = pseudonyms_for(originals, ["1.2.3"])
    path = tmp_path / "key.csv"
    names.write_key_file(path, cohort=tmp_path / "cohort")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    back = {row["pseudonym"]: row["original"] for row in rows if row["kind"] == "patient"}
    assert back == {pseudonym: original for original, pseudonym in names.patients.items()}
    assert [row["original"] for row in rows if row["kind"] == "series"] == ["1.2.3"]
    assert [path.name for path in tmp_path.iterdir()] == ["key.csv"]


def test_the_key_file_never_lies_in_the_cohort_nor_replaces_a_file(tmp_path: Path) -> None:
    names = pseudonyms_for(["a"], ["b"])
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    (tmp_path / "link").symlink_to(cohort)
    for place in (
        cohort / "key.csv",
        cohort / "x" / ".." / "key.csv",
        tmp_path / "link" / "key.csv",
        tmp_path / ".cohort.partial" / "key.csv",
    ):
        with pytest.raises(OutputError, match="would lie in the cohort folder"):
            names.write_key_file(place, cohort=cohort)
    mine = tmp_path / "mine.csv"
    mine.write_text("mine")
    with pytest.raises(OutputError, match=r"Can't write the key file"):
        names.write_key_file(mine, cohort=cohort)
    assert mine.read_text() == "mine"
    with pytest.raises(OutputError, match=r"Can't write the key file"):
        names.write_key_file(tmp_path / "none" / "key.csv", cohort=cohort)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Series 1.2.840.113619.2.5 has a gap.", "Series <uid> has a gap."),
        ("UID 1.2.840.10008.1.2.4.50.", "UID <uid>."),
        ("A gap of 12.5 mm at -3.25, schema 1.2.3.", "A gap of 12.5 mm at -3.25, schema 1.2.3."),
        ("Can't read /home/doe/ct/1.dcm: denied", "Can't read <path>: denied"),
        (r"Can't read C:\doe\1.dcm, denied", "Can't read <path>, denied"),
        ("~/doe isn't 3/4 of it", "<path> isn't 3/4 of it"),
        ("<object at 0x7f001122aabb>", "<object at <address>>"),
        ("File DOE^JOHN.dcm of DOE", "File <private> of <private>"),
        ("two\nlines\x1b[31m", "two lines?[31m"),
        ("x" * 900, "x" * 500),
    ],
)
def test_messages_lose_what_tells_who_it_is(text: str, expected: str) -> None:
    assert without_identity(text, ["DOE", "DOE^JOHN.dcm", "a", ""]) == expected
