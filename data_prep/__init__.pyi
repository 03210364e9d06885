from .cohort.check import check_cohort
from .cohort.folder import Cohort, read_cohort
from .cohort.select import PROTOCOLS, Protocol
from .crop import Crop, crop_nodule
from .dicom import read_series
from .errors import AnnotationError, CropError, ImageError, InputError, OutputError
from .formats import read_volume
from .lidc import read_lidc_xml
from .masks import nodules_from_masks
from .nodule_table import read_nodule_table
from .nodules import Nodule, Reader, nodule_at
from .prepare.lidc import lidc_tasks
from .prepare.run import prepare_cohort
from .prepare.series_tasks import series_tasks
from .problems import PROBLEMS, Policy, Problem, SeriesError, SeriesWarning
from .reports import check_path
from .volume import CTVolume

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
