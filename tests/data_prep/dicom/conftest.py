"""Enhanced multi-frame CT made by hand, and what the tests of single files share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid


@dataclass(frozen=True)
class EnhancedObject:
    """What was written, by frame."""

    path: Path
    dataset: Dataset
    hu: np.ndarray  # (frame, row, column)
    positions_lps: np.ndarray  # (frame, 3)
    marker_lps: np.ndarray


def _item(**attributes) -> list[Dataset]:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return [dataset]


def _frame_groups(position_lps, slope: float, intercept: float, number: int) -> Dataset:
    groups = Dataset()
    groups.PlanePositionSequence = _item(ImagePositionPatient=[float(x) for x in position_lps])
    groups.PixelValueTransformationSequence = _item(
        RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU"
    )
    groups.FrameContentSequence = _item(
        FrameAcquisitionNumber=2,
        StackID="one",
        InStackPositionNumber=number + 1,
        DimensionIndexValues=[number + 1],
        TemporalPositionIndex=1,
    )
    groups.CTImageFrameTypeSequence = _item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])
    return groups


def _shared_groups(spacing_mm: Sequence[float]) -> Dataset:
    groups = Dataset()
    groups.PixelMeasuresSequence = _item(
        PixelSpacing=[spacing_mm[1], spacing_mm[0]], SliceThickness=9.5
    )
    groups.PlaneOrientationSequence = _item(ImageOrientationPatient=[1, 0, 0, 0, -1, 0])
    groups.CTReconstructionSequence = _item(ConvolutionKernel="B70f", ReconstructionDiameter=350)
    return groups


@pytest.fixture
def write_enhanced_ct(tmp_path: Path) -> Callable[..., EnhancedObject]:
    """Return the function that writes an enhanced CT.

    Its rows run to the left and its columns to the front, so its normal points to the feet. The
    frames lie in `order` of their place along the normal; each has a rescale of its own. A
    Gaussian blob lies at `marker_lps`; every place is added up from the standard's definition.
    """

    def write(
        path: Path | None = None,
        *,
        order: Sequence[int] = (3, 0, 6, 1, 5, 2, 4),
        edit: Callable[[Dataset], None] = lambda dataset: None,
        spacing_mm: Sequence[float] = (1.2, 0.8, 2.0),
        is_signed: bool = False,
    ) -> EnhancedObject:
        rows, columns = 64, 72  # openjpeg encodes nothing smaller
        first_lps = np.array([-20.0, 31.0, 100.0])
        marker_lps = first_lps + np.array([44.9, -21.1, -6.3])
        j, i = np.indices((rows, columns))
        hu, stored, groups, positions = [], [], [], []
        for k in order:
            position = first_lps - np.array([0, 0, spacing_mm[2] * k])
            x, y, z = (
                position[0] + i * spacing_mm[0] - marker_lps[0],
                position[1] - j * spacing_mm[1] - marker_lps[1],
                position[2] - marker_lps[2],
            )
            values = -1000 + 1400 * np.exp(-0.5 * (x * x + y * y + z * z) / 2.2**2)
            slope, intercept = 1.0 + k % 2, 0.0 if is_signed else -1024.0 - 2 * k
            stored.append(np.rint((values - intercept) / slope))
            hu.append(stored[-1] * slope + intercept)
            positions.append(position)
            groups.append(_frame_groups(position, slope, intercept, k))
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = EnhancedCTImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = generate_uid(), generate_uid()
        dataset.FrameOfReferenceUID = generate_uid()
        dataset.Modality, dataset.PatientID = "CT", "E1"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
        dataset.NumberOfFrames, dataset.Rows, dataset.Columns = len(order), rows, columns
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelRepresentation = int(is_signed)
        dataset.SharedFunctionalGroupsSequence = [_shared_groups(spacing_mm)]
        dataset.PerFrameFunctionalGroupsSequence = groups
        dataset.PixelData = np.array(stored).astype("<i2" if is_signed else "<u2").tobytes()
        dataset["PixelData"].VR = "OW"
        edit(dataset)
        path = path or tmp_path / "enhanced.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
        return EnhancedObject(path, dataset, np.array(hu), np.array(positions), marker_lps)

    return write
