"""The pictures of a cohort: every nodule on a page, the right way round, the same bytes."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import synthetic_cohort as made
from matplotlib import image

from data_prep.cohort import overview
from data_prep.cohort.check import check_cohort
from data_prep.cohort.folder import read_cohort
from data_prep.cohort.select import CLINICAL
from data_prep.nodules import MaskBox, Nodule, Reader
from data_prep.prepare.run import prepare_cohort
from data_prep.prepare.series import LoadedSeries
from data_prep.volume import CTVolume

PANEL = 132
LEFT, TOP = 24, 64  # of the first picture


@dataclass(frozen=True)
class Corners:
    """A scan with a bright block to the right, anterior and superior of the nodule."""

    series_id: str = "s"
    patient_id: str = "p"

    def load(self) -> LoadedSeries:
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        hu = np.full((32, 32, 32), -1000, np.int16)
        # in LPS-like indices: right is low i, anterior low j, superior high k
        hu[2:8, 2:8, :] = 300
        hu[2:8, :, 24:30] = 300
        outline = MaskBox((14, 14, 14), np.ones((4, 4, 4), np.bool_), hu.shape)
        reader = Reader({"malignancy": 4}, outline, 1)
        center = np.array([-15.5, -15.5, 15.5])
        nodule = Nodule("n", center, {"malignancy": 4.0}, (reader,), outline)
        return LoadedSeries(CTVolume(hu, affine, "1.2.3"), [nodule])


def test_pictures_are_in_radiological_display_with_the_outline(tmp_path: Path) -> None:
    protocol = replace(CLINICAL, min_readers=1, size_mm=32.0)
    prepare_cohort([Corners()], protocol, tmp_path / "c", overview=True)
    page = image.imread(tmp_path / "c" / "overview" / "nodules_01.png")[..., :3]
    for column in (0, 1):
        left = LEFT + column * PANEL
        panel = page[TOP : TOP + PANEL, left : left + PANEL]
        # the right of the patient on the left; anterior, or superior, up
        spot = panel[int(0.16 * PANEL), int(0.16 * PANEL)]
        np.testing.assert_allclose(spot, spot[0])
        assert spot[0] > 0.9
        for row, other in ((0.16, 0.84), (0.84, 0.84)):
            assert panel[int(row * PANEL), int(other * PANEL)].max() < 0.3
        # the outline is the only coloured thing: 4 of 32 mm in the middle
        coloured = np.argwhere(np.ptp(panel, axis=-1) > 0.3)
        middle = (coloured.min(axis=0) + coloured.max(axis=0)) / 2 / PANEL
        np.testing.assert_allclose(middle, 0.5, atol=0.03)
        assert np.ptp(coloured, axis=0).max() / PANEL == pytest.approx(4 / 32, abs=0.04)


def test_the_overview_belongs_to_the_cohort_and_is_reproducible(tmp_path: Path) -> None:
    tasks = made.tasks()[:2]
    for name in ("one", "two"):
        prepare_cohort(tasks, made.PROTOCOL, tmp_path / name, overview=True)
    one, two = (read_cohort(tmp_path / name) for name in ("one", "two"))
    assert {name for name in one.record.files if "overview" in name} == {
        "overview/nodules_01.png",
        "overview/labels.png",
    }
    assert one.record == two.record
    assert check_cohort(tmp_path / "one") == ()


def test_a_long_cohort_goes_over_several_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "ROWS", 1)
    prepare_cohort(made.tasks()[:4], made.PROTOCOL, tmp_path / "c")
    paths = overview.write_overview(read_cohort(tmp_path / "c"), tmp_path / "pictures")
    assert [path.name for path in paths] == ["nodules_01.png", "nodules_02.png", "labels.png"]
    first, second = (image.imread(path) for path in paths[:2])
    assert first.shape == second.shape
    # six nodules of two pictures, then two
    lines = second[TOP + PANEL // 2]
    assert np.ptp(lines[LEFT : LEFT + 4 * PANEL, 0]) > 0.2
    assert lines[LEFT + 4 * PANEL + 2 * 14 :, :].min() == 1


def test_a_cohort_without_ratings_can_be_drawn(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Bare:
        series_id: str = "s"
        patient_id: str = "p"

        def load(self) -> LoadedSeries:
            loaded = made.SyntheticTask("s", "p", 0).load()
            return replace(loaded, nodules=[Nodule("at", np.array([0.0, 0.0, -52.0]))])

    prepare_cohort([Bare()], made.PROTOCOL, tmp_path / "bare", overview=True)
    assert check_cohort(tmp_path / "bare") == ()
    assert len(read_cohort(tmp_path / "bare").nodules) == 1
