"""Rasterising: Pick's theorem, matplotlib's polygons, and another tool's stored counts."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon
from scipy.spatial.distance import cdist

from data_prep.lidc import Contour, Outline
from data_prep.lidc.outlines import diameter_mm, rasterise

GRID = (48, 48, 3)


def outline_of(*contours: Contour) -> Outline:
    return Outline(contours, {})


def contour(points, k: int = 1, inclusion: bool = True) -> Contour:
    return Contour(np.array(points, dtype=np.int64), k, inclusion)


@st.composite
def star_polygons(draw) -> np.ndarray:
    """Simple lattice polygons: corners sorted by angle around a point inside."""
    corners = {(2, 3), (44, 2), (45, 43), (3, 46)}
    corners |= draw(st.sets(st.tuples(st.integers(0, 47), st.integers(0, 47)), max_size=25))
    center = np.array([23.3712, 22.9187])  # on no line through two pixels
    angles = {float(np.arctan2(*(np.array(corner) - center)[::-1])): corner for corner in corners}
    return np.array([angles[angle] for angle in sorted(angles)], dtype=np.int64)


@settings(deadline=None)
@given(star_polygons(), st.integers(0, 40), st.booleans())
def test_picks_theorem(points, turn, reverse):
    """Area = pixels inside + half of the pixels on the polygon - 1, whichever way it is drawn."""
    points = np.roll(points[::-1] if reverse else points, turn, axis=0)
    following = np.roll(points, -1, axis=0)
    doubled_area = abs(np.sum(points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]))
    n_on = int(np.gcd(*np.abs(following - points).T).sum())
    n_inside = (doubled_area - n_on + 2) // 2
    box = rasterise(outline_of(contour(points)), GRID)
    assert (0 if box is None else box.voxels.sum()) == n_inside


def test_l_shape():
    corners = [(5, 5), (25, 5), (25, 12), (14, 12), (14, 30), (5, 30)]
    expected = np.zeros(GRID, bool)
    expected[6:25, 6:12, 1] = True
    expected[6:14, 6:30, 1] = True
    box = rasterise(outline_of(contour(corners)), GRID)
    np.testing.assert_array_equal(box.on_grid(), expected)
    assert box.origin_ijk == (6, 6, 1)
    assert box.voxels.shape == (19, 24, 1)


def test_contours_of_a_slice_are_joined():
    """Inclusion contours add up, also where they overlap, in either order; holes are cut last."""
    first = contour([(4, 4), (20, 4), (20, 20), (4, 20)])
    second = contour([(12, 12), (30, 12), (30, 30), (12, 30)])
    hole = contour([(14, 14), (18, 14), (18, 18), (14, 18)], inclusion=False)
    expected = np.zeros(GRID, bool)
    expected[5:20, 5:20, 1] = True
    expected[13:30, 13:30, 1] = True
    expected[14:19, 14:19, 1] = False
    for order in ((first, second, hole), (hole, second, first)):
        np.testing.assert_array_equal(rasterise(outline_of(*order), GRID).on_grid(), expected)


def test_nothing_inside():
    line = contour([(5, 5), (9, 9), (5, 5)])
    assert rasterise(outline_of(line), GRID) is None
    assert rasterise(outline_of(contour([(5, 5)])), GRID) is None


def test_diameter():
    """The longest axial chord counts, also of a contour that cuts out; slices don't mix."""
    outline = outline_of(
        contour([(0, 0), (3, 0), (3, 4)], k=0),
        contour([(0, 0), (30, 0)], k=1, inclusion=False),
        contour([(40, 40)], k=2),
    )
    assert diameter_mm(outline, np.array([0.5, 2.0])) == 15.0
    assert diameter_mm(outline_of(contour([(0, 0), (3, 4)])), np.array([0.5, 2.0])) == np.hypot(
        1.5, 8
    )
    assert diameter_mm(outline_of(contour([(7, 7)])), np.array([0.5, 0.5])) == 0


def pylidc_mask(outline: Outline) -> np.ndarray:
    """Follow what pylidc's Annotation.boolean_mask does, on its own box: one test per point."""
    points = outline.points_ijk
    low, high = points.min(axis=0), points.max(axis=0)
    mask = np.zeros(high - low + 1, dtype=bool)
    pixels = np.stack(np.indices(mask.shape[:2]), axis=-1).reshape(-1, 2) + low[:2]
    for drawn in sorted(outline.contours, key=lambda contour: not contour.inclusion):
        corners = np.vstack([drawn.points_ij, drawn.points_ij[:1]])[:, ::-1]
        inside = Polygon(corners, closed=True).contains_points(pixels[:, ::-1])
        plane = mask[:, :, drawn.k - low[2]]
        if drawn.inclusion:
            plane |= inside.reshape(plane.shape)
        else:
            plane &= ~inside.reshape(plane.shape)
        i, j = (drawn.points_ij - low[:2]).T
        plane[i, j] = False
    return mask


def test_as_pylidc_draws(archive):
    """Every tenth scan of the archive, voxel by voxel."""
    n_voxels = n_different = 0
    for scan, outlines in archive[::10]:
        for outline in outlines:
            box = rasterise(outline, (512, 512, len(scan.slice_z_mm)))
            expected = pylidc_mask(outline)
            low = outline.points_ijk.min(axis=0)
            i, j, k = np.subtract(box.origin_ijk, low)
            size_i, size_j, size_k = box.voxels.shape
            found = np.zeros_like(expected)
            found[i : i + size_i, j : j + size_j, k : k + size_k] = box.voxels
            n_voxels += int(expected.sum())
            n_different += int((found != expected).sum())
            chord = max(
                cdist(contour.points_ij, contour.points_ij).max() for contour in outline.contours
            )
            spacing = np.full(2, scan.pixel_spacing_mm)
            assert diameter_mm(outline, spacing) == pytest.approx(chord * scan.pixel_spacing_mm)
    assert n_voxels > 300_000
    assert n_different <= 2


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("step", "n_least"), [(8, 110), pytest.param(1, 950, marks=pytest.mark.slow)]
)
def test_stored_reader_counts(shared_data: Path, archive, step, n_least):
    """How many readers outlined each pixel, counted by another tool, translation free.

    Left out: nodules of which that tool stored other planes than were drawn, or of more than
    four outlines (it stored some readers only), or that touch the edge of the stored slices.
    """
    with (shared_data / "lidc_nodules" / "nodules.csv").open() as file:
        rows = list(csv.DictReader(file))
    counts = np.load(shared_data / "lidc_nodules" / "slices.npz")["reader_count"]
    scans = {scan.scan_id: (scan, outlines) for scan, outlines in archive}
    different, compared = [], []
    for number, (row, stored) in enumerate(zip(rows, counts, strict=True)):
        if number % step and row["patient_id"] != "LIDC-IDRI-0003":
            continue
        n_slices = int(row["n_slices"])
        borders = (stored[:, [0, -1]], stored[:, :, [0, -1]])
        if (
            row["n_planes_stored"] != row["n_planes_pylidc"]
            or int(row["n_readers"]) > 4
            or any(border.any() for border in borders)
        ):
            continue
        scan, drawn_outlines = scans[int(row["scan_id"])]
        ids = {int(number) for number in row["annotation_ids"].split()}
        outlines = [outline for outline in drawn_outlines if outline.annotation_id in ids]
        points = np.vstack([outline.points_ijk for outline in outlines])
        low, high = points.min(axis=0), points.max(axis=0)
        total = np.zeros(high - low + 1, dtype=np.uint8)
        for outline in outlines:
            box = rasterise(outline, (512, 512, len(scan.slice_z_mm)))
            i, j, k = np.subtract(box.origin_ijk, low)
            size_i, size_j, size_k = box.voxels.shape
            total[i : i + size_i, j : j + size_j, k : k + size_k] += box.voxels
        drawn = np.unique(points[:, 2]) - low[2]
        first = int(row["first_plane"])
        mine = total[:, :, drawn[first : first + n_slices]].transpose(2, 1, 0)  # plane, row, column
        compared.append(row["nodule_id"])
        if not np.array_equal(tight(mine), tight(stored[:n_slices])):
            different.append(row["nodule_id"])
    assert len(compared) > n_least
    assert sum(nodule_id.startswith("LIDC-IDRI-0003") for nodule_id in compared) == 3
    assert different in ([], ["LIDC-IDRI-0487_s493_n0"])


def tight(planes: np.ndarray) -> np.ndarray:
    """Cut empty rows and columns away."""
    rows, columns = planes.any(axis=(0, 2)), planes.any(axis=(0, 1))
    return planes[:, rows.argmax() : len(rows) - rows[::-1].argmax()][
        :, :, columns.argmax() : len(columns) - columns[::-1].argmax()
    ]
