"""Several contours of one slice: what is in and what is out, against matplotlib and by analysis."""

import numpy as np
import pytest
from matplotlib.path import Path as Polygon

from data_prep.masks import MaskWarning, nodules_from_masks, read_masks

K = 6
CENTERS = np.moveaxis(np.indices((40, 36)), 0, -1).reshape(-1, 2)


def circle(center_ij, radius: float, n: int = 90, way: int = 1, start: float = 0.0) -> np.ndarray:
    turn = way * np.linspace(0, 2 * np.pi, n, endpoint=False) + start
    ij = np.array(center_ij) + radius * np.column_stack([np.cos(turn), np.sin(turn)])
    return np.column_stack([ij, np.full(n, float(K))])


def inside(contour: np.ndarray) -> np.ndarray:
    return Polygon(contour[:, :2], closed=False).contains_points(CENTERS).reshape(40, 36)


def keyhole(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """One contour: around, through the channel, around the hole, and back."""
    return np.vstack([outer, outer[:1], inner, inner[:1]])


BIG, SMALL = circle((19.2, 17.3), 12.1), circle((20.4, 16.8), 5.3)
LEFT, RIGHT = circle((15.3, 17.1), 8.2), circle((23.8, 17.6), 8.4)

# contours, pixels inside, name of what the rule decided
CASES = {
    "one": ([BIG], inside(BIG), ""),
    "apart": (
        [circle((10.2, 17.3), 5.1), circle((27.4, 17.3), 6.2)],
        inside(circle((10.2, 17.3), 5.1)) | inside(circle((27.4, 17.3), 6.2)),
        "",
    ),
    "twice": ([BIG, BIG], inside(BIG), "united"),
    "twice and backwards": ([BIG, BIG[::-1]], inside(BIG), "united"),
    "three times": ([BIG, BIG, BIG], inside(BIG), "united"),
    "twice with fewer corners": ([BIG, BIG[::3]], inside(BIG), "united"),
    "twice with rounded corners": ([BIG, np.round(BIG, 1)], inside(BIG), "united"),
    "overlapping": ([LEFT, RIGHT], inside(LEFT) | inside(RIGHT), "united"),
    "a chain": (
        [circle((i, 17.3), 4.1) for i in (9.2, 15.1, 21.3, 27.2)],
        np.any([inside(circle((i, 17.3), 4.1)) for i in (9.2, 15.1, 21.3, 27.2)], axis=0),
        "united",
    ),
    "nested": ([BIG, SMALL], inside(BIG) & ~inside(SMALL), "hole"),
    "nested, the hole first": ([SMALL, BIG], inside(BIG) & ~inside(SMALL), "hole"),
    "nested, the hole twice": ([BIG, SMALL, SMALL[::-1]], inside(BIG) & ~inside(SMALL), "hole"),
    "nested, both twice": ([BIG, SMALL, BIG, SMALL], inside(BIG) & ~inside(SMALL), "hole"),
    "island": (
        [BIG, circle((20, 17), 8.2), circle((20, 17), 3.3)],
        inside(BIG) & ~inside(circle((20, 17), 8.2)) | inside(circle((20, 17), 3.3)),
        "hole",
    ),
    "two holes that overlap": (
        [BIG, circle((17.2, 17.1), 3.2), circle((20.3, 17.1), 3.2)],
        inside(BIG) & ~inside(circle((17.2, 17.1), 3.2)) & ~inside(circle((20.3, 17.1), 3.2)),
        "hole",
    ),
    "a hole in the union": (
        [LEFT, RIGHT, circle((19.6, 17.3), 2.2)],
        (inside(LEFT) | inside(RIGHT)) & ~inside(circle((19.6, 17.3), 2.2)),
        "hole",
    ),
    "keyhole": ([keyhole(BIG, SMALL[::-1])], inside(BIG) & ~inside(SMALL), ""),
    "keyhole in its own direction": (
        [keyhole(BIG, SMALL)],
        inside(BIG) & ~inside(SMALL),
        "winds around",
    ),
    "traced twice": ([np.vstack([BIG, BIG])], inside(BIG), "winds around"),
}


@pytest.mark.parametrize("case", CASES)
def test_planar_contours(case, scan, write_rtstruct):
    contours, expected, decided = CASES[case]
    masked = read_masks([write_rtstruct({1: [scan.lps(one) for one in contours]})], scan.volume)
    (nodule,) = masked.nodules
    # a centre that lies on an edge to within the rounding of the file may go either way
    assert np.count_nonzero(nodule.mask[:, :, K] != expected) == 0
    assert nodule.flags == (("combined_contours",) if decided else ())
    assert bool(masked.notes) == bool(decided)
    if decided:
        assert any(decided in note for note in masked.notes)
        assert all(f"(slice {K})" in note and "ROI 1 of rt.dcm" in note for note in masked.notes)


@pytest.mark.parametrize("case", [name for name in CASES if "traced" not in name])
def test_exclusive_contours_are_parity(case, scan, write_rtstruct):
    """CLOSEDPLANAR_XOR says itself how contours are combined."""
    contours = [*CASES[case][0], circle((4.1, 4.2), 2.4)]
    expected = np.logical_xor.reduce([inside(one) for one in contours])
    path = write_rtstruct({1: [scan.lps(one) for one in contours]}, kind="CLOSEDPLANAR_XOR")
    masked = read_masks([path], scan.volume)
    np.testing.assert_array_equal(masked.nodules[0].mask[:, :, K], expected)
    assert not any("CLOSED_PLANAR" in note for note in masked.notes)


def test_area_of_the_union(scan, write_rtstruct):
    """Two circles of radius r, their centres r apart: 2 pi r2 less the lens."""
    r = 7.3
    path = write_rtstruct({1: [scan.lps(circle((i, 17.4), r, n=720)) for i in (15.1, 15.1 + r)]})
    with pytest.warns(MaskWarning, match="united"):
        (nodule,) = nodules_from_masks(path, scan.volume)
    lens = (2 * np.pi / 3 - np.sqrt(3) / 2) * r**2
    assert nodule.mask.sum() == pytest.approx(2 * np.pi * r**2 - lens, rel=0.02)


def test_slices_that_were_decided_are_named(scan, write_rtstruct):
    def on(k: int, contour: np.ndarray) -> np.ndarray:
        return scan.lps(np.column_stack([contour[:, :2], np.full(len(contour), float(k))]))

    drawn = [on(k, BIG) for k in (3, 4, 5, 6)] + [on(4, BIG), on(6, BIG), on(5, SMALL)]
    masked = read_masks([write_rtstruct({7: drawn})], scan.volume)
    (nodule,) = masked.nodules
    assert nodule.mask.sum(axis=(0, 1))[[3, 4, 6]].tolist() == [inside(BIG).sum()] * 3
    assert len(masked.notes) == 2
    united, hole = sorted(masked.notes)
    assert "hole (slice 5)" in hole
    assert "united (slice 4, 6)" in united
