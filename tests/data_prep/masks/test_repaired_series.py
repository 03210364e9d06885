"""Masks of an ellipsoid on a series that was repaired: by analysis, and the complete series."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from pydicom import dcmread

from data_prep import CTVolume, Nodule
from data_prep.errors import MaskError
from data_prep.masks import nodules_from_masks

PIXEL_MM = (1.1, 0.9)
SHAPE = (44, 50)
SEMI_AXES_MM = np.array([11.0, 9.0, 10.0])
CENTER_MM = np.array([23.3, 21.7, 22.4])  # along rows, columns and the normal
VOLUME_MM3 = 4 / 3 * np.pi * SEMI_AXES_MM.prod()
REGULAR_MM = tuple(1.5 * k for k in range(30))

CASES = {
    "complete": (REGULAR_MM, ()),
    "a slice missing in the middle": (tuple(z for z in REGULAR_MM if z != 22.5), (15,)),
    "two missing beside": (tuple(z for z in REGULAR_MM if z not in (28.5, 30.0)), (19, 20)),
    "a slice missing at the end": (tuple(z for z in REGULAR_MM if z != 31.5), (21,)),
    "finer, then coarser": (
        (*np.arange(0, 22.4, 1.25), *np.arange(22.5, 45, 2.5)),
        tuple(range(19, 35, 2)),
    ),
    "no common multiple": ((*np.arange(0, 22, 2.0), *np.arange(22.0, 47, 3.0)), None),
}


def section(z_mm: float, askew: Sequence[float], n: int = 120) -> np.ndarray | None:
    """Corners (row mm, column mm) of the ellipsoid at a height, on images shifted by `askew`."""
    share = 1 - ((z_mm - CENTER_MM[2]) / SEMI_AXES_MM[2]) ** 2
    if share <= 0.01:
        return None
    turn = np.linspace(0, 2 * np.pi, n, endpoint=False)
    circle = np.column_stack([np.cos(turn), np.sin(turn)])
    # a polygon of the ellipse's area
    circle *= np.sqrt(2 * np.pi / n / np.sin(2 * np.pi / n))
    return CENTER_MM[:2] + circle * SEMI_AXES_MM[:2] * np.sqrt(share)


class Ellipsoid:
    """What a reader draws on each image that is there."""

    def __init__(self, write_ct_series, scan_class, along_mm, askew=(0.0, 0.0), repair=None):
        self.along_mm, self.askew = along_mm, askew
        series = write_ct_series(
            shape=(*SHAPE, len(along_mm)),
            spacing_mm=(*PIXEL_MM, 1.5),
            along_mm=along_mm,
            askew=askew,
        )
        names = ("missing_slices", "variable_spacing", "gantry_tilt")
        self.scan = scan_class(series, names if repair is None else repair)
        self.volume: CTVolume = self.scan.volume
        self.first_lps = np.array([-31.5, 17.25, -120.0])  # of the writer, whose axes are LPS

    def contours_lps(self, along_mm: Sequence[float] | None = None) -> list[np.ndarray]:
        contours = []
        for z_mm in self.along_mm if along_mm is None else along_mm:
            corners = section(z_mm, self.askew)
            if corners is not None:
                points = np.column_stack([corners, np.full(len(corners), z_mm)])
                contours.append(points + self.first_lps)
        return contours

    def frames(self) -> np.ndarray:
        """Return the pixels of each image that lie in the ellipsoid, (i, j, image)."""
        i, j = np.indices(SHAPE)
        masks = []
        for z_mm in self.along_mm:
            x = i * PIXEL_MM[0] + self.askew[0] * z_mm - CENTER_MM[0]
            y = j * PIXEL_MM[1] + self.askew[1] * z_mm - CENTER_MM[1]
            parts = (x, y, np.full_like(x, z_mm - CENTER_MM[2]))
            masks.append(sum((p / a) ** 2 for p, a in zip(parts, SEMI_AXES_MM, strict=True)) <= 1)
        return np.stack(masks, axis=-1)

    def truth(self) -> np.ndarray:
        """Return the voxels of the volume whose centres lie in the ellipsoid."""
        index = np.moveaxis(np.indices(self.volume.shape), 0, -1)
        ras = index @ self.volume.affine[:3, :3].T + self.volume.affine[:3, 3]
        off_mm = ras * [-1, -1, 1] - self.first_lps - CENTER_MM
        return ((off_mm / SEMI_AXES_MM) ** 2).sum(axis=-1) <= 1

    def check(self, nodule: Nodule, *, volume=0.03, center_mm=0.2, dice=0.97) -> None:
        mask = nodule.mask
        truth = self.truth()
        measured_mm3 = mask.sum() * np.prod(self.volume.spacing_mm)
        assert measured_mm3 == pytest.approx(VOLUME_MM3, rel=volume)
        center_lps = nodule.center_xyz_mm * [-1, -1, 1] - self.first_lps
        assert np.linalg.norm(center_lps - CENTER_MM) < center_mm
        assert nodule.ratings["diameter"] == pytest.approx(2 * SEMI_AXES_MM.max(), abs=1.2)
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > dice
        filled = np.flatnonzero(mask.any(axis=(0, 1)))
        assert (np.diff(filled) == 1).all()


@pytest.fixture
def ellipsoid(write_ct_series, scan_class):
    def make(along_mm, **options) -> Ellipsoid:
        return Ellipsoid(write_ct_series, scan_class, along_mm, **options)

    return make


@pytest.mark.parametrize("case", CASES)
def test_contours_follow_the_scan(case, ellipsoid, write_rtstruct_of):
    along_mm, interpolated = CASES[case]
    drawn = ellipsoid(along_mm)
    path = write_rtstruct_of(drawn.volume, {1: drawn.contours_lps()})
    (nodule,) = nodules_from_masks(path, drawn.volume)
    drawn.check(nodule)
    if interpolated is not None:
        expected = tuple(k for k in interpolated if drawn.truth()[:, :, k].any())
        assert nodule.outline.interpolated_slices == expected
        assert set(expected) <= set(drawn.volume.interpolated_slices)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        *((case, "BINARY") for case in CASES),
        *(("two missing beside", kind) for kind in ("FRACTIONAL", "LABELMAP")),
        *(("no common multiple", kind) for kind in ("FRACTIONAL", "LABELMAP")),
    ],
)
def test_segments_follow_the_scan(case, kind, ellipsoid, write_seg_of):
    along_mm, _ = CASES[case]
    drawn = ellipsoid(along_mm)
    path = write_seg_of(drawn.scan, [drawn.frames()], kind)
    (nodule,) = nodules_from_masks(path, drawn.volume)
    drawn.check(nodule)
    # where an image is, the voxels are those of the file
    for number, image in enumerate(drawn.volume.images):
        k = image.first_ijk[2]
        if abs(k - round(k)) < 1e-9:
            np.testing.assert_array_equal(nodule.mask[:, :, round(k)], drawn.frames()[:, :, number])


@pytest.mark.parametrize("askew", [(0.0, 0.27), (-0.1, 0.2)])
def test_masks_of_a_tilted_gantry(askew, ellipsoid, write_rtstruct_of, write_seg_of):
    drawn = ellipsoid(REGULAR_MM, askew=askew)
    assert drawn.volume.images
    path = write_rtstruct_of(drawn.volume, {1: drawn.contours_lps()})
    (nodule,) = nodules_from_masks(path, drawn.volume)
    drawn.check(nodule)
    (nodule,) = nodules_from_masks(write_seg_of(drawn.scan, [drawn.frames()]), drawn.volume)
    drawn.check(nodule)


def test_what_was_drawn_in_a_gap_is_kept(ellipsoid, write_rtstruct_of, write_seg_of):
    """Drawn on the complete series: nothing needs interpolation, and nothing says it was."""
    complete = ellipsoid(REGULAR_MM)
    contours, frames = complete.contours_lps(), complete.frames()
    images = complete.scan.with_study([dcmread(path) for path in complete.scan.paths])
    (before,) = nodules_from_masks(
        write_rtstruct_of(complete.volume, {1: contours}), complete.volume
    )
    for k in (14, 15, 21):
        complete.scan.paths[k].unlink()
    left = SimpleNamespace(folder=complete.scan.paths[0].parent, paths=complete.scan.paths)
    volume = type(complete.scan)(left, ["missing_slices"]).volume
    assert volume.interpolated_slices == (14, 15, 21)
    (nodule,) = nodules_from_masks(write_rtstruct_of(volume, {1: contours}), volume)
    np.testing.assert_array_equal(nodule.mask, before.mask)
    assert nodule.outline.interpolated_slices == ()
    path = write_seg_of(complete.scan, [frames], images=images)
    (nodule,) = nodules_from_masks(path, volume)
    np.testing.assert_array_equal(nodule.mask, frames)
    assert nodule.outline.interpolated_slices == ()


def test_parts_apart_stay_apart(ellipsoid, write_rtstruct_of):
    """Two parts of a region on either side of a gap that don't lie above one another."""
    drawn = ellipsoid(tuple(z for z in REGULAR_MM if z != 22.5))

    def square(k: int, first: int) -> np.ndarray:
        corners = np.array([[0, 0], [8, 0], [8, 8], [0, 8]]) + first + 0.5
        return drawn.first_lps + np.column_stack([corners * PIXEL_MM, np.full(4, 1.5 * k)])

    contours = [square(13, 5), square(14, 5), square(16, 30), square(17, 30)]
    path = write_rtstruct_of(drawn.volume, {1: contours})
    (nodule,) = nodules_from_masks(path, drawn.volume)
    counts = nodule.mask.sum(axis=(0, 1))
    assert counts[[13, 14, 16, 17]].tolist() == [64] * 4
    assert 20 < counts[15] < 80
    middle = np.argwhere(nodule.mask[:, :, 15])
    # each ends half-way to its innermost point; nothing lies in between
    assert ((middle < 15) | (middle > 29)).all()


def test_other_spacing_on_a_repaired_series(ellipsoid, write_rtstruct_of):
    """Drawn on each second image only: refused as on a complete series."""
    along_mm = tuple(z for z in REGULAR_MM if z != 22.5)
    drawn = ellipsoid(along_mm)
    path = write_rtstruct_of(drawn.volume, {1: drawn.contours_lps(along_mm[::2])})
    with pytest.raises(MaskError) as raised:
        nodules_from_masks(path, drawn.volume)
    assert raised.value.reason == "other_spacing"
