"""Writing a case folder: NIfTI maps, an overview picture and a record."""

from cdam_med.export.case import write_case

__all__ = ["write_case"]
