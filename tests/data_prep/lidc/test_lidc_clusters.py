"""Grouping outlines into nodules: pylidc's own answers, and small arrangements."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.lidc import cluster_outlines
from data_prep.lidc.outlines import MAX_READERS

# fmt: off
AMBIGUOUS_PATIENTS = {
    "0055", "0092", "0137", "0204", "0252", "0332", "0340",
    "0366", "0404", "0608", "0815", "0863", "0865", "0942",
}
# fmt: on


@pytest.mark.shared_data
@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_as_pylidc(shared_data: Path, archive, step):
    """The groups and which scans are ambiguous: of a sample, and of all 1,018 scans."""
    stored = json.loads((shared_data / "lidc_clusters_pylidc_0.2.3.json").read_text())["scans"]
    expected = {scan["series_uid"]: scan for scan in stored}
    assert len(expected) == len(archive) == 1018
    ambiguous = set()
    for number, (scan, outlines) in enumerate(archive):
        answer = expected[scan.series_uid]
        name = scan.patient_id.removeprefix("LIDC-IDRI-")
        if number % step and name not in AMBIGUOUS_PATIENTS | {"0001", "0003"}:
            continue
        groups = cluster_outlines(
            [outline.points_ijk for outline in outlines], scan.slice_thickness_mm
        )
        found = {frozenset(outlines[number].annotation_id for number in group) for group in groups}
        assert found == {frozenset(group) for group in answer["clusters"]}, scan.patient_id
        is_ambiguous = any(len(group) > MAX_READERS for group in groups)
        assert is_ambiguous == answer["ambiguous"]
        if is_ambiguous:
            ambiguous.add(name)
    assert ambiguous == AMBIGUOUS_PATIENTS


def points_at(*positions) -> list[np.ndarray]:
    return [np.array([position], dtype=np.int64) for position in positions]


def test_chain():
    """Outlines that touch through others are one nodule; the tolerance itself still touches."""
    chain = points_at((0, 0, 0), (2, 0, 0), (4, 0, 0), (0, 9, 0))
    assert set(cluster_outlines(chain, 2.0)) == {(0, 1, 2), (3,)}
    assert len(cluster_outlines(chain, 1.99)) == 4
    assert cluster_outlines([], 2.0) == []


def test_tolerance_shrinks_until_four_are_left():
    """Two groups 1 apart, 2 and 3 outlines: joined at a tolerance of 2, apart below 1."""
    near = points_at((0, 0, 0), (0, 0, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0))
    assert set(cluster_outlines(near, 2.0)) == {(0, 1), (2, 3, 4)}


def test_five_in_one_place():
    points = points_at(*[(3, 3, 3)] * 5, (30, 30, 3))
    assert set(cluster_outlines(points, 2.0)) == {(0, 1, 2, 3, 4), (5,)}


positions = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 3))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(positions, min_size=1, max_size=6), min_size=1, max_size=9),
    st.floats(0.5, 5),
    st.randoms(),
)
def test_by_brute_force_and_in_any_order(outlines, start, random):
    points = [np.array(outline, dtype=np.int64) for outline in outlines]
    groups = cluster_outlines(points, start)
    n = len(points)
    distance = np.array(
        [[np.min(np.linalg.norm(a[:, None] - b, axis=-1)) for b in points] for a in points]
    )
    tolerance = start
    while True:
        touching = (distance <= tolerance).astype(int)
        linked = np.linalg.matrix_power(touching, n) > 0  # through any number of others
        if linked.sum(axis=0).max() <= 4 or tolerance * 0.9 < 0.1:
            break
        tolerance *= 0.9
    expected = {frozenset(np.flatnonzero(row).tolist()) for row in linked}
    assert {frozenset(group) for group in groups} == expected

    order = list(range(n))
    random.shuffle(order)
    shuffled = cluster_outlines([points[number] for number in order], start)
    named = {frozenset(order[number] for number in group) for group in shuffled}
    assert named == expected
