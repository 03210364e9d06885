"""Positions, cosines and pixels written with less care than they could be, and yet right."""

import numpy as np
import pydicom
import pytest
from pydicom.pixels.processing import apply_modality_lut
from scipy.spatial.transform import Rotation

from data_prep import SeriesError, read_series


def reason_of(folder) -> str:
    with pytest.raises(SeriesError) as caught:
        read_series(folder)
    return caught.value.reason


def cosines(degrees: tuple[float, float, float]) -> tuple[float, ...]:
    matrix = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    return tuple(matrix[:, :2].T.ravel().tolist())


def rounding(keyword: str, digits: int):
    def edit(dataset, k):
        values = [float(value) for value in dataset[keyword].value]
        setattr(dataset, keyword, [f"{value:.{digits}f}" for value in values])

    return edit


@pytest.mark.parametrize("spacing_mm", [2.5, 1.25, 0.9375, 0.75, 0.625, 0.4, 0.3, 0.25])
@pytest.mark.parametrize("degrees", [(0, 0, 0), (90, 0, 0), (21, -13, 8)])
def test_positions_with_one_decimal(write_ct_series, spacing_mm: float, degrees):
    series = write_ct_series(
        orientation_lps=cosines(degrees),
        shape=(24, 20, 20),
        spacing_mm=(1.1, 0.9, spacing_mm),
        edit=rounding("ImagePositionPatient", 1),
    )
    volume = read_series(series.folder)
    np.testing.assert_array_equal(volume.hu, series.hu)
    assert {problem.name for problem in volume.problems} <= {"position_rounding"}
    assert volume.spacing_mm[2] == pytest.approx(spacing_mm, abs=0.11 / 19)
    assert series.marker_error_mm(volume.hu, volume.affine) < 0.1


def test_a_missing_slice_among_positions_with_one_decimal(write_ct_series):
    series = write_ct_series(spacing_mm=(1.1, 0.9, 0.625), edit=rounding("ImagePositionPatient", 1))
    series.paths[6].unlink()
    assert reason_of(series.folder) == "missing_slices"


@pytest.mark.parametrize("digits", [2, 3, 6])
def test_deviations_that_the_digits_rule_out(write_ct_series, digits: int):
    """The same positions as one decimal makes, but written with more digits: not rounding."""
    along_mm = np.round(np.arange(24) * 0.625, 1)

    def edit(dataset, k):
        x, y, z = (float(value) for value in dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [f"{x:.{digits}f}", f"{y:.{digits}f}", f"{z:.{digits}f}"]

    jitter = np.where(np.arange(24) % 5 == 2, 0.021, 0.0)  # shows that more digits are there
    series = write_ct_series(shape=(24, 20, 24), along_mm=along_mm + jitter, edit=edit)
    assert reason_of(series.folder) == "variable_spacing"


@pytest.mark.parametrize("digits", [3, 4])
@pytest.mark.parametrize("degrees", [(21, -13, 8), (-5, 40, 62), (90, 0, 3), (0, 0.4, 0)])
def test_cosines_with_three_decimals(write_ct_series, degrees, digits: int):
    """Neither askew nor tilted: the marker is found, also at the far end of a long stack."""
    series = write_ct_series(
        orientation_lps=cosines(degrees),
        shape=(24, 20, 120),
        spacing_mm=(1.1, 0.9, 2.5),
        sigma_mm=3.0,
        edit=rounding("ImageOrientationPatient", digits),
    )
    volume = read_series(series.folder)
    np.testing.assert_array_equal(volume.hu, series.hu)
    assert series.marker_error_mm(volume.hu, volume.affine) < 0.05
    true = np.array(cosines(degrees)).reshape(2, 3) * [-1, -1, 1]
    found = volume.affine[:3, :2].T / volume.spacing_mm[:2, np.newaxis]
    assert np.abs(found - true).max() < 1.5e-3
    axes = volume.affine[:3, :3] / volume.spacing_mm
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)


def test_cosines_that_rounding_does_not_explain(write_ct_series):
    for cosine, reason in (("0.002", "bad_orientation"), ("0.00200", "bad_orientation")):

        def edit(dataset, k, cosine=cosine):
            dataset.ImageOrientationPatient = ["1.000", "0.000", "0.000", cosine, "1.000", "0.000"]

        assert reason_of(write_ct_series(edit=edit).folder) == reason

    def half_a_degree(dataset, k):  # nine times what three decimals round away
        x, y, z = (float(value) for value in dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x, round(y + 2.5 * k * 0.0087, 3), z]
        dataset.ImageOrientationPatient = ["1.000", "0.000", "0.000", "0.000", "1.000", "0.000"]

    shape, spacing_mm = (8, 8, 60), (1.1, 0.9, 2.5)
    series = write_ct_series(shape=shape, spacing_mm=spacing_mm, edit=half_a_degree)
    assert reason_of(series.folder) == "gantry_tilt"


@pytest.mark.parametrize("n_bytes", [2, 4, 20, 38])
def test_padding_behind_the_pixels(write_ct_series, n_bytes: int):
    """PS3.5 8.1.1: such pixel data should be accepted. A row has 48 bytes, a column 40."""

    def edit(dataset, k):
        dataset.PixelData += bytes(n_bytes)

    series = write_ct_series(edit=edit)
    volume = read_series(series.folder)
    np.testing.assert_array_equal(volume.hu, series.hu)
    with pytest.warns(UserWarning, match="excess padding"):
        pixels = pydicom.dcmread(series.paths[3]).pixel_array
    dataset = pydicom.dcmread(series.paths[3])
    np.testing.assert_array_equal(volume.hu[:, :, 3].T, apply_modality_lut(pixels, dataset))


@pytest.mark.parametrize("n_bytes", [40, 48, 480])
def test_padding_that_may_be_a_row_or_column(write_ct_series, n_bytes: int):
    def edit(dataset, k):
        dataset.PixelData += bytes(n_bytes)

    assert reason_of(write_ct_series(edit=edit).folder) == "size_mismatch"
