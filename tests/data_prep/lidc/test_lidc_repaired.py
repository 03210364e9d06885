"""Readings of a sphere on series that were repaired: reader by reader as on the complete series."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_prep import AnnotationError, CTVolume, Nodule, read_lidc_xml, read_series

PIXEL_MM = 0.8
SHAPE = (60, 64)
RADII_MM = (9.0, 9.6, 10.2, 10.8)
CENTER_MM = np.array([22.0, 21.0, 22.4])  # along rows, columns and the normal
FIRST_LPS = np.array([-31.5, 17.25, -120.0])  # of the writer, whose axes are LPS
REGULAR_MM = tuple(1.5 * k for k in range(30))
REPAIRS = ("missing_slices", "variable_spacing", "gantry_tilt")


class Drawing:
    """A series, and what four readers drew on its images."""

    def __init__(self, series, along_mm: Sequence[float], askew: tuple[float, float], readings):
        self.series, self.readings = series, readings
        self.along_mm, self.askew = along_mm, askew

    def read(self) -> CTVolume:
        with warnings.catch_warnings(action="ignore"):  # air alone, no patient
            return read_series(self.series.folder, repair=REPAIRS)

    def document(self, images: Sequence[int] | None = None) -> str:
        """Return the XML of all four readers' outlines on some images (all by default)."""
        images = range(len(self.along_mm)) if images is None else images
        sessions = [self._nodule(radius_mm, images) for radius_mm in RADII_MM]
        return self.readings.document(*sessions, series_uid=self.series.series_uid)

    def _nodule(self, radius_mm: float, images: Sequence[int]) -> str:
        rois = []
        for k in images:
            z_mm = self.along_mm[k]
            squared = radius_mm**2 - (z_mm - CENTER_MM[2]) ** 2
            if squared < 4:
                continue
            turn = np.linspace(0, 2 * np.pi, 400, endpoint=False)
            circle = np.column_stack([np.cos(turn), np.sin(turn)])
            middle_mm = CENTER_MM[:2] - np.array(self.askew) * z_mm
            # drawn through the first pixels outside of it
            corners = (middle_mm + circle * np.sqrt(squared)) / PIXEL_MM + circle * 0.5
            points = np.rint(corners).astype(int)
            points = points[np.any(points != np.roll(points, 1, axis=0), axis=1)]
            uid = self.series.sop_instance_uids[k]
            z_lps = FIRST_LPS[2] + z_mm
            rois.append(self.readings.roi(points.tolist(), k, uid=uid, z_mm=z_lps))
        return self.readings.nodule(*rois)


@pytest.fixture
def draw(write_ct_series, readings) -> Callable[..., Drawing]:
    def make(along_mm: Sequence[float], askew: tuple[float, float] = (0.0, 0.0)) -> Drawing:
        series = write_ct_series(
            shape=(*SHAPE, len(along_mm)),
            spacing_mm=(PIXEL_MM, PIXEL_MM, 1.5),
            along_mm=along_mm,
            askew=askew,
        )
        return Drawing(series, along_mm, askew, readings)

    return make


def check(nodule: Nodule, volume: CTVolume) -> None:
    """Compare each reader's mask, and the consensus, with the spheres."""
    index = np.moveaxis(np.indices(volume.shape), 0, -1)
    ras = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    distance_mm = np.linalg.norm(ras * [-1, -1, 1] - FIRST_LPS - CENTER_MM, axis=-1)
    # of the third largest two readers of four enclose what lies within
    masks = [(reader.outline, r) for reader, r in zip(nodule.readers, RADII_MM, strict=True)]
    for outline, radius_mm in [*masks, (nodule.outline, RADII_MM[2])]:
        mask, truth = outline.on_grid(), distance_mm <= radius_mm
        measured_mm3 = mask.sum() * np.prod(volume.spacing_mm)
        assert measured_mm3 == pytest.approx(4 / 3 * np.pi * radius_mm**3, rel=0.05)
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.96
        assert (np.diff(np.flatnonzero(mask.any(axis=(0, 1)))) == 1).all()
    center_lps = nodule.center_xyz_mm * [-1, -1, 1] - FIRST_LPS
    assert np.linalg.norm(center_lps - CENTER_MM) < 0.25


CASES = {
    "complete": (REGULAR_MM, (0.0, 0.0)),
    "two missing": (tuple(z for z in REGULAR_MM if z not in (22.5, 27.0)), (0.0, 0.0)),
    "finer, then coarser": (
        (*np.arange(0, 22.4, 1.25), *np.arange(22.5, 45, 2.5)),
        (0.0, 0.0),
    ),
    "no common multiple": ((*np.arange(0, 22, 2.0), *np.arange(22.0, 47, 3.0)), (0.0, 0.0)),
    "tilted": (REGULAR_MM, (-0.1, 0.2)),
}


@pytest.mark.parametrize("case", CASES)
def test_outlines_follow_the_images(case, draw, xml_file: Callable[[str], Path]) -> None:
    along_mm, askew = CASES[case]
    drawing = draw(along_mm, askew)
    volume = drawing.read()
    (nodule,) = read_lidc_xml(xml_file(drawing.document()), volume)
    check(nodule, volume)
    expected = (15, 18) if case == "two missing" else ()
    if case != "finer, then coarser":
        assert nodule.outline.interpolated_slices == expected
        assert [reader.outline.interpolated_slices for reader in nodule.readers] == [expected] * 4
    else:
        assert nodule.outline.interpolated_slices[:3] == (19, 21, 23)


def test_outlines_in_a_gap_find_their_place(draw, xml_file: Callable[[str], Path]) -> None:
    """Slices are missing in the copy of the series, not in what was read and drawn on."""
    drawing = draw(REGULAR_MM)
    path = xml_file(drawing.document())
    (complete,) = read_lidc_xml(path, drawing.read())
    for k in (14, 15, 18):
        drawing.series.paths[k].unlink()
    volume = drawing.read()
    assert volume.interpolated_slices == (14, 15, 18)
    (nodule,) = read_lidc_xml(path, volume)
    np.testing.assert_array_equal(nodule.mask, complete.mask)
    assert nodule.outline.interpolated_slices == ()
    assert nodule.ratings == complete.ratings
    # without a place in the gap, it can't be told where the outline was
    elsewhere = drawing.document().replace("<imageZposition>-", "<imageZposition>")
    with pytest.raises(AnnotationError, match="isn't among"):
        read_lidc_xml(xml_file(elsewhere), volume)


def test_outline_beyond_the_end_is_refused(draw, xml_file: Callable[[str], Path]) -> None:
    drawing = draw(REGULAR_MM)
    path = xml_file(drawing.document())
    for k in range(18, 30):
        drawing.series.paths[k].unlink()
    with pytest.raises(AnnotationError, match="read the complete series"):
        read_lidc_xml(path, drawing.read())
