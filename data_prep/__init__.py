"""CT series, nodules and labels: from hospital files to arrays in patient space.

Everything here works without torch. Inside, arrays are indexed ``(i, j, k)`` and come with an
affine to RAS millimetres, as in nibabel; LPS appears only where DICOM is read.
"""

from data_prep.crop import Crop, crop_nodule
from data_prep.dicom import read_series
from data_prep.errors import AnnotationError, CropError, InputError, SeriesError
from data_prep.lidc import read_lidc_xml
from data_prep.nodules import Nodule, Reader, nodule_at
from data_prep.volume import CTVolume

__all__ = [
    "AnnotationError",
    "CTVolume",
    "Crop",
    "CropError",
    "InputError",
    "Nodule",
    "Reader",
    "SeriesError",
    "crop_nodule",
    "nodule_at",
    "read_lidc_xml",
    "read_series",
]
