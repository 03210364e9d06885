"""Make the CT extract that ships with the package from the archive's series.

    python tests/tools/make_demo_extract.py SERIES_DIR XML OUT_DIR

Keeps the slices around the one nodule in the series, losslessly compressed (JPEG 2000) and
otherwise as in the archive, and the part of the readers' XML that lies on them.
"""

import sys
from pathlib import Path
from xml.etree.ElementTree import register_namespace

import pydicom
from defusedxml import ElementTree
from pydicom.uid import JPEG2000Lossless

from data_prep import read_lidc_xml, read_series
from data_prep.geometry import apply_affine, inverse_affine

N_SLICES = 24
"""60 mm at 2.5 mm: the model's field of view of 48 mm and some slices on each side."""


def main(series_dir: Path, xml: Path, out: Path) -> None:
    volume = read_series(series_dir)
    (nodule,) = read_lidc_xml(xml, volume)
    middle = apply_affine(inverse_affine(volume.affine), nodule.center_xyz_mm)[2]
    first = round(middle) - N_SLICES // 2
    kept = volume.sop_instance_uids[first : first + N_SLICES]
    (out / "series").mkdir(parents=True)
    for path in sorted(series_dir.rglob("*.dcm")):
        dataset = pydicom.dcmread(path)
        if dataset.SOPInstanceUID in kept:
            # same voxels, so the same instance: the annotations refer to its UID
            dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
            number = kept.index(dataset.SOPInstanceUID) + 1
            dataset.save_as(out / "series" / f"{number:02d}.dcm")
    write_annotations(xml, out / "annotations.xml", kept)


def write_annotations(xml: Path, out: Path, kept: tuple[str, ...]) -> None:
    """Write the XML without what lies on other slices, and without non-nodules."""
    register_namespace("", "http://www.nih.gov")
    tree = ElementTree.parse(xml)
    root = tree.getroot()
    space = root.tag[: root.tag.index("}") + 1]
    for session in root.iter(f"{space}readingSession"):
        for child in list(session):
            if child.tag == f"{space}nonNodule":
                session.remove(child)
            if child.tag != f"{space}unblindedReadNodule":
                continue
            on_slices = [uid.text.strip() in kept for uid in child.iter(f"{space}imageSOP_UID")]
            if not any(on_slices):
                session.remove(child)
            elif not all(on_slices):
                raise ValueError("a nodule reaches beyond the extract: keep more slices")
    tree.write(out, encoding="UTF-8", xml_declaration=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
