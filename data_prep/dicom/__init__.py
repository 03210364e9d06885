"""DICOM CT series: found, judged, placed in patient space and read, or refused by name."""

from data_prep.dicom.reader import read_files, read_series

__all__ = ["read_files", "read_series"]
