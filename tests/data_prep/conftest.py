"""Synthetic DICOM CT series, placed by their own arithmetic."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

AXIAL_LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class SyntheticSeries:
    """What was written, and where its marker lies."""

    folder: Path
    paths: list[Path]  # in the order of k
    sop_instance_uids: list[str]
    series_uid: str
    hu: np.ndarray  # (i, j, k)
    marker_xyz_mm: np.ndarray  # RAS
    phantom: Callable[[np.ndarray], np.ndarray]  # RAS mm, shape (..., 3) -> HU before rounding

    def marker_error_mm(self, hu: np.ndarray, affine: np.ndarray) -> float:
        """Distance of the blob's centre of mass, over a background of air, from where it was."""
        weights = hu.astype(float) + 1000
        center_ijk = [(weights * index).sum() / weights.sum() for index in np.indices(hu.shape)]
        return float(np.linalg.norm((affine @ [*center_ijk, 1])[:3] - self.marker_xyz_mm))

    def hu_on_grid(self, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
        """What an ideal scanner would have found at every voxel of a grid."""
        return self.phantom(
            np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
        )


@dataclass(frozen=True)
class SeriesWriter:
    """Writes an axial-like series with a Gaussian blob of known centre.

    The place of each voxel is added up here from the standard's definition, one vector at a time,
    so that the code under test has an independent judge.
    """

    folder: Path

    def __call__(
        self,
        *,
        folder: Path | None = None,
        orientation_lps: Sequence[float] = AXIAL_LPS,
        shape: tuple[int, int, int] = (24, 20, 12),
        spacing_mm: tuple[float, float, float] = (1.1, 0.9, 1.5),
        first_position_lps: Sequence[float] = (-31.5, 17.25, -120.0),
        is_signed: bool = True,
        bits_stored: int = 16,
        along_mm: Sequence[float] | None = None,
        askew: tuple[float, float] = (0.0, 0.0),
        sigma_mm: float = 1.8,
        has_body: bool = False,
        rescale: Callable[[int], tuple[float, float]] = lambda k: (1.0, -1024.0),
        names: Sequence[str] | None = None,
        edit: Callable[[Dataset, int], None] = lambda dataset, k: None,
    ) -> SyntheticSeries:
        """Write a series.

        `along_mm` places each slice along the normal (regular by default); `askew` shifts the
        slices by so many mm along rows and columns for each mm along the normal, as a tilted
        gantry does. With `has_body`, there are soft tissue, fat and bone around the blob.
        """
        folder = folder or self.folder
        row, column = np.array(orientation_lps[:3]), np.array(orientation_lps[3:])
        normal = np.cross(row, column)
        if along_mm is None:
            along_mm = [k * spacing_mm[2] for k in range(shape[2])]
        drift = normal + askew[0] * row + askew[1] * column
        i, j, k = np.indices(shape)
        xyz_lps = (
            np.array(first_position_lps)
            + i[..., None] * spacing_mm[0] * row
            + j[..., None] * spacing_mm[1] * column
            + np.array(along_mm, float)[k][..., None] * drift
        )
        marker_lps = (
            np.array(first_position_lps)
            + (shape[0] * 0.47) * spacing_mm[0] * row
            + (shape[1] * 0.43) * spacing_mm[1] * column
            + 0.46 * shape[2] / max(1, shape[2] - 1) * along_mm[-1] * drift
        )
        marker_xyz_mm = marker_lps * [-1, -1, 1]

        def phantom(xyz_mm: np.ndarray) -> np.ndarray:
            distance_mm = np.linalg.norm(xyz_mm - marker_xyz_mm, axis=-1)
            blob = -1000 + 1400 * np.exp(-0.5 * (distance_mm / sigma_mm) ** 2)
            layers = np.select(
                [distance_mm < 9, distance_mm < 11, distance_mm < 13, distance_mm < 14],
                [blob, 40.0, -90.0, 700.0],
                -1000.0,
            )
            return layers if has_body else blob

        hu = np.rint(phantom(xyz_lps * [-1, -1, 1]))

        series_uid, frame_uid = generate_uid(), generate_uid()
        paths, sop_instance_uids = [], []
        for index in range(shape[2]):
            slope, intercept = rescale(index)
            stored = np.rint((hu[:, :, index].T - intercept) / slope).astype(np.int64)
            dataset = _image(stored, is_signed, bits_stored)
            dataset.SeriesInstanceUID = series_uid
            dataset.FrameOfReferenceUID = frame_uid
            dataset.InstanceNumber = index + 1
            dataset.ImagePositionPatient = _decimals(xyz_lps[0, 0, index])
            dataset.ImageOrientationPatient = _decimals(orientation_lps)
            dataset.PixelSpacing = _decimals([spacing_mm[1], spacing_mm[0]])
            dataset.RescaleSlope, dataset.RescaleIntercept = _decimals([slope, intercept])
            edit(dataset, index)
            path = folder / (names[index] if names else f"slice{index:03d}.dcm")
            path.parent.mkdir(parents=True, exist_ok=True)
            dataset.save_as(path, enforce_file_format=True)
            paths.append(path)
            sop_instance_uids.append(dataset.get("SOPInstanceUID", ""))
        return SyntheticSeries(
            folder, paths, sop_instance_uids, series_uid, hu, marker_xyz_mm, phantom
        )


def _decimals(values: Sequence[float]) -> list[str]:
    return [format_number_as_ds(float(value)) for value in values]


def _image(stored: np.ndarray, is_signed: bool, bits_stored: int) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = generate_uid()
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 16
    dataset.BitsStored = bits_stored
    dataset.HighBit = bits_stored - 1
    dataset.PixelRepresentation = int(is_signed)
    dataset.RescaleType = "HU"
    # the unused bits of a negative number are cleared, as some scanners do
    dataset.PixelData = (stored & (2**bits_stored - 1)).astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


@pytest.fixture
def write_ct_series(tmp_path: Path) -> SeriesWriter:
    """Return the function that writes a synthetic CT series, by default into a new folder."""
    return SeriesWriter(tmp_path / "series")
