"""What 3D Slicer and TotalSegmentator call the labels of an image, in the image's own header."""

import gzip
import re
from collections.abc import Mapping
from pathlib import Path

from data_prep.masks.region_names import says_nodule
from data_prep.masks.regions import MaskRegion, is_no_lesion_code, region_name
from data_prep.text import printable

_MAX_HEADER_BYTES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
# 3D Slicer: "Segment0_Name:=nodule", "Segment0_LabelValue:=1", "Segment0_Tags:=..."
_SLICER = re.compile(r"^Segment(\d+)_(Name|LabelValue|Tags):=(.*)$", re.MULTILINE)
_SLICER_TYPE = re.compile(
    r"TerminologyEntry:[^~|]*~[^^~|]*\^([^^~|]*)\^([^^~|]*)~[^^~|]*\^([^^~|]*)\^([^^~|]*)"
)
# TotalSegmentator: a label table of Connectome Workbench as extension of the NIfTI header
_TABLE = re.compile(r'<Label Key="(\d{1,5})"[^>]{0,200}>\s*<!\[CDATA\[(.{0,200}?)\]\]>', re.DOTALL)


def read_label_names(path: Path) -> Mapping[int, MaskRegion]:
    """Return what an image that can be read says of its labels, without their numbers as label.

    Empty where it says nothing.
    """
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER_BYTES)
    if head.startswith(b"NRRD"):
        return _of_slicer(head.split(b"\n\n")[0].decode("utf-8", "replace"), path.name)
    if head.startswith(_GZIP_MAGIC):
        with gzip.open(path) as stream:
            head = stream.read(_MAX_HEADER_BYTES)
    table = head.partition(b"</LabelTable>")
    text = table[0].decode("utf-8", "replace") if table[1] else ""
    return {
        int(number): MaskRegion(printable(path.name), name=region_name(name))
        for number, name in _TABLE.findall(text)
    }


def _of_slicer(header: str, file: str) -> dict[int, MaskRegion]:
    fields: dict[str, dict[str, str]] = {}
    for segment, key, value in _SLICER.findall(header.replace("\r", "")):
        fields.setdefault(segment, {})[key] = value.strip()
    regions = {}
    for segment in fields.values():
        if segment.get("LabelValue", "").isdecimal():
            category, category_meaning, code, meaning = (
                match.groups()
                if (match := _SLICER_TYPE.search(segment.get("Tags", "")))
                else [""] * 4
            )
            kind = ", ".join(region_name(text) for text in (category_meaning, meaning) if text)
            # whatever isn't specified is tissue, of the type tissue
            is_no_lesion = is_no_lesion_code(category) and category != code
            regions[int(segment["LabelValue"])] = MaskRegion(
                printable(file),
                name=region_name(segment.get("Name", "")),
                kind=kind,
                is_no_lesion=is_no_lesion and not says_nodule(meaning),
            )
    return regions
