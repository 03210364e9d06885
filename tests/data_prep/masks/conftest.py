"""A scan, nodules in it, and DICOM masks of it made with highdicom and by hand."""

import functools
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
    """A synthetic DICOM series, read."""

    def __init__(self, series, repair: Sequence[str] = ()) -> None:
        self.paths = [path for path in series.paths if path.exists()]
        with warnings.catch_warnings(action="ignore"):  # air alone, no patient
            self.volume: CTVolume = read_series(series.folder, repair=repair)

    def images(self) -> list[Dataset]:
        return self.with_study([dcmread(path) for path in self.paths])

    @staticmethod
    def with_study(datasets: list[Dataset]) -> list[Dataset]:
        """Return images with what a segmentation asks for beside the geometry."""
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
def scan_class() -> type[Scan]:
    return Scan


@pytest.fixture
def write_seg(scan: Scan, write_seg_of) -> Callable[..., Path]:
    """Return `write_seg_of` for the one scan."""
    return functools.partial(write_seg_of, scan)


@pytest.fixture
def write_seg_of(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes masks (i, j, image) as segments of a DICOM segmentation."""

    def write(
        scan: Scan,
        masks: Sequence[np.ndarray],
        kind: str = "BINARY",
        edit: Callable[[Dataset], None] = lambda dataset: None,
        name: str = "seg.dcm",
        images: Sequence[Dataset] | None = None,
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
            scan.images() if images is None else images,
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
def write_rtstruct(scan: Scan, write_rtstruct_of) -> Callable[..., Path]:
    """Return `write_rtstruct_of` for the one scan."""
    return functools.partial(write_rtstruct_of, scan.volume)


@pytest.fixture
def write_rtstruct_of(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes contours, in LPS mm by region, as a structure set."""

    def write(
        volume: CTVolume,
        regions: Mapping[int, Sequence[np.ndarray]],
        series_uid: str | None = "that of the volume",
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
        dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", generate_uid()
        frame, study, series = Dataset(), Dataset(), Dataset()
        frame.FrameOfReferenceUID = volume.frame_uid
        if series_uid is not None:
            is_its_own = series_uid == "that of the volume"
            series.SeriesInstanceUID = volume.series_uid if is_its_own else series_uid
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
