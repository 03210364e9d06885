"""Writing a case folder: NIfTI maps, an overview picture and a record."""

from cdam_med.export.case import case_record, map_name, write_case
from cdam_med.export.content import (
    CaseContent,
    MethodRecord,
    ModelRecord,
    NoduleRecord,
    SourceRecord,
    TargetResult,
)
from cdam_med.export.figures import overview_figure, write_overview

__all__ = [
    "CaseContent",
    "MethodRecord",
    "ModelRecord",
    "NoduleRecord",
    "SourceRecord",
    "TargetResult",
    "case_record",
    "map_name",
    "overview_figure",
    "write_case",
    "write_overview",
]
