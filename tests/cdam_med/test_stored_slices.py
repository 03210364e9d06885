"""A nodule prepared from its DICOM looks to the model as its stored training slice does."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cdam_med.data.nodule_slices import read_nodule_slices
from cdam_med.data.transforms import slices_to_images
from cdam_med.models import load_model
from cdam_med.targets import TARGETS
from data_prep import CTVolume, Nodule, crop_nodule, read_series
from data_prep.geometry import apply_affine

PATIENT = "LIDC-IDRI-0003"
STORED_PX, STRETCH_PX = 96, 128


@dataclass
class StoredSlice:
    """Where the middle stored slice of a nodule lies in its series."""

    index: int
    values: np.ndarray
    first_ij: tuple[int, int]
    k: int


@pytest.fixture(scope="module")
def volume(shared_data: Path) -> CTVolume:
    return read_series(shared_data / "lidc" / PATIENT)


@pytest.fixture(scope="module")
def demo_model():
    return load_model("demo")


@pytest.fixture(scope="module")
def nodules(shared_data: Path, demo_model):
    return read_nodule_slices(shared_data / "lidc_nodules", demo_model.config.input)


@pytest.fixture(scope="module")
def stored(shared_data: Path, volume: CTVolume, nodules) -> list[StoredSlice]:
    """Find each stored slice in the series by its pattern, knowing nothing of annotations."""
    with np.load(shared_data / "lidc_nodules" / "slices.npz") as archive:
        images = archive["image"]
    found = []
    for index, patient in enumerate(nodules.patient_ids):
        if patient == PATIENT:
            values = images[index, nodules.n_slices[index] // 2].astype(np.float64)
            found.append(StoredSlice(index, values, *_find(values, volume.hu)))
    return found


def _find(values: np.ndarray, hu: np.ndarray) -> tuple[tuple[int, int], int]:
    """Return the place with the highest normalised cross-correlation (by FFT, all slices)."""
    from scipy.signal import fftconvolve

    template = values.T - values.mean()
    box = np.ones((STORED_PX, STORED_PX))
    best, place = -np.inf, ((0, 0), 0)
    for k in range(hu.shape[2]):
        plane = np.clip(hu[:, :, k].astype(np.float64), -1100, 2000) + 500
        numerator = fftconvolve(plane, template[::-1, ::-1], mode="valid")
        sums, squares = (fftconvolve(part, box, mode="valid") for part in (plane, plane**2))
        variance = np.maximum(squares - sums**2 / box.size, 1.0)
        correlation = numerator / np.sqrt(variance * (template**2).sum())
        i, j = np.unravel_index(correlation.argmax(), correlation.shape)
        if correlation[i, j] > best:
            best, place = correlation[i, j], ((int(i), int(j)), k)
    assert best > 0.999
    return place


@pytest.mark.shared_data
def test_stored_slices_are_the_series_stretched(volume, stored):
    margin = (STRETCH_PX - STORED_PX) // 2
    for slice_ in stored:
        i, j = slice_.first_ij
        plane = volume.hu[:, :, slice_.k]
        wide = plane[i - margin : i + STORED_PX + margin, j - margin : j + STORED_PX + margin]
        low, high = float(wide.min()), float(wide.max())
        hu = plane[i : i + STORED_PX, j : j + STORED_PX].T.astype(np.float64)
        np.testing.assert_array_equal(np.round((hu - low) / (high - low) * 255), slice_.values)


@pytest.mark.shared_data
def test_image_and_prediction_from_dicom_are_those_of_the_stored_slice(
    volume, stored, nodules, demo_model
):
    spec = demo_model.config.input
    for slice_ in stored:
        middle = np.array([*(np.array(slice_.first_ij) + (STORED_PX - 1) / 2), slice_.k])
        center_xyz_mm = apply_affine(volume.affine, middle)
        # an even number of slices: put the lower of the two middle ones on the stored plane
        center_xyz_mm[2] += spec.spacing_mm / 2
        crop = crop_nodule(
            volume,
            Nodule("stored_slice", center_xyz_mm),
            size_mm=spec.field_of_view_mm,
            spacing_mm=spec.spacing_mm,
        )
        middle_k = crop.hu.shape[2] // 2 - 1
        # rows run to the back and columns to the patient's left, as in the stored slices
        shown = np.ascontiguousarray(crop.hu[::-1, ::-1, middle_k].T)
        from_dicom = slices_to_images(torch.from_numpy(shown)[None], spec)
        from_stored = slices_to_images(
            torch.from_numpy(nodules.middle_slices()[slice_.index])[None], spec
        )
        # the stored values are rounded to 255 steps before the stretch of the smaller square
        assert (from_dicom - from_stored).abs().max() < 1.5 / 100
        with torch.inference_mode():
            difference = (demo_model(from_dicom) - demo_model(from_stored)).abs()[0]
        tolerance = {"logit": 0.05, "mm": 0.2}
        for target, error in zip(TARGETS, difference.tolist(), strict=True):
            assert error < tolerance.get(target.unit, 0.05), (target.name, error)
