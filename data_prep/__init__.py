"""CT series, nodules and labels: from hospital files to arrays in patient space, and to cohorts.

Everything here works without torch. Inside, arrays are indexed ``(i, j, k)`` and come with an
affine to RAS millimetres, as in nibabel; LPS appears only where DICOM and ITK's formats are read.
The public names are loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_prep.cohort.check import check_cohort
    from data_prep.cohort.folder import Cohort, read_cohort
    from data_prep.cohort.select import PROTOCOLS, Protocol
    from data_prep.crop import Crop, crop_nodule
    from data_prep.dicom import read_series
    from data_prep.errors import AnnotationError, CropError, ImageError, InputError, OutputError
    from data_prep.formats import read_volume
    from data_prep.lidc import read_lidc_xml
    from data_prep.masks import nodules_from_masks
    from data_prep.nodule_table import read_nodule_table
    from data_prep.nodules import Nodule, Reader, nodule_at
    from data_prep.prepare.lidc import lidc_tasks
    from data_prep.prepare.run import prepare_cohort
    from data_prep.prepare.series_tasks import series_tasks
    from data_prep.problems import PROBLEMS, Policy, Problem, SeriesError, SeriesWarning
    from data_prep.reports import check_path
    from data_prep.volume import CTVolume

__all__ = [
    "PROBLEMS",
    "PROTOCOLS",
    "AnnotationError",
    "CTVolume",
    "Cohort",
    "Crop",
    "CropError",
    "ImageError",
    "InputError",
    "Nodule",
    "OutputError",
    "Policy",
    "Problem",
    "Protocol",
    "Reader",
    "SeriesError",
    "SeriesWarning",
    "check_cohort",
    "check_path",
    "crop_nodule",
    "lidc_tasks",
    "nodule_at",
    "nodules_from_masks",
    "prepare_cohort",
    "read_cohort",
    "read_lidc_xml",
    "read_nodule_table",
    "read_series",
    "read_volume",
    "series_tasks",
]

_HOME = {
    "PROBLEMS": "data_prep.problems",
    "PROTOCOLS": "data_prep.cohort.select",
    "AnnotationError": "data_prep.errors",
    "CTVolume": "data_prep.volume",
    "Cohort": "data_prep.cohort.folder",
    "Crop": "data_prep.crop",
    "CropError": "data_prep.errors",
    "ImageError": "data_prep.errors",
    "InputError": "data_prep.errors",
    "Nodule": "data_prep.nodules",
    "OutputError": "data_prep.errors",
    "Policy": "data_prep.problems",
    "Problem": "data_prep.problems",
    "Protocol": "data_prep.cohort.select",
    "Reader": "data_prep.nodules",
    "SeriesError": "data_prep.problems",
    "SeriesWarning": "data_prep.problems",
    "check_cohort": "data_prep.cohort.check",
    "check_path": "data_prep.reports",
    "crop_nodule": "data_prep.crop",
    "lidc_tasks": "data_prep.prepare.lidc",
    "nodule_at": "data_prep.nodules",
    "nodules_from_masks": "data_prep.masks",
    "prepare_cohort": "data_prep.prepare.run",
    "read_cohort": "data_prep.cohort.folder",
    "read_lidc_xml": "data_prep.lidc",
    "read_nodule_table": "data_prep.nodule_table",
    "read_series": "data_prep.dicom",
    "read_volume": "data_prep.formats",
    "series_tasks": "data_prep.prepare.series_tasks",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
