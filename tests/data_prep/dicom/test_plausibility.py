"""Values that are no Hounsfield units: named, and warned of."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from pydicom import Dataset

from data_prep import SeriesError, read_series
from data_prep.dicom.plausibility import describe_implausible
from data_prep.problems import Action, SeriesWarning

BODY = {"shape": (40, 44, 20), "has_body": True}


def without_rescale(dataset: Dataset, k: int) -> None:
    del dataset.RescaleSlope, dataset.RescaleIntercept


def shifting(hu: int, slope: float = 1.0):
    """Return an edit that states a wrong rescale."""

    def edit(dataset: Dataset, k: int) -> None:
        dataset.RescaleIntercept = str(float(dataset.RescaleIntercept) + hu)
        dataset.RescaleSlope = str(slope)

    return edit


def test_a_body_is_plausible(write_ct_series):
    series = write_ct_series(**BODY)
    assert read_series(series.folder, refuse={"implausible_hu"}).problems == ()


WRONG = {
    "the intercept is missing": (shifting(1024), "darkest voxels lie at 24 HU"),
    "the intercept is there twice": (shifting(-1024), "applied twice"),
    "half the slope": (shifting(0, 0.1), "lie between"),
    "much too high": (shifting(3000), "darkest voxels lie at 2000 HU"),
    "much too low": (shifting(-4000), "there is no air at about -1000 HU"),
}


@pytest.mark.parametrize(("edit", "odd"), WRONG.values(), ids=WRONG)
def test_a_wrong_rescale_is_warned_of(write_ct_series, edit, odd: str):
    series = write_ct_series(edit=edit, **BODY)
    with pytest.warns(SeriesWarning, match=odd):
        volume = read_series(series.folder)
    (problem,) = volume.problems
    assert (problem.name, problem.action) == ("implausible_hu", Action.NOTE)
    assert odd in problem.message
    with pytest.raises(SeriesError, match=odd) as refused:
        read_series(series.folder, refuse={"implausible_hu"})
    assert refused.value.reason == "implausible_hu"


def test_padding_is_no_tissue(write_ct_series):
    """A circle of padding that is declared doesn't count; the rest is judged without it."""

    def edit(dataset: Dataset, k: int) -> None:
        dataset.add_new("PixelPaddingValue", "SS", -2000)
        pixels = np.frombuffer(dataset.PixelData, "<i2").copy()
        pixels[::2] = -2000
        dataset.PixelData = pixels.tobytes()

    series = write_ct_series(edit=edit, **BODY)
    assert read_series(series.folder).problems == ()


def test_undeclared_padding_around_a_patient():
    """As scanners leave it: a fifth of the image, the corners, at -3024."""
    values = np.repeat([-3024, -990, 40, 900], [21_000, 40_000, 35_000, 4_000])
    assert describe_implausible(values) == ""


@pytest.mark.parametrize("is_signed", [True, False])
def test_the_usual_rescale_for_unsigned_values(write_ct_series, is_signed: bool):
    intercept = 0.0 if is_signed else -1024.0
    series = write_ct_series(
        is_signed=is_signed, rescale=lambda k: (1.0, intercept), edit=without_rescale, **BODY
    )
    if is_signed:  # the values are the output
        assert_array_equal(read_series(series.folder).hu, series.hu)
        return
    with pytest.raises(SeriesError, match="lacks RescaleSlope") as caught:
        read_series(series.folder)
    assert caught.value.reason == "no_rescale"
    assert "repair={'no_rescale'}" in str(caught.value)
    volume = read_series(series.folder, repair={"no_rescale"})
    assert_array_equal(volume.hu, series.hu)
    assert [problem.name for problem in volume.problems] == ["no_rescale"]


def test_the_usual_rescale_must_look_right(write_ct_series):
    series = write_ct_series(
        is_signed=False, rescale=lambda k: (1.0, -3000.0), edit=without_rescale, **BODY
    )
    with pytest.raises(SeriesError, match="with the usual one the darkest") as caught:
        read_series(series.folder, repair={"no_rescale"})
    assert caught.value.reason == "no_rescale"
    assert "repair=" not in str(caught.value)


@pytest.mark.shared_data
@pytest.mark.parametrize("patient", ["LIDC-IDRI-0001", "LIDC-IDRI-0003"])
def test_real_series_are_plausible(shared_data: Path, patient: str):
    volume = read_series(shared_data / "lidc" / patient)
    assert volume.problems == ()
