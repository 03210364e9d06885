"""CT series with one defect each, and a marker at a known place: what readers are compared on.

The scene is a formula over patient space: a cylinder of soft tissue in air, a lung in it, a
Gaussian blob as marker in the lung. Every slice samples the formula at its own voxels' places
(PS3.3 C.7.6.2.1.1), so that whatever is done to the stack, the truth stays known.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

AIR_HU, LUNG_HU, TISSUE_HU = -1000.0, -850.0, 40.0
MARKER_PEAK_HU, MARKER_SIGMA_MM = 750.0, 4.0
CENTER_LPS = np.array([12.3, -8.7, 41.9])
MARKER_LPS = CENTER_LPS + np.array([6.1, -4.2, 3.3])
FIELD_RADIUS_MM = 44.0
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
CORONAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))


_numbers = itertools.count()


def new_uid() -> str:
    """Return the next UID, the same in every run: some readers choose a series by it."""
    return str(generate_uid(entropy_srcs=["reader comparison", str(next(_numbers))]))


STUDY_UID = new_uid()


def restart_uids() -> None:
    """Begin anew, so that a case has the same UIDs whichever cases went before."""
    global _numbers
    _numbers = itertools.count(1)


@dataclass(frozen=True)
class Scene:
    """What is scanned; a second one tells time points and series apart."""

    marker_lps: np.ndarray = field(default_factory=lambda: MARKER_LPS)
    tissue_hu: float = TISSUE_HU

    def hu(self, xyz_lps: np.ndarray) -> np.ndarray:
        radius_mm = np.hypot(*np.moveaxis(xyz_lps[..., :2] - CENTER_LPS[:2], -1, 0))
        hu = np.where(radius_mm < 40.0, self.tissue_hu, AIR_HU)
        hu = np.where(radius_mm < 28.0, LUNG_HU, hu)
        away_mm = np.linalg.norm(xyz_lps - self.marker_lps, axis=-1)
        blob = np.exp(-0.5 * (away_mm / MARKER_SIGMA_MM) ** 2)
        return np.rint(hu + (MARKER_PEAK_HU - LUNG_HU) * blob)

    @property
    def marker_ras(self) -> np.ndarray:
        return self.marker_lps * [-1, -1, 1]


OTHER = Scene(MARKER_LPS + np.array([-9.0, 7.0, -6.0]))


@dataclass(frozen=True)
class Stack:
    """Where the slices lie, and how their numbers are stored."""

    scene: Scene = field(default_factory=Scene)
    axes_lps: tuple[Sequence[float], Sequence[float]] = AXIAL
    shape: tuple[int, int] = (64, 60)  # columns, rows
    spacing_mm: tuple[float, float] = (1.5, 1.5)
    offsets_mm: Sequence[float] = tuple(np.arange(-39.0, 40.0, 2.0))
    step_lps: Sequence[float] | None = None  # of one millimetre; None = along the normal
    is_signed: bool = True
    rescale: Callable[[int], tuple[float, float]] = lambda k: (1.0, -1024.0)
    padding_value: int | None = None  # stored, outside of the field of view

    def origins_lps(self) -> np.ndarray:
        row, column = map(np.array, self.axes_lps)
        step = np.cross(row, column) if self.step_lps is None else np.array(self.step_lps)
        corner = sum(
            -0.5 * (n - 1) * mm * axis
            for n, mm, axis in zip(self.shape, self.spacing_mm, (row, column), strict=True)
        )
        return CENTER_LPS + corner + np.multiply.outer(np.array(self.offsets_mm), step)

    def stored(self, k: int, origin_lps: np.ndarray) -> np.ndarray:
        """Return a slice's stored values, (rows, columns)."""
        j, i = np.indices(self.shape[::-1])
        row, column = map(np.array, self.axes_lps)
        xyz_lps = (
            origin_lps
            + i[..., None] * self.spacing_mm[0] * row
            + j[..., None] * self.spacing_mm[1] * column
        )
        slope, intercept = self.rescale(k)
        stored = np.rint((self.scene.hu(xyz_lps) - intercept) / slope).astype(np.int64)
        if self.padding_value is not None:
            radius_mm = np.linalg.norm((xyz_lps - CENTER_LPS)[..., :2], axis=-1)
            stored[radius_mm > FIELD_RADIUS_MM] = self.padding_value
        return stored

    def datasets(self, **attributes: Any) -> list[Dataset]:
        """Return one dataset a slice; attributes are the same in all."""
        common = {"SeriesInstanceUID": new_uid(), "FrameOfReferenceUID": new_uid()}
        datasets = []
        for k, origin_lps in enumerate(self.origins_lps()):
            dataset = image(self.stored(k, origin_lps), self.is_signed)
            dataset.InstanceNumber = k + 1
            dataset.ImagePositionPatient = decimals(origin_lps)
            dataset.ImageOrientationPatient = decimals(np.ravel(self.axes_lps))
            dataset.PixelSpacing = decimals(self.spacing_mm[::-1])
            dataset.RescaleSlope, dataset.RescaleIntercept = decimals(self.rescale(k))
            dataset.RescaleType = "HU"
            if self.padding_value is not None:
                dataset.add_new("PixelPaddingValue", "SS" if self.is_signed else "US", 0)
                dataset.PixelPaddingValue = self.padding_value
            for name, value in (common | attributes).items():
                setattr(dataset, name, value)
            datasets.append(dataset)
        return datasets


def decimals(values: Sequence[float] | np.ndarray) -> list[str]:
    return [format_number_as_ds(float(value)) for value in values]


def image(stored: np.ndarray, is_signed: bool) -> Dataset:
    """Return a CT image without a place."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = new_uid()
    dataset.StudyInstanceUID = STUDY_UID
    dataset.PatientID, dataset.PatientName = "PHANTOM", "Phantom"
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SeriesDate = "20200101"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(is_signed)
    dataset.PixelData = stored.astype("<i2" if is_signed else "<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


# what an enhanced image says in its functional groups
PER_FRAME = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
)


def write(datasets: Sequence[Dataset], folder: Path, prefix: str = "slice") -> list[Path]:
    """Write each dataset as a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{prefix}{k:03d}.dcm" for k in range(len(datasets))]
    for path, dataset in zip(paths, datasets, strict=True):
        dataset.save_as(path, enforce_file_format=True)
    return paths


def localizer() -> Dataset:
    """Return a scout view from the front."""
    front = Stack(axes_lps=CORONAL, shape=(96, 80), offsets_mm=(0.0,))
    (dataset,) = front.datasets(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    return dataset


def screenshot() -> Dataset:
    """Return a secondary capture: no place, no Hounsfield units."""
    dataset = image(np.full((60, 64), 100), is_signed=False)
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.ConversionType = "WSD"
    return dataset


def multi_frame(stack: Stack) -> Dataset:
    """Return the stack as one enhanced multi-frame image (PS3.3 A.38)."""
    parts = stack.datasets()
    dataset = deepcopy(parts[0])
    for name in PER_FRAME:
        delattr(dataset, name)
    dataset.SOPClassUID = EnhancedCTImageStorage
    dataset.file_meta = parts[0].file_meta
    dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    dataset.NumberOfFrames = len(parts)
    dataset.PixelData = b"".join(part.PixelData for part in parts)
    dataset["PixelData"].VR = "OW"
    measures = _item(PixelSpacing=parts[0].PixelSpacing, SliceThickness="2.0")
    orientation = _item(ImageOrientationPatient=parts[0].ImageOrientationPatient)
    frame_type = _item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])
    dataset.SharedFunctionalGroupsSequence = [
        _item(
            PixelMeasuresSequence=[measures],
            PlaneOrientationSequence=[orientation],
            CTImageFrameTypeSequence=[frame_type],
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        _item(
            PlanePositionSequence=[_item(ImagePositionPatient=part.ImagePositionPatient)],
            FrameContentSequence=[
                _item(StackID="1", InStackPositionNumber=k + 1, DimensionIndexValues=[1, k + 1])
            ],
            PixelValueTransformationSequence=[
                _item(
                    RescaleSlope=part.RescaleSlope,
                    RescaleIntercept=part.RescaleIntercept,
                    RescaleType="HU",
                )
            ],
        )
        for k, part in enumerate(parts)
    ]
    return dataset


def _item(**attributes: Any) -> Dataset:
    item = Dataset()
    for name, value in attributes.items():
        setattr(item, name, value)
    return item


def change_syntax(paths: Sequence[Path], uid: str) -> None:
    """Write files anew in another transfer syntax, without loss."""
    import gdcm

    for path in paths:
        if uid == "1.2.840.10008.1.2.4.70":  # JPEG Lossless: pydicom has no encoder
            reader = gdcm.ImageReader()
            reader.SetFileName(os.fspath(path))
            reader.Read()
            change = gdcm.ImageChangeTransferSyntax()
            change.SetTransferSyntax(
                gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1)
            )
            change.SetInput(reader.GetImage())
            change.Change()
            writer = gdcm.ImageWriter()
            writer.SetFileName(os.fspath(path))
            writer.SetFile(reader.GetFile())
            writer.SetImage(change.GetOutput())
            writer.Write()
            continue
        from pydicom import dcmread

        dataset = dcmread(path)
        if uid == "1.2.840.10008.1.2.1.99":
            dataset.file_meta.TransferSyntaxUID = uid
        else:
            dataset.compress(uid, generate_instance_uid=False)
        dataset.save_as(path, enforce_file_format=True)


def rotated(degrees_x: float, degrees_z: float) -> tuple[Sequence[float], Sequence[float]]:
    """Return the axial plane's axes, turned about x and then about z."""
    (cx, sx), (cz, sz) = ((np.cos(a), np.sin(a)) for a in np.radians([degrees_x, degrees_z]))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    turned = about_z @ about_x
    return tuple(turned[:, 0]), tuple(turned[:, 1])


def without(stack: Stack, *indices: int) -> Stack:
    """Return the stack without some of its slices."""
    kept = [mm for k, mm in enumerate(stack.offsets_mm) if k not in indices]
    return replace(stack, offsets_mm=tuple(kept))
