"""Repairs of geometry: the marker stays where it was, and an independent interpolation agrees."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydicom import Dataset
from scipy import ndimage

from data_prep import CTVolume, SeriesError, read_series
from data_prep.problems import Action

TILT = {"column": (0.0, np.tan(np.radians(15))), "both": (-0.08, 0.21), "back": (0.0, -0.3)}
WIDE = {"shape": (40, 44, 20), "sigma_mm": 4.0}


def names(volume: CTVolume) -> list[str]:
    return [problem.name for problem in volume.problems]


def refused(folder, **options) -> SeriesError:
    with pytest.raises(SeriesError) as caught:
        read_series(folder, **options)
    return caught.value


def interpolated(series, along_mm, askew, volume: CTVolume) -> np.ndarray:
    """Sample the written images at each voxel of a volume with scipy, NaN where there is none.

    Linear within the images on either side, then linear along the normal.
    """
    lps = volume.affine.copy()
    lps[:2] *= -1
    grid = np.moveaxis(np.indices(volume.shape), 0, -1) @ lps[:3, :3].T + lps[:3, 3]
    # the writer's axes are those of LPS
    offset = grid - np.array((-31.5, 17.25, -120.0))
    along = np.array(along_mm)
    below = np.clip(
        np.searchsorted(along, offset[..., 2] + 1e-6, side="right") - 1, 0, len(along) - 1
    )
    above = np.where(
        np.abs(offset[..., 2] - along[below]) < 1e-6, below, np.minimum(below + 1, len(along) - 1)
    )
    values = []
    for k in (below, above):
        i = (offset[..., 0] - askew[0] * along[k]) / 1.1
        j = (offset[..., 1] - askew[1] * along[k]) / 0.9
        i, j = np.round(i, 9), np.round(j, 9)
        inside = (i >= 0) & (j >= 0) & (i <= series.hu.shape[0] - 1) & (j <= series.hu.shape[1] - 1)
        sampled = ndimage.map_coordinates(series.hu, [i, j, k], order=1, mode="nearest")
        values.append(np.where(inside, sampled, np.nan))
    span = np.where(above > below, along[above] - along[below], 1.0)
    weight = (offset[..., 2] - along[below]) / span
    return values[0] + np.where(above > below, weight, 0.0) * (values[1] - values[0])


# a hole wider than the marker takes away from it, whatever fills it: there it lies beside
@pytest.mark.parametrize(("missing", "sigma_mm"), [([9], 4.0), ([1, 2, 3], 2.5), ([3, 9, 15], 4.0)])
def test_missing_slices_are_filled_and_flagged(write_ct_series, missing, sigma_mm: float):
    series = write_ct_series(shape=(40, 44, 20), sigma_mm=sigma_mm)
    for k in missing:
        series.paths[k].unlink()
    assert refused(series.folder).reason == "missing_slices"
    volume = read_series(series.folder, repair={"missing_slices"})
    kept = [k for k in range(20) if k not in missing]
    assert volume.interpolated_slices == tuple(missing)
    assert_array_equal(volume.hu[:, :, kept], series.hu[:, :, kept])
    expected = ndimage.map_coordinates(
        series.hu[:, :, kept],
        np.stack(
            np.meshgrid(
                *(np.arange(size) for size in series.hu.shape[:2]),
                np.interp(missing, kept, range(len(kept))),
                indexing="ij",
            )
        ),
        order=1,
    )
    assert_allclose(volume.hu[:, :, missing], expected, atol=0.51)
    for k, uid in enumerate(series.sop_instance_uids):
        assert volume.sop_instance_uids[k] == ("" if k in missing else uid)
    assert series.marker_error_mm(volume.hu, volume.affine) < 0.1
    (problem,) = volume.problems
    assert (problem.name, problem.action) == ("missing_slices", Action.REPAIR)
    assert series.paths[missing[0] - 1].name in problem.message
    assert problem.files[0] == series.paths[missing[0] - 1].name


def test_padding_does_not_run_into_a_gap(write_ct_series):
    def edit(dataset: Dataset, k: int) -> None:
        dataset.add_new("PixelPaddingValue", "SS", -2000)
        if k == 5:
            pixels = np.frombuffer(dataset.PixelData, "<i2").copy()
            pixels[3] = -2000
            dataset.PixelData = pixels.tobytes()

    series = write_ct_series(edit=edit)
    series.paths[6].unlink()
    volume = read_series(series.folder, repair={"missing_slices"})
    assert np.argwhere(volume.outside).tolist() == [[3, 0, 5], [3, 0, 6]]
    assert volume.hu[3, 0, 5] == -2000 - 1024
    assert volume.hu[3, 0, 6] == -1000


def test_too_many_missing_to_fill(write_ct_series):
    series = write_ct_series(shape=(4, 4, 40))
    for path in series.paths[2:38]:
        path.unlink()
    error = refused(series.folder, repair={"missing_slices"})
    assert error.reason == "missing_slices"
    assert "repair=" not in str(error)


@pytest.mark.parametrize("askew", TILT.values(), ids=TILT)
def test_tilt_is_straightened(write_ct_series, askew):
    series = write_ct_series(askew=askew, **WIDE)
    error = refused(series.folder)
    degrees = np.degrees(np.arctan(np.hypot(*askew)))
    assert error.reason == "gantry_tilt"
    assert f"{degrees:.2f} degrees" in str(error)
    assert "repair={'gantry_tilt'}" in str(error)
    volume = read_series(series.folder, repair={"gantry_tilt"})
    assert volume.sop_instance_uids == ()
    assert volume.interpolated_slices == ()
    assert names(volume) == ["gantry_tilt"]
    assert volume.spacing_mm == pytest.approx((1.1, 0.9, 1.5))
    assert series.marker_error_mm(volume.hu, volume.affine) < 0.1
    expected = interpolated(series, 1.5 * np.arange(20), askew, volume)
    assert volume.outside is not None
    assert_array_equal(volume.outside, np.isnan(expected))
    assert_allclose(volume.hu, np.where(volume.outside, -1000, expected), atol=0.51)
    # every corner of every image lies in the grid
    affine_inverse = np.linalg.inv(volume.affine)
    for k in range(20):
        for i, j in ((0, 0), (39, 0), (0, 43), (39, 43)):
            shift_mm = np.array([*askew, 1.0]) * 1.5 * k
            corner_lps = np.add((1.1 * i - 31.5, 0.9 * j + 17.25, -120.0), shift_mm)
            ijk = (affine_inverse @ [*(corner_lps * [-1, -1, 1]), 1])[:3]
            assert (ijk > -1e-6).all()
            assert (ijk < np.array(volume.shape) - 1 + 1e-6).all()


def test_tilt_of_an_oblique_series(write_ct_series):
    orientation_lps = (1, 0, 0, 0, np.cos(0.3), -np.sin(0.3))
    series = write_ct_series(orientation_lps=orientation_lps, askew=(0.0, np.tan(0.3)), **WIDE)
    volume = read_series(series.folder, repair={"gantry_tilt"})
    assert series.marker_error_mm(volume.hu, volume.affine) < 0.1
    truth = series.hu_on_grid(volume.shape, volume.affine)
    # at most an eighth of the curvature of a Gaussian of 4 mm over a pixel
    assert np.abs(volume.hu - truth)[~volume.outside].max() < 1400 / 8 * (0.9 / 4) ** 2 + 1


SPACINGS = {
    "halves": [1.25 * k if k < 12 else 15 + 2.5 * (k - 12) for k in range(20)],
    "growing": [1.2 * k + 0.012 * k * k for k in range(20)],
    "one off": [1.5 * k + 0.4 * (k == 6) for k in range(20)],
}


@pytest.mark.parametrize("askew", [(0.0, 0.0), (0.05, 0.2)], ids=["straight", "tilted"])
@pytest.mark.parametrize("along_mm", SPACINGS.values(), ids=SPACINGS)
def test_variable_spacing_is_resampled(write_ct_series, along_mm: list[float], askew):
    series = write_ct_series(along_mm=along_mm, askew=askew, **WIDE)
    repair = {"variable_spacing"}
    error = refused(series.folder)
    assert error.reason == "variable_spacing"
    if any(askew):
        assert "gantry_tilt" in str(error)
        assert refused(series.folder, repair=repair).reason == "gantry_tilt"
        repair.add("gantry_tilt")
    volume = read_series(series.folder, repair=repair)
    smallest_mm = np.diff(along_mm).min()
    assert smallest_mm * 0.9 < volume.spacing_mm[2] <= smallest_mm + 1e-6
    assert volume.sop_instance_uids == ()
    assert series.marker_error_mm(volume.hu, volume.affine) < 0.1
    expected = interpolated(series, along_mm, askew, volume)
    outside = np.isnan(expected)
    assert (volume.outside is None) == (not any(askew))
    if any(askew):
        assert_array_equal(volume.outside, outside)
    assert_allclose(volume.hu, np.where(outside, -1000, expected), atol=0.51)


def test_slices_far_from_every_image_are_flagged(write_ct_series):
    series = write_ct_series(along_mm=SPACINGS["halves"], **WIDE)
    volume = read_series(series.folder, repair={"variable_spacing"})
    assert volume.shape[2] == 12 + 16 - 1
    assert volume.interpolated_slices == tuple(range(13, 27, 2))


@pytest.mark.parametrize("askew", [(0.0, 0.25)])
def test_tilt_and_a_gap(write_ct_series, askew):
    series = write_ct_series(askew=askew, **WIDE)
    for k in (5, 6, 12):
        series.paths[k].unlink()
    error = refused(series.folder)
    assert error.reason == "missing_slices"
    assert "refused as well: gantry_tilt" in str(error)
    assert [problem.name for problem in error.problems] == ["missing_slices", "gantry_tilt"]
    volume = read_series(series.folder, repair={"missing_slices", "gantry_tilt"})
    assert volume.interpolated_slices == (5, 6, 12)
    assert series.marker_error_mm(volume.hu, volume.affine) < 0.1
    kept = [k for k in range(20) if k not in (5, 6, 12)]
    series.hu[:] = series.hu[:, :, [*kept, 0, 0, 0]]
    expected = interpolated(series, 1.5 * np.array(kept), askew, volume)
    assert_allclose(volume.hu, np.where(np.isnan(expected), -1000, expected), atol=0.51)


def test_a_hole_in_variable_spacing_is_named(write_ct_series):
    along_mm = [1.2 * k + 0.012 * k * k + 7 * (k > 14) for k in range(20)]
    series = write_ct_series(along_mm=along_mm, **WIDE)
    error = refused(series.folder, repair={"variable_spacing"})
    assert error.reason == "missing_slices"
    assert error.files == (series.paths[14], series.paths[15])
    volume = read_series(series.folder, repair={"variable_spacing", "missing_slices"})
    assert volume.interpolated_slices


def test_a_fractional_rescale_stays_fractional(write_ct_series):
    series = write_ct_series(rescale=lambda k: (0.37, -1000.25), **WIDE)
    series.paths[9].unlink()
    volume = read_series(series.folder, repair={"missing_slices"})
    assert volume.hu.dtype == np.float32
    assert_allclose(volume.hu[:, :, 9], (volume.hu[:, :, 8] + volume.hu[:, :, 10]) / 2, atol=1e-3)


def test_rounded_positions_are_noted(write_ct_series):
    def edit(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient = ["-31.5", "17.25", f"{-120 + 1.25 * k:.1f}"]

    series = write_ct_series(spacing_mm=(1.1, 0.9, 1.25), edit=edit)
    volume = read_series(series.folder)
    (problem,) = volume.problems
    assert (problem.name, problem.action) == ("position_rounding", Action.NOTE)
    assert "0.091 mm" in problem.message
    assert volume.sop_instance_uids == tuple(series.sop_instance_uids)
    assert refused(series.folder, refuse={"position_rounding"}).reason == "position_rounding"


def test_two_micrometres_are_not_worth_a_note(write_ct_series):
    along_mm = 1.5 * np.arange(12) + 0.002 * np.random.default_rng(3).uniform(-1, 1, 12)
    series = write_ct_series(along_mm=along_mm - along_mm[0])
    assert read_series(series.folder).problems == ()


def counting(keyword: str, count: int):
    def edit(dataset: Dataset, k: int) -> None:
        setattr(dataset, keyword, count)

    return edit


@pytest.mark.parametrize("keyword", ["ImagesInAcquisition", "NumberOfSeriesRelatedInstances"])
def test_missing_ends_by_the_headers_count(write_ct_series, keyword: str):
    series = write_ct_series(edit=counting(keyword, 15))
    error = refused(series.folder)
    assert error.reason == "missing_end_slices"
    assert "count 15 images in the series and 12 are there: 3 are missing" in str(error)
    volume = read_series(series.folder, repair={"missing_end_slices"})
    assert_array_equal(volume.hu, series.hu)
    assert names(volume) == ["missing_end_slices"]


@pytest.mark.parametrize("count", [12, 10, 24, 36, 0])
def test_counts_that_say_nothing_of_missing_ends(write_ct_series, count: int):
    series = write_ct_series(edit=counting("ImagesInAcquisition", count))
    assert read_series(series.folder).problems == ()


def test_a_gap_explains_the_count(write_ct_series):
    series = write_ct_series(edit=counting("ImagesInAcquisition", 12))
    series.paths[7].unlink()
    assert "missing_end_slices" not in str(refused(series.folder))
    series.paths[11].unlink()
    assert "missing_end_slices" in str(refused(series.folder))


@pytest.mark.parametrize("step", [1, -1])
def test_a_late_first_instance_is_noted(write_ct_series, step: int):
    def edit(dataset: Dataset, k: int) -> None:
        dataset.InstanceNumber = 50 + step * k

    series = write_ct_series(edit=edit)
    volume = read_series(series.folder)
    assert names(volume) == ["late_first_instance"]
    first, last = (50, 61) if step == 1 else (39, 50)
    assert f"from {first} to {last}" in volume.problems[0].message


def test_numbers_out_of_step_are_nobodys_business(write_ct_series):
    def edit(dataset: Dataset, k: int) -> None:
        dataset.InstanceNumber = 50 + 3 * k

    assert read_series(write_ct_series(edit=edit).folder).problems == ()


def test_broken_files_can_be_left_out(write_ct_series):
    series = write_ct_series()
    series.paths[0].write_bytes(series.paths[0].read_bytes()[:-1])
    series.paths[11].write_bytes(b"\0" * 128 + b"DICM")
    error = refused(series.folder)
    assert error.reason == "unreadable_file"
    assert error.files == (series.paths[11],)
    assert "refused as well: truncated_pixels" in str(error)
    volume = read_series(series.folder, repair={"unreadable_file", "truncated_pixels"})
    assert_array_equal(volume.hu, series.hu[:, :, 1:11])
    assert names(volume) == ["unreadable_file", "truncated_pixels"]
    assert all("left out" in problem.message for problem in volume.problems)
    # a hole is a gap like any other
    series.paths[5].write_bytes(series.paths[5].read_bytes()[:-1])
    error = refused(series.folder, repair={"unreadable_file", "truncated_pixels"})
    assert error.reason == "missing_slices"
