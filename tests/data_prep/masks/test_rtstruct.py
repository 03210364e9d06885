"""Structure sets made by hand: areas by geometry, voxels by matplotlib's point-in-polygon."""

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from pydicom import Dataset

from data_prep.errors import MaskError
from data_prep.masks import MaskWarning, nodules_from_masks, read_masks


def circle(scan, k: float, radius_mm: float, center_ij=(20.3, 17.6), n: int = 200) -> np.ndarray:
    """Corners of a circle on slice k, as indices (i, j, k)."""
    turn = np.linspace(0, 2 * np.pi, n, endpoint=False)
    ij = (
        center_ij
        + radius_mm * np.column_stack([np.cos(turn), np.sin(turn)]) / (scan.volume.spacing_mm[:2])
    )
    return np.column_stack([ij, np.full(n, float(k))])


def by_matplotlib(contours: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Even-odd over several contours of one slice."""
    centers = np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 2)
    inside = np.zeros(shape, bool)
    for contour in contours:
        inside ^= Polygon(contour[:, :2], closed=False).contains_points(centers).reshape(shape)
    return inside


def reason_of(path, volume) -> str:
    with pytest.raises(MaskError) as raised:
        nodules_from_masks(path, volume)
    assert str(raised.value).isprintable()
    return raised.value.reason


def test_circle_and_ring(scan, write_rtstruct):
    """Two regions: a disc, and a ring (a circle within a circle is a hole)."""
    disc = {k: [circle(scan, k, 8.0)] for k in (3, 4, 5)}
    ring = {k: [circle(scan, k, 10.0), circle(scan, k, 4.0)] for k in (8, 9)}
    regions = {
        1: [scan.lps(one) for contours in disc.values() for one in contours],
        5: [scan.lps(one) for contours in ring.values() for one in contours],
    }
    masked = read_masks([write_rtstruct(regions)], scan.volume)
    assert [source.label for source in masked.sources] == ["ROI 5", "ROI 1"]
    pixel_mm2 = np.prod(scan.volume.spacing_mm[:2])
    for nodule, slices, area in (
        (masked.nodules[0], ring, np.pi * (10.0**2 - 4.0**2)),
        (masked.nodules[1], disc, np.pi * 8.0**2),
    ):
        mask = nodule.mask
        assert sorted(set(np.argwhere(mask)[:, 2])) == sorted(slices)
        for k, contours in slices.items():
            expected = by_matplotlib(contours, scan.volume.shape[:2])
            np.testing.assert_array_equal(mask[:, :, k], expected)
            assert mask[:, :, k].sum() * pixel_mm2 == pytest.approx(area, rel=0.03)
    diameter = masked.nodules[1].ratings["diameter"]
    assert 15.3 < diameter <= 16.0


def test_random_polygons(scan, write_rtstruct):
    """Stars with crossing edges, of the type that is parity by definition: voxel by voxel."""
    rng = np.random.default_rng(5)
    for trial in range(4):
        n = int(rng.integers(3, 40))
        contours = [
            np.column_stack([rng.uniform([2, 2], [37, 33], (n, 2)), np.full(n, 6.0)])
            for _ in range(3)
        ]
        path = write_rtstruct(
            {1: [scan.lps(one) for one in contours]}, kind="CLOSEDPLANAR_XOR", name=f"{trial}.dcm"
        )
        (nodule,) = read_masks([path], scan.volume).nodules
        # matplotlib fills by winding number where edges of one contour cross: even-odd by hand
        expected = np.zeros(scan.volume.shape[:2], bool)
        for i, j in np.ndindex(*expected.shape):
            crossings = 0
            for contour in contours:
                for a, b in zip(contour, np.roll(contour, -1, axis=0), strict=True):
                    if (a[1] > j) != (b[1] > j):
                        crossings += i < a[0] + (j - a[1]) * (b[0] - a[0]) / (b[1] - a[1])
            expected[i, j] = crossings % 2
        np.testing.assert_array_equal(nodule.mask[:, :, 6], expected)


def test_corners_on_voxel_centres(scan, write_rtstruct):
    """Decimal text in an oblique frame: neighbours that share an edge share no voxel."""
    left = np.array([[5, 5, 2], [10, 5, 2], [10, 12, 2], [5, 12, 2]], float)
    right = left + np.array([5, 0, 0])
    path = write_rtstruct({1: [scan.lps(left)], 2: [scan.lps(right)]})
    masks = [nodule.mask for nodule in nodules_from_masks(path, scan.volume)]
    assert [int(mask.sum()) for mask in masks] == [5 * 7, 5 * 7]
    union = masks[0] | masks[1]
    assert int(union.sum()) == 70
    assert union[5:15, 5:12, 2].all()


def test_contours_near_a_slice(scan, write_rtstruct):
    """Within half a spacing the nearest slice; beyond the scan or askew: refused."""
    path = write_rtstruct({1: [scan.lps(circle(scan, 4.4, 8.0))]})
    (nodule,) = nodules_from_masks(path, scan.volume)
    assert set(np.argwhere(nodule.mask)[:, 2]) == {4}
    for k in (-0.6, 13.7, 300.0):
        path = write_rtstruct({1: [scan.lps(circle(scan, k, 8.0))]})
        assert reason_of(path, scan.volume) == "not_on_slice"
    askew = circle(scan, 5, 8.0)
    askew[:, 2] += (askew[:, 0] - 20) * 0.2
    assert reason_of(write_rtstruct({1: [scan.lps(askew)]}), scan.volume) == "not_on_slice"


def test_contours_of_another_spacing(scan, write_rtstruct):
    """Planes twice as dense would double, planes twice as far apart would lose slices."""
    dense = [scan.lps(circle(scan, k, 8.0)) for k in (3.0, 3.4, 4.0)]
    assert reason_of(write_rtstruct({1: dense}), scan.volume) == "other_spacing"
    sparse = [scan.lps(circle(scan, k, 8.0)) for k in (3, 5, 7)]
    assert reason_of(write_rtstruct({1: sparse}), scan.volume) == "other_spacing"
    two_parts = [scan.lps(circle(scan, k, 8.0)) for k in (2, 3, 9)]
    (nodule,) = nodules_from_masks(write_rtstruct({1: two_parts}), scan.volume)
    assert set(np.argwhere(nodule.mask)[:, 2]) == {2, 3, 9}


def test_outside_and_too_small(scan, write_rtstruct):
    outside = [scan.lps(circle(scan, 4, 8.0, center_ij=(35, 17)))]
    assert reason_of(write_rtstruct({1: outside}), scan.volume) == "outside_volume"
    tiny = [scan.lps(circle(scan, 4, 0.2, center_ij=(20.5, 17.5)))]
    assert reason_of(write_rtstruct({1: tiny}), scan.volume) == "no_voxel"


def test_regions_without_outline(scan, write_rtstruct):
    drawn = scan.lps(circle(scan, 4, 8.0))

    def make_second_a_point(dataset: Dataset) -> None:
        contour = dataset.ROIContourSequence[1].ContourSequence[0]
        contour.ContourGeometricType = "POINT"
        contour.ContourData = ["1", "2", "3"]

    path = write_rtstruct({1: [drawn], 2: [drawn], 3: []}, edit=make_second_a_point)
    with pytest.warns(MaskWarning) as warned:
        assert len(nodules_from_masks(path, scan.volume)) == 1
    assert [str(one.message)[:5] for one in warned] == ["ROI 2", "ROI 3"]
    open_line = write_rtstruct({1: [drawn]}, kind="OPEN_PLANAR")
    assert reason_of(open_line, scan.volume) == "empty_mask"
    assert reason_of(write_rtstruct({}), scan.volume) == "empty_mask"


def test_references(scan, write_rtstruct):
    drawn = {1: [scan.lps(circle(scan, 4, 8.0))]}
    assert reason_of(write_rtstruct(drawn, series_uid="1.2.3"), scan.volume) == "other_series"
    assert reason_of(write_rtstruct(drawn, series_uid=None), scan.volume) == "no_reference"

    def name_image(uid: str):
        def edit(dataset: Dataset) -> None:
            image = Dataset()
            image.ReferencedSOPInstanceUID = uid
            dataset.ROIContourSequence[0].ContourSequence[0].ContourImageSequence = [image]

        return edit

    known = name_image(scan.volume.sop_instance_uids[4])
    path = write_rtstruct(drawn, series_uid=None, edit=known)
    assert len(nodules_from_masks(path, scan.volume)) == 1
    path = write_rtstruct(drawn, series_uid=None, edit=name_image("1.2.3.4"))
    assert reason_of(path, scan.volume) == "other_series"


def test_damaged(scan, write_rtstruct, tmp_path):
    drawn = {1: [scan.lps(circle(scan, 4, 8.0))]}

    def set_points(values: list[str]):
        def edit(dataset: Dataset) -> None:
            dataset.ROIContourSequence[0].ContourSequence[0].ContourData = values

        return edit

    for values in (["1", "2"], ["1"] * 6, ["1"] * 10, []):
        path = write_rtstruct(drawn, edit=set_points(values))
        assert reason_of(path, scan.volume) == "bad_contour"
    whole = write_rtstruct(drawn).read_bytes()
    for size in (len(whole) - 30, len(whole) // 2, 300, 140):
        (tmp_path / "cut.dcm").write_bytes(whole[:size])
        assert reason_of(tmp_path / "cut.dcm", scan.volume) in (
            "unreadable_mask",
            "unsupported_mask",
            "no_reference",
            "empty_mask",
        )
    text = whole.replace(b"CLOSED_PLANAR", b"CLOSED_PLANAR", 1)
    first = text.index(b"\\", text.index(b"CLOSED_PLANAR") + 40)
    (tmp_path / "text.dcm").write_bytes(text[: first - 2] + b"xy" + text[first:])
    assert reason_of(tmp_path / "text.dcm", scan.volume) == "bad_contour"
