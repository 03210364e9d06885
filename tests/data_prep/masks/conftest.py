"""A scan, nodules in it, and DICOM masks of it made with highdicom and by hand."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from data_prep import CTVolume, read_series

OBLIQUE_LPS = (0.9, 0.43588989435406733, 0.0, -0.43588989435406733, 0.9, 0.0)


class Scan:
    """A synthetic DICOM series, read, with two blobs as nodules."""

    def __init__(self, series) -> None:
        self.paths = series.paths
        with warnings.catch_warnings(action="ignore"):  # air alone, no patient
            self.volume: CTVolume = read_series(series.folder)

    def images(self) -> list[Dataset]:
        datasets = [dcmread(path) for path in self.paths]
        for dataset in datasets:
            dataset.StudyInstanceUID = datasets[0].StudyInstanceUID
            dataset.SliceThickness = "1.5"
            dataset.PatientID, dataset.PatientName = "P1", "Name^Of"
            dataset.PatientBirthDate = dataset.PatientSex = dataset.StudyID = ""
            dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = ""
            dataset.ReferringPhysicianName = ""
        return datasets

    def ball(self, center_ijk: Sequence[float], radius_mm: float) -> np.ndarray:
        index = np.moveaxis(np.indices(self.volume.shape), 0, -1) - np.array(center_ijk)
        return np.linalg.norm(index * self.volume.spacing_mm, axis=-1) <= radius_mm

    def lps(self, index: np.ndarray) -> np.ndarray:
        ras = index @ self.volume.affine[:3, :3].T + self.volume.affine[:3, 3]
        return ras * [-1, -1, 1]


@pytest.fixture
def scan(write_ct_series) -> Scan:
    return Scan(write_ct_series(orientation_lps=OBLIQUE_LPS, shape=(40, 36, 14)))


@pytest.fixture
def write_seg(scan: Scan, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes masks (i, j, k) as the segments of a DICOM segmentation."""

    def write(
        masks: Sequence[np.ndarray],
        kind: str = "BINARY",
        edit: Callable[[Dataset], None] = lambda dataset: None,
        name: str = "seg.dcm",
    ) -> Path:
        # highdicom takes (slice, row, column, segment)
        frames = np.stack([mask.transpose(2, 1, 0) for mask in masks], axis=-1)
        if kind == "LABELMAP":
            frames = (frames * np.arange(1, len(masks) + 1)).max(axis=-1).astype(np.uint8)
        descriptions = [
            hd.seg.SegmentDescription(
                number,
                f"nodule {number}",
                codes.SCT.MorphologicallyAbnormalStructure,
                codes.SCT.Nodule,
                hd.seg.SegmentAlgorithmTypeValues.MANUAL,
            )
            for number in range(1, len(masks) + 1)
        ]
        segmentation = hd.seg.Segmentation(
            scan.images(),
            frames,
            kind,
            descriptions,
            series_instance_uid=generate_uid(),
            series_number=2,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="none",
            manufacturer_model_name="none",
            software_versions="0",
            device_serial_number="0",
        )
        edit(segmentation)
        path = tmp_path / name
        segmentation.save_as(path)
        return path

    return write


@pytest.fixture
def write_rtstruct(scan: Scan, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes contours, in LPS mm by region, as a structure set."""

    def write(
        regions: Mapping[int, Sequence[np.ndarray]],
        series_uid: str | None = scan.volume.series_uid,
        edit: Callable[[Dataset], None] = lambda dataset: None,
        kind: str = "CLOSED_PLANAR",
        name: str = "rt.dcm",
    ) -> Path:
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
        dataset.SOPInstanceUID = generate_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.Modality = "RTSTRUCT"
        frame, study, series = Dataset(), Dataset(), Dataset()
        frame.FrameOfReferenceUID = generate_uid()
        if series_uid is not None:
            series.SeriesInstanceUID = series_uid
            study.RTReferencedSeriesSequence = [series]
            frame.RTReferencedStudySequence = [study]
        dataset.ReferencedFrameOfReferenceSequence = [frame]
        dataset.ROIContourSequence = []
        for number, contours in regions.items():
            item = Dataset()
            item.ReferencedROINumber = number
            item.ContourSequence = []
            for points_lps in contours:
                contour = Dataset()
                contour.ContourGeometricType = kind
                contour.NumberOfContourPoints = len(points_lps)
                contour.ContourData = [f"{value:.6f}" for value in np.ravel(points_lps)]
                item.ContourSequence.append(contour)
            dataset.ROIContourSequence.append(item)
        edit(dataset)
        path = tmp_path / name
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write
