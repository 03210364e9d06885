"""DICOM CT series: found, judged, placed in patient space and read, or refused by name."""

from data_prep.dicom.gate import read_files, read_series
from data_prep.dicom.reports import GridReport, PathReport, StackReport, check_path

__all__ = ["GridReport", "PathReport", "StackReport", "check_path", "read_files", "read_series"]
